"""What becomes known about a job, in the one shape that SSE, polling, the command line and Redis share.

State events (`job.pending`, `job.started` and the three ends) are history: each raises the row's `version` by exactly
one, so a reader can tell that it missed one, and all of them can be rebuilt from the rows of `jobs` and `attempts`.
Progress, previews and outputs are news: latest only, ordered by `seq` within a version.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

import orjson

from safelight.artifacts import ApiPath, Artifact
from safelight.jobs.job import BLOCKED, TERMINAL, Attempt, Job, Status
from safelight.watch import Message

EventType = Literal[
    "job.snapshot",
    "job.pending",
    "job.started",
    "job.progress",
    "job.preview",
    "job.output",
    "job.completed",
    "job.failed",
    "job.cancelled",
]

STATE_EVENTS: frozenset[EventType] = frozenset(
    {"job.pending", "job.started", "job.completed", "job.failed", "job.cancelled"}
)
ENDS: dict[Status, EventType] = {
    "completed": "job.completed",
    "failed": "job.failed",
    "cancelled": "job.cancelled",
}
CELERY_STATES: dict[Status, str] = {
    "pending": "PENDING",
    "processing": "PROGRESS",
    "completed": "SUCCESS",
    "failed": "FAILURE",
    "cancelled": "REVOKED",
}


@dataclass(frozen=True, slots=True)
class JobEvent:
    """One event. `seq` orders news and snapshots within a `version`; state events have 0. `at`: when it became so."""

    type: EventType
    job_id: str
    task_id: str
    request_id: str | None
    kind: str
    status: Status
    is_terminal: bool
    stage: str | None
    message: str | None
    progress: int | None
    attempt: int
    retry_count: int
    blocked_reason: str | None
    provider: str
    mocked: bool
    batch_id: str | None
    project_id: str | None
    chapter_id: str | None
    scene_number: int | None
    character_id: str | None
    artifacts: Sequence[dict[str, Any]]
    preview_url: str | None
    error: dict[str, Any] | None
    at: datetime
    version: int
    seq: int

    def as_json(self) -> bytes:
        return orjson.dumps(self, option=orjson.OPT_UTC_Z)

    def as_message(self, payload: bytes | None = None) -> Message:
        """Framed once for every watcher; state events alone carry an SSE id."""
        payload = payload or self.as_json()
        head = f"id: {self.version}\n" if self.type in STATE_EVENTS else ""
        frame = f"{head}event: {self.type}\ndata: ".encode() + payload + b"\n\n"
        return Message(
            version=self.version,
            seq=self.seq,
            is_state=self.type in STATE_EVENTS,
            is_terminal=self.is_terminal,
            topic=self.type,
            frame=frame,
        )

    def as_celery_result(self) -> bytes:
        """What Celery's Redis result backend would hold, so that a host's `AsyncResult(task_id)` tells the truth."""
        state = CELERY_STATES[self.status]
        if self.status == "failed":
            error = self.error or {}
            result: dict[str, Any] = {
                "exc_type": "JobFailed",
                "exc_message": [f"{error.get('code')}: {error.get('message')}"],
                "exc_module": "safelight.jobs",
            }
        elif self.status == "cancelled":
            result = {"exc_type": "TaskRevokedError", "exc_message": ["cancelled"], "exc_module": "celery.exceptions"}
        else:
            result = {"progress": self.progress, "message": self.message, "artifacts": list(self.artifacts)}
        return orjson.dumps(
            {
                "status": state,
                "result": result,
                "traceback": None,
                "children": [],
                "date_done": self.at.isoformat() if self.is_terminal else None,
                "task_id": self.task_id,
            }
        )


def describe_artifact(artifact: Artifact) -> dict[str, Any]:
    """An artifact as clients see it; URLs are paths on the API's host."""
    url = f"/api/v1/artifacts/{artifact.id}"
    has_poster = artifact.kind == "video" and bool(artifact.thumbnails)
    return {
        "id": artifact.id,
        "kind": artifact.kind,
        "url": ApiPath(f"{url}/content"),
        "content_type": artifact.content_type,
        "width": artifact.width,
        "height": artifact.height,
        "duration_seconds": artifact.duration_seconds,
        "size_bytes": artifact.size_bytes,
        "sha256": artifact.sha256,
        "thumbhash": artifact.thumbhash,
        "seed": artifact.seed,
        "thumbnails": [
            {
                "width": thumbnail["pixel_width"],
                "height": thumbnail["pixel_height"],
                "url": ApiPath(f"{url}/thumbnails/{thumbnail['width']}"),
            }
            for thumbnail in artifact.thumbnails
        ],
        "poster": ApiPath(f"{url}/thumbnails/{artifact.thumbnails[-1]['width']}") if has_poster else None,
        "thumbnail_error": artifact.thumbnail_error,
        "content_credentials": artifact.content_credentials,
        "details": artifact.details or {},
    }


def why_blocked(job: Job) -> str | None:
    """Why a job waits that was looked at with `explain`, for people; None if nothing is in its way."""
    if job.blocked_reason is None:
        return None
    why = BLOCKED.get(job.blocked_reason, job.blocked_reason)
    return why if job.blocked_until is None else f"{why} until {job.blocked_until:%H:%M:%S} UTC"


def message_of(job: Job) -> str | None:
    """The sentence for people: why it waits if it is blocked, that it is being cancelled, or what it says itself."""
    why = why_blocked(job)
    if why is not None:
        return why
    if job.status == "processing" and job.cancel_requested_at is not None:
        return "Cancelling"
    return job.message


def snapshot(job: Job, artifacts: Iterable[Artifact]) -> JobEvent:
    """How things stand now; the first thing every connection is told."""
    # While a job waits, it may wait for another reason; the later snapshot is the newer.
    seq = int(job.updated_at.timestamp() * 1000) if job.status == "pending" else 0
    return _tell(job, "job.snapshot", job.updated_at, artifacts, seq, job.progress, job.stage, message_of(job))


def of_state(job: Job, artifacts: Iterable[Artifact] = ()) -> JobEvent:
    """The state event that brought the job to where its row stands."""
    if job.status == "processing":
        kind: EventType = "job.started"
        at = job.started_at
    elif job.status == "pending":
        kind, at = "job.pending", job.updated_at
    else:
        kind, at = ENDS[job.status], job.finished_at
    return _tell(job, kind, at or job.updated_at, artifacts, 0, job.progress, job.stage, message_of(job))


def news(
    job: Job,
    kind: Literal["job.progress", "job.preview", "job.output"],
    *,
    seq: int,
    progress: int | None,
    stage: str | None,
    message: str | None,
    preview_url: str | None = None,
    artifacts: Iterable[Artifact] = (),
) -> JobEvent:
    """News of the attempt whose claim returned `job`."""
    return _tell(job, kind, datetime.now(UTC), artifacts, seq, progress, stage, message, preview_url)


def _tell(
    job: Job,
    kind: EventType,
    at: datetime,
    artifacts: Iterable[Artifact],
    seq: int,
    progress: int | None,
    stage: str | None,
    message: str | None,
    preview_url: str | None = None,
) -> JobEvent:
    """The event, built once: `dataclasses.replace` would double the cost of what a worker does most."""
    return JobEvent(
        type=kind,
        job_id=job.id,
        task_id=job.celery_task_id,
        request_id=job.request_id,
        kind=job.kind,
        status=job.status,
        is_terminal=job.is_terminal,
        stage=stage,
        message=message,
        progress=progress,
        attempt=job.attempt,
        retry_count=job.retry_count,
        blocked_reason=job.blocked_reason,
        provider=job.provider,
        mocked=job.mocked,
        batch_id=job.batch_id,
        project_id=job.project_id,
        chapter_id=job.chapter_id,
        scene_number=job.scene_number,
        character_id=job.character_id,
        artifacts=[describe_artifact(artifact) for artifact in artifacts],
        preview_url=preview_url,
        error=job.error,
        at=at,
        version=job.version,
        seq=seq,
    )


def history(job: Job, attempts: Iterable[Attempt], artifacts: Iterable[Artifact], after: int) -> list[JobEvent]:
    """Every state event with a version greater than `after`, rebuilt from the rows, oldest first."""
    events: list[JobEvent] = []
    current = replace(
        snapshot(job, ()), type="job.pending", artifacts=[], error=None, blocked_reason=None, progress=None, seq=0
    )

    def add(kind: EventType, status: Status, version: int, at: datetime, **changes: Any) -> None:
        nonlocal current
        current = replace(current, type=kind, status=status, is_terminal=False, version=version, at=at, **changes)
        events.append(current)

    tried = sorted(attempts, key=lambda attempt: attempt.number)
    providers = [*(attempt.provider for attempt in tried), job.provider]
    add(
        "job.pending",
        "pending",
        1,
        job.created_at,
        provider=providers[0],
        attempt=0,
        retry_count=0,
        stage="queued",
        message="Waiting to start",
    )
    for attempt, next_provider in zip(tried, providers[1:], strict=True):
        add(
            "job.started",
            "processing",
            attempt.started_version,
            attempt.started_at,
            attempt=attempt.number,
            provider=attempt.provider,
            stage="starting",
            message="Starting",
            progress=0,
            error=None,
        )
        if attempt.ended_version is None or attempt.finished_at is None:
            continue
        if attempt.outcome == "retry":
            current = replace(current, retry_count=current.retry_count + 1)
        add(
            "job.pending",
            "pending",
            attempt.ended_version,
            attempt.finished_at,
            stage="waiting",
            provider=next_provider,
            progress=None,
            message=RETURNED.get(attempt.outcome or "", "Waiting to start again"),
            error=attempt.error,
        )
    if job.status in TERMINAL:
        events = [event for event in events if event.version < job.version]
        events.append(of_state(job, artifacts))
    return [event for event in events if after < event.version <= job.version]


# What a job that came back to the queue says, by the outcome of the attempt that gave it back.
RETURNED: dict[str, str] = {
    "retry": "Will be tried again",
    "deferred": "Waiting for its provider",
    "unreachable": "Waiting for its provider, which cannot be reached",
    "moved": "Will be tried by the next provider of its route",
    "handed_back": "Its worker is restarting; it will go on elsewhere",
    "lost": "Its worker was lost; it will be tried again",
}
