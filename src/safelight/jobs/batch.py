"""A batch: jobs accepted together, then looked at, followed and cancelled as one.

A batch has no status of its own: how it stands is counted from its jobs' rows, so the two cannot disagree.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import (
    Column,
    Index,
    Integer,
    Row,
    Select,
    String,
    Table,
    and_,
    bindparam,
    delete,
    exists,
    func,
    insert,
    or_,
    select,
)

from safelight.db import Instant, Json, RowId, Tx, db_now, metadata
from safelight.errors import SafelightError
from safelight.jobs import step
from safelight.jobs.job import PENDING, PROCESSING, STATUSES, TERMINAL, Job, NewJob, Status, jobs

MAX_BATCH_JOBS = 1000

batches = Table(
    "batches",
    metadata,
    Column("id", RowId, primary_key=True),
    Column("owner_id", String(200), nullable=False),
    Column("name", String(200)),
    Column("metadata", Json, nullable=False),
    Column("origin_batch_id", RowId),
    Column("total", Integer, nullable=False),
    Column("created_at", Instant, nullable=False),
)
Index("ix_batches_owner", batches.c.owner_id, batches.c.id)


class BatchNotFound(SafelightError):
    """There is no such batch."""

    kind = "not_found"
    code = "batch_not_found"


class BatchDeleted(SafelightError):
    """The jobs of this batch were deleted, and the batch with them."""

    kind = "gone"
    code = "batch_deleted"


class BatchEnded(SafelightError):
    """The batch has already ended."""

    kind = "conflict"
    code = "batch_ended"


@dataclass(frozen=True, slots=True)
class Batch:
    """One row of `batches`; fields stand in the table's column order. `total` is how many jobs were accepted."""

    id: str
    owner_id: str
    name: str | None
    metadata: dict[str, str]
    origin_batch_id: str | None
    total: int
    created_at: datetime

    @classmethod
    def of(cls, row: Row[*tuple[Any, ...]]) -> "Batch":
        """From a row of all columns of the table, in order."""
        return cls(*row)


@dataclass(frozen=True, slots=True)
class BatchState:
    """How a batch stands, counted from its jobs.

    `open_progress` is the sum of the progress of those that have not ended, each 0-100; `has_begun`: some attempt of
    some job began.
    """

    counts: Mapping[Status, int]
    open_progress: int = 0
    has_begun: bool = False
    finished_at: datetime | None = None

    @classmethod
    def fresh(cls, total: int) -> "BatchState":
        """Of a batch that was accepted just now."""
        return cls({status: total if status == "pending" else 0 for status in STATUSES})

    @property
    def ended(self) -> int:
        return sum(self.counts.get(status, 0) for status in TERMINAL)

    @property
    def is_terminal(self) -> bool:
        return self.ended == sum(self.counts.values())

    @property
    def status(self) -> Status:
        """`pending` until the first job begins or ends, `processing` until the last one ends; then `failed` if any
        failed, else `cancelled` if any was cancelled, else `completed`."""
        if not self.is_terminal:
            return "processing" if self.has_begun or self.ended else "pending"
        for status in ("failed", "cancelled"):
            if self.counts.get(status):
                return status
        return "completed"

    @property
    def progress(self) -> int:
        """0-100: the mean of its jobs', those that ended as 100. 100 only at the end."""
        total = sum(self.counts.values())
        return (100 * self.ended + self.open_progress) // total if total else 100


@dataclass(frozen=True, slots=True)
class NewBatch:
    """Checked requests that are accepted together or not at all. Their ids have to sort in their order."""

    id: str
    owner_id: str
    jobs: Sequence[NewJob]
    name: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    origin_batch_id: str | None = None
    idempotency_key: str | None = None
    fingerprint: str = ""


@dataclass(frozen=True, slots=True)
class SubmittedBatch:
    """The batch, how it stands, and the ids of its jobs in the order in which they were asked for."""

    batch: Batch
    state: BatchState
    job_ids: Sequence[str]
    replayed: bool


@dataclass(frozen=True, slots=True)
class Member:
    """What following a batch needs to know of one of its jobs. `progress` (0-100) never goes backwards."""

    job_id: str
    status: Status
    progress: int
    attempt: int
    version: int

    @property
    def is_terminal(self) -> bool:
        return self.status in TERMINAL


@dataclass(frozen=True, slots=True)
class BatchPage:
    """Newest first; `more` tells whether another page follows."""

    batches: Sequence[tuple[Batch, BatchState]]
    more: bool


_GET = select(*batches.c).where(batches.c.id == bindparam("b_id"), batches.c.owner_id == bindparam("b_owner"))
_OF_BATCH = and_(jobs.c.owner_id == bindparam("b_owner"), jobs.c.batch_id == bindparam("b_id"))
_JOB_IDS = select(jobs.c.id).where(_OF_BATCH).order_by(jobs.c.id)
_MEMBERS = (
    select(jobs.c.id, jobs.c.status, step.FURTHEST, jobs.c.attempt, jobs.c.version).where(_OF_BATCH).order_by(jobs.c.id)
)
_STATES = (
    select(
        jobs.c.batch_id,
        jobs.c.status,
        func.count(),
        func.sum(step.FURTHEST),
        func.max(jobs.c.attempt),
        func.max(jobs.c.finished_at),
    )
    .where(jobs.c.owner_id == bindparam("b_owner"), jobs.c.batch_id.in_(bindparam("b_ids", expanding=True)))
    .group_by(jobs.c.batch_id, jobs.c.status)
)


def get_batch(tx: Tx, batch_id: str, owner_id: str) -> Batch | None:
    """A batch of this owner; another's does not exist for them."""
    row = tx.execute(_GET, {"b_id": batch_id, "b_owner": owner_id}).one_or_none()
    return None if row is None else Batch.of(row)


def look_at_batch(tx: Tx, batch_id: str, owner_id: str) -> tuple[Batch, BatchState, list[str]] | None:
    """A batch, how it stands, and the ids of its jobs in the order in which they were asked for."""
    batch = get_batch(tx, batch_id, owner_id)
    if batch is None:
        return None
    return batch, states_of(tx, owner_id, [batch_id])[batch_id], job_ids_of(tx, batch_id, owner_id)


def job_ids_of(tx: Tx, batch_id: str, owner_id: str) -> list[str]:
    """The ids of a batch's jobs in the order in which they were asked for."""
    return list(tx.execute(_JOB_IDS, {"b_id": batch_id, "b_owner": owner_id}).scalars())


def find_batches(tx: Tx, owner_id: str, before_id: str | None, limit: int) -> BatchPage:
    """The owner's batches, newest first; `before_id` is the last id of the page before."""
    query = select(*batches.c).where(batches.c.owner_id == owner_id)
    if before_id is not None:
        query = query.where(batches.c.id < before_id)
    rows = tx.execute(query.order_by(batches.c.id.desc()).limit(limit + 1)).all()
    found = [Batch.of(row) for row in rows[:limit]]
    state = states_of(tx, owner_id, [batch.id for batch in found])
    return BatchPage([(batch, state[batch.id]) for batch in found], more=len(rows) > limit)


def states_of(tx: Tx, owner_id: str, batch_ids: Sequence[str]) -> dict[str, BatchState]:
    """How each of these batches of one owner stands."""
    counts: dict[str, dict[Status, int]] = {batch_id: dict.fromkeys(STATUSES, 0) for batch_id in batch_ids}
    open_progress = dict.fromkeys(batch_ids, 0)
    begun: set[str] = set()
    ends: dict[str, datetime] = {}
    for row in tx.execute(_STATES, {"b_owner": owner_id, "b_ids": list(batch_ids)}):
        batch_id, status, count, progress, attempts, finished_at = row
        counts[batch_id][status] = count
        if attempts:
            begun.add(batch_id)
        if status in TERMINAL:
            ends[batch_id] = max(finished_at, ends.get(batch_id, finished_at))
        else:
            open_progress[batch_id] += int(progress)
    found = {
        batch_id: BatchState(counts[batch_id], open_progress[batch_id], batch_id in begun) for batch_id in batch_ids
    }
    return {
        batch_id: BatchState(state.counts, state.open_progress, state.has_begun, ends.get(batch_id))
        if state.is_terminal
        else state
        for batch_id, state in found.items()
    }


def members_of(tx: Tx, batch_id: str, owner_id: str) -> list[Member]:
    """Its jobs in the order in which they were asked for."""
    return [Member(*row) for row in tx.execute(_MEMBERS, {"b_id": batch_id, "b_owner": owner_id})]


def last_to_end(tx: Tx, batch_id: str, owner_id: str) -> Job | None:
    """The job that will probably be the last to end; None if that cannot be told, as their kinds of work differ."""
    mine = and_(jobs.c.owner_id == owner_id, jobs.c.batch_id == batch_id)
    work = select(jobs.c.queue, jobs.c.provider, jobs.c.estimate_key)
    alike = work.where(mine, jobs.c.status.not_in(TERMINAL)).distinct().limit(2)
    if len(tx.execute(alike).all()) != 1:
        return None
    last = select(*jobs.c).where(mine)
    waiting = last.where(PENDING).order_by(jobs.c.run_at.desc(), jobs.c.id.desc())
    running = last.where(PROCESSING).order_by(jobs.c.started_at.desc())
    for query in (waiting, running):
        row = tx.execute(query.limit(1)).one_or_none()
        if row is not None:
            return Job.of(row)
    return None


def retryable_of(tx: Tx, batch_id: str, owner_id: str) -> list[Job]:
    """What failed or was cancelled in a batch and was not deleted since, in its order."""
    mine = and_(jobs.c.owner_id == owner_id, jobs.c.batch_id == batch_id, jobs.c.deleted_at.is_(None))
    query = select(*jobs.c).where(mine, jobs.c.status.in_(("failed", "cancelled")))
    return [Job.of(row) for row in tx.execute(query.order_by(jobs.c.id))]


def unasked(batch_id: str, owner_id: str) -> Select[str, Status]:
    """Its jobs that have not ended and were not asked to: id and status."""
    return (
        select(jobs.c.id, jobs.c.status)
        .where(
            jobs.c.owner_id == owner_id,
            jobs.c.batch_id == batch_id,
            or_(PENDING, and_(PROCESSING, jobs.c.cancel_requested_at.is_(None))),
        )
        .order_by(jobs.c.id)
    )


def insert_batch(tx: Tx, new: NewBatch) -> Batch:
    """The row of a batch whose jobs are being accepted."""
    row = {
        "id": new.id,
        "owner_id": new.owner_id,
        "name": new.name,
        "metadata": dict(new.metadata),
        "origin_batch_id": new.origin_batch_id,
        "total": len(new.jobs),
    }
    return Batch.of(tx.execute(insert(batches).values(created_at=db_now()).returning(*batches.c), row).one())


def lock_batches(tx: Tx, job_ids: Sequence[str]) -> list[str]:
    """The batches of these jobs, which nobody else may change now: the last of their jobs may be among these."""
    theirs = select(jobs.c.batch_id).where(jobs.c.id.in_(job_ids), jobs.c.batch_id.is_not(None))
    found = select(batches.c.id).where(batches.c.id.in_(theirs)).order_by(batches.c.id)
    return list(tx.execute(found.with_for_update()).scalars())


def forget_batches(tx: Tx, batch_ids: Sequence[str]) -> None:
    """Delete those of these batches that have no job left but deleted ones."""
    left = exists().where(
        jobs.c.owner_id == batches.c.owner_id, jobs.c.batch_id == batches.c.id, jobs.c.deleted_at.is_(None)
    )
    if batch_ids:
        tx.execute(delete(batches).where(batches.c.id.in_(batch_ids), ~left))
