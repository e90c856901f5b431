"""SQLite's words: no journey to save, so a step is several plain statements, for each job in turn."""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from sqlalchemy import ColumnElement, Integer, String, Text, bindparam, cast, func, insert, select, text, update

from safelight import artifacts as results
from safelight.artifacts import Artifact
from safelight.db import Prepared, RowId, Tx, db_now
from safelight.jobs import availability, step
from safelight.jobs.job import Claim, Job, Outcome, attempts, has_status, jobs

Made = Mapping[tuple[str, int], Sequence[Artifact]]


class Sqlite:
    """See `statements.py`."""

    def claim(self, tx: Tx, worker: Claim, ids: Sequence[str], *, is_alone: bool) -> list[Job]:
        taken: list[Job] = []
        for job_id in ids:
            this = {"b_id": job_id, "b_queue": worker.queue}
            rows = tx.run(_CLAIM, {**this, "b_worker": worker.worker_id})
            if rows:
                taken.append(Job.of(rows[0]))
            else:
                tx.run(_WITHDRAW, this)
        begun = [
            {
                "job_id": job.id,
                "number": job.attempt,
                "worker_id": worker.worker_id,
                "worker_name": worker.worker_name,
                "queue": job.queue,
                "provider": job.provider,
                "provider_job_id": job.provider_job_id,
                "started_version": job.version,
            }
            for job in taken
        ]
        if begun:
            tx.run_many(_BEGIN_ATTEMPT, begun)
        return taken

    def end(self, tx: Tx, how: step.End, parameters: Mapping[str, Any], outcome: Outcome, error: Any) -> Job | None:
        rows = tx.run(how.move, parameters)
        if not rows:
            return None
        job = Job.of(rows[0])
        _end_attempt(tx, job, how.outcome(job.status, outcome), error)
        return job

    def complete(self, tx: Tx, made: Made, *, is_last: bool) -> Sequence[Job]:
        completed: list[Job] = []
        for (job_id, attempt), artifacts in made.items():
            for job in map(Job.of, tx.run(_COMPLETE, step.ours(job_id, attempt))):
                _end_attempt(tx, job, "completed", None)
                results.insert(tx, artifacts)
                availability.worked(tx, job.provider)
                completed.append(job)
        return completed

    def note_remote_id(self, tx: Tx, job_id: str, attempt: int, remote_id: str, accepted_by: str | None) -> None:
        tx.run(_NOTE_REMOTE_ID, {"b_id": job_id, "b_attempt": attempt, "b_remote_id": remote_id})
        if accepted_by is not None:
            availability.reached(tx, accepted_by)

    def write_progress(self, tx: Tx, news: Sequence[Sequence[Any]]) -> list[str]:
        return list(tx.execute(_WRITE_PROGRESS, {"news": orjson.dumps(news).decode()}).scalars())

    def heads(self, tx: Tx, here: Mapping[str, str], owners: Sequence[str], each: int) -> Sequence[Any]:
        return tx.execute(_HEADS, {**here, "owners": orjson.dumps(owners).decode(), "each": each}).all()

    def moved_on(self, tx: Tx, versions: Mapping[str, int]) -> list[str]:
        return [row[0] for row in tx.run(_MOVED_ON, {"known": orjson.dumps(versions).decode()})]


def _end_attempt(tx: Tx, job: Job, outcome: Outcome, error: Any) -> None:
    ended = {"b_id": job.id, "b_attempt": job.attempt, "b_version": job.version}
    tx.run(_END_ATTEMPT, {**ended, "b_outcome": outcome, "b_attempt_error": error})


_ONE = jobs.c.id == bindparam("b_id")
_ATTEMPT = update(attempts).where(attempts.c.job_id == bindparam("b_id"), attempts.c.number == bindparam("b_attempt"))
_CLAIM = Prepared(step.TAKE.where(_ONE))
_WITHDRAW = Prepared(step.WITHDRAW.where(_ONE))
_COMPLETE = Prepared(step.COMPLETE.where(step.OURS))
_BEGIN_ATTEMPT = Prepared(
    insert(attempts).values(started_at=db_now()),
    columns=(
        "job_id", "number", "worker_id", "worker_name", "queue", "provider", "provider_job_id", "started_version"
    ),
)  # fmt: skip
_END_ATTEMPT = Prepared(
    _ATTEMPT.values(
        finished_at=db_now(),
        outcome=bindparam("b_outcome"),
        error=bindparam("b_attempt_error", type_=attempts.c.error.type),
        ended_version=bindparam("b_version"),
    )
)
_NOTE_REMOTE_ID = Prepared(_ATTEMPT.values(provider_job_id=bindparam("b_remote_id")))

_news = func.json_each(bindparam("news", type_=Text)).table_valued("value", name="news")


def _item(index: int) -> ColumnElement[Any]:
    return func.json_extract(_news.c.value, f"$[{index}]")


_WRITE_PROGRESS = (
    update(jobs)
    .where(jobs.c.id == _item(0), jobs.c.attempt == _item(1), has_status("processing"))
    .values(progress=_item(2), stage=_item(3), message=_item(4))
    .returning(jobs.c.id)
)
_known = func.json_each(bindparam("known", type_=Text)).table_valued("key", "value", name="known")
_MOVED_ON = Prepared(
    select(jobs.c.id)
    .select_from(_known)
    .where(jobs.c.id == _known.c.key, jobs.c.version > cast(_known.c.value, Integer))
)
_HEADS = text(f"""
    SELECT head.id, head.owner_id, head.owner_limit, head.tier FROM json_each(:owners) AS line
    JOIN jobs AS head ON head.id IN (SELECT jobs.id FROM jobs WHERE {step.FIRST_OF_LINE.format(owner="line.value")})
    ORDER BY line.key, head.line_at, head.id
""").columns(id=RowId, owner_id=String, owner_limit=Integer, tier=String)
