"""How long jobs are kept, and how they and their pictures go: a tombstone stays, so that a link says what became of it.

The row first, then the files: whatever dies between the two leaves a tombstone that still names its files, and the
next round removes them. Everything runs in bites, each its own transaction, and can be interrupted and repeated.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import structlog
from sqlalchemy import ColumnElement, Index, and_, case, delete, func, literal, select, text, update

from safelight import artifacts as results
from safelight.artifacts import Artifact, ArtifactStore
from safelight.db import Database, Instant, Tx, db_now
from safelight.errors import SafelightError, Unavailable
from safelight.jobs.batch import forget_batches, lock_batches
from safelight.jobs.follower import Follower
from safelight.jobs.idempotency import purge_idempotency_keys
from safelight.jobs.job import TERMINAL, Job, JobNotFound, attempts, jobs
from safelight.jobs.lookup import kept_attempts
from safelight.jobs.service import get

BITE_JOBS = 100
BITE_TOMBSTONES = 1000  # which have no files to be removed
STRETCH_JOBS = 2000  # of the table, read at a time
PAUSE_SECONDS = 1.0  # between two bites in the background, so that nobody notices them
ROUND_SECONDS = 300.0  # of bites in the background; the next round goes on
DAY_SECONDS = 86_400.0
FIRST_ID = "00000000-0000-0000-0000-000000000000"

log = structlog.get_logger()


class JobActive(SafelightError):
    """The job has not ended. Cancel it first, then delete it."""

    kind = "conflict"
    code = "job_active"


class ArtifactNotFound(SafelightError):
    """There is no such artifact."""

    kind = "not_found"
    code = "artifact_not_found"


class ArtifactDeleted(SafelightError):
    """This artifact was deleted."""

    kind = "gone"
    code = "artifact_deleted"


@dataclass(frozen=True, slots=True)
class Cleaned:
    """What went, or would go: jobs, their pictures with their bytes (thumbnails not counted), files nobody recorded,
    uploads that no job needs, and what was left of things deleted long ago.
    """

    jobs: int = 0
    artifacts: int = 0
    artifact_bytes: int = 0
    orphans: int = 0
    orphan_bytes: int = 0
    uploads: int = 0
    upload_bytes: int = 0
    tombstones: int = 0


RetentionDays = Callable[[Tx, str], int | None]  # how long an owner's things are kept; None: for ever


class KeepFor(Follower):
    """A note on the end of each job: until when it is kept."""

    def __init__(self, retention_days_of: RetentionDays) -> None:
        self._retention_days_of = retention_days_of

    def settled(self, tx: Tx, job: Job) -> None:
        if not job.is_terminal or job.finished_at is None:
            return
        days = self._retention_days_of(tx, job.owner_id)
        if days is not None:
            until = job.finished_at + timedelta(days=days)
            sooner = func.coalesce(
                jobs.c.keep_until, literal(until, Instant)
            )  # it was to be discarded when it had ended
            tx.execute(update(jobs).where(jobs.c.id == job.id).values(keep_until=sooner))


class Retention:
    """Deletes what its owner no longer wants, and what was kept long enough.

    `tombstone_days` after that, what is left of deleted things goes too; None: never.
    """

    def __init__(
        self,
        database: Database,
        store: ArtifactStore,
        *,
        retention_days_of: RetentionDays = lambda tx, owner_id: None,
        tombstone_days: int | None = None,
    ) -> None:
        self._database = database
        self._store = store
        self._retention_days_of = retention_days_of
        self._tombstone_days = tombstone_days

    async def record_upload(self, artifact: Artifact) -> None:
        """Record a stored upload, and how long it is kept if no job is given it."""
        await self._database.write(record_upload, artifact, self._retention_days_of)

    async def delete_job(self, job_id: str, owner_id: str) -> None:
        """Delete an ended job and its pictures; repeating is harmless. Raises `JobNotFound` or `JobActive`."""
        gone = await self._database.write(delete_job, job_id, owner_id)
        if isinstance(gone, SafelightError):
            raise gone
        await self._remove_now(gone)
        log.info("job.deleted", job_id=job_id, task_id=job_id, artifacts=len(gone))

    async def delete_jobs(self, job_ids: Sequence[str]) -> None:
        """Delete these ended jobs and their pictures, in bites. `discard` them first: then nothing stays for ever."""
        for start in range(0, len(job_ids), BITE_JOBS):
            _, gone = await self._database.write(expire_these, job_ids[start : start + BITE_JOBS])
            await self._remove_now(gone)

    async def delete_artifact(self, artifact_id: str, owner_id: str) -> None:
        """Delete one picture; repeating is harmless. Raises `ArtifactNotFound`."""
        gone = await self._database.write(delete_artifact, artifact_id, owner_id)
        if isinstance(gone, SafelightError):
            raise gone
        await self._remove_now(gone)
        log.info("artifact.deleted", artifact_id=artifact_id)

    async def tidy(self) -> None:
        """A round in the background: what was kept long enough, what deletions left, what nobody recorded."""
        loop = asyncio.get_running_loop()
        give_up = loop.time() + ROUND_SECONDS
        gone = Cleaned()
        async for so_far in self._expire(None, pause_seconds=PAUSE_SECONDS):
            gone = so_far
            if loop.time() > give_up:
                break
        await self.remove_leftovers()
        orphans = await self._collect()
        while tombstones := await self._purge_tombstones():
            gone = replace(gone, tombstones=gone.tombstones + tombstones)
            if loop.time() > give_up:
                break
            await asyncio.sleep(PAUSE_SECONDS)
        if gone != Cleaned() or orphans:
            log.info(
                "retention.tidied",
                jobs=gone.jobs,
                artifacts=gone.artifacts,
                uploads=gone.uploads,
                tombstones=gone.tombstones,
                orphans=orphans,
            )

    async def outlook(self, older_than_days: float | None = None) -> Cleaned:
        """What `cleanup` would delete."""
        count, pictures, size = await self._database.read(due_totals)
        async for ids in self._ended_before(older_than_days):
            more = await self._database.read(due_totals, ids)
            count, pictures, size = count + more[0], pictures + more[1], size + more[2]
        orphans = orphan_bytes = 0
        for stray in (self._store.orphans(self._recorded), self._store.lost_uploads(self._recorded_uploads)):
            async for batch in stray:
                orphans += len(batch)
                orphan_bytes += sum(batch.values())
        uploads, upload_bytes = await self._database.read(unused_totals, older_than_days)
        tombstones = 0
        if self._tombstone_days is not None:
            tombstones = await self._database.read(count_tombstones, self._tombstone_days)
        return Cleaned(count, pictures, size, orphans, orphan_bytes, uploads, upload_bytes, tombstones)

    async def cleanup(self, older_than_days: float | None = None) -> AsyncIterator[Cleaned]:
        """Delete what is due, or ended more than so many days ago, whatever was promised; yields the sum so far."""
        gone = Cleaned()
        async for gone in self._expire(older_than_days):
            yield gone
        await self.remove_leftovers()
        while await self._database.write(purge_idempotency_keys):
            pass
        orphans = await self._collect()
        while tombstones := await self._purge_tombstones():
            gone = replace(gone, tombstones=gone.tombstones + tombstones)
        yield replace(gone, orphans=orphans)

    async def remove_leftovers(self) -> None:
        """Remove the files of tombstones whose deletion was interrupted."""
        while left := await self._database.read(results.leftovers, BITE_JOBS):
            await self._remove(left)

    async def _expire(self, older_than_days: float | None, pause_seconds: float = 0.0) -> AsyncIterator[Cleaned]:
        total = Cleaned()

        async def removed(ids: Sequence[str], gone: Sequence[Artifact]) -> Cleaned:
            await self._remove(gone)
            size = sum(artifact.size_bytes for artifact in gone)
            return Cleaned(total.jobs + len(ids), total.artifacts + len(gone), total.artifact_bytes + size)

        while (bite := await self._database.write(expire, BITE_JOBS))[0]:
            total = await removed(*bite)
            yield total
            await asyncio.sleep(pause_seconds)
        async for ids in self._ended_before(older_than_days):
            for start in range(0, len(ids), BITE_JOBS):
                total = await removed(*await self._database.write(expire_these, ids[start : start + BITE_JOBS]))
                yield total
        # After the jobs: one that went just now needs its inputs no more.
        while unused := await self._database.write(expire_uploads, older_than_days, BITE_JOBS):
            await self._remove(unused)
            size = sum(artifact.size_bytes for artifact in unused)
            total = replace(total, uploads=total.uploads + len(unused), upload_bytes=total.upload_bytes + size)
            yield total
            await asyncio.sleep(pause_seconds)

    async def _purge_tombstones(self) -> int:
        if self._tombstone_days is None:
            return 0
        return await self._database.write(purge_tombstones, self._tombstone_days, BITE_TOMBSTONES)

    async def _ended_before(self, days: float | None) -> AsyncIterator[list[str]]:
        """The jobs that ended so many days ago, a stretch of the table at a time."""
        after: str | None = None if days is None else FIRST_ID
        while days is not None and after is not None:
            ids, after = await self._database.read(ended_before, days, after)
            if ids:
                yield ids

    async def _remove_now(self, gone: Sequence[Artifact]) -> None:
        """The rows are gone, so the request is done: files that cannot be removed now go in the next round."""
        try:
            await self._remove(gone)
        except Unavailable as error:
            log.warning("files.left", reason=error.detail, artifacts=len(gone))

    async def _remove(self, gone: Sequence[Artifact]) -> None:
        if gone:
            await self._store.remove(gone)
            await self._database.write(results.forget_files, [artifact.id for artifact in gone])

    async def _collect(self) -> int:
        """Delete the files that nobody recorded."""
        lost = await self._store.collect_lost_uploads(self._recorded_uploads)
        return lost + await self._store.collect_orphans(self._recorded)

    async def _recorded_uploads(self, artifact_ids: list[str]) -> set[str]:
        return await self._database.read(results.recorded_uploads, artifact_ids)

    async def _recorded(self, job_ids: list[str]) -> set[tuple[str, int]]:
        return await self._database.read(kept_attempts, job_ids)


# --- transactions -----------------------------------------------------------------------------------------------------

# What a tombstone keeps: whose it was, how it ended, when. Nothing of what was asked for or said.
_EMPTY: dict[str, Any] = {
    "prompt": "",
    "parameters": None,
    "estimate_key": None,
    "run_seconds": None,
    "image_type": None,
    "project_id": None,
    "chapter_id": None,
    "script_id": None,
    "scene_number": None,
    "character_id": None,
    "metadata": {},
    "request_id": None,
    "provider_job_id": None,
    "message": None,
    "error": None,
    "route": None,
    "skips": None,
    "keep_until": None,
}


def delete_job(tx: Tx, job_id: str, owner_id: str) -> list[Artifact] | JobNotFound | JobActive:
    """Make a tombstone of an ended job; returns the artifacts whose files are to go (none if it was one before)."""
    job = get(tx, job_id, owner_id)
    if job is None:
        return JobNotFound(f"There is no job {job_id}.")
    if not job.is_terminal:
        return JobActive(f"The job is {job.status}. Cancel it first, then delete it.")
    return [] if job.deleted_at is not None else _bury(tx, [job.id])


def delete_artifact(tx: Tx, artifact_id: str, owner_id: str) -> list[Artifact] | ArtifactNotFound:
    """Make a tombstone of one artifact; returns it if its files are to go."""
    artifact = results.get(tx, artifact_id)
    if artifact is None or artifact.owner_id != owner_id:
        return ArtifactNotFound(f"There is no artifact {artifact_id}.")
    return results.bury(tx, results.artifacts.c.id == artifact_id)


def expire(tx: Tx, limit: int) -> tuple[list[str], list[Artifact]]:
    """One bite of the jobs that were kept long enough; what another process is changing is left to it."""
    due = select(jobs.c.id).where(*_KEPT_LONG_ENOUGH).order_by(jobs.c.keep_until)
    ids = list(tx.execute(due.limit(limit).with_for_update(skip_locked=True)).scalars())
    return ids, _bury(tx, ids) if ids else []


def expire_these(tx: Tx, job_ids: Sequence[str]) -> tuple[list[str], list[Artifact]]:
    """As above, those of these jobs that are still there."""
    there = select(jobs.c.id).where(jobs.c.id.in_(job_ids), jobs.c.deleted_at.is_(None))
    ids = list(tx.execute(there.with_for_update(skip_locked=True)).scalars())
    return ids, _bury(tx, ids) if ids else []


def ended_before(tx: Tx, days: float, after: str) -> tuple[list[str], str | None]:
    """The jobs of the next stretch of the table that ended so long ago, and the last id of the stretch.

    There is no index on the end, and none is needed: a stretch takes milliseconds, whatever the table's size.
    """
    old = and_(
        jobs.c.deleted_at.is_(None),
        jobs.c.status.in_(TERMINAL),
        jobs.c.finished_at < db_now(-days * DAY_SECONDS),
    )
    stretch = select(jobs.c.id, case((old, 1), else_=0)).where(jobs.c.id > after).order_by(jobs.c.id)
    rows = tx.execute(stretch.limit(STRETCH_JOBS)).all()
    return [row[0] for row in rows if row[1]], rows[-1][0] if rows else None


def record_upload(tx: Tx, artifact: Artifact, retention_days_of: RetentionDays) -> None:
    """Insert the row of an upload, with the time until which it is kept: a day at least, to make a job from it."""
    days = retention_days_of(tx, artifact.owner_id)
    until = None if days is None else artifact.created_at + timedelta(days=max(1, days))
    results.insert(tx, [replace(artifact, keep_until=until)])


def expire_uploads(tx: Tx, older_than_days: float | None, limit: int) -> list[Artifact]:
    """One bite of the uploads that no job needs and that were kept long enough, or came so many days ago."""
    return results.bury_unused(tx, _uploads_kept_long_enough(older_than_days), limit)


def unused_totals(tx: Tx, older_than_days: float | None) -> tuple[int, int]:
    """How many uploads `expire_uploads` finds, and their bytes."""
    size = func.coalesce(func.sum(results.artifacts.c.size_bytes), 0)
    unused = results.unused_uploads(_uploads_kept_long_enough(older_than_days))
    found, size_bytes = tx.execute(select(func.count(), size).select_from(results.artifacts).where(unused)).one()
    return found, int(size_bytes)


def _uploads_kept_long_enough(older_than_days: float | None) -> ColumnElement[bool]:
    table = results.artifacts
    due = table.c.keep_until.is_not(None) & (table.c.keep_until < db_now())
    return due if older_than_days is None else due | (table.c.created_at < db_now(-older_than_days * DAY_SECONDS))


def purge_tombstones(tx: Tx, days: int, limit: int) -> int:
    """Forget one bite of what is left of things deleted so many days ago; returns how many rows went."""
    bite = select(jobs.c.id).where(_deleted_before(days)).order_by(jobs.c.deleted_at).limit(limit)
    gone = tx.execute(delete(jobs).where(jobs.c.id.in_(bite))).rowcount
    return gone + results.purge_tombstones(tx, days, limit)


def count_tombstones(tx: Tx, days: int) -> int:
    """How many rows `purge_tombstones` finds in all."""
    return tx.execute(select(func.count()).select_from(jobs).where(_deleted_before(days))).scalar_one() + (
        results.count_tombstones(tx, days)
    )


_is_buried = text("deleted_at IS NOT NULL")
Index("ix_jobs_buried", jobs.c.deleted_at, sqlite_where=_is_buried, postgresql_where=_is_buried)


def _deleted_before(days: int) -> ColumnElement[bool]:
    return jobs.c.deleted_at.is_not(None) & (jobs.c.deleted_at < db_now(-days * DAY_SECONDS))


def _bury(tx: Tx, job_ids: Sequence[str]) -> list[Artifact]:
    theirs = lock_batches(tx, job_ids)
    tx.execute(update(jobs).where(jobs.c.id.in_(job_ids)).values(**_EMPTY, deleted_at=db_now(), updated_at=db_now()))
    tx.execute(delete(attempts).where(attempts.c.job_id.in_(job_ids)))
    results.forget_inputs(tx, job_ids)
    forget_batches(tx, theirs)
    return results.bury(tx, results.artifacts.c.job_id.in_(job_ids))


_KEPT_LONG_ENOUGH = (
    jobs.c.deleted_at.is_(None),
    jobs.c.keep_until.is_not(None),
    jobs.c.keep_until < db_now(),
    jobs.c.status.in_(TERMINAL),
)


def due_totals(tx: Tx, besides: Sequence[str] = ()) -> tuple[int, int, int]:
    """What was kept long enough, as jobs, pictures, bytes; or the same of `besides`, less what is in the former."""
    late = select(jobs.c.id).where(*_KEPT_LONG_ENOUGH)
    due = select(jobs.c.id).where(jobs.c.id.in_(besides), jobs.c.id.not_in(late)) if besides else late
    count = tx.execute(select(func.count()).select_from(due.subquery())).scalar_one()
    table = results.artifacts
    pictures = select(func.count(), func.coalesce(func.sum(table.c.size_bytes), 0)).where(
        table.c.deleted_at.is_(None), table.c.job_id.in_(due)
    )
    found, size = tx.execute(pictures).one()
    return count, found, int(size)
