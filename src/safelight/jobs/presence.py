"""Workers as rows, and the heartbeat that renews their leases and hears what they should stop."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from sqlalchemy import ColumnElement, Float, Text, bindparam, cast, column, delete, func, insert, select, update
from sqlalchemy.dialects.postgresql import JSONB, UUID
from sqlalchemy.types import Integer

from safelight.db import Tx, db_now
from safelight.jobs.job import has_status, jobs, workers


@dataclass(frozen=True, slots=True)
class Beat:
    """What a heartbeat writes about one attempt: that it lives, and how far it is."""

    job_id: str
    attempt: int
    progress: int | None
    stage: str | None
    message: str | None


@dataclass(frozen=True, slots=True)
class Pulse:
    """The answer, by job id: `renewed` says whether a cancel was asked for; `gone` are no longer these attempts'.

    A job in neither is being changed by another transaction at this moment; the next beat will tell.
    """

    renewed: Mapping[str, bool]
    gone: frozenset[str]


def register_worker(tx: Tx, worker_id: str, name: str, queues: Sequence[str], slots: int) -> None:
    """Tell dispatch that a process serves these queues."""
    row = {"id": worker_id, "name": name, "queues": list(queues), "slots": slots, "running": 0}
    tx.execute(insert(workers).values(started_at=db_now(), seen_at=db_now()), row)


def unregister_worker(tx: Tx, worker_id: str) -> None:
    """The process leaves cleanly."""
    tx.execute(delete(workers).where(workers.c.id == worker_id))


def beat(tx: Tx, worker_id: str, running: int, beats: Sequence[Beat], lease_seconds: float) -> Pulse | None:
    """Renew the leases of a process's attempts in one statement. None: the worker's own row is gone."""
    seen = update(workers).where(workers.c.id == worker_id).values(seen_at=db_now(), running=running)
    if tx.execute(seen).rowcount != 1:
        return None
    if not beats:
        return Pulse({}, frozenset())
    listed = orjson.dumps([[b.job_id, b.attempt, b.progress, b.stage, b.message] for b in beats]).decode()
    renew = _RENEW_POSTGRESQL if tx.is_postgresql else _RENEW_SQLITE
    renewed = {
        job_id: asked is not None for job_id, asked in tx.execute(renew, {"beats": listed, "lease": lease_seconds})
    }
    missing = {b.job_id: b.attempt for b in beats if b.job_id not in renewed}
    if not missing:
        return Pulse(renewed, frozenset())
    rows = tx.execute(select(jobs.c.id, jobs.c.attempt, jobs.c.status).where(jobs.c.id.in_(list(missing)))).all()
    still_ours = {job_id for job_id, attempt, status in rows if status == "processing" and attempt == missing[job_id]}
    return Pulse(renewed, frozenset(missing.keys() - still_ours))


def is_held(tx: Tx, job_id: str, attempt: int) -> bool:
    """Whether the job is still this attempt's."""
    row = tx.execute(select(jobs.c.attempt, jobs.c.status).where(jobs.c.id == job_id)).one_or_none()
    return row is not None and row[0] == attempt and row[1] == "processing"


_LEASE = db_now(bindparam("lease", type_=Float))

_beat_sqlite = func.json_each(bindparam("beats", type_=Text)).table_valued("value", name="beat")


def _item(index: int) -> ColumnElement[Any]:
    return func.json_extract(_beat_sqlite.c.value, f"$[{index}]")


_RENEW_SQLITE = (
    update(jobs)
    .where(jobs.c.id == _item(0), jobs.c.attempt == _item(1), has_status("processing"))
    .values(lease_until=_LEASE, progress=_item(2), stage=_item(3), message=_item(4))
    .returning(jobs.c.id, jobs.c.cancel_requested_at)
)

# Rows that are being settled at this moment are skipped, not waited for: the two would lock each other out.
_beats_postgresql = (
    select(
        cast(column("value").op("->>")(0), UUID(as_uuid=False)).label("id"),
        cast(column("value").op("->>")(1), Integer).label("attempt"),
        cast(column("value").op("->>")(2), Integer).label("progress"),
        column("value").op("->>")(3).label("stage"),
        column("value").op("->>")(4).label("message"),
    )
    .select_from(func.jsonb_array_elements(cast(bindparam("beats", type_=Text), JSONB)).table_valued("value", name="v"))
    .cte("beat")
)
_RENEW_POSTGRESQL = (
    update(jobs)
    .where(
        jobs.c.id == _beats_postgresql.c.id,
        jobs.c.attempt == _beats_postgresql.c.attempt,
        has_status("processing"),
        jobs.c.id.in_(
            select(jobs.c.id).where(jobs.c.id.in_(select(_beats_postgresql.c.id))).with_for_update(skip_locked=True)
        ),
    )
    .values(
        lease_until=_LEASE,
        progress=_beats_postgresql.c.progress,
        stage=_beats_postgresql.c.stage,
        message=_beats_postgresql.c.message,
    )
    .returning(jobs.c.id, jobs.c.cancel_requested_at)
)
