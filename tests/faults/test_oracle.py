"""The oracle must see what it is there for: each kind of fault, made by hand, is found and counted."""

from collections.abc import AsyncIterator
from dataclasses import replace
from random import Random

import httpx
import pytest

from faults.oracle import Findings, Promise, _judge_end, _judge_submits, _judge_versions, _judge_watcher, examine_batch
from faults.watcher import BatchWatcher, Watcher
from jobs.builders import Desk, completed, try_again
from safelight.db import Database
from safelight.jobs import Attempt, Job

pytestmark = pytest.mark.anyio
Story = tuple[Job, list[Attempt]]
COMPLETED = Promise(frozenset({"completed"}))


@pytest.fixture
async def story(sqlite_url: str) -> AsyncIterator[Story]:
    """A job that was lost once, tried again once, and completed: nothing is wrong with it."""
    database = Database(sqlite_url)
    desk = Desk(database)
    job_id = (await desk.submit()).id
    await desk.run(job_id)
    await desk.lose(job_id)
    second = await desk.run(job_id)
    await desk.settle(second, try_again(second))
    third = await desk.run(job_id)
    await desk.settle(third, completed(third))
    yield await desk.job(job_id), await desk.attempts(job_id)
    database.close()


def judge(job: Job, attempts: list[Attempt], submitted: list[int], promise: Promise = COMPLETED) -> Findings:
    findings = Findings()
    _judge_end(job, attempts, promise, findings)
    _judge_versions(job, attempts, findings)
    _judge_submits(job, attempts, submitted, findings)
    return findings


async def test_a_true_story_is_clean(story: Story) -> None:
    assert judge(*story, [1, 2, 3]).is_clean, "lost before it was accepted, then the provider failed: explained"


async def test_ends(story: Story) -> None:
    job, attempts = story
    assert judge(job, attempts, [3], Promise(frozenset({"cancelled"}))).wrong_ends == 1
    assert judge(replace(job, status="failed"), attempts, [3], Promise(frozenset({"failed"}))).double_ends == 1
    twice = [*attempts[:1], replace(attempts[1], outcome="completed"), attempts[2]]
    assert judge(job, twice, [3]).double_ends == 1
    assert judge(job, [*attempts[:2], replace(attempts[2], outcome=None)], [3]).double_ends == 1


async def test_versions(story: Story) -> None:
    job, attempts = story
    assert judge(replace(job, version=job.version + 2), attempts, [3]).double_ends == 1
    assert judge(job, [attempts[0], attempts[2]], [3]).double_ends == 1


async def test_submits(story: Story) -> None:
    job, attempts = story
    assert judge(job, attempts, []).double_submits == 1
    assert judge(job, attempts, [3, 3]).double_submits == 1
    adoptable = [replace(attempts[0], provider_job_id="remote"), *attempts[1:]]
    assert judge(job, adoptable, [1, 3]).double_submits == 1
    paid = replace(job, parameters=replace(job.parameters, provider_options={"mock": {"paid": True}}))
    assert judge(paid, attempts, [2, 3]).is_clean, "the provider failed"
    assert judge(paid, attempts, [1, 3]).double_submits == 1, "it had to fail as unknown_outcome instead"
    ours = [attempts[0], replace(attempts[1], error={"code": "storage_unavailable"}), attempts[2]]
    assert judge(job, ours, [2, 3]).double_submits == 1


async def test_events(story: Story) -> None:
    job, _ = story

    def watched(*events: tuple[str, int]) -> Findings:
        watcher = Watcher(0, job.id, Random(0))
        for kind, version in events:
            watcher._take(kind, str(version) if "progress" not in kind else None, {"version": version})
        watcher.finished = True
        findings = Findings()
        _judge_watcher(watcher, job, findings)
        return findings

    whole = [
        *[("job.pending" if version % 2 else "job.started", version) for version in range(1, job.version)],
        ("job.completed", job.version),
    ]
    assert watched(*whole).is_clean
    assert watched(*whole[:-1]).missed_events == 1
    assert watched(whole[0], *whole[2:]).missed_events == 1
    assert watched(*whole[:3], *whole[2:]).doubled_events == 1
    assert watched(*whole, ("job.progress", job.version)).late_events == 1
    assert watched(*whole[:4], ("job.progress", 2), *whole[4:]).late_events == 1


async def test_batches(story: Story) -> None:
    job, _ = story

    def watched(*versions: int, end: str = "batch.completed", progress: int = 100, **view: object) -> Findings:
        watcher = BatchWatcher(0, "b", [job.id], Random(0))
        watcher._take("batch.progress", None, {"progress": 50})
        for version in versions:
            watcher._take("job.started", "an id", {"job_id": job.id, "version": version})
        watcher._take(end, "end", {"progress": progress})
        watcher.finished = True
        answer = {"counts": {"completed": 1, "failed": 0}, "status": "completed", "progress": 100, "is_terminal": True}
        transport = httpx.MockTransport(lambda _: httpx.Response(200, json=answer | view))
        findings = Findings()
        with httpx.Client(transport=transport, base_url="http://x") as http:
            examine_batch(http, watcher, {job.id: job}, findings)
        return findings

    whole = range(2, job.version + 1)
    assert watched(*whole).is_clean
    assert watched(*whole[1:]).missed_events == 1
    assert watched(*whole, 2).doubled_events == 1
    assert watched(*whole, end="batch.failed").missed_events == 1
    assert watched(*whole, progress=40).late_events == 1
    assert watched(*whole, counts={"completed": 0, "failed": 1}).broken == 1
    assert watched(*whole, status="failed").broken == 1
