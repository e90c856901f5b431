"""What the runner makes of the errors of providers: whose fault they are, and what is worth another try or place."""

import sys
from collections.abc import AsyncGenerator, AsyncIterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from films import film
from safelight.api.job_request import GenerationRequest, new_job
from safelight.bootstrap import Safelight, open_safelight
from safelight.config import Settings
from safelight.db import Tx, db_now, new_id
from safelight.jobs import Attempt, Job, ProviderState, attempts_of, get, read_states
from safelight.jobs.job import jobs
from safelight.providers.base import (
    Accepted,
    BadOutput,
    Capabilities,
    ContentRejected,
    Generation,
    JobLost,
    Output,
    Parameters,
    Progress,
    Provider,
    ProviderError,
    ProviderTimedOut,
    ProviderUnavailable,
    RateLimited,
    Submitting,
    UnknownOutcome,
    Update,
)
from safelight.worker.inputs import InputImages
from safelight.worker.runner import Runner

pytestmark = pytest.mark.anyio


class Scripted(Provider):
    """Does for each attempt what its script says: raise an error, before or after the job was accepted, or draw."""

    def __init__(
        self, *script: ProviderError | None, accepts: bool = False, delivers: bytes | Path | None = None
    ) -> None:
        self._script = list(script)
        self._accepts = accepts
        self._delivers = delivers or PICTURE
        self.asked: list[str] = []

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            frozenset({"image.generate"}), (), 4096, 4096, 1, cancel=False, progress=False, previews=False
        )

    def check(self, parameters: Parameters) -> Parameters:
        return parameters

    async def generate(self, generation: Generation) -> AsyncGenerator[Update]:
        self.asked.append("generate")
        yield Submitting()
        if self._accepts:
            yield Accepted(f"remote-{generation.attempt}")
        async for update in self._go_on():
            yield update

    async def resume(self, generation: Generation, remote_id: str) -> AsyncGenerator[Update]:
        self.asked.append(f"resume {remote_id}")
        async for update in self._go_on():
            yield update

    async def _go_on(self) -> AsyncGenerator[Update]:
        yield Progress(10, "rendering", "Rendering")
        error = self._script.pop(0) if self._script else None
        if error is not None:
            raise error
        yield Output(self._delivers, "image/png")


def _picture() -> bytes:
    file = BytesIO()
    Image.new("RGB", (64, 64), "navy").save(file, "PNG")
    return file.getvalue()


PICTURE = _picture()


class Workshop:
    """A runner over real rows and files, and providers with a script."""

    def __init__(self, world: Safelight) -> None:
        self.world = world
        self.runner = Runner(
            database=world.database,
            jobs=world.jobs,
            stream=world.stream,
            artifacts=world.artifacts,
            providers=world.providers,
            inputs=InputImages(world.database, world.storage, 1 << 20),
            worker_id=new_id(),
            worker_name="workshop",
            lease_seconds=30,
            retry_seconds=0.01,
        )

    def add(self, name: str, provider: Provider) -> None:
        self.world.providers._makers[name] = lambda: provider

    async def submit(self, provider: Any = "one", max_retries: int = 1) -> str:
        new = new_job(
            GenerationRequest.model_validate({"prompt": "a pier", "provider": provider, "max_retries": max_retries}),
            owner_id="local",
            request_id="none",
            providers=self.world.providers,
            settings=self.world.settings,
        )
        await self.world.database.write_one(self.world.jobs.submit, new)
        return new.id

    async def attempt(self, job_id: str) -> Job:
        """Release it and carry out the hint."""
        await self.world.database.write(_release, job_id)
        job = await self.job(job_id)
        await self.runner.run(job_id, job.queue)
        return await self.job(job_id)

    async def job(self, job_id: str) -> Job:
        job = await self.world.database.read(get, job_id, "local")
        assert job is not None
        return job

    async def attempts(self, job_id: str) -> list[Attempt]:
        return await self.world.database.read(attempts_of, job_id)

    async def states(self) -> dict[str, ProviderState]:
        return {state.provider: state for state in await self.world.database.read(read_states)}


def _release(tx: Tx, job_id: str) -> None:
    tx.execute(jobs.update().where(jobs.c.id == job_id, jobs.c.status == "pending").values(hinted_at=db_now()))


@pytest.fixture
async def workshop(sqlite_url: str, tmp_path: Path) -> AsyncIterator[Workshop]:
    given: dict[str, Any] = {
        "data_dir": tmp_path,
        "database_url": sqlite_url,
        "redis_url": f"unix://{tmp_path}/none",
        "mock_mode": False,
        "breaker_failures": 2,
    }
    async with open_safelight(Settings(**given)) as world:
        yield Workshop(world)


async def test_a_rate_limit_pauses_the_provider_and_costs_no_retry(workshop: Workshop) -> None:
    provider = Scripted(RateLimited("Too many.", retry_after=40.0))
    workshop.add("one", provider)
    first, second = await workshop.submit(max_retries=0), await workshop.submit()
    job = await workshop.attempt(first)
    assert (job.status, job.retry_count, job.submitting_at) == ("pending", 0, None)
    state = (await workshop.states())["one"]
    assert state.pause_reason == "Too many." and state.paused_until is not None
    assert (await workshop.attempt(second)).attempt == 0  # its hint finds a closed door
    assert provider.asked == ["generate"]


async def test_a_rate_limit_while_following_a_job_loses_nothing(workshop: Workshop) -> None:
    provider = Scripted(RateLimited(retry_after=0.0), accepts=True)
    workshop.add("one", provider)
    job_id = await workshop.submit()
    assert (await workshop.attempt(job_id)).provider_job_id == "remote-1"
    assert (await workshop.attempt(job_id)).status == "completed"
    assert provider.asked == ["generate", "resume remote-1"]


@pytest.mark.parametrize("error", [ProviderUnavailable, ProviderTimedOut])
async def test_outages_open_the_breaker_and_the_rest_does_not(workshop: Workshop, error: type[ProviderError]) -> None:
    workshop.add("one", Scripted(error(), error()))
    workshop.add("two", Scripted(JobLost(), BadOutput(), UnknownOutcome(), ContentRejected()))
    for _ in range(2):
        await workshop.attempt(await workshop.submit("one"))
    for _ in range(4):
        await workshop.attempt(await workshop.submit("two"))
    states = await workshop.states()
    assert states["one"].breaker == "open"
    assert "two" not in states


async def test_a_refusal_shows_that_the_provider_works(workshop: Workshop) -> None:
    workshop.add("one", Scripted(ProviderUnavailable(), ContentRejected("Not that."), ProviderUnavailable()))
    for _ in range(3):
        await workshop.attempt(await workshop.submit())
    state = (await workshop.states())["one"]
    assert (state.breaker, state.failures) == ("closed", 1)


@pytest.mark.parametrize(
    ("error", "moves"),
    [
        (ProviderUnavailable(), True),
        (ProviderTimedOut(), True),
        (JobLost(), True),
        (UnknownOutcome(), False),
        (BadOutput(), False),
        (ContentRejected(), False),
    ],
)
async def test_what_is_worth_another_provider(workshop: Workshop, error: ProviderError, moves: bool) -> None:
    """Never after an outcome that may have been paid for."""
    workshop.add("one", Scripted(error))
    workshop.add("two", Scripted())
    job_id = await workshop.submit(["one", "two"], max_retries=0)
    job = await workshop.attempt(job_id)
    assert (job.status, job.provider) == (("pending", "two") if moves else ("failed", "one"))
    if moves:
        assert [(skip["provider"], skip["code"]) for skip in job.skips or ()] == [("one", error.code)]
        assert (await workshop.attempt(job_id)).status == "completed"
        assert [attempt.outcome for attempt in await workshop.attempts(job_id)] == ["moved", "completed"]


@pytest.mark.parametrize("whole", [True, False])
async def test_a_file_is_gone_whatever_became_of_it(workshop: Workshop, tmp_path: Path, whole: bool) -> None:
    file = tmp_path / "result.tmp"
    file.write_bytes(film("mp4") if whole else film("mp4")[:2000])
    workshop.add("one", Scripted(delivers=file))
    job = await workshop.attempt(await workshop.submit(max_retries=0))
    assert (job.status, (job.error or {}).get("code")) == (("completed", None) if whole else ("failed", "bad_output"))
    assert not file.exists()


async def test_without_ffmpeg_a_video_is_not_made_again_and_again(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workshop.add("one", Scripted(delivers=film("mp4")))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    job = await workshop.attempt(await workshop.submit(max_retries=3))
    assert (job.status, (job.error or {}).get("code")) == ("failed", "ffmpeg_missing")
