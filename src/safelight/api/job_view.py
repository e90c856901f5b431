"""A job as clients see it, and the estimate that goes with it."""

import math
import time
from collections import OrderedDict
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model

from safelight.artifacts import ApiPath, Artifact
from safelight.db import Database
from safelight.errors import Unavailable
from safelight.estimate import expected_seconds
from safelight.jobs import Attempt, Dispatcher, Job, Status, describe_artifact, message_of, run_seconds
from safelight.providers.parameters import Parameters, asked_fields
from safelight.providers.registry import MOCK

PREFIX = "/api/v1/generation-jobs"
LEARNT_FOR_SECONDS = 5.0
MAX_LEARNT = 1000
IMPORT = "media.import"  # no two take equally long: nothing is learnt from them
PLAYED = "The mock draws in place of {}: AI_MOCK_MODE is not false, and nothing outside is called."
WAITING_STAGES = ("waiting", "queued")  # at the provider, which has not begun with it
WITHOUT_END = ("no_worker", "owner_limit", "provider_limit", "rate_limited")  # nobody knows when others make room


class ThumbnailView(BaseModel):
    """A WebP file. Its URL ends in the width that it was made for; a small or very tall picture's is narrower."""

    width: int = Field(description="Pixels that it has")
    height: int
    url: str = Field(examples=["/api/v1/artifacts/01970000-0000-7000-8000-000000000001/thumbnails/512"])


class ArtifactView(BaseModel):
    """A stored result, or an upload. URLs are paths on this host."""

    id: str
    kind: Literal["image", "video", "audio", "input"] = Field(description="`input` is a picture that was uploaded")
    url: str = Field(examples=["/api/v1/artifacts/01970000-0000-7000-8000-000000000001/content"])
    content_type: str = Field(examples=["video/mp4"])
    width: int | None = Field(description="Pixels, as it is shown; null for a sound")
    height: int | None
    duration_seconds: float | None = Field(description="Null for a picture")
    size_bytes: int
    sha256: str = Field(examples=["9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"])
    thumbhash: str | None = Field(description="A blur to show while it loads; null for a sound")
    seed: int | None
    thumbnails: list[ThumbnailView]
    poster: str | None = Field(description="The URL of a WebP frame of a video, 1280 pixels wide if the video is")
    thumbnail_error: str | None = Field(description="Why there are no thumbnails, if some should be")
    content_credentials: Literal["present", "none"] | None = Field(
        description="Whether the file carries a signed statement (C2PA) of where it comes from, and so was stored "
        "untouched; null if it was stored before this was looked at"
    )
    details: dict[str, Any] = Field(
        description="What else is known: codecs and frame rate, and what its provider told of it (`title`, ...)",
        examples=[{"container": "mp4", "video_codec": "h264", "frame_rate": 25.0, "audio_codec": "aac"}],
    )


class ErrorView(BaseModel):
    """Why it failed, or why the last attempt did."""

    code: str = Field(examples=["provider_unavailable"])
    message: str = Field(examples=["The provider cannot be reached."])
    retryable: bool
    provider: str = Field(examples=["mock"])
    attempt: int
    details: dict[str, Any]


class EtaView(BaseModel):
    """Learnt from measured durations, and from the pace of a job that runs; null until there are any."""

    wait_seconds: float | None
    run_seconds: float | None


class SkipView(BaseModel):
    """A provider of the route that was passed over."""

    provider: str = Field(examples=["comfyui"])
    code: str = Field(
        description="`provider_paused`, `breaker_open`, `provider_unreachable`, or the code of an error",
        examples=["breaker_open"],
    )
    reason: str
    at: datetime


class UrlsView(BaseModel):
    self: str = Field(examples=["/api/v1/generation-jobs/01970000-0000-7000-8000-000000000001"])
    events: str = Field(examples=["/api/v1/generation-jobs/01970000-0000-7000-8000-000000000001/events"])
    cancel: str = Field(examples=["/api/v1/generation-jobs/01970000-0000-7000-8000-000000000001/cancel"])
    retry: str = Field(examples=["/api/v1/generation-jobs/01970000-0000-7000-8000-000000000001/retry"])
    attempts: str = Field(examples=["/api/v1/generation-jobs/01970000-0000-7000-8000-000000000001/attempts"])


EXAMPLE_URL = f"{PREFIX}/01970000-0000-7000-8000-000000000001"
EXAMPLE: dict[str, Any] = {
    "id": "01970000-0000-7000-8000-000000000001",
    "kind": "image.generate",
    "status": "processing",
    "is_terminal": False,
    "stage": "rendering",
    "message": "Rendering...",
    "progress": 45,
    "blocked_reason": None,
    "blocked_until": None,
    "task_id": "01970000-0000-7000-8000-000000000001",
    "celery_task_id": "01970000-0000-7000-8000-000000000001",
    "batch_id": None,
    "origin_job_id": None,
    "provider": "mock",
    "route": [],
    "skipped": [],
    "provider_job_id": "mock-7",
    "comfyui_prompt_id": None,
    "mocked": True,
    "warnings": [],
    **Parameters("image.generate", "a lighthouse at dusk", model="darkroom", width=768, height=512, seed=7).asked(),
    "source_url": None,
    "image_type": "scene",
    "project_id": None,
    "chapter_id": "chapter-1",
    "script_id": None,
    "scene_number": 3,
    "character_id": None,
    "priority": 0,
    "run_at": "2026-01-02T03:04:05.123000Z",
    "start_within_seconds": None,
    "start_deadline_at": None,
    "timeout_seconds": 300.0,
    "metadata": {"user": "42"},
    "attempt": 1,
    "retry_count": 0,
    "crash_count": 0,
    "max_retries": 3,
    "artifacts": [],
    "output_paths": [],
    "thumbnail_paths": [],
    "error": None,
    "eta": {"wait_seconds": 0.0, "run_seconds": 2.1},
    "created_at": "2026-01-02T03:04:05.123000Z",
    "started_at": "2026-01-02T03:04:05.140000Z",
    "finished_at": None,
    "updated_at": "2026-01-02T03:04:06.020000Z",
    "version": 2,
    "urls": {"self": EXAMPLE_URL}
    | {name: f"{EXAMPLE_URL}/{name}" for name in ("events", "cancel", "retry", "attempts")},
}


_Asked = create_model("_Asked", **asked_fields(is_shown=True))


class JobView(_Asked):
    """A generation job."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE]})

    id: str
    kind: str
    status: Status
    is_terminal: bool
    stage: str | None = Field(description="What it is doing now, as a machine word")
    message: str | None = Field(description="The same for people")
    progress: int | None = Field(description="0-100, or null if unknown")
    blocked_reason: str | None = Field(description="Why a pending job cannot run, e.g. `no_worker`")
    blocked_until: datetime | None = Field(description="When that ends, if it is known")
    task_id: str
    celery_task_id: str
    batch_id: str | None
    origin_job_id: str | None = Field(description="The job this one retries")
    provider: str
    route: list[str] = Field(description="The providers still to try if this one cannot, in order")
    skipped: list[SkipView] = Field(description="The providers passed over, and why")
    provider_job_id: str | None
    comfyui_prompt_id: str | None
    mocked: bool
    warnings: list[str] = Field(description="What to know of its result: that the mock draws in a provider's place")
    prompt: str = Field(description="Empty for a media import, which has none")
    lora_models: list[dict[str, Any]]
    source_url: str | None = Field(description="What a media import imports; it has no prompt")
    image_type: str | None
    project_id: str | None
    chapter_id: str | None
    script_id: str | None
    scene_number: int | None
    character_id: str | None
    priority: int
    run_at: datetime
    start_within_seconds: float | None
    start_deadline_at: datetime | None
    timeout_seconds: float
    metadata: dict[str, str]
    attempt: int
    retry_count: int
    crash_count: int
    max_retries: int
    artifacts: list[ArtifactView]
    output_paths: list[str]
    thumbnail_paths: list[str]
    error: ErrorView | None
    eta: EtaView
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    updated_at: datetime
    version: int
    urls: UrlsView


class JobList(BaseModel):
    """A page of jobs, newest first; `next_cursor` asks for the next."""

    items: list[JobView]
    next_cursor: str | None


class AttemptView(BaseModel):
    """One execution of a job."""

    number: int
    worker: str = Field(examples=["worker-1"])
    worker_id: str
    queue: str = Field(examples=["image_generation"])
    provider: str = Field(examples=["mock"])
    provider_job_id: str | None
    started_at: datetime
    finished_at: datetime | None
    seconds: float | None
    outcome: str | None = Field(
        description="completed, failed, cancelled, retry, deferred, unreachable, moved, handed_back, lost; null while "
        "it runs"
    )
    error: ErrorView | None


class AttemptList(BaseModel):
    items: list[AttemptView]


def view_of(job: Job, artifacts: Sequence[Artifact], eta: EtaView) -> dict[str, Any]:
    """The fields of `JobView`, ready to be encoded."""
    url = f"{PREFIX}/{job.id}"
    return {
        "id": job.id,
        "kind": job.kind,
        "status": job.status,
        "is_terminal": job.is_terminal,
        "stage": job.stage,
        "message": message_of(job),
        "progress": job.progress,
        "blocked_reason": job.blocked_reason,
        "blocked_until": job.blocked_until,
        "task_id": job.celery_task_id,
        "celery_task_id": job.celery_task_id,
        "batch_id": job.batch_id,
        "origin_job_id": job.origin_job_id,
        "provider": job.provider,
        "route": [stop["provider"] for stop in job.route or ()],
        "skipped": [{name: skip[name] for name in ("provider", "code", "reason", "at")} for skip in job.skips or ()],
        "provider_job_id": job.provider_job_id,
        "comfyui_prompt_id": (job.provider_job_id or "").rpartition("#")[2] or None
        if job.provider == "comfyui"
        else None,
        "mocked": job.mocked,
        "warnings": [PLAYED.format(job.provider)] if job.mocked and job.provider != MOCK else [],
        **job.parameters.asked(),
        "source_url": job.parameters.provider_options.get("url") if job.kind == IMPORT else None,
        "image_type": job.image_type,
        "project_id": job.project_id,
        "chapter_id": job.chapter_id,
        "script_id": job.script_id,
        "scene_number": job.scene_number,
        "character_id": job.character_id,
        "priority": job.priority,
        "run_at": job.run_at,
        "start_within_seconds": _start_within_seconds(job),
        "start_deadline_at": job.start_deadline_at,
        "timeout_seconds": job.soft_limit_seconds,
        "metadata": job.metadata,
        "attempt": job.attempt,
        "retry_count": job.retry_count,
        "crash_count": job.crash_count,
        "max_retries": job.max_retries,
        "artifacts": [describe_artifact(artifact) for artifact in artifacts],
        "output_paths": [artifact.storage_key for artifact in artifacts],
        "thumbnail_paths": [thumbnail["storage_key"] for artifact in artifacts for thumbnail in artifact.thumbnails],
        "error": job.error,
        "eta": {"wait_seconds": eta.wait_seconds, "run_seconds": eta.run_seconds},
        "created_at": job.created_at,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "updated_at": job.updated_at,
        "version": job.version,
        "urls": {
            "self": ApiPath(url),
            "events": ApiPath(f"{url}/events"),
            "cancel": ApiPath(f"{url}/cancel"),
            "retry": ApiPath(f"{url}/retry"),
            "attempts": ApiPath(f"{url}/attempts"),
        },
    }


def _start_within_seconds(job: Job) -> float | None:
    if job.start_deadline_at is None:
        return None
    return round((job.start_deadline_at - job.created_at).total_seconds(), 1)


def attempt_view_of(attempt: Attempt) -> dict[str, Any]:
    """The fields of `AttemptView`, ready to be encoded."""
    seconds = None
    if attempt.finished_at is not None:
        seconds = round((attempt.finished_at - attempt.started_at).total_seconds(), 3)
    return {
        "number": attempt.number,
        "worker": attempt.worker_name,
        "worker_id": attempt.worker_id,
        "queue": attempt.queue,
        "provider": attempt.provider,
        "provider_job_id": attempt.provider_job_id,
        "started_at": attempt.started_at,
        "finished_at": attempt.finished_at,
        "seconds": seconds,
        "outcome": attempt.outcome,
        "error": attempt.error,
    }


class Estimator:
    """Estimates from what was measured: the median of the latest runs like this one, and the queue before it."""

    def __init__(self, database: Database, dispatcher: Dispatcher) -> None:
        self._database = database
        self._dispatcher = dispatcher
        self._learnt: OrderedDict[str, tuple[float, float | None]] = OrderedDict()

    async def estimate(self, job: Job) -> EtaView:
        """The estimate for a job that has not ended; nulls for one that has, and where nothing was learnt yet."""
        if job.is_terminal or job.kind == IMPORT:
            return EtaView(wait_seconds=None, run_seconds=None)
        run = await self._run_seconds(job)
        if job.status == "processing" and job.started_at is not None:
            running = (datetime.now(UTC) - job.started_at).total_seconds()
            if job.stage in WAITING_STAGES:
                expected = None if run is None else running + run
            else:
                expected = expected_seconds(run, job.progress, max(0.0, running))
            return EtaView(wait_seconds=0.0, run_seconds=None if expected is None else round(expected, 1))
        return EtaView(wait_seconds=self._wait_seconds(job, run), run_seconds=run)

    async def _run_seconds(self, job: Job) -> float | None:
        key = job.estimate_key
        if key is None:
            return None
        now = time.monotonic()
        known = self._learnt.get(key)
        if known is not None and now - known[0] < LEARNT_FOR_SECONDS:
            return known[1]
        try:
            seconds = await self._database.read(run_seconds, key)
        except Unavailable:
            return known[1] if known is not None else None
        seconds = None if seconds is None else round(seconds, 1)
        self._learnt[key] = (now, seconds)
        self._learnt.move_to_end(key)
        if len(self._learnt) > MAX_LEARNT:
            self._learnt.popitem(last=False)
        return seconds

    def _wait_seconds(self, job: Job, run: float | None) -> float | None:
        if job.status == "processing":
            return 0.0
        load = self._dispatcher.situation.queues.get(job.queue)
        unavailability = self._dispatcher.unavailable.get(job.provider)
        if run is None or load is None or load.slots == 0:
            return None
        until = job.blocked_until if unavailability is None else unavailability.until
        if until is None and (unavailability is not None or job.blocked_reason in WITHOUT_END):
            return None
        begins = job.run_at if until is None else max(job.run_at, until)
        delay = max(0.0, (begins - datetime.now(UTC)).total_seconds())
        passed = load.blocked if until is None else 0  # those that wait for something else than room
        before = max(0, load.waiting - passed + load.released - 1)
        free = load.slots - load.running
        rounds = 0 if before < free else math.ceil((before - free + 1) / load.slots)
        return round(delay + rounds * run, 1)
