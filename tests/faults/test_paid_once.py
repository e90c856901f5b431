"""An outage on our side after the provider took a job must not make us submit, and pay, it again."""

import asyncio
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from jobs.builders import hire
from patience import PATIENCE_SECONDS
from safelight.api.job_request import GenerationRequest, new_job
from safelight.bootstrap import Safelight, open_safelight
from safelight.config import Settings
from safelight.db import DatabaseUnavailable, Tx
from safelight.jobs import Attempt, Job, attempts_of, get
from safelight.jobs.job import jobs
from safelight.providers.base import Accepted, Generation, Reserved, Update
from safelight.storage import StorageUnavailable
from safelight.worker import runner as runner_module
from safelight.worker.inputs import InputImages
from safelight.worker.lease import Lease
from safelight.worker.runner import Runner

pytestmark = pytest.mark.anyio


class Bench:
    """A worker's runner over real rows and files, without Redis."""

    def __init__(self, world: Safelight) -> None:
        self.world = world
        self.lease = Lease(ends=math.inf)
        self.runner = Runner(
            database=world.database,
            jobs=world.jobs,
            stream=world.stream,
            artifacts=world.artifacts,
            providers=world.providers,
            inputs=InputImages(world.database, world.storage, world.pictures, 1 << 20),
            lease=self.lease,
            worker_name="bench",
            retry_seconds=0.01,
        )

    async def run(self) -> tuple[Job, list[Attempt]]:
        """A job run until it ends, with one attempt after the other."""
        options = {"duration_seconds": 0.05, "mock": {"paid": True}}
        asked = {"prompt": "a lighthouse", "width": 64, "height": 64, "provider_options": options}
        new = new_job(
            GenerationRequest.model_validate(asked),
            owner_id="local",
            request_id="none",
            providers=self.world.providers,
            settings=self.world.settings,
        )
        await self.world.database.write_one(self.world.jobs.submit, new)
        for _ in range(3):
            await self.world.database.write(_release, new.id, self.lease.worker_id)
            await self.runner.run(new.id, new.queue)
        job = await self.world.database.read(get, new.id, "local")
        assert job is not None
        return job, await self.world.database.read(attempts_of, new.id)


class SlowToAnswer:
    """Plays the mock, and takes a while to say that it has a job."""

    def __init__(self, real: Any) -> None:
        self._real = real
        self.is_asked = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    async def generate(self, generation: Generation) -> AsyncGenerator[Update]:
        async with aclosing(self._real.generate(generation)) as updates:
            async for update in updates:
                if isinstance(update, Accepted):
                    self.is_asked.set()
                    await asyncio.sleep(0.3)
                yield update


class Reserving:
    """Plays the mock, under ids of ours, and is stopped before it has sent anything."""

    def __init__(self, real: Any) -> None:
        self._real = real
        self.is_reserved = asyncio.Event()
        self.resumed: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    async def generate(self, generation: Generation) -> AsyncGenerator[Update]:
        yield Reserved(f"mock-{generation.job_id}-{round(time.time() * 1000)}-50")
        self.is_reserved.set()
        await asyncio.Event().wait()

    def resume(self, generation: Generation, remote_id: str) -> AsyncGenerator[Update]:
        self.resumed.append(remote_id)
        return self._real.resume(generation, remote_id)


def _release(tx: Tx, job_id: str, worker_id: str) -> None:
    hire(tx, worker_id)
    tx.execute(
        jobs.update().where(jobs.c.id == job_id, jobs.c.status == "pending").values(released_at=jobs.c.created_at)
    )


@pytest.fixture
async def bench(sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.setattr(runner_module, "OUTAGE_SECONDS", 0.01)
    monkeypatch.setenv("SAFELIGHT_MOCK_LEDGER", str(tmp_path / "ledger"))
    given: dict[str, Any] = {"data_dir": tmp_path, "database_url": sqlite_url, "redis_url": f"unix://{tmp_path}/none"}
    async with open_safelight(Settings(**given)) as world:
        yield Bench(world)


def submits(tmp_path: Path) -> int:
    return len((tmp_path / "ledger").read_text().splitlines())


async def test_database_away_when_the_provider_has_accepted(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outages = iter([True, True])
    record = bench.world.jobs.record_remote_id

    def fails_twice(*args: Any) -> bool:
        if next(outages, False):
            raise DatabaseUnavailable
        return record(*args)

    monkeypatch.setattr(bench.world.jobs, "record_remote_id", fails_twice)
    job, attempts = await bench.run()
    assert job.status == "completed" and [attempt.outcome for attempt in attempts] == ["completed"]
    assert submits(tmp_path) == 1


async def test_told_to_leave_while_the_provider_is_about_to_answer(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = SlowToAnswer(bench.world.providers.resolve("mock")[1])
    monkeypatch.setattr(bench.world.providers, "resolve", lambda name: ("mock", provider, True))
    running = asyncio.create_task(bench.run())
    async with asyncio.timeout(PATIENCE_SECONDS):
        await provider.is_asked.wait()
    await bench.runner.drain(0)
    bench.runner.is_draining = False  # as if it were the next worker
    job, attempts = await running
    assert job.status == "completed" and [attempt.outcome for attempt in attempts] == ["handed_back", "completed"]
    assert submits(tmp_path) == 1


async def test_told_to_leave_between_reserving_and_sending(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    provider = Reserving(bench.world.providers.resolve("mock")[1])
    monkeypatch.setattr(bench.world.providers, "resolve", lambda name: ("mock", provider, True))
    running = asyncio.create_task(bench.run())
    async with asyncio.timeout(PATIENCE_SECONDS):
        await provider.is_reserved.wait()
    await bench.runner.drain(0)
    bench.runner.is_draining = False
    job, attempts = await running
    assert job.status == "completed" and [attempt.outcome for attempt in attempts] == ["handed_back", "completed"]
    assert provider.resumed == [job.provider_job_id]  # the next one looks for it, and does not begin anew


async def test_storage_away_when_the_picture_is_there(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outages = iter([True])
    put = bench.world.storage.put

    async def fails_once(*args: Any) -> None:
        if next(outages, False):
            raise StorageUnavailable
        await put(*args)

    monkeypatch.setattr(bench.world.storage, "put", fails_once)
    job, attempts = await bench.run()
    assert job.status == "completed" and [attempt.outcome for attempt in attempts] == ["retry", "completed"]
    assert submits(tmp_path) == 1, "the second attempt adopts what the provider has"
