"""Who runs next, on both databases: rounds of dispatch taken one at a time, and what time does between them."""

import asyncio
import contextlib
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from office import BEAT_SECONDS, Office, age_worker, lease
from sqlalchemy import select

from jobs.builders import QUEUE, completed, try_again
from safelight.db import Database, DatabaseUnavailable, db_now
from safelight.jobs import Caps, QueueLoad
from safelight.jobs.ends import ISOLATED
from safelight.jobs.job import workers

pytestmark = pytest.mark.anyio


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = Database(database_url, readers=1)
    yield database
    database.close()


@pytest.fixture
def office(database: Database) -> Office:
    return Office(database)


# What is released


async def test_released_by_priority_then_age(office: Office) -> None:
    await office.worker(slots=10)
    low, first, urgent, second = [(await office.submit(priority=priority)).id for priority in (-1, 0, 10, 0)]
    await office.change(second, line_at=db_now(-60.0))  # due for longer
    assert await office.round() == [urgent, second, first, low]
    for job_id in (low, first, urgent, second):
        job = await office.job(job_id)
        assert (job.hint_count, job.released_at is not None, job.status, job.version) == (1, True, "pending", 1)
    assert await office.round() == []  # none is released twice


async def test_hints_under_way_are_about_twice_the_free_slots(office: Office) -> None:
    await office.worker(slots=2)
    ids = [(await office.submit()).id for _ in range(12)]
    assert await office.round() == ids[:5]  # 2 * 2 + 1
    assert await office.round() == []
    for job_id in ids[:2]:
        assert await office.claim(job_id) is not None
    # All slots are taken and three hints wait at the door: more than the one that may.
    assert await office.round() == []
    for job_id in ids[2:4]:
        assert await office.claim(job_id) is not None
    assert (await office.loads())[QUEUE] == QueueLoad(workers=1, slots=2, running=4, released=1, waiting=7)
    assert await office.round() == []
    assert await office.claim(ids[4]) is not None
    assert await office.round() == ids[5:6]  # one is always at the door
    for job_id in ids[:5]:
        job = await office.job(job_id)
        await office.settle(job, completed(job))
    assert await office.round() == ids[6:10]


async def test_room_counts_the_slots_of_all_living_workers_of_the_queue(office: Office) -> None:
    await office.worker(QUEUE, "default", slots=1)
    await office.worker(QUEUE, slots=2)
    await office.worker("default", slots=100)
    dead = await office.worker(QUEUE, slots=100)
    await office.write(age_worker, dead, 3 * BEAT_SECONDS + 1)
    ids = [(await office.submit()).id for _ in range(20)]
    assert await office.round() == ids[:7]
    loads = await office.loads()
    assert (loads[QUEUE].workers, loads[QUEUE].slots) == (2, 3)
    assert (loads["default"].workers, loads["default"].slots) == (2, 101)


async def test_a_job_is_not_released_before_its_time(office: Office) -> None:
    await office.worker(slots=10)
    later = await office.submit(run_at=datetime.now(UTC) + timedelta(hours=1))
    retried = await office.running()
    await office.settle(retried, try_again(retried, 3600.0))
    assert await office.round() == []
    assert await office.reason(later) is None
    await office.change(retried.id, run_at=db_now(-0.1))
    assert await office.round() == [retried.id]
    await office.change(later.id, run_at=db_now())
    await asyncio.sleep(0.002)
    assert await office.round() == [later.id]


async def test_the_loop_wakes_for_the_next_due_job(office: Office) -> None:
    await office.submit(run_at=datetime.now(UTC) + timedelta(seconds=90))
    await office.submit(run_at=datetime.now(UTC) + timedelta(seconds=30))
    await office.round()
    look = await office.database.read(office.dispatcher._look)
    assert look.next_due_seconds == pytest.approx(30, abs=5)
    assert not look.needs


async def test_suspects_wait_for_a_worker_of_their_own_queue(office: Office) -> None:
    await office.worker(slots=10)
    job = await office.running()
    await office.lose(job.id)
    assert await office.round() == [job.id]  # a first loss may be the machine's
    assert await office.claim(job.id) is not None
    await office.lose(job.id)
    assert await office.round() == []
    assert await office.reason(job) == "no_worker"
    await office.worker("local", ISOLATED, slots=1)
    assert await office.round() == [job.id]
    assert await office.reason(job) is None


# Why a job waits


async def test_without_a_worker_a_job_says_so_until_one_appears(office: Office) -> None:
    job = await office.submit()
    assert await office.round() == []
    blocked = await office.job(job.id)
    assert (blocked.blocked_reason, blocked.status, blocked.version, blocked.released_at) == (
        "no_worker",
        "pending",
        1,
        None,
    )
    worker = await office.worker(slots=1)
    assert await office.round() == [job.id]
    assert await office.reason(job) is None
    # Its hint is under way when the worker dies.
    await office.write(age_worker, worker, 16.0)
    await office.round()
    assert await office.reason(job) == "no_worker"
    await office.worker(slots=1)
    await office.round()
    assert await office.reason(job) is None


async def test_jobs_waiting_for_room_alone_have_no_reason(office: Office) -> None:
    await office.worker(slots=1)
    jobs = [await office.submit() for _ in range(5)]
    assert len(await office.round()) == 3
    assert [await office.reason(job) for job in jobs] == [None] * 5


# Caps


async def test_a_providers_cap_counts_running_and_released_jobs(database: Database) -> None:
    office = Office(database, Caps(providers={"small": 2}))
    await office.worker(slots=100)
    running = await office.running(provider="small")
    small = [await office.submit(provider="small", priority=5) for _ in range(3)]
    wide = [await office.submit(provider="wide") for _ in range(3)]
    assert await office.round() == [small[0].id, *(job.id for job in wide)]
    assert [await office.reason(job) for job in small] == [None, "provider_limit", "provider_limit"]
    assert [await office.reason(job) for job in wide] == [None] * 3
    await office.settle(running, completed(running))
    assert await office.round() == [small[1].id]
    assert [await office.reason(job) for job in small] == [None, None, "provider_limit"]
    for releases in ([small[0].id], [small[2].id]):  # a crash frees its place: for itself, then for another
        lost = await office.claim(small[0].id)
        assert lost is not None
        await office.lose(lost.id)
        assert await office.round() == releases
    assert await office.reason(small[2]) is None


async def test_an_owners_cap(database: Database) -> None:
    office = Office(database, Caps(owner=2))
    await office.worker(slots=100)
    greedy = [await office.submit(owner_id="greedy") for _ in range(4)]
    modest = await office.submit(owner_id="modest")
    assert await office.round() == [greedy[0].id, modest.id, greedy[1].id]
    assert [await office.reason(job) for job in greedy] == [None, None, "owner_limit", "owner_limit"]
    assert await office.reason(modest) is None
    job = await office.claim(greedy[0].id)
    assert job is not None
    assert await office.round() == []  # running instead of released: still two
    await office.settle(job, completed(job))
    assert await office.round() == [greedy[2].id]
    await office.cancel(greedy[3].id, "greedy")
    assert await office.reason(greedy[3]) is None


async def test_both_caps_hold_together(database: Database) -> None:
    office = Office(database, Caps(providers={"p": 3}, owner=2))
    await office.worker(slots=100)
    for number in range(12):
        await office.submit(owner_id=f"owner{number % 4}", provider="p" if number % 3 else "q")
    released: list[str] = []
    while more := await office.round():
        released += more
    jobs = [await office.job(job_id) for job_id in released]
    assert sum(job.provider == "p" for job in jobs) == 3
    for number in range(4):
        assert sum(job.owner_id == f"owner{number}" for job in jobs) <= 2


async def test_an_owner_at_the_limit_does_not_hold_up_a_providers_other_users(database: Database) -> None:
    office = Office(database, Caps(providers={"p": 2}, owner=1))
    await office.worker(slots=100)
    await office.running(owner_id="greedy", provider="p")
    for _ in range(3):
        await office.submit(owner_id="greedy", provider="p", priority=10)
    modest = await office.submit(owner_id="modest", provider="p")
    assert await office.round() == [modest.id]


async def test_a_full_provider_does_not_hold_up_its_users_other_jobs(database: Database) -> None:
    office = Office(database, Caps(providers={"full": 1}, owner=1))
    await office.worker(slots=100)
    await office.running(owner_id="other", provider="full")
    await office.submit(provider="full", priority=10)
    elsewhere = await office.submit(provider="wide")
    assert await office.round() == [elsewhere.id]


async def test_nothing_jumps_the_caps_by_being_hinted_at_once(database: Database) -> None:
    office = Office(database, Caps(providers={"small": 1}))
    await office.worker(slots=10)
    await office.round()
    assert office.dispatcher.take_room(QUEUE, "wide")
    assert not office.dispatcher.take_room(QUEUE, "small")
    limited = Office(database, Caps(owner=1))
    await limited.round()
    assert not limited.dispatcher.take_room(QUEUE, "wide")


async def test_a_submit_takes_room_only_while_nobody_waits(office: Office) -> None:
    assert not office.dispatcher.take_room(QUEUE, "mock")  # before the first look
    await office.worker(slots=1)
    await office.round()
    assert [office.dispatcher.take_room(QUEUE, "mock") for _ in range(4)] == [True, True, True, False]
    await office.round()
    office.broker_is_there = False
    assert not office.dispatcher.take_room(QUEUE, "mock")
    office.broker_is_there = True
    for _ in range(9):
        await office.submit()
    await office.round()
    await office.round()
    assert not office.dispatcher.take_room(QUEUE, "mock")
    assert not office.dispatcher.take_room("default", "mock")


# Hints that were lost


async def test_lost_hints_are_sent_again_ever_more_rarely(office: Office) -> None:
    await office.worker(slots=10)
    job = await office.submit()
    assert await office.round() == [job.id]
    for count, wait in enumerate((60.0, 120.0, 360.0, 720.0, 720.0, 720.0), start=2):
        await office.change(job.id, released_at=db_now(-(wait - 50.0)))
        assert await office.round() == [], wait
        await office.change(job.id, released_at=db_now(-(wait + 0.1)))
        assert await office.round() == [job.id], wait
        hinted = await office.job(job.id)
        assert (hinted.hint_count, hinted.version) == (count, 1)
    assert await office.claim(job.id) is not None
    assert await office.round() == []


async def test_a_submits_own_lost_hint_is_sent_again(office: Office) -> None:
    await office.worker(slots=10)
    job = await office.submit(hint=True)
    assert await office.round() == []
    await office.change(job.id, released_at=db_now(-60.1))
    assert await office.round() == [job.id]


async def test_hints_to_queues_without_workers_are_not_repeated(office: Office) -> None:
    job = await office.submit(hint=True)
    await office.change(job.id, released_at=db_now(-3600.0))
    assert await office.round() == []
    await office.worker(slots=1)
    assert await office.round() == [job.id]


async def test_nothing_is_released_while_the_broker_is_away(office: Office) -> None:
    await office.lead()
    await office.worker(slots=10)
    stale = await office.submit(hint=True)
    await office.change(stale.id, released_at=db_now(-3600.0))
    job = await office.submit()
    lost = await office.running()
    await office.orphan(lost.id)
    office.broker_is_there = False
    assert await office.round() == []
    assert (await office.job(job.id)).released_at is None
    assert (await office.job(stale.id)).hint_count == 1
    assert (await office.job(lost.id)).status == "pending"  # that needs no broker
    office.broker_is_there = True
    assert sorted(await office.round()) == sorted([stale.id, job.id, lost.id])


# Jobs that nobody holds


async def test_a_round_recovers_lost_overdue_and_unstarted_jobs(office: Office) -> None:
    await office.lead()
    await office.worker(slots=10)
    lost, overdue, late, healthy = (
        await office.running(),
        await office.running(),
        await office.submit(start_within_seconds=60.0),
        await office.running(),
    )
    await office.orphan(lost.id)
    await office.change(overdue.id, deadline_at=db_now(-6.0))
    await office.change(late.id, start_deadline_at=db_now(-1.0))
    assert await office.round() == [lost.id]  # a deadline that passed is not released any more
    assert [(await office.job(job.id)).status for job in (lost, overdue, late, healthy)] == [
        "pending",
        "failed",
        "failed",
        "processing",
    ]


@pytest.mark.parametrize("accident", ["its worker's lease", "its own time"])
async def test_a_quiet_leader_acts_at_once_when_time_runs_out(office: Office, accident: str) -> None:
    job = await office.running()
    await office.lead()
    await office.round()  # now it leads and has nothing to do
    before = await lease(office)
    await office.round()
    assert await lease(office) == before  # a round that only reads
    if accident == "its own time":
        await office.change(job.id, deadline_at=db_now(-6.0))
    else:
        await office.lease_ends(-6.0)
    await office.round()
    assert (await office.job(job.id)).status != "processing"


async def test_a_new_holder_gives_the_workers_of_the_old_one_time(office: Office) -> None:
    """It cannot know why the old one stopped: perhaps nobody could write, the workers neither."""
    lost = await office.running()
    await office.orphan(lost.id)
    await office.round()
    await office.round()
    assert (await office.job(lost.id)).status == "processing"
    office.dispatcher._healthy_since = time.monotonic()
    await office.round()
    assert (await office.job(lost.id)).status == "pending"


async def test_after_an_outage_workers_are_given_time_to_renew_their_leases(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    office = Office(database)
    job = await office.running()
    await office.lease_ends(-1.0)  # it could not renew either

    def away(*args: Any) -> Any:
        failed.set()
        raise DatabaseUnavailable

    failed = asyncio.Event()
    monkeypatch.setattr(database, "read", away)
    loop = asyncio.ensure_future(office.dispatcher.run())
    await failed.wait()
    await asyncio.sleep(0)
    loop.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await loop
    monkeypatch.undo()
    assert not office.dispatcher.take_room(QUEUE, "mock")
    await office.round()
    assert (await office.job(job.id)).status == "processing"
    await office.lease_ends(60.0)  # its heartbeat came
    office.dispatcher._healthy_since = time.monotonic()  # the time they were given is over
    await office.round()
    assert (await office.job(job.id)).status == "processing"
    await office.lease_ends(-1.0)
    await office.round()
    assert (await office.job(job.id)).status == "pending"


async def test_workers_whose_lease_ran_out_are_buried_though_they_had_nothing(office: Office) -> None:
    await office.lead()
    dead, late = await office.worker(slots=1), await office.worker(slots=1)
    await office.write(
        lambda tx: tx.execute(workers.update().values(lease_until=db_now(-1.0)).where(workers.c.id == dead))
    )
    await office.write(age_worker, late, 3 * BEAT_SECONDS + 1)
    await office.round()
    assert await office.database.read(lambda tx: list(tx.execute(select(workers.c.id)).scalars())) == [late]
