"""Who dispatches: one process at a time, by a lease."""

import asyncio
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from office import Office, end_lease, lease

from safelight.db import Database
from safelight.jobs.dispatch import LEASE_SECONDS, give_up_lease, take_lease

pytestmark = pytest.mark.anyio


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = Database(database_url, readers=1)
    yield database
    database.close()


@pytest.fixture
def office(database: Database) -> Office:
    return Office(database)


async def test_only_the_holder_of_the_lease_works(database: Database, database_url: str) -> None:
    first = Office(database)
    elsewhere = Database(database_url, readers=1)
    second = Office(elsewhere)
    await first.worker(slots=100)
    await first.round()
    assert (await lease(first))[0] == first.holder
    job = await first.submit()
    assert await second.round() == []
    assert (await first.job(job.id)).released_at is None
    assert await first.round() == [job.id]
    # The first process dies; its lease runs out.
    await first.write(end_lease)
    job = await first.submit()
    assert await second.round() == [job.id]
    holder, until = await lease(first)
    assert holder == second.holder
    assert timedelta(0) < until - datetime.now(UTC) < timedelta(seconds=LEASE_SECONDS + 5)
    elsewhere.close()


async def test_many_dispatchers_at_once_release_each_job_once(database: Database, database_url: str) -> None:
    databases = [Database(database_url, readers=1) for _ in range(2)]
    offices = [Office(each) for each in (database, *databases)]
    await offices[0].worker(slots=50)
    ids = [(await offices[0].submit()).id for _ in range(40)]
    for _ in range(3):
        await asyncio.gather(*(office.dispatcher._tick() for office in offices))
    assert sorted(job_id for office in offices for job_id in office.hinted) == sorted(ids)
    for each in databases:
        each.close()


async def test_a_leader_that_was_overtaken_does_nothing(office: Office, database: Database) -> None:
    """It read that it leads, froze, and thawed after another took over."""
    await office.worker(slots=10)
    await office.round()
    await office.write(end_lease)
    successor = Office(database)
    await successor.round()
    job = await office.submit()
    lost = await office.running()
    await office.orphan(lost.id)
    assert await office.write(office.dispatcher._dispatch, True, {}) is None
    assert (await office.job(job.id)).released_at is None
    assert (await office.job(lost.id)).status == "processing"
    assert (await lease(office))[0] == successor.holder
    assert await successor.round() == [job.id]


async def test_a_lease_given_up_is_free_at_once(office: Office, database: Database) -> None:
    await office.round()
    successor = Office(database)
    assert not await successor.write(take_lease, successor.holder)
    await successor.dispatcher.release_lease()  # it holds none: nothing happens
    await office.write(give_up_lease, successor.holder)
    assert not await successor.write(take_lease, successor.holder)
    await office.dispatcher.release_lease()
    assert await successor.write(take_lease, successor.holder)
    assert not await office.write(take_lease, office.holder)


async def test_a_leader_renews_its_lease_in_time(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    await office.round()
    _, until = await lease(office)
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + LEASE_SECONDS / 2 + 0.5)
    await asyncio.sleep(0.002)
    await office.round()
    assert (await lease(office))[1] > until


async def test_the_house_is_kept_by_whoever_dispatches(office: Office, database: Database) -> None:
    idle = Office(database)
    await office.round()
    assert office.houses_kept == 0
    idle.dispatcher._housekeeping_at = office.dispatcher._housekeeping_at = 0.0
    await idle.round()
    assert idle.dispatcher._housekeeping_task is None
    await office.write(end_lease)
    await office.round()
    task = office.dispatcher._housekeeping_task
    assert task is not None
    await task
    assert (idle.houses_kept, office.houses_kept) == (0, 1)


# What the tests reach for


async def test_a_machine_that_slept_is_noticed_by_whoever_is_woken(office: Office) -> None:
    """A release without a look before it must not hide that the leases ran out while nobody could renew them."""
    lost = await office.running()
    await office.lead()
    await office.lease_ends(-1.0)
    assert office.dispatcher._looked_at is not None
    office.dispatcher._looked_at -= timedelta(minutes=5)
    await office.dispatcher._release(None)
    await office.round()
    assert (await office.job(lost.id)).status == "processing"
    office.dispatcher._healthy_since = time.monotonic()
    await office.round()
    assert (await office.job(lost.id)).status == "pending"
