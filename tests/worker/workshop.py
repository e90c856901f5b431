"""A runner over real rows and files, and providers that do what a script says."""

import math
from collections.abc import AsyncGenerator
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from jobs.builders import hire
from safelight.api.job_request import GenerationRequest, new_job
from safelight.bootstrap import Safelight
from safelight.db import Tx, db_now
from safelight.jobs import Attempt, Job, ProviderState, attempts_of, get, read_states
from safelight.jobs.availability import provider_states
from safelight.jobs.job import jobs
from safelight.providers.base import (
    Accepted,
    Capabilities,
    Generation,
    Output,
    Parameters,
    Progress,
    Provider,
    Submitting,
    Update,
)
from safelight.worker.inputs import InputImages
from safelight.worker.lease import Lease
from safelight.worker.runner import Runner


class Scripted(Provider):
    """Does for each attempt what its script says: raise an error, before or after the job was accepted, or draw."""

    def __init__(
        self,
        *script: Exception | None,
        accepts: bool = False,
        is_free: bool = False,
        delivers: bytes | Path | None = None,
    ) -> None:
        self._script = list(script)
        self._accepts = accepts
        self._is_free = is_free
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
        if not self._is_free:
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
        self.lease = Lease(ends=math.inf)
        self.runner = Runner(
            database=world.database,
            jobs=world.jobs,
            stream=world.stream,
            artifacts=world.artifacts,
            providers=world.providers,
            inputs=InputImages(world.database, world.storage, world.pictures, 1 << 20),
            lease=self.lease,
            worker_name="workshop",
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
        await self.world.database.write(_release, job_id, self.lease.worker_id)
        job = await self.job(job_id)
        await self.runner.run(job_id, job.queue)
        return await self.job(job_id)

    async def carry_out(self, job_id: str) -> Job:
        """One attempt after the other, to its end."""
        while not (job := await self.attempt(job_id)).is_terminal:
            await self.world.database.write(_close_breakers)
        return job

    async def job(self, job_id: str) -> Job:
        job = await self.world.database.read(get, job_id, "local")
        assert job is not None
        return job

    async def attempts(self, job_id: str) -> list[Attempt]:
        return await self.world.database.read(attempts_of, job_id)

    async def states(self) -> dict[str, ProviderState]:
        return {state.provider: state for state in await self.world.database.read(read_states)}


def _release(tx: Tx, job_id: str, worker_id: str) -> None:
    hire(tx, worker_id)
    tx.execute(jobs.update().where(jobs.c.id == job_id, jobs.c.status == "pending").values(released_at=db_now()))


def _close_breakers(tx: Tx) -> None:
    tx.execute(provider_states.delete())
