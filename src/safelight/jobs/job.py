"""A job: its row, its statuses and the few facts that follow from a row alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from operator import itemgetter
from typing import Any, Literal

from sqlalchemy import (
    BindParameter,
    Boolean,
    Column,
    ColumnElement,
    Float,
    Index,
    Integer,
    String,
    Table,
    Text,
    TypeDecorator,
    literal_column,
    text,
)
from sqlalchemy.engine import Dialect

from safelight.db import Instant, Json, RowId, metadata
from safelight.errors import SafelightError
from safelight.providers.parameters import Parameters

Status = Literal["pending", "processing", "completed", "failed", "cancelled"]
STATUSES: tuple[Status, ...] = ("pending", "processing", "completed", "failed", "cancelled")
TERMINAL: frozenset[Status] = frozenset({"completed", "failed", "cancelled"})

# The only steps there are. `jobs/service.py` alone takes them; the state machine test walks them.
TRANSITIONS: Mapping[Status, frozenset[Status]] = {
    "pending": frozenset({"processing", "failed", "cancelled"}),
    "processing": frozenset({"pending", "completed", "failed", "cancelled"}),
    "completed": frozenset(),
    "failed": frozenset(),
    "cancelled": frozenset(),
}

# Why a pending job is not running, for programs and for people.
BLOCKED: Mapping[str, str] = {
    "no_worker": "No worker serves this queue at the moment",
    "provider_limit": "The provider runs as many jobs as it may",
    "owner_limit": "You have as many jobs running as you may",
    "provider_paused": "The provider asked for a pause",
    "breaker_open": "The provider fails at the moment and is left alone",
    "provider_unreachable": "The provider cannot be reached at the moment and is left alone",
    "rate_limited": "The provider may not start more jobs so quickly",
}

PRIORITY_SECONDS = 60  # what a step of priority is worth in waiting

QUEUE_OF_KIND: Mapping[str, str] = {"image.generate": "image_generation", "media.import": "imports"}

Outcome = Literal[
    "completed", "failed", "cancelled", "retry", "deferred", "unreachable", "moved", "handed_back", "lost"
]


class JobNotFound(SafelightError):
    """There is no such job."""

    kind = "not_found"
    code = "job_not_found"


class JobDeleted(SafelightError):
    """This job was deleted."""

    kind = "gone"
    code = "job_deleted"


class JobEnded(SafelightError):
    """The job has already ended."""

    kind = "conflict"
    code = "job_ended"


@dataclass(frozen=True, slots=True)
class Job:
    """One row of `jobs`: a field for each column. Times are aware UTC from the database's clock."""

    id: str
    kind: str
    owner_id: str
    status: Status
    stage: str | None
    message: str | None
    progress: int | None
    celery_task_id: str
    batch_id: str | None
    origin_job_id: str | None
    request_id: str | None
    provider: str
    provider_job_id: str | None
    mocked: bool
    prompt: str  # by which lists are searched; it stands among the parameters, too
    parameters: Parameters
    image_type: str | None
    project_id: str | None
    chapter_id: str | None
    script_id: str | None
    scene_number: int | None
    character_id: str | None
    metadata: dict[str, str]
    priority: int
    run_at: datetime
    start_deadline_at: datetime | None
    soft_limit_seconds: float
    hard_limit_seconds: float
    max_retries: int
    queue: str
    owner_limit: int | None
    attempt: int
    retry_count: int
    crash_count: int
    released_at: datetime | None
    hint_count: int
    worker_id: str | None
    deadline_at: datetime | None
    submitting_at: datetime | None
    cancel_requested_at: datetime | None
    error: dict[str, Any] | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    updated_at: datetime
    version: int
    keep_until: datetime | None = None
    deleted_at: datetime | None = None
    route: list[dict[str, Any]] | None = None
    skips: list[dict[str, Any]] | None = None
    progress_reached: int | None = None
    tier: str | None = None
    estimate_key: str | None = None
    run_seconds: float | None = None
    queued_at: datetime | None = None
    line_at: datetime | None = None
    # No columns: found out when a job that waits is looked at (`situation.explain`).
    blocked_reason: str | None = None
    blocked_until: datetime | None = None

    @property
    def is_terminal(self) -> bool:
        return self.status in TERMINAL

    @property
    def retries_here(self) -> int:
        """How many of its retries were with the provider it has now: each of a route has all of them."""
        return self.retry_count - (self.skips[-1]["retry_count"] if self.skips else 0)

    @classmethod
    def of(cls, row: Sequence[Any]) -> "Job":
        """From a row of all columns of the table."""
        return cls(*_by_name(row))


@dataclass(frozen=True, slots=True)
class NewJob:
    """A checked request. `values` holds every column that `submit` does not fill in itself, `parameters` among them."""

    id: str
    kind: str
    owner_id: str
    values: Mapping[str, Any]
    run_at: datetime | None = None
    start_within_seconds: float | None = None
    idempotency_key: str | None = None
    fingerprint: str = ""
    tier: str | None = None  # of whoever submits it
    hint: bool = False  # the caller found room for a hint: wake a worker as soon as this is committed

    @property
    def queue(self) -> str:
        return QUEUE_OF_KIND[self.kind]

    @property
    def parameters(self) -> Parameters:
        return self.values["parameters"]


class ParametersColumn(TypeDecorator[Parameters]):
    """`Parameters` as JSON; of a tombstone there are none."""

    impl = Json
    cache_ok = True

    def process_bind_param(self, value: Parameters | None, dialect: Dialect) -> Any:
        return None if value is None else value.as_json()

    def process_result_value(self, value: Any, dialect: Dialect) -> Parameters:
        return Parameters("", "") if value is None else Parameters.of(value)


jobs = Table(
    "jobs",
    metadata,
    Column("id", RowId, primary_key=True),
    Column("kind", String(40), nullable=False),
    Column("owner_id", String(200), nullable=False),
    Column("status", String(12), nullable=False),
    Column("stage", String(80)),
    Column("message", Text),
    Column("progress", Integer),
    Column("celery_task_id", RowId, nullable=False),
    Column("batch_id", RowId),
    Column("origin_job_id", RowId),
    Column("request_id", String(128)),
    Column("provider", String(80), nullable=False),
    Column("provider_job_id", String(500)),
    Column("mocked", Boolean(create_constraint=False), nullable=False),
    Column("prompt", Text, nullable=False),
    Column("parameters", ParametersColumn),  # NULL: nothing is left of them
    Column("image_type", String(80)),
    Column("project_id", String(200)),
    Column("chapter_id", String(200)),
    Column("script_id", String(200)),
    Column("scene_number", Integer),
    Column("character_id", String(200)),
    Column("metadata", Json, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("run_at", Instant, nullable=False),
    Column("start_deadline_at", Instant),
    Column("soft_limit_seconds", Float, nullable=False),
    Column("hard_limit_seconds", Float, nullable=False),
    Column("max_retries", Integer, nullable=False),
    Column("queue", String(40), nullable=False),
    Column("owner_limit", Integer),  # how many jobs its owner may have running when this one starts
    Column("attempt", Integer, nullable=False),
    Column("retry_count", Integer, nullable=False),
    Column("crash_count", Integer, nullable=False),
    Column("released_at", Instant),
    Column("hint_count", Integer, nullable=False),
    Column("worker_id", RowId),
    Column("deadline_at", Instant),
    Column("submitting_at", Instant),
    Column("cancel_requested_at", Instant),
    Column("error", Json),
    Column("created_at", Instant, nullable=False),
    Column("started_at", Instant),
    Column("finished_at", Instant),
    Column("updated_at", Instant, nullable=False),
    Column("version", Integer, nullable=False),
    Column("keep_until", Instant),
    Column("deleted_at", Instant),
    # Where else it may be made: `as_stop` of the columns by which each provider would take it. NULL: nowhere.
    Column("route", Json),
    Column("skips", Json),  # the providers passed over, and why
    Column("progress_reached", Integer),  # the furthest that an attempt before this one came
    Column("tier", String(40)),  # of whoever submitted it, at that time
    Column("estimate_key", String(16)),  # jobs with the same take about the same time; NULL: nothing is learnt of it
    Column("run_seconds", Float),  # of the attempt that completed it, if it waited at its provider; NULL: all of it
    Column("queued_at", Instant),  # when it was first due: it keeps its place, whatever comes between
    Column("line_at", Instant),  # its place in its line (`line.py`); NULL: it is not due yet
)

# Of a row of all columns the values of the fields of a `Job`: those without a column come last.
_by_name = itemgetter(*(jobs.c.keys().index(field.name) for field in fields(Job) if field.name in jobs.c))

# States of a row in the words of the indexes' conditions, so that those can serve. Without the type Boolean, or SQLite
# would be asked to compare them with 1.
PENDING: ColumnElement[Any] = literal_column("(jobs.status = 'pending')")
WAITING: ColumnElement[Any] = literal_column("(jobs.status = 'pending' AND jobs.released_at IS NULL)")
RELEASED: ColumnElement[Any] = literal_column("(jobs.status = 'pending' AND jobs.released_at IS NOT NULL)")
PROCESSING: ColumnElement[Any] = literal_column("(jobs.status = 'processing')")
COMPLETED: ColumnElement[Any] = literal_column("(jobs.status = 'completed')")


def has_status(status: Status | BindParameter[str]) -> ColumnElement[bool]:
    """For rows that are sought by their ids: the same in words that no index knows.

    Otherwise planners may walk through everything in this status, however much that is, and filter by the id.
    """
    return jobs.c.status + literal_column("''") == status


_released = text("status = 'pending' AND released_at IS NOT NULL")
_processing = text("status = 'processing'")
_living = text("deleted_at IS NULL")


def _partial(name: str, *columns: Any, where: Any, unique: bool = False) -> Index:
    return Index(name, *columns, sqlite_where=where, postgresql_where=where, unique=unique)


# What runs next, who runs it, who waited too long: all small, whatever the table's size.
_partial(
    "ix_jobs_line",
    jobs.c.queue,
    jobs.c.provider,
    jobs.c.owner_id,
    jobs.c.line_at,
    jobs.c.id,
    where=text("status = 'pending' AND released_at IS NULL AND line_at IS NOT NULL"),
)
_partial("ix_jobs_scheduled", jobs.c.run_at, where=text("status = 'pending' AND line_at IS NULL"))
_partial("ix_jobs_released", jobs.c.queue, jobs.c.released_at, where=_released)
_partial(
    "ix_jobs_routed",
    jobs.c.provider,
    jobs.c.id,
    where=text("status = 'pending' AND released_at IS NULL AND route IS NOT NULL"),
)
_partial("ix_jobs_waiting", jobs.c.provider, jobs.c.queued_at, where=text("status = 'pending' AND released_at IS NULL"))
_partial(
    "ix_jobs_start_deadline",
    jobs.c.start_deadline_at,
    where=text("status = 'pending' AND start_deadline_at IS NOT NULL"),
)
_partial("ix_jobs_worker", jobs.c.worker_id, where=_processing)
_partial("ix_jobs_cancel", jobs.c.worker_id, where=text("status = 'processing' AND cancel_requested_at IS NOT NULL"))
_partial("ix_jobs_deadline", jobs.c.deadline_at, where=_processing)
_learnt = text("status = 'completed' AND estimate_key IS NOT NULL")
_partial("ix_jobs_run_times", jobs.c.provider, jobs.c.finished_at, where=_learnt)
_partial("ix_jobs_estimate", jobs.c.estimate_key, jobs.c.finished_at, where=_learnt)
_partial("ix_jobs_comfyui_prompt", jobs.c.provider_job_id, where=text("provider = 'comfyui'"), unique=True)
# Lists: one owner's jobs, newest first by the database's clock, without the tombstones of what they deleted.
_partial("ix_jobs_owner", jobs.c.owner_id, jobs.c.created_at, jobs.c.id, where=_living)
_partial("ix_jobs_owner_status", jobs.c.owner_id, jobs.c.status, jobs.c.created_at, jobs.c.id, where=_living)
_partial(
    "ix_jobs_chapter",
    jobs.c.owner_id,
    jobs.c.chapter_id,
    jobs.c.created_at,
    jobs.c.id,
    where=text("deleted_at IS NULL AND chapter_id IS NOT NULL"),
)
# The newest job of a scene, and a chapter's pictures, however many of its jobs failed or are of other scenes.
_partial(
    "ix_jobs_scene",
    jobs.c.owner_id,
    jobs.c.chapter_id,
    jobs.c.scene_number,
    jobs.c.created_at,
    jobs.c.id,
    where=text("deleted_at IS NULL AND chapter_id IS NOT NULL AND scene_number IS NOT NULL"),
)
_partial(
    "ix_jobs_chapter_pictures",
    jobs.c.owner_id,
    jobs.c.chapter_id,
    jobs.c.kind,
    jobs.c.created_at,
    jobs.c.id,
    where=text("status = 'completed' AND deleted_at IS NULL AND chapter_id IS NOT NULL"),
)
_partial(
    "ix_jobs_character",
    jobs.c.owner_id,
    jobs.c.character_id,
    jobs.c.created_at,
    jobs.c.id,
    where=text("deleted_at IS NULL AND character_id IS NOT NULL"),
)
_partial(
    "ix_jobs_project",
    jobs.c.owner_id,
    jobs.c.project_id,
    jobs.c.created_at,
    jobs.c.id,
    where=text("deleted_at IS NULL AND project_id IS NOT NULL"),
)
_partial("ix_jobs_batch", jobs.c.owner_id, jobs.c.batch_id, jobs.c.id, where=text("batch_id IS NOT NULL"))
_partial("ix_jobs_script", jobs.c.script_id, jobs.c.id, where=text("script_id IS NOT NULL"))
_partial("ix_jobs_keep_until", jobs.c.keep_until, where=text("keep_until IS NOT NULL AND deleted_at IS NULL"))


@dataclass(frozen=True, slots=True)
class Claim:
    """A hint that a worker wants to carry out."""

    job_id: str
    queue: str
    worker_id: str
    worker_name: str


@dataclass(frozen=True, slots=True)
class Attempt:
    """One execution of a job. `started_version` and `ended_version` are the job's versions at its two state events."""

    job_id: str
    number: int
    worker_id: str
    worker_name: str
    queue: str
    provider: str
    provider_job_id: str | None
    started_at: datetime
    finished_at: datetime | None
    outcome: Outcome | None
    error: dict[str, Any] | None
    started_version: int
    ended_version: int | None


attempts = Table(
    "attempts",
    metadata,
    Column("job_id", RowId, primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("worker_id", RowId, nullable=False),
    Column("worker_name", String(200), nullable=False),
    Column("queue", String(40), nullable=False),
    Column("provider", String(80), nullable=False),
    Column("provider_job_id", String(500)),
    Column("started_at", Instant, nullable=False),
    Column("finished_at", Instant),
    Column("outcome", String(20)),
    Column("error", Json),
    Column("started_version", Integer, nullable=False),
    Column("ended_version", Integer),
)

leases = Table(
    "leases",
    metadata,
    Column("name", String(80), primary_key=True),
    Column("holder", RowId, nullable=False),
    Column("until", Instant, nullable=False),
    Column("published", Json),  # by the holder of the lease of dispatch: how it stands (`situation.py`)
)

workers = Table(
    "workers",
    metadata,
    Column("id", RowId, primary_key=True),
    Column("name", String(200), nullable=False),
    Column("queues", Json, nullable=False),
    Column("slots", Integer, nullable=False),
    Column("running", Integer, nullable=False),
    Column("started_at", Instant, nullable=False),
    Column("seen_at", Instant, nullable=False),
    Column("lease_until", Instant, nullable=False),
)
