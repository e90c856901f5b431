"""What tests of jobs are built from: requests, a tape for announcements, and a desk that runs the transactions."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar, TypeVarTuple

from sqlalchemy import select, update

from patience import PATIENCE_SECONDS
from safelight.artifacts import Artifact, Thumbnail
from safelight.artifacts import of_jobs as artifacts_of_jobs
from safelight.db import Database, Tx, db_now, new_id
from safelight.errors import SafelightError
from safelight.jobs import (
    Attempt,
    Claim,
    Completed,
    Failed,
    Job,
    JobDeleted,
    JobEnded,
    JobEvent,
    JobNotFound,
    Jobs,
    NewJob,
    Settlement,
    Submitted,
    TryAgain,
    as_stop,
    attempts_of,
    explain,
    history,
    job_error,
    register_worker,
)
from safelight.jobs.job import jobs, workers
from safelight.providers.parameters import ASKED, Parameters

Ts = TypeVarTuple("Ts")
R = TypeVar("R")

OWNER = "ada"
QUEUE = "image_generation"
WORKER = "00000000-0000-7000-8000-00000000000a"
LEASE_SECONDS = 60.0


class Tape:
    """An announcer that only remembers."""

    def __init__(self) -> None:
        self.events: list[JobEvent] = []
        self.hints: list[Job] = []
        self.waiting: list[Job] = []
        self.nudges: list[str] = []

    def event(self, job: Job, event: JobEvent) -> None:
        self.events.append(event)

    def hint(self, job: Job) -> None:
        self.hints.append(job)

    def waits(self, job: Job) -> None:
        self.waiting.append(job)

    def nudge(self, job_id: str) -> None:
        self.nudges.append(job_id)

    def of(self, job_id: str) -> list[JobEvent]:
        return [event for event in self.events if event.job_id == job_id]


_last_id = [""]


def _next_id() -> str:
    """Ids of one millisecond have no order of their own; tests want the order of submission."""
    while (fresh := new_id()) <= _last_id[0]:
        pass
    _last_id[0] = fresh
    return fresh


def new_job(
    *,
    owner_id: str = OWNER,
    hint: bool = False,
    run_at: datetime | None = None,
    start_within_seconds: float | None = None,
    idempotency_key: str | None = None,
    fingerprint: str = "f" * 64,
    job_id: str | None = None,
    kind: str = "image.generate",
    **values: Any,
) -> NewJob:
    """A request as the API makes it; `values` are columns, or fields of the parameters."""
    asked = {name: values.pop(name) for name in (*ASKED, "template_definition") if name in values}
    columns: Mapping[str, Any] = {
        "provider": "mock",
        "mocked": True,
        "parameters": Parameters.of({"kind": kind, "prompt": "a lighthouse at dusk", **asked}),
        "metadata": {},
        "priority": 0,
        "soft_limit_seconds": 300.0,
        "hard_limit_seconds": 330.0,
        "max_retries": 3,
        **values,
    }
    return NewJob(
        id=job_id or _next_id(),
        kind=kind,
        owner_id=owner_id,
        values=columns,
        run_at=run_at,
        start_within_seconds=start_within_seconds,
        idempotency_key=idempotency_key,
        fingerprint=fingerprint,
        hint=hint,
    )


def stop(provider: str, **asked: Any) -> dict[str, Any]:
    """A provider of a route, and what it would be asked for."""
    return as_stop({"provider": provider, "parameters": new_job(**asked).parameters})


def artifact_of(job: Job, position: int = 0) -> Artifact:
    """The record of a picture that this attempt stored."""
    key = f"jobs/{job.id}/{job.attempt}/{position}"
    thumbnail = Thumbnail(width=256, storage_key=f"{key}-256.webp", size_bytes=3, pixel_width=256, pixel_height=256)
    return Artifact(
        id=new_id(),
        job_id=job.id,
        attempt=job.attempt,
        position=position,
        owner_id=job.owner_id,
        kind="image",
        storage_key=f"{key}.png",
        content_type="image/png",
        size_bytes=7,
        sha256="0" * 64,
        width=512,
        height=512,
        thumbhash="AAAA",
        seed=2**53 + 1,
        thumbnails=[thumbnail],
        created_at=datetime.now(UTC),
    )


def completed(job: Job, pictures: int = 1) -> Completed:
    return Completed([artifact_of(job, position) for position in range(pictures)])


def failed(job: Job) -> Failed:
    return Failed(job_error("content_rejected", "The provider refused the prompt.", job, False, {"rule": "safety"}))


def try_again(job: Job, after_seconds: float = 0.0) -> TryAgain:
    return TryAgain(job_error("provider_unavailable", "The provider is away.", job, True), after_seconds)


def change_job(tx: Tx, job_id: str, values: Mapping[str, Any]) -> None:
    """Reach into the row, past the service: what time and accidents do."""
    assert tx.execute(update(jobs).where(jobs.c.id == job_id).values(dict(values))).rowcount == 1


def hire(tx: Tx, worker_id: str = WORKER) -> None:
    """See that this worker is there, for claims; it has no part in what dispatch counts."""
    if not tx.execute(select(workers).where(workers.c.id == worker_id)).all():
        register_worker(tx, worker_id, "io", (), 0, LEASE_SECONDS)


def _lease_ends(tx: Tx, in_seconds: float) -> None:
    tx.execute(update(workers).where(workers.c.id == WORKER).values(lease_until=db_now(in_seconds)))


def look(tx: Tx, job_id: str) -> Job:
    return Job.of(tx.execute(select(*jobs.c).where(jobs.c.id == job_id)).one())


def _look(tx: Tx, job_id: str) -> Job:
    return explain(tx, [look(tx, job_id)])[0]


def artifacts_recorded(tx: Tx, job_id: str) -> list[Artifact]:
    return artifacts_of_jobs(tx, [job_id])[job_id]


def events_of(tx: Tx, job_id: str, after: int = 0) -> list[JobEvent]:
    return history(tx, look(tx, job_id), after)


class Desk:
    """The transactions on one database, in the words of a test."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.tape = Tape()
        self.jobs = Jobs(self.tape)

    async def write(self, fn: Callable[[Tx, *Ts], R], *args: *Ts) -> R:
        return await self.database.write(fn, *args)

    async def submit(self, new: NewJob | None = None, **values: Any) -> Job:
        """Accept a job; it is not released unless `hint=True`."""
        accepted = await self.database.write_one(self.jobs.submit, new or new_job(**values))
        assert isinstance(accepted, Submitted), accepted
        return accepted.job

    async def offer(self, **values: Any) -> Submitted | SafelightError:
        return await self.database.write_one(self.jobs.submit, new_job(**values))

    async def release(self, job_id: str) -> None:
        """What dispatch does to a job before it sends the hint."""
        await self.change(job_id, released_at=db_now(), hint_count=1)

    async def claim(self, job_id: str, queue: str = QUEUE) -> Job | None:
        await self.write(hire)
        claim = Claim(job_id, queue, WORKER, "io")
        return await self.database.write_one(self.jobs.claim, claim)

    async def run(self, job_id: str) -> Job:
        """Release and claim it, on whichever queue it waits."""
        await self.release(job_id)
        job = await self.claim(job_id, (await self.job(job_id)).queue)
        assert job is not None, "a released job could not be claimed"
        return job

    async def running(self, **values: Any) -> Job:
        return await self.run((await self.submit(**values)).id)

    async def settle(self, job: Job, settlement: Settlement) -> Job | None:
        return await self.write(self.jobs.settle, job, settlement)

    async def cancel(self, job_id: str, owner_id: str = OWNER) -> Job | JobNotFound | JobDeleted | JobEnded:
        return await self.write(self.jobs.cancel, job_id, owner_id)

    async def lose(self, job_id: str) -> Job:
        """Its worker dies, and dispatch finds it."""
        await self.orphan(job_id)
        recovered = await self.write(self.jobs.recover_lost)
        assert [job.id for job in recovered] == [job_id]
        return recovered[0]

    async def orphan(self, job_id: str) -> None:
        """Its worker, which had nothing else, is no more."""
        await self.change(job_id, worker_id=new_id())

    async def lease_ends(self, in_seconds: float) -> None:
        """That of `WORKER`, which claims everything here."""
        await self.write(_lease_ends, in_seconds)

    async def change(self, job_id: str, **values: Any) -> None:
        await self.write(change_job, job_id, values)

    async def job(self, job_id: str) -> Job:
        """With the reason that it waits for."""
        return await self.database.read(_look, job_id)

    async def attempts(self, job_id: str) -> list[Attempt]:
        return await self.database.read(attempts_of, job_id)

    async def artifacts(self, job_id: str) -> list[Artifact]:
        return await self.database.read(artifacts_recorded, job_id)

    async def history(self, job_id: str, after: int = 0) -> list[JobEvent]:
        return await self.database.read(events_of, job_id, after)

    def told(self, job_id: str) -> list[tuple[int, str]]:
        """The state events announced so far."""
        return [(event.version, event.type) for event in self.tape.of(job_id)]


async def until(condition: Callable[[], bool], seconds: float = PATIENCE_SECONDS) -> None:
    """Wait for a condition that nothing else can tell of."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, "it did not happen in time"
        await asyncio.sleep(0.005)


def outline(events: Sequence[JobEvent]) -> list[tuple[int, str, str, int, int, bool]]:
    """What live and rebuilt events must agree on."""
    return [
        (event.version, event.type, event.status, event.attempt, event.retry_count, event.is_terminal)
        for event in events
    ]
