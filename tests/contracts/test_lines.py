"""Lines by owner: whose turn it is, what a step of priority is worth, and that no look walks along all that waits."""

from datetime import UTC, datetime, timedelta

import pytest
from office import Office
from sqlalchemy import insert, select, text, update

from jobs.builders import QUEUE, completed, try_again
from safelight.db import Database, Tx, db_now, new_id
from safelight.jobs import Caps, Job
from safelight.jobs.job import jobs

pytestmark = pytest.mark.anyio


@pytest.fixture
def office(database: Database) -> Office:
    return Office(database)


async def in_turns(office: Office, rounds: int) -> list[list[str]]:
    """Whose jobs are released in each of so many rounds; they are done before the next one."""
    owners: list[list[str]] = []
    for _ in range(rounds):
        released = [await office.job(job_id) for job_id in await office.round()]
        owners.append([job.owner_id for job in released])
        for job in released:
            await office.cancel(job.id, job.owner_id)
    return owners


async def test_each_owner_has_a_turn_however_many_wait_before(office: Office) -> None:
    await office.worker(slots=1)  # three at a time
    for owner in "aaaaaabbc":
        await office.submit(owner_id=owner)
    assert await in_turns(office, 4) == [["a", "b", "c"], ["a", "b", "a"], ["a", "a", "a"], []]


async def test_the_next_round_goes_on_where_the_last_ended(office: Office) -> None:
    await office.worker(slots=1)
    for owner in "abcde" * 2:
        await office.submit(owner_id=owner)
    assert await in_turns(office, 4) == [["a", "b", "c"], ["d", "e", "a"], ["b", "c", "d"], ["e"]]


async def test_providers_take_turns_too(office: Office) -> None:
    await office.worker(slots=1)
    for provider in ("one", "one", "one", "two"):
        await office.submit(provider=provider)
    released = [(await office.job(job_id)).provider for job_id in await office.round()]
    assert released == ["one", "two", "one"]


async def test_a_tier_may_weigh_more(database: Database) -> None:
    office = Office(database, Caps(weights={"studio": 2}))
    await office.worker(slots=2)  # five at a time
    for owner, tier in (("free", "free"), ("paying", "studio")) * 4:
        await office.write(_of_tier, await office.submit(owner_id=owner), tier)
    assert await in_turns(office, 1) == [["free", "paying", "paying", "free", "paying"]]


def _of_tier(tx: Tx, job: Job, tier: str) -> None:
    tx.execute(text("UPDATE jobs SET tier = :tier WHERE id = :id"), {"tier": tier, "id": job.id})


async def one_by_one(office: Office, count: int) -> list[Job]:
    """What starts while one place comes free at a time."""
    started: list[Job] = []
    for _ in range(count):
        [job_id] = await office.round()
        job = await office.claim(job_id)
        assert job is not None
        started.append(job)
        await office.settle(job, completed(job))
    return started


async def test_a_turn_lasts_over_rounds(database: Database) -> None:
    """Else a weight would be worth nothing where places come free one by one."""
    office = Office(database, Caps({"mock": 1}, weights={"studio": 3}))
    await office.worker(slots=10)
    for owner, tier in (("free", "free"), ("paying", "studio")) * 9:
        await office.write(_of_tier, await office.submit(owner_id=owner), tier)
    owners = [job.owner_id[0] for job in await one_by_one(office, 8)]
    assert "".join(owners) == "fpppfppp"


async def test_providers_take_turns_over_rounds(office: Office) -> None:
    await office.worker(slots=1)
    filling = [await office.running(provider="filling"), await office.submit(hint=True, provider="filling")]
    for provider in ("a", "b") * 3 + ("a",) * 6:
        await office.submit(provider=provider)
    released: list[str] = []
    for _ in range(6):
        assert await office.round() == []
        await office.cancel(filling.pop().id)
        [job_id] = await office.round()
        filling.append(await office.job(job_id))
        released.append(filling[-1].provider)
    assert released == ["a", "b"] * 3


async def test_owners_in_the_order_of_the_database(database: Database) -> None:
    """Whatever its collation: of names in upper and lower case none is left out."""
    office = Office(database, Caps({"mock": 1}))
    await office.worker(slots=10)
    names = ["alice", "Bob", "carol", "Dave", "émile", "Zoe", "_x", "1"]
    for owner in names * 2:
        await office.submit(owner_id=owner)
    owners = [job.owner_id for job in await one_by_one(office, 2 * len(names))]
    assert sorted(owners[:8]) == sorted(owners[8:]) == sorted(names)


async def test_a_free_place_finds_the_one_line_that_may(database: Database) -> None:
    """Behind hundreds of owners who are at their limit."""
    office = Office(database)
    await office.worker(slots=10)
    for number in range(40):
        await office.submit(owner_id=f"o{number:02}", owner_limit=0)
    free = await office.submit(owner_id="zz")
    assert await office.round() == [free.id]


async def test_a_step_of_priority_is_worth_a_minute(office: Office) -> None:
    await office.worker(slots=10)
    urgent = await office.submit(priority=10)
    ordinary = await office.submit()
    old = await office.submit(priority=-10, run_at=datetime.now(UTC) - timedelta(minutes=21))  # else it would starve
    assert await office.round() == [old.id, urgent.id, ordinary.id]


async def test_a_job_keeps_its_place_while_it_is_away(office: Office) -> None:
    await office.worker(slots=10)
    first, second = await office.running(), await office.submit()
    await office.settle(first, try_again(first, 3600.0))
    away = await office.job(first.id)
    assert (away.line_at, away.queued_at) == (None, first.queued_at)
    await office.change(first.id, run_at=db_now(-0.1))
    assert await office.round() == [first.id, second.id]


async def test_a_change_wakes_whoever_leads(database: Database) -> None:
    office = Office(database, Caps(providers={"small": 1}))
    told: list[bool] = []
    office.dispatcher._wake_leader = lambda: told.append(True)
    job = await office.submit(provider="small")
    office.dispatcher.changed(job)  # another process leads
    assert (told, office.dispatcher._woken.is_set()) == ([True], False)
    await office.lead()
    office.dispatcher.changed(job)
    assert (told, office.dispatcher._woken.is_set()) == ([True], True)
    office.dispatcher._woken.clear()
    elsewhere = await office.running()
    office.dispatcher.changed(elsewhere)  # it only began
    assert not office.dispatcher._woken.is_set()
    office.dispatcher.wake()
    assert office.dispatcher._woken.is_set()


async def test_a_submit_that_must_wait_is_told_to_dispatch(office: Office) -> None:
    await office.submit(hint=True)
    assert office.tape.waiting == []
    job = await office.submit()
    assert [waiting.id for waiting in office.tape.waiting] == [job.id]


@pytest.mark.parametrize("owners", [1, 500])
async def test_a_round_costs_what_it_does_and_not_what_waits(sqlite_url: str, owners: int) -> None:
    """Counted in the steps of SQLite's machine: a look, and five releases, among 1,200 jobs and among 6,000."""
    database = Database(sqlite_url, readers=1)
    office = Office(database)
    await office.worker(slots=2)
    await office.submit()
    steps: list[int] = []
    for waiting in (1200, 4800):
        await database.write(_multiply, waiting, owners)
        await database.read(office.dispatcher._look)  # which takes the sample for people, as it does now and then
        steps.append(await database.write(_steps, office))
    database.close()
    assert steps[1] < 1.2 * steps[0], steps


def _multiply(tx: Tx, count: int, owners: int) -> None:
    """So many jobs more, of so many owners."""
    row = dict(tx.execute(select(jobs).limit(1)).mappings().one())
    ids = [new_id() for _ in range(count)]
    tx.execute(insert(jobs), [{**row, "id": id, "owner_id": f"o{n % owners}"} for n, id in enumerate(ids)])


def _steps(tx: Tx, office: Office) -> int:
    counted = 0

    def count() -> int:
        nonlocal counted
        counted += 1
        return 0

    driver = tx._connection.connection.driver_connection
    assert driver is not None
    driver.set_progress_handler(count, 10)
    office.dispatcher._look(tx)
    done = office.dispatcher._dispatch(tx, True, {})
    driver.set_progress_handler(None, 0)
    assert done is not None and len(done.released) == 5
    tx.execute(update(jobs).values(released_at=None, hint_count=0))
    return counted


async def test_a_leader_that_is_gone_leaves_its_word(office: Office) -> None:
    """Who does not lead knows the room by what was published."""
    await office.worker(slots=1)
    await office.round()
    other = Office(office.database)
    other.holder = other.dispatcher._holder = new_id()
    await other.round()
    assert [other.dispatcher.take_room(QUEUE, "mock") for _ in range(4)] == [True, True, True, False]
