"""Reading jobs on both databases: their history, lists, and what was learnt of their durations."""

import asyncio
import random
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import event, insert, select, text

from jobs.builders import (
    OWNER,
    QUEUE,
    Desk,
    completed,
    failed,
    outline,
    try_again,
)
from safelight.db import Tx, db_now, new_id
from safelight.jobs import (
    Filter,
    HandBack,
    Job,
    Page,
    QueueLoad,
    Settlement,
    Situation,
    find,
    missed,
    reread,
    run_seconds,
    run_times,
)
from safelight.jobs.dispatch import take_lease
from safelight.jobs.job import jobs
from safelight.jobs.situation import publish

pytestmark = pytest.mark.anyio

MakeSettlement = Callable[[Job], Settlement]


# History


async def walk(desk: Desk, dice: random.Random, steps: int) -> str:
    """A random life of one job, by the steps there are."""
    job = await desk.submit(start_within_seconds=600.0 if dice.random() < 0.3 else None)
    for _ in range(steps):
        job = await desk.job(job.id)
        if job.is_terminal:
            break
        if job.status == "pending":
            match dice.choice(["run"] * 8 + ["cancel"]):
                case "run":
                    await desk.run(job.id)
                case _:
                    await desk.cancel(job.id)
            continue
        match dice.choice(["retry", "retry", "back", "lose", "lose", "ask", "complete", "fail", "overdue"]):
            case "retry":
                await desk.settle(job, try_again(job))
            case "back":
                await desk.settle(job, HandBack())
            case "lose":
                await desk.lose(job.id)
            case "ask":
                await desk.cancel(job.id)
            case "complete":
                await desk.settle(job, completed(job, 2))
            case "fail":
                await desk.settle(job, failed(job))
            case _:
                await desk.change(job.id, deadline_at=db_now(-10.0))
                await desk.write(desk.jobs.fail_overdue)
    return job.id


async def test_history_rebuilt_from_rows_is_what_was_announced(desk: Desk) -> None:
    for seed in range(12):
        job_id = await walk(desk, random.Random(seed), 16)
        await compare_with_history(desk, job_id)


async def compare_with_history(desk: Desk, job_id: str) -> None:
    announced = desk.tape.of(job_id)
    rebuilt = await desk.history(job_id)
    assert [(event.version, event.type) for event in rebuilt[:1]] == [(1, "job.pending")]  # known from the answer
    assert outline(rebuilt[1:]) == outline(announced)
    for again, live in zip(rebuilt[1:], announced, strict=True):
        assert abs(again.at - live.at) < timedelta(seconds=1)
    assert [event.error for event in rebuilt[1:]] == [event.error for event in announced]
    assert [event.version for event in rebuilt] == list(range(1, (await desk.job(job_id)).version + 1))
    if announced[-1].is_terminal:
        assert rebuilt[-1] == announced[-1]
    for after in range(len(rebuilt) + 2):
        assert outline(await desk.history(job_id, after)) == outline(rebuilt[after:])


async def test_watchers_are_given_what_they_missed(desk: Desk) -> None:
    quiet, running, done = await desk.submit(), await desk.running(), await desk.running()
    await desk.settle(done, completed(done))
    known = {quiet.id: 1, running.id: 1, done.id: 1, new_id(): 0}
    found = await desk.database.read(missed, known)
    told = {job_id: [(m.topic, m.version, m.is_terminal) for m in messages] for job_id, messages in found.items()}
    assert told == {
        running.id: [("job.started", 2, False)],
        done.id: [("job.started", 2, False), ("job.completed", 3, True)],
    }
    live = desk.tape.of(done.id)[-1].as_message()
    assert found[done.id][-1] == live  # to the byte
    assert await desk.database.read(missed, {done.id: 3, running.id: 7}) == {}


async def test_watchers_of_a_waiting_job_are_told_how_it_stands(desk: Desk) -> None:
    """Why it waits comes and goes without a state event."""
    job = await desk.submit()
    await desk.write(take_lease, "00000000-0000-7000-8000-00000000000b")
    known: str | None = None
    seqs: list[int] = []
    for workers in (0, 1):
        load = QueueLoad(workers, slots=workers)
        await desk.write(publish, "00000000-0000-7000-8000-00000000000b", Situation({QUEUE: load}))
        found = await desk.database.read(reread, {job.id: 1}, {job.id: known})
        (told,) = found.messages[job.id]
        assert (told.version, told.is_state, told.is_terminal) == (1, False, False)
        assert (b'"blocked_reason":"no_worker"' in told.frame) == (workers == 0)
        seqs.append(told.seq)
        known = found.reasons[job.id]
        assert await desk.database.read(reread, {job.id: 1}, {job.id: known}) == ({}, {})
        await asyncio.sleep(0.003)
    assert known is None and seqs[1] > seqs[0]  # a watch keeps the later one
    unknown = await desk.database.read(reread, {job.id: 0}, {job.id: "Something else"})
    assert [(message.version, message.is_state) for message in unknown.messages[job.id]] == [(1, True), (1, False)]


async def test_many_watched_jobs_are_looked_up_together(desk: Desk) -> None:
    ids = [new_id() for _ in range(1203)]
    await desk.write(insert_copies, (await desk.submit()).id, ids)
    found = await desk.database.read(missed, dict.fromkeys(ids, 0))
    assert set(found) == set(ids)


# Lists


@pytest.fixture
async def shelf(desk: Desk) -> list[str]:
    """Ten jobs of one owner, oldest first, and one of somebody else."""
    ids: list[str] = []
    for number in range(10):
        values: dict[str, Any] = {
            "job_id": ordered_id(number),
            "prompt": f"Number {number}: 50% of a Müller_fox",
            "provider": "mock" if number % 2 else "other",
            "chapter_id": "c1" if number < 5 else None,
            "scene_number": number if number < 5 else None,
            "character_id": "mara" if number == 7 else None,
            "project_id": "p" if number > 7 else None,
        }
        ids.append((await desk.submit(**values)).id)
    await desk.submit(owner_id="bob", job_id=ordered_id(11), chapter_id="c1")
    job = await desk.run(ids[3])
    await desk.settle(job, completed(job, 2))
    await desk.run(ids[4])
    return ids


async def listed(desk: Desk, **wanted: Any) -> list[str]:
    wanted.setdefault("owner_id", OWNER)
    page = await desk.database.read(find, Filter(**wanted))
    return [job.id for job in page.jobs]


LISTS: list[tuple[dict[str, Any], list[int]]] = [
    ({}, [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]),
    ({"statuses": ["completed"]}, [3]),
    ({"statuses": ["completed", "processing"]}, [4, 3]),
    ({"statuses": []}, []),
    ({"provider": "mock"}, [9, 7, 5, 3, 1]),
    ({"kind": "image.generate", "chapter_id": "c1"}, [4, 3, 2, 1, 0]),
    ({"kind": "video"}, []),
    ({"chapter_id": "c1", "scene_number": 0}, [0]),
    ({"character_id": "mara"}, [7]),
    ({"project_id": "p"}, [9, 8]),
    ({"text": "number 6"}, [6]),
    ({"text": "50%"}, [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]),
    ({"text": "5_%"}, []),  # no wildcards
    ({"text": "r_f"}, [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]),
    ({"younger_than_seconds": 3600.0}, [9, 8, 7, 6, 5, 4, 3, 2, 1]),
    ({"older_than_seconds": 3600.0}, [0]),
    ({"owner_id": "nobody"}, []),
]


async def test_lists_match_every_filter(desk: Desk, shelf: list[str]) -> None:
    await desk.change(shelf[0], created_at=db_now(-7200.0))
    for wanted, numbers in LISTS:
        found = [shelf.index(job_id) for job_id in await listed(desk, **wanted)]
        assert found == numbers, wanted


async def test_lists_by_ids_keep_to_the_owner(desk: Desk, shelf: list[str]) -> None:
    assert await listed(desk, ids=[shelf[2], ordered_id(11), shelf[6], new_id()]) == [shelf[6], shelf[2]]
    assert await listed(desk, ids=[]) == []


async def test_pages_follow_one_another_whatever_is_added_meanwhile(desk: Desk, shelf: list[str]) -> None:
    seen: list[str] = []
    before: str | None = None
    while True:
        page: Page = await desk.database.read(find, Filter(OWNER, before_id=before, limit=4))
        seen += [job.id for job in page.jobs]
        await desk.submit()  # newer than all of them
        if not page.more:
            break
        assert len(page.jobs) == 4
        before = page.jobs[-1].id
    assert seen == list(reversed(shelf))


async def test_a_page_that_ends_exactly_says_so(desk: Desk, shelf: list[str]) -> None:
    page = await desk.database.read(find, Filter(OWNER, limit=10))
    assert len(page.jobs) == 10 and not page.more
    assert {job_id: len(made) for job_id, made in page.artifacts.items()} == {shelf[3]: 2}


# Estimates


async def test_the_learnt_run_time_is_the_median_of_the_latest_like_it(desk: Desk) -> None:
    size: dict[str, Any] = {"estimate_key": "small"}
    assert await desk.database.read(run_seconds, "small") is None

    async def ran(seconds: float, ago: float, **values: Any) -> None:
        job = await desk.running(**{**size, **values})
        await desk.settle(job, completed(job))
        await desk.change(job.id, started_at=db_now(-ago - seconds), finished_at=db_now(-ago))

    for seconds in (10.0, 30.0, 20.0):
        await ran(seconds, ago=60.0)
    await ran(500.0, ago=60.0, estimate_key="large")
    await ran(500.0, ago=60.0, estimate_key=None)
    failing = await desk.running(**size)
    await desk.settle(failing, failed(failing))
    assert await desk.database.read(run_seconds, "small") == pytest.approx(20.0, abs=0.01)
    assert await desk.database.read(run_seconds, "large") == pytest.approx(500.0, abs=0.01)
    for _ in range(20):
        await ran(4.0, ago=1.0)
    assert await desk.database.read(run_seconds, "small") == pytest.approx(4.0, abs=0.01)


async def test_what_a_job_waited_at_its_provider_is_not_learnt(desk: Desk) -> None:
    queued, adopted = await desk.running(estimate_key="k"), await desk.running(estimate_key="k")
    await desk.write(desk.jobs.record_run, queued.id, queued.attempt, 3.0)
    await desk.write(desk.jobs.record_run, adopted.id, adopted.attempt, None)
    for job in (queued, adopted):
        await desk.settle(job, completed(job))
        await desk.change(job.id, started_at=db_now(-100.0))
    assert await desk.database.read(run_seconds, "k") == 3.0
    [learnt] = await desk.database.read(run_times, "mock")
    assert (learnt.median_seconds, learnt.samples) == (3.0, 1)


async def test_estimates_are_looked_up_along_an_index(desk: Desk) -> None:
    plans = await desk.database.read(estimate_plans)
    assert [name in plan for name, plan in zip(("ix_jobs_estimate", "ix_jobs_run_times"), plans, strict=True)] == [
        True
    ] * 2
    assert not any("TEMP B-TREE" in plan or "Sort" in plan for plan in plans), plans


def estimate_plans(tx: Tx) -> list[str]:
    """How the database reads them, from a table whose size it is not to mind."""
    if tx.is_postgresql:
        tx.execute(text("SET LOCAL enable_seqscan = off"))
        tx.execute(text("SET LOCAL enable_sort = off"))
    explain = "EXPLAIN " if tx.is_postgresql else "EXPLAIN QUERY PLAN "
    plans: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if not statement.startswith(explain):
            plans.append(str(connection.exec_driver_sql(explain + statement, parameters).all()))

    event.listen(tx._connection, "before_cursor_execute", note)
    run_seconds(tx, "k")
    run_times(tx, "mock")
    event.remove(tx._connection, "before_cursor_execute", note)
    return plans


# What the tests reach for


NOW = new_id()[:13]  # of one moment, and not long ago: lists look for the young among young ids


def ordered_id(number: int) -> str:
    return f"{NOW}-7000-8000-{number:012d}"


def insert_copies(tx: Tx, job_id: str, ids: list[str]) -> None:
    row = dict(tx.execute(select(jobs).where(jobs.c.id == job_id)).one()._mapping)
    tx.execute(insert(jobs), [{**row, "id": each} for each in ids])
