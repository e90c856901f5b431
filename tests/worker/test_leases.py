"""A lease that ran out under an attempt: it stores and settles nothing more, and its heartbeat hears of it."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from workshop import Scripted, Workshop

from jobs.builders import hire
from safelight.db import Tx, db_now, new_id
from safelight.jobs import is_held
from safelight.jobs.job import jobs, workers
from safelight.providers.base import Generation, Update
from safelight.worker.attempt import RunningAttempt
from safelight.worker.heartbeat import Heartbeat

pytestmark = pytest.mark.anyio


def take_over(tx: Tx, job_id: str) -> None:
    """What dispatch and another worker do once the lease has run out."""
    changed = {"attempt": jobs.c.attempt + 1, "worker_id": new_id(), "version": jobs.c.version + 2}
    tx.execute(jobs.update().where(jobs.c.id == job_id).values(changed))


class Frozen(Scripted):
    """Its process stands still before it delivers, until the lease has run out and somebody else has the job."""

    workshop: Workshop

    async def generate(self, generation: Generation) -> AsyncGenerator[Update]:
        self.workshop.lease.ends = 0.0
        await self.workshop.world.database.write(take_over, generation.job_id)
        async for update in super().generate(generation):
            yield update


async def test_what_is_somebody_elses_by_now_is_not_stored(workshop: Workshop) -> None:
    provider = Frozen(is_free=True)
    provider.workshop = workshop
    workshop.add("one", provider)
    job_id = await workshop.submit()
    job = await workshop.attempt(job_id)
    assert (job.status, job.attempt) == ("processing", 2)  # the other worker's
    assert [key async for key, _, _ in workshop.world.storage.list(f"jobs/{job_id}/")] == []


async def test_a_heartbeat_hears_of_jobs_that_are_gone(workshop: Workshop) -> None:
    """Else a process that was frozen would go on with what another has."""
    workshop.add("one", Scripted())
    held = [await running(workshop) for _ in range(2)]
    await workshop.world.database.write(take_over, held[0].job.id)
    await heart_of(workshop)._beat()
    assert held[0].interrupted.done() and held[0].interrupted.result() == "lost"
    assert not held[1].interrupted.done()


async def test_who_was_taken_for_dead_begins_anew(workshop: Workshop) -> None:
    """What it ran belongs to others by then, whatever they have come to; it claims under another name."""
    workshop.add("one", Scripted())
    held, before = await running(workshop), workshop.lease.worker_id
    await workshop.world.database.write(lambda tx: tx.execute(workers.update().values(lease_until=db_now(-1.0))))
    [lost] = await workshop.world.database.write(workshop.world.jobs.recover_lost)
    assert lost.id == held.job.id and not await workshop.world.database.read(is_held, held.job.id, 1)
    hinted = await workshop.submit()
    await workshop.world.database.write(release, hinted)
    assert await workshop.runner._claim(hinted, "image_generation") is None
    await heart_of(workshop)._beat()
    assert held.interrupted.result() == "lost"
    assert workshop.lease.is_live and workshop.lease.worker_id != before
    assert await workshop.runner._claim(hinted, "image_generation") is not None


async def test_a_hint_that_comes_before_the_lease_is_given_back(workshop: Workshop) -> None:
    workshop.add("one", Scripted())
    hinted = await workshop.submit()
    await workshop.world.database.write(release, hinted)
    workshop.lease.ends = 0.0
    await workshop.runner.run(hinted, "image_generation")
    job = await workshop.job(hinted)
    assert (job.status, job.released_at) == ("pending", None)


async def test_a_beat_writes_progress_where_it_changed(workshop: Workshop) -> None:
    workshop.add("one", Scripted())
    still, moved = await running(workshop), await running(workshop)
    heart = heart_of(workshop)
    moved.progress, moved.stage = 40, "sampling"
    await workshop.world.database.write(change_both, 7)
    await heart._beat()
    assert [(await workshop.job(each.job.id)).progress for each in (still, moved)] == [7, 40]
    await workshop.world.database.write(change_both, 8)
    await heart._beat()
    assert [(await workshop.job(each.job.id)).progress for each in (still, moved)] == [8, 8]


def change_both(tx: Tx, progress: int) -> None:
    tx.execute(jobs.update().values(progress=progress))


def heart_of(workshop: Workshop) -> Heartbeat:
    return Heartbeat(
        workshop.world.database,
        workshop.runner,
        workshop.lease,
        name="workshop",
        queues=("image_generation",),
        slots=2,
        beat_seconds=1.0,
        lease_seconds=30.0,
    )


async def running(workshop: Workshop) -> RunningAttempt:
    """An attempt that this process has claimed, as the runner keeps it while it runs."""
    job_id = await workshop.submit()
    await workshop.world.database.write(hire, workshop.lease.worker_id)
    await workshop.world.database.write(release, job_id)
    attempt = await workshop.runner._claim(job_id, "image_generation")
    assert attempt is not None
    return attempt


def release(tx: Tx, job_id: str) -> None:
    tx.execute(jobs.update().where(jobs.c.id == job_id).values(released_at=db_now()))


async def test_a_drain_waits_for_a_claim_under_way(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it takes would be left to run out, and be recovered as lost."""
    workshop.add("one", Scripted())
    job_id = await workshop.submit()
    await workshop.world.database.write(hire, workshop.lease.worker_id)
    await workshop.world.database.write(release, job_id)
    claiming, answered = asyncio.Event(), asyncio.Event()
    write_one = workshop.world.database.write_one

    async def late(*args: Any, **options: Any) -> Any:
        claiming.set()
        job = await write_one(*args, **options)
        await answered.wait()
        return job

    monkeypatch.setattr(workshop.world.database, "write_one", late)
    carried_out = asyncio.create_task(workshop.runner.run(job_id, "image_generation"))
    await claiming.wait()
    drain = asyncio.create_task(workshop.runner.drain(60.0))
    await asyncio.sleep(0)
    answered.set()
    await drain
    assert carried_out.done() and (await workshop.job(job_id)).status == "completed"
