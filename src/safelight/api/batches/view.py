"""A batch as clients see it."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from safelight.api.job_view import PREFIX as JOBS
from safelight.api.job_view import Estimator
from safelight.artifacts import ApiPath
from safelight.jobs import Batch, BatchState, Job, Status

PREFIX = "/api/v1/batches"


class CountsView(BaseModel):
    """How many of its jobs have each status."""

    pending: int
    processing: int
    completed: int
    failed: int
    cancelled: int


class BatchUrls(BaseModel):
    self: str = Field(examples=["/api/v1/batches/01970000-0000-7000-8000-00000000000b"])
    events: str = Field(examples=["/api/v1/batches/01970000-0000-7000-8000-00000000000b/events"])
    jobs: str = Field(examples=["/api/v1/generation-jobs?batch_id=01970000-0000-7000-8000-00000000000b"])
    cancel: str = Field(examples=["/api/v1/batches/01970000-0000-7000-8000-00000000000b/cancel"])
    retry: str = Field(examples=["/api/v1/batches/01970000-0000-7000-8000-00000000000b/retry"])


class BatchEta(BaseModel):
    """Learnt from measured durations."""

    seconds: float = Field(description="Until its last job ends")


EXAMPLE_ID = "01970000-0000-7000-8000-00000000000b"
EXAMPLE: dict[str, Any] = {
    "id": EXAMPLE_ID,
    "name": "chapter 1",
    "status": "processing",
    "is_terminal": False,
    "counts": {"pending": 1, "processing": 1, "completed": 1, "failed": 0, "cancelled": 0},
    "total": 3,
    "progress": 48,
    "metadata": {"user": "42"},
    "origin_batch_id": None,
    "created_at": "2026-01-02T03:04:05.123000Z",
    "finished_at": None,
    "urls": {
        "self": f"{PREFIX}/{EXAMPLE_ID}",
        "events": f"{PREFIX}/{EXAMPLE_ID}/events",
        "jobs": f"{JOBS}?batch_id={EXAMPLE_ID}",
        "cancel": f"{PREFIX}/{EXAMPLE_ID}/cancel",
        "retry": f"{PREFIX}/{EXAMPLE_ID}/retry",
    },
    "job_ids": [f"01970000-0000-7000-8000-00000000000{number}" for number in (1, 2, 3)],
    "eta": {"seconds": 4.2},
}


class BatchSummary(BaseModel):
    """A batch in a list."""

    id: str
    name: str | None
    status: Status = Field(
        description="`pending` until the first job begins, `processing` until the last one ends; then `failed` if any "
        "failed, else `cancelled` if any was cancelled, else `completed`"
    )
    is_terminal: bool
    counts: CountsView
    total: int = Field(description="How many jobs were accepted")
    progress: int = Field(description="0-100: the mean of its jobs', ended ones as 100; never goes backwards")
    metadata: dict[str, str]
    origin_batch_id: str | None = Field(description="The batch whose failed and cancelled jobs this one retries")
    created_at: datetime
    finished_at: datetime | None
    urls: BatchUrls


class BatchView(BatchSummary):
    """Jobs that were accepted together."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE]})

    job_ids: list[str] = Field(description="In the order in which they were asked for")
    eta: BatchEta | None = Field(description="Null until durations were learnt, and where nobody knows")


class BatchList(BaseModel):
    """A page of batches, newest first; `next_cursor` asks for the next."""

    items: list[BatchSummary]
    next_cursor: str | None


def summary_of(batch: Batch, state: BatchState) -> dict[str, Any]:
    """The fields of `BatchSummary`, ready to be encoded."""
    url = f"{PREFIX}/{batch.id}"
    return {
        "id": batch.id,
        "name": batch.name,
        "status": state.status,
        "is_terminal": state.is_terminal,
        "counts": state.counts,
        "total": batch.total,
        "progress": state.progress,
        "metadata": batch.metadata,
        "origin_batch_id": batch.origin_batch_id,
        "created_at": batch.created_at,
        "finished_at": state.finished_at,
        "urls": {
            "self": ApiPath(url),
            "events": ApiPath(f"{url}/events"),
            "jobs": ApiPath(f"{JOBS}?batch_id={batch.id}"),
            "cancel": ApiPath(f"{url}/cancel"),
            "retry": ApiPath(f"{url}/retry"),
        },
    }


def batch_view_of(batch: Batch, state: BatchState, job_ids: Sequence[str], eta: BatchEta | None) -> dict[str, Any]:
    """The fields of `BatchView`, ready to be encoded."""
    shown = None if eta is None else {"seconds": eta.seconds}
    return {**summary_of(batch, state), "job_ids": list(job_ids), "eta": shown}


async def estimate_end(estimator: Estimator, last: Job | None) -> BatchEta | None:
    """When a batch ends, by the job that will be its last; None where nobody knows."""
    if last is None:
        return None
    eta = await estimator.estimate(last)
    if eta.wait_seconds is None or eta.run_seconds is None:
        return None
    ran = 0.0 if last.status == "pending" or last.started_at is None else _seconds_since(last.started_at)
    seconds = eta.wait_seconds + eta.run_seconds - ran
    return BatchEta(seconds=round(seconds, 1)) if seconds >= 0 else None  # it takes longer than any before it


def _seconds_since(moment: datetime) -> float:
    return (datetime.now(UTC) - moment).total_seconds()
