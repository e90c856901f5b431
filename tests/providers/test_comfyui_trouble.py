"""The ComfyUI provider when things go wrong: lost replies, dead servers, races, broken files, failing nodes."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest

from patience import PATIENCE_SECONDS
from safelight.providers.base import (
    BadOutput,
    JobLost,
    Progress,
    ProviderUnavailable,
    Reserved,
    Update,
)
from safelight.providers.comfyui import ComfyUI
from safelight.providers.comfyui.outcome import Interrupted, NodeFailed, NothingMade, OutOfMemory
from safelight.providers.comfyui.provider import prompt_id_of
from stand_ins.comfyui import ComfyStandIn
from stand_ins.comfyui_lab import (
    HASTY,
    QUICK,
    Make,
    open_providers,
    order,
    percents,
    remote_ids,
    run,
    stages,
    until,
    workflow,
)
from stand_ins.generation import collect, outputs

pytestmark = pytest.mark.anyio
Two = tuple[ComfyStandIn, ComfyStandIn]
VERSIONS = ["0.33.0", "0.3.64"]
MEMORY = {
    "exception_type": "torch.OutOfMemoryError",
    "exception_message": "Allocation on device 0 would exceed allowed memory. (out of memory)",
}
BROKEN = {"exception_type": "ValueError", "exception_message": "shapes cannot be multiplied (77x768 and 1024x320)\n"}


@pytest.fixture
async def provider() -> AsyncIterator[Make]:
    async with open_providers() as make:
        yield make


@pytest.fixture(params=VERSIONS)
def server(request: pytest.FixtureRequest) -> Iterator[ComfyStandIn]:
    with ComfyStandIn(request.param) as made:
        yield made


@pytest.fixture
def two() -> Iterator[tuple[ComfyStandIn, ComfyStandIn]]:
    with ComfyStandIn() as first, ComfyStandIn() as second:
        yield first, second


async def until_sampling(comfy: ComfyUI, **fields: Any) -> tuple[asyncio.Task[list[Update]], ComfyUI]:
    """A job that has begun; the task collects its updates."""
    begun = asyncio.Event()

    async def follow() -> list[Update]:
        seen: list[Update] = []
        async for update in comfy.generate(order(**fields)):
            seen.append(update)
            if isinstance(update, Progress) and update.stage == "sampling":
                begun.set()
        return seen

    task = asyncio.create_task(follow())
    async with asyncio.timeout(PATIENCE_SECONDS):
        await begun.wait()
    return task, comfy


# --- the connection ---------------------------------------------------------------------------------------------------


async def test_a_lost_reply_is_looked_up_not_repeated(server: ComfyStandIn, provider: Make) -> None:
    server.lost_replies = 1
    updates = await run(provider(server))
    assert outputs(updates)
    assert len(server.ledger) == 1


async def test_a_lost_request_is_sent_again_under_the_same_id(server: ComfyStandIn, provider: Make) -> None:
    server.lost_requests = 1
    updates = await run(provider(server))
    assert outputs(updates)
    assert [entry.prompt_id for entry in server.ledger] == [remote_ids(updates)[0].rpartition("#")[2]]


async def test_the_id_is_told_before_anything_is_sent(server: ComfyStandIn, provider: Make) -> None:
    comfy = provider(server)
    asked = order()
    updates = comfy.generate(asked)
    first = await anext(update async for update in updates if isinstance(update, Reserved))
    assert not server.ledger
    await updates.aclose()  # the process dies here
    updates = await collect(comfy.resume(replace(asked, attempt=2), first.remote_id))
    assert outputs(updates) and len(server.ledger) == 1  # it was never received, so it is sent now


async def test_a_process_that_dies_at_any_step_never_makes_it_run_twice(server: ComfyStandIn, provider: Make) -> None:
    """Whatever the last update was that became state: the next attempt, in another process, ends with one submit."""
    whole = await run(provider(server))
    for steps in range(len(whole)):
        job_id = f"job-{steps}"
        remote_id = None
        dying = provider(server).generate(order(job_id=job_id))
        for _ in range(steps + 1):
            update = await anext(dying, None)
            remote_id = update.remote_id if isinstance(update, Reserved) else remote_id
        await dying.aclose()
        survivor, again = provider(server), order(job_id=job_id, attempt=2)
        goes_on = survivor.generate(again) if remote_id is None else survivor.resume(again, remote_id)
        assert outputs(await collect(goes_on))
        assert server.submits(job_id) == 1, steps


async def test_sockets_that_drop_midway_cost_nothing(server: ComfyStandIn, provider: Make) -> None:
    server.drop_sockets_at_step = 3
    updates = await run(provider(server), sampler_params={"steps": 40})
    assert outputs(updates)
    assert percents(updates) == sorted(percents(updates))
    told = "\n".join(update.message for update in updates if isinstance(update, Progress))
    assert any(int(step) > 3 for step in re.findall(r"step (\d+) of 40", told))  # heard again on the new socket
    assert len(server.socket_headers) == 2
    assert len(server.ledger) == 1


async def test_a_slow_server_is_not_a_dead_one(server: ComfyStandIn, provider: Make) -> None:
    server.late_seconds = 0.1
    assert outputs(await run(provider(server)))
    assert len(server.ledger) == 1


async def test_without_sockets_it_polls(server: ComfyStandIn, provider: Make) -> None:
    server.refuse_sockets = True
    updates = await run(provider(server))
    assert outputs(updates)
    assert len(server.ledger) == 1


async def test_a_socket_that_says_nothing_is_not_believed(server: ComfyStandIn, provider: Make) -> None:
    server.silent_sockets = True
    assert outputs(await run(provider(server)))


async def test_success_is_told_before_the_record_exists(server: ComfyStandIn, provider: Make) -> None:
    server.late_history = 0.1
    updates = await run(provider(server))
    assert outputs(updates)
    assert len(server.ledger) == 1


# --- servers that go away ---------------------------------------------------------------------------------------------


async def test_a_restart_is_recognised_as_lost(server: ComfyStandIn, provider: Make) -> None:
    server.hold = "VAEDecode"
    task, comfy = await until_sampling(provider(server))
    server.hold = None
    server.restart()
    with pytest.raises(JobLost, match="restarted"):
        await task
    assert outputs(await run(comfy))


async def test_a_dead_server_is_given_up_and_the_job_runs_elsewhere(two: Two, provider: Make) -> None:
    first, second = two
    second.foreign_jobs = 3
    first.hold = "VAEDecode"
    comfy = provider(first, second)
    task, _ = await until_sampling(comfy, job_id="job-1")
    first.kill()
    with pytest.raises(JobLost, match="nobody answers"):
        await task
    assert outputs(await collect(comfy.generate(order(job_id="job-1", attempt=2))))
    assert (first.submits("job-1"), second.submits("job-1")) == (1, 1)


async def test_a_hung_server_is_drained(two: Two, provider: Make) -> None:
    first, second = two
    second.foreign_jobs = 3
    first.hold = "VAEDecode"
    comfy = provider(first, second, pace=HASTY)
    task, _ = await until_sampling(comfy)
    first.hang()
    with pytest.raises(JobLost, match="does not answer in time"):
        await task
    assert outputs(await run(comfy))
    assert len(second.ledger) == 1
    assert await comfy.health() is None


async def test_a_server_that_comes_back_is_used_again(two: Two, provider: Make) -> None:
    first, second = two
    second.foreign_jobs = 3
    comfy = provider(first, second)
    first.kill()
    await run(comfy)
    assert len(second.ledger) == 1
    first.revive()
    await asyncio.sleep(QUICK.down)
    await run(comfy)
    assert len(first.ledger) == 1


async def test_a_run_left_on_a_server_that_comes_back_is_adopted(provider: Make) -> None:
    with ComfyStandIn() as server:
        server.hold = "VAEDecode"
        comfy = provider(server, pace=HASTY)
        task, _ = await until_sampling(comfy, job_id="job-1")
        server.hang()
        with pytest.raises(JobLost):
            await task
        server.answer_again()
        server.hold = None
        updates = await collect(comfy.generate(order(job_id="job-1", attempt=2)))
        assert outputs(updates)
        assert remote_ids(updates) == [f"{server.url}#{prompt_id_of('job-1', 1, 0)}"]
        assert server.submits("job-1") == 1


async def test_who_waits_bears_a_restart_and_is_told_of_an_outage(server: ComfyStandIn, provider: Make) -> None:
    server.hold = "KSampler"
    comfy = provider(server, pace=replace(QUICK, hung=0.6))
    inside = [asyncio.create_task(run(comfy)) for _ in range(2)]
    await until(lambda: len(server.ledger) == 2)
    waiting = [asyncio.create_task(run(comfy)) for _ in range(3)]
    await until(lambda: len(comfy._pool.waiting) == 3)
    server.kill()
    lost = await asyncio.gather(*inside, return_exceptions=True)
    assert all(isinstance(error, JobLost) for error in lost)
    server.hold = None
    server.revive()
    assert all(outputs(updates) for updates in await asyncio.gather(*waiting))
    server.hold = "KSampler"
    inside = [asyncio.create_task(run(comfy)) for _ in range(3)]
    await until(lambda: len(server.ledger) == 7 and len(comfy._pool.waiting) == 1)
    server.kill()
    ends = await asyncio.gather(*inside, return_exceptions=True)
    assert all(isinstance(error, JobLost | ProviderUnavailable) for error in ends)
    assert any(isinstance(error, ProviderUnavailable) for error in ends)


async def test_a_job_cancelled_while_its_socket_opens_leaves_nothing_behind(provider: Make) -> None:
    with ComfyStandIn() as server:
        comfy = provider(server)
        await run(comfy)
        before = asyncio.all_tasks()
        updates = comfy.generate(order())
        async for update in updates:
            if isinstance(update, Reserved):
                server.hang()
                break
        opening = asyncio.create_task(anext(updates, None))
        await until(lambda: server.seen[-1] == "GET /ws" and server.seen.count("GET /ws") == 2)
        opening.cancel()
        await asyncio.gather(opening, return_exceptions=True)
        await updates.aclose()
        assert asyncio.all_tasks() == before


async def test_no_server_at_all(server: ComfyStandIn, provider: Make) -> None:
    comfy = provider(server)
    server.kill()
    with pytest.raises(ProviderUnavailable, match="nobody answers"):
        await run(comfy)
    health = await comfy.health()
    assert health is not None
    assert server.url in health
    with pytest.raises(ProviderUnavailable):
        await comfy.cancel(f"{server.url}#{prompt_id_of('x', 1, 0)}")


async def test_a_server_that_is_no_longer_configured(server: ComfyStandIn, provider: Make) -> None:
    comfy = provider(server)
    with pytest.raises(JobLost, match="not among"):
        await collect(comfy.resume(order(), "http://elsewhere:8188#id"))
    await comfy.cancel("http://elsewhere:8188#id")


async def test_forty_jobs_and_one_of_two_servers_killed_midway(provider: Make) -> None:
    with ExitStack() as stack:
        servers = [stack.enter_context(ComfyStandIn(step_seconds=0.002)) for _ in range(2)]
        comfy = provider(*servers)
        lost = 0

        async def complete(job_id: str) -> None:
            nonlocal lost
            for attempt in range(1, 5):
                try:
                    updates = await collect(comfy.generate(order(job_id=job_id, attempt=attempt)), 30)
                except (JobLost, ProviderUnavailable):
                    lost += 1
                    continue
                assert percents(updates) == sorted(percents(updates))
                assert outputs(updates)
                return
            raise AssertionError(job_id)

        jobs = [asyncio.create_task(complete(f"job-{number}")) for number in range(40)]
        await until(lambda: len(servers[0].ledger) > 5)
        servers[0].kill()
        await asyncio.gather(*jobs)
        twice = [n for n in range(40) if sum(server.submits(f"job-{n}") for server in servers) > 1]
        assert 1 <= lost == len(twice) <= 2  # what was inside the dead server, and nothing else
        assert all(servers[1].submits(f"job-{number}") <= 1 for number in range(40))


# --- ends that are not well -------------------------------------------------------------------------------------------


async def test_a_node_that_fails_says_why_and_where(server: ComfyStandIn, provider: Make) -> None:
    server.failures = [BROKEN]
    with pytest.raises(NodeFailed) as failed:
        await run(provider(server))
    assert failed.value.message == "KSampler (node 3) failed: shapes cannot be multiplied (77x768 and 1024x320)"
    assert failed.value.details["node_id"] == "3"
    assert failed.value.details["node_type"] == "KSampler"
    assert failed.value.details["exception_type"] == "ValueError"
    assert not failed.value.retryable


async def test_out_of_memory_frees_the_server_and_tries_elsewhere(two: Two, provider: Make) -> None:
    first, second = two
    second.foreign_jobs = 3
    first.failures = [MEMORY]
    updates = await run(provider(first, second))
    assert outputs(updates)
    assert first.frees == 1
    assert (len(first.ledger), len(second.ledger)) == (1, 1)
    assert [remote_id.partition("#")[0] for remote_id in remote_ids(updates)] == [first.url, second.url]
    assert percents(updates) == sorted(percents(updates))


async def test_out_of_memory_twice_is_told(server: ComfyStandIn, provider: Make) -> None:
    server.failures = [MEMORY, MEMORY]
    with pytest.raises(OutOfMemory, match="ran out of memory") as failed:
        await run(provider(server))
    assert not failed.value.retryable
    assert (server.frees, len(server.ledger)) == (2, 2)


async def test_stopped_by_somebody_is_told_apart(server: ComfyStandIn, provider: Make) -> None:
    server.hold = "KSampler"
    task = asyncio.create_task(run(provider(server)))
    await until(lambda: bool(server.ledger))
    server.interrupt()
    await until(lambda: (server.interrupt(), task.done())[1])
    with pytest.raises(Interrupted, match="Somebody stopped the job"):
        await task


async def test_removed_from_the_queue_is_told_apart_from_lost(server: ComfyStandIn, provider: Make) -> None:
    server.hold = "KSampler"
    comfy = provider(server)
    first = asyncio.create_task(run(comfy))
    await until(lambda: len(server.ledger) == 1)
    second = asyncio.create_task(run(comfy))
    await until(lambda: len(server.ledger) == 2)
    server.remove_queued()
    with pytest.raises(Interrupted, match="Somebody stopped"):
        await second
    server.hold = None
    assert outputs(await first)


async def test_a_queued_job_is_cancelled(server: ComfyStandIn, provider: Make) -> None:
    server.hold = "KSampler"
    comfy = provider(server)
    first = asyncio.create_task(run(comfy))
    await until(lambda: len(server.ledger) == 1)
    queued: list[str] = []
    with pytest.raises(Interrupted, match="was cancelled"):
        async for update in comfy.generate(order()):
            if isinstance(update, Reserved):
                queued.append(update.remote_id)
            if isinstance(update, Progress) and update.stage == "queued":
                await comfy.cancel(queued[0])
    server.hold = None
    assert outputs(await first)
    assert not server.interrupted


async def test_a_workflow_that_saves_nothing(provider: Make) -> None:
    with ComfyStandIn() as server:
        text = workflow(**{"2": {"class_type": "SaveText", "inputs": {"images": ["1", 0]}}})
        with pytest.raises(NothingMade, match="no picture, video or sound"):
            await run(provider(server), workflow=text)


# --- files ------------------------------------------------------------------------------------------------------------


async def test_half_a_file_is_fetched_again(server: ComfyStandIn, provider: Make) -> None:
    server.half_files = 2
    updates = await run(provider(server))
    assert outputs(updates)[0].read().endswith(b"IEND\xaeB`\x82")
    assert len(server.ledger) == 1


async def test_a_stale_cached_result_is_made_anew(server: ComfyStandIn, provider: Make) -> None:
    comfy = provider(server)
    fixed = workflow(**{"2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}})
    await run(comfy, workflow=fixed)
    server.files.clear()
    updates = await run(comfy, workflow=fixed)
    assert outputs(updates)
    assert server.frees == 1
    assert len(server.ledger) == 3
    assert len(set(remote_ids(updates))) == 2


async def test_a_result_that_is_never_there(server: ComfyStandIn, provider: Make) -> None:
    server.delete_files = True
    with pytest.raises(BadOutput, match="does not have"):
        await run(provider(server))
    assert len(server.ledger) == 2


# --- a full queue -----------------------------------------------------------------------------------------------------


async def test_a_job_waits_while_its_server_is_full_and_says_so(server: ComfyStandIn, provider: Make) -> None:
    server.hold = "KSampler"
    comfy = provider(server)
    inside = [asyncio.create_task(run(comfy)) for _ in range(2)]
    await until(lambda: len(server.ledger) == 2)
    waiting = asyncio.create_task(run(comfy))
    await asyncio.sleep(0)
    server.hold = None
    await asyncio.gather(*inside)
    assert stages(await waiting)[0] == "waiting"
