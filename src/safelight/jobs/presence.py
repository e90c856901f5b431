"""Workers as rows. Each holds one lease for all that it runs, and its heartbeat, which renews it, is also its ear.

Whose lease ran out is buried by dispatch: the row is deleted, and from then on its jobs are lost, and it can claim
nothing. A process that comes back from that begins anew, under another id.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import (
    Boolean,
    Float,
    Integer,
    bindparam,
    cast,
    delete,
    exists,
    insert,
    select,
    text,
    update,
)

from safelight.db import Prepared, RowId, Tx, db_now
from safelight.jobs.job import PROCESSING, has_status, jobs, workers
from safelight.jobs.statements import statements


@dataclass(frozen=True, slots=True)
class Progressed:
    """How far an attempt is, where that is news."""

    job_id: str
    attempt: int
    progress: int | None
    stage: str | None
    message: str | None


@dataclass(frozen=True, slots=True)
class Held:
    """What its row says of a job that a worker runs."""

    job_id: str
    attempt: int
    is_cancel_requested: bool


@dataclass(frozen=True, slots=True)
class Heard:
    """The answer to a beat: all that the worker holds, and of which jobs its news was written.

    Of one that another transaction was changing at this moment it was not (PostgreSQL); the next beat will.
    """

    held: Sequence[Held]
    written: frozenset[str]


def register_worker(tx: Tx, worker_id: str, name: str, queues: Sequence[str], slots: int, lease_seconds: float) -> None:
    """From now on a process serves these queues, and may claim."""
    row = {"id": worker_id, "name": name, "queues": list(queues), "slots": slots, "running": 0}
    tx.execute(insert(workers).values(started_at=db_now(), seen_at=db_now(), lease_until=db_now(lease_seconds)), row)


def retire_worker(tx: Tx, worker_id: str) -> None:
    """It takes no more jobs; what it runs stays its own."""
    tx.execute(update(workers).where(workers.c.id == worker_id).values(queues=[], slots=0))


def unregister_worker(tx: Tx, worker_id: str) -> None:
    """The process leaves cleanly. What it should still hold is lost."""
    tx.execute(delete(workers).where(workers.c.id == worker_id))


def beat(tx: Tx, worker_id: str, running: int, news: Sequence[Progressed], lease_seconds: float) -> Heard | None:
    """Renew a worker's lease and write its news. None: it is not registered, or was buried."""
    if not tx.run(_RENEW, {"b_worker": worker_id, "running": running, "lease": lease_seconds}):
        return None
    written: frozenset[str] = frozenset()
    if news:
        listed = [[n.job_id, n.attempt, n.progress, n.stage, n.message] for n in news]
        written = frozenset(statements(tx).write_progress(tx, listed))
    return Heard([Held(*row) for row in tx.run(_HELD, {"b_worker": worker_id})], written)


def cancels_of(tx: Tx, worker_id: str) -> list[tuple[str, int]]:
    """The jobs that a worker runs and should stop, with their attempts."""
    return [(job_id, attempt) for job_id, attempt in tx.run(_CANCELS, {"b_worker": worker_id})]


def is_held(tx: Tx, job_id: str, attempt: int) -> bool:
    """Whether the job is still this attempt's, whose worker was not buried."""
    return bool(tx.run(_IS_HELD, {"b_id": job_id, "b_attempt": attempt}))


def bury_workers(tx: Tx) -> None:
    """Those whose lease ran out are dead, whatever they think."""
    tx.execute(delete(workers).where(_RAN_OUT))


def lost_workers(tx: Tx) -> list[str]:
    """Those that jobs run at and that are no more."""
    return list(tx.execute(_LOST).scalars())


def has_lost(tx: Tx) -> bool:
    """Whether somebody is to be buried, or left jobs behind."""
    return bool(tx.run(_HAS_RUN_OUT, {})[0][0]) or bool(lost_workers(tx))


_WORKER = bindparam("b_worker", type_=RowId)
_RAN_OUT = workers.c.lease_until < db_now()
_HAS_RUN_OUT = Prepared(select(exists().where(_RAN_OUT)))
_RENEW = Prepared(
    update(workers)
    .where(workers.c.id == _WORKER)
    .values(
        seen_at=db_now(),
        lease_until=db_now(bindparam("lease", type_=Float)),
        running=bindparam("running", type_=Integer),
    )
    .returning(workers.c.id)
)
_OF_WORKER = select(jobs.c.id, jobs.c.attempt).where(PROCESSING, jobs.c.worker_id == _WORKER)
_ASKED = jobs.c.cancel_requested_at.is_not(None)
_HELD = Prepared(_OF_WORKER.add_columns(cast(_ASKED, Boolean)))
_CANCELS = Prepared(_OF_WORKER.where(_ASKED))
_IS_HELD = Prepared(
    select(jobs.c.id)
    .join(workers, workers.c.id == jobs.c.worker_id)
    .where(
        jobs.c.id == bindparam("b_id", type_=RowId),
        jobs.c.attempt == bindparam("b_attempt", type_=Integer),
        has_status("processing"),
    )
)
# One step along the index from each worker that runs something to the next.
_LOST = text("""
    WITH RECURSIVE busy(worker_id) AS (
        SELECT worker_id FROM (
            SELECT worker_id FROM jobs WHERE jobs.status = 'processing' ORDER BY worker_id LIMIT 1
        ) AS first
        UNION ALL
        SELECT (
            SELECT jobs.worker_id FROM jobs WHERE jobs.status = 'processing' AND jobs.worker_id > busy.worker_id
            ORDER BY jobs.worker_id LIMIT 1
        )
        FROM busy WHERE busy.worker_id IS NOT NULL
    )
    SELECT worker_id FROM busy
    WHERE worker_id IS NOT NULL AND NOT EXISTS (SELECT 1 FROM workers WHERE workers.id = busy.worker_id)
""").columns(worker_id=RowId)
