"""The cap that a job bears: how many of its owner's jobs may run at once when it starts."""

import pytest
from office import Office

from jobs.builders import QUEUE, completed
from safelight.db import Database
from safelight.jobs import Caps

pytestmark = pytest.mark.anyio


async def test_jobs_wait_for_their_owners_others(database: Database) -> None:
    office = Office(database)
    await office.worker(slots=100)
    capped = [await office.submit(owner_id="free", owner_limit=2) for _ in range(4)]
    uncapped = [await office.submit(owner_id="pro") for _ in range(3)]
    in_turns = [capped[0], uncapped[0], capped[1], *uncapped[1:]]
    assert await office.round() == [job.id for job in in_turns]
    assert [await office.reason(job) for job in capped] == [None, None, "owner_limit", "owner_limit"]
    assert [await office.reason(job) for job in uncapped] == [None] * 3
    assert await office.round() == []
    running = await office.claim(capped[0].id)
    assert running is not None
    assert await office.round() == []  # running instead of released: still two
    await office.settle(running, completed(running))
    assert await office.round() == [capped[2].id]
    assert [await office.reason(job) for job in capped[2:]] == [None, "owner_limit"]
    await office.cancel(capped[3].id, "free")
    assert await office.reason(capped[3]) is None


@pytest.mark.parametrize(("everybodys", "own", "runs"), [(None, 3, 3), (2, 3, 2), (3, 2, 2), (2, None, 2)])
async def test_the_lower_cap_holds(database: Database, everybodys: int | None, own: int | None, runs: int) -> None:
    office = Office(database, Caps(owner=everybodys))
    await office.worker(slots=100)
    for _ in range(5):
        await office.submit(owner_limit=own)
    assert len(await office.round()) == runs
    assert await office.round() == []


async def test_each_job_goes_by_the_cap_it_bears(database: Database) -> None:
    """An owner with keys of two tiers."""
    office = Office(database)
    await office.worker(slots=100)
    small = [await office.submit(owner_id="ada", owner_limit=1, priority=1) for _ in range(2)]
    large = [await office.submit(owner_id="ada", owner_limit=3) for _ in range(3)]
    assert await office.round() == [small[0].id, large[0].id, large[1].id]
    assert await office.round() == []
    assert [await office.reason(job) for job in (small[1], large[2])] == ["owner_limit", "owner_limit"]


async def test_who_is_at_a_limit_holds_up_nobody(database: Database) -> None:
    office = Office(database, Caps(providers={"p": 2}))
    await office.worker(slots=100)
    await office.running(owner_id="greedy", provider="p", owner_limit=1)
    waiting = [await office.submit(owner_id="greedy", provider="p", priority=10, owner_limit=1) for _ in range(3)]
    modest = await office.submit(owner_id="modest", provider="p")
    assert await office.round() == [modest.id]
    assert {await office.reason(job) for job in waiting} == {"owner_limit"}


async def test_a_crash_frees_its_place(database: Database) -> None:
    office = Office(database)
    await office.worker(QUEUE, "isolated", slots=100)
    running = await office.running(owner_id="ada", owner_limit=1)
    waiting = await office.submit(owner_id="ada", owner_limit=1)
    assert await office.round() == []
    assert await office.reason(waiting) == "owner_limit"
    await office.lose(running.id)
    assert len(await office.round()) == 1  # one of the two, whichever queue comes first
    assert await office.round() == []


async def test_a_capped_job_is_not_hinted_by_its_maker(database: Database) -> None:
    office = Office(database)
    await office.worker(slots=10)
    await office.round()
    assert office.dispatcher.take_room(QUEUE, "mock")
    assert not office.dispatcher.take_room(QUEUE, "mock", 5)
