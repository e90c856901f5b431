"""The steps a job can take, as statements; `service.py` alone takes them.

Built once: the shape of a statement costs more than running it. Each raises `version` by one and says from where it may
be taken, in its WHERE; nothing updated means that somebody else was first.
"""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Float,
    Integer,
    Update,
    and_,
    bindparam,
    case,
    exists,
    func,
    insert,
    null,
    update,
)

from safelight.db import Instant, Prepared, RowId, db_now, later
from safelight.jobs import availability
from safelight.jobs.job import PRIORITY_SECONDS, Outcome, Status, has_status, jobs, workers

_FIRST_DUE = func.coalesce(bindparam("run_at_or_now", type_=Instant), db_now())
_BY_THE_CLOCK: Mapping[str, Any] = {
    "run_at": _FIRST_DUE,
    "queued_at": _FIRST_DUE,
    "line_at": case(
        (db_now() >= _FIRST_DUE, later(_FIRST_DUE, -PRIORITY_SECONDS * bindparam("b_priority", type_=Integer))),
        else_=null(),
    ),
    "start_deadline_at": db_now(bindparam("start_within", type_=Float)),
    "released_at": db_now(bindparam("hint_moved", type_=Float)),  # NULL seconds give NULL
    "created_at": db_now(),
    "updated_at": db_now(),
}
_LATER = {
    "progress",
    "progress_reached",
    "provider_job_id",
    "worker_id",
    "deadline_at",
    "submitting_at",
    "cancel_requested_at",
    "error",
    "started_at",
    "finished_at",
    "keep_until",
    "deleted_at",
    "run_seconds",
}
# What stands in a line, at a queue and provider, and the first of one owner there, as text for larger statements.
IN_LINE = "jobs.status = 'pending' AND jobs.released_at IS NULL AND jobs.line_at IS NOT NULL"
HERE = f"{IN_LINE} AND jobs.queue = :queue AND jobs.provider = :provider"
FIRST_OF_LINE = f"{HERE} AND jobs.owner_id = {{owner}} ORDER BY jobs.line_at, jobs.id LIMIT :each"
BLANK: Mapping[str, Any] = dict.fromkeys(jobs.c.keys())
GIVEN: Mapping[str, Any] = {name: None for name in BLANK if name not in _LATER and name not in _BY_THE_CLOCK}
CLOCKS = ("id", *_BY_THE_CLOCK)
INSERT = Prepared(insert(jobs).values(_BY_THE_CLOCK).returning(*(jobs.c[name] for name in CLOCKS)), columns=list(GIVEN))
FRESH: Mapping[str, Any] = {
    "status": "pending",
    "stage": "queued",
    "message": "Waiting to start",
    "attempt": 0,
    "retry_count": 0,
    "crash_count": 0,
    "version": 1,
}

# How far an open job ever came: each attempt begins at 0, but what counts it shall not go backwards.
FURTHEST = case(
    (jobs.c.progress > func.coalesce(jobs.c.progress_reached, 0), jobs.c.progress),
    else_=func.coalesce(jobs.c.progress_reached, 0),
)


_ENDED: Mapping[str, Any] = {"finished_at": db_now()}
_CANCELLED: Mapping[str, Any] = {
    "status": "cancelled",
    "stage": "cancelled",
    "message": "Cancelled",
    "error": null(),
    **_ENDED,
}


def _move(*, to: Status, **values: Any) -> Update:
    """The frame of every step: whoever calls adds the WHERE that says from where.

    What would go back to the queue is cancelled if that was asked for, up to the moment in which the row changes: a
    cancel that commits just before is not overtaken.
    """
    changes: dict[str, Any] = {"status": to, **values}
    if to in ("completed", "failed", "cancelled"):
        changes |= _ENDED
    if to == "pending":
        changes = {name: _unless_cancelled(name, changes) for name in changes.keys() | _CANCELLED.keys()}
    if to != "processing":
        changes |= {"deadline_at": null(), "released_at": null(), "hint_count": 0}
    return update(jobs).values(changes | {"version": jobs.c.version + 1, "updated_at": db_now()}).returning(*jobs.c)


def _unless_cancelled(name: str, changes: Mapping[str, Any]) -> ColumnElement[Any]:
    column = jobs.c[name]
    asked = jobs.c.cancel_requested_at.is_not(None)
    return case((asked, _CANCELLED.get(name, column)), else_=changes.get(name, column))


def ours(job_id: str, attempt: int) -> dict[str, Any]:
    """The parameters of `OURS`, for an attempt that runs."""
    return {"b_id": job_id, "b_attempt": attempt, "b_status": "processing"}


OURS = and_(jobs.c.id == bindparam("b_id"), jobs.c.attempt == bindparam("b_attempt"), has_status(bindparam("b_status")))
WORKER = bindparam("b_worker", type_=RowId)
TAKE = _move(
    to="processing",
    attempt=jobs.c.attempt + 1,
    worker_id=WORKER,
    deadline_at=db_now(jobs.c.hard_limit_seconds),
    started_at=db_now(),
    stage="starting",
    message="Starting",
    progress=0,
    error=null(),
    released_at=null(),
    hint_count=0,
).where(
    has_status("pending"),
    jobs.c.queue == bindparam("b_queue"),
    jobs.c.released_at.is_not(None),  # only what dispatch released: old hints cannot get round a cap or a delay
    jobs.c.cancel_requested_at.is_(None),
    exists().where(workers.c.id == WORKER),  # who was buried takes nothing
    ~availability.is_unavailable(),  # which may have come between
)
WITHDRAW = (
    update(jobs)
    .where(has_status("pending"), jobs.c.queue == bindparam("b_queue"), availability.is_unavailable())
    .values(released_at=None, hint_count=0)
)
COMPLETE = _move(to="completed", stage="completed", message="Completed", progress=100, error=null())
_FAIL = _move(
    to="failed", stage="failed", message=bindparam("b_message"), error=bindparam("b_error", type_=jobs.c.error.type)
).where(OURS)
_CANCEL = _move(to="cancelled", stage="cancelled", message="Cancelled").where(OURS)
_AFTER = func.coalesce(bindparam("b_after", type_=Float), 0.0)
_RETURN = _move(
    to="pending",
    stage="waiting",
    message=bindparam("b_message"),
    progress=null(),
    progress_reached=FURTHEST,
    error=bindparam("b_error", type_=jobs.c.error.type),
    queue=bindparam("b_queue"),
    run_at=func.coalesce(db_now(bindparam("b_after", type_=Float)), jobs.c.run_at),
    line_at=case((_AFTER > 0, null()), else_=later(jobs.c.queued_at, -PRIORITY_SECONDS * jobs.c.priority)),
    retry_count=jobs.c.retry_count + bindparam("b_retries"),
    crash_count=jobs.c.crash_count + bindparam("b_crashes"),
    # What the provider failed at is over; what it may still have, after a lost worker or a lost way, is to be adopted.
    provider_job_id=case((bindparam("b_forget") > 0, null()), else_=jobs.c.provider_job_id),
    submitting_at=case((bindparam("b_forget") > 0, null()), else_=jobs.c.submitting_at),
).where(OURS)
_CANCEL_PENDING = _move(to="cancelled", stage="cancelled", message="Cancelled before it started", error=null()).where(
    has_status("pending")
)
_REQUEST_CANCEL = (
    update(jobs)
    .where(has_status("processing"))
    .values(cancel_requested_at=func.coalesce(jobs.c.cancel_requested_at, db_now()), updated_at=db_now())
)
_ONE_OF_OWNER = and_(jobs.c.id == bindparam("b_id"), jobs.c.owner_id == bindparam("b_owner"))
_THESE = jobs.c.id.in_(bindparam("b_ids", expanding=True))
CANCEL_PENDING = _CANCEL_PENDING.where(_ONE_OF_OWNER)
REQUEST_CANCEL = _REQUEST_CANCEL.where(_ONE_OF_OWNER).returning(*jobs.c)
CANCEL_THESE = _CANCEL_PENDING.where(_THESE)
REQUEST_THESE = _REQUEST_CANCEL.where(_THESE).returning(jobs.c.id)


class End:
    """A step that ends an attempt, alone (`move`) or as part of a larger statement."""

    def __init__(self, statement: Update) -> None:
        self.statement = statement
        self.move = Prepared(statement)

    @staticmethod
    def outcome(status: Status, wanted: Outcome) -> Outcome:
        """That of the attempt: a job that was to stop is cancelled instead of going back to its line."""
        return "cancelled" if status == "cancelled" and wanted != "lost" else wanted


FAIL, CANCEL, RETURN = End(_FAIL), End(_CANCEL), End(_RETURN)
