"""What is learnt of how long a run takes: the provider's own time."""

import asyncio
from collections.abc import AsyncGenerator

import pytest
from workshop import Scripted, Workshop

from safelight.jobs import run_seconds
from safelight.providers.base import Progress, ProviderUnavailable, Update

pytestmark = pytest.mark.anyio


class Queued(Scripted):
    """Has a queue of its own."""

    async def _go_on(self) -> AsyncGenerator[Update]:
        yield Progress(1, "queued", "Waiting", is_waiting=True)
        await asyncio.sleep(0.2)
        async for update in super()._go_on():
            yield update


async def test_a_queue_at_the_provider_is_left_out(workshop: Workshop) -> None:
    workshop.add("one", Queued())
    job = await workshop.attempt(await workshop.submit())
    assert job.started_at is not None and job.finished_at is not None and job.estimate_key is not None
    whole = (job.finished_at - job.started_at).total_seconds()
    learnt = await workshop.world.database.read(run_seconds, job.estimate_key)
    assert learnt is not None and learnt == job.run_seconds and learnt <= whole - 0.19


async def test_nothing_is_learnt_of_the_end_of_a_run_alone(workshop: Workshop) -> None:
    workshop.add("one", Scripted(ProviderUnavailable(), accepts=True))
    job = await workshop.carry_out(await workshop.submit())
    assert (job.status, job.attempt, job.estimate_key) == ("completed", 2, None)
