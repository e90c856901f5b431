"""What keeps jobs alive when their workers are not: recovery and heartbeats, on both databases."""

import asyncio
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import create_engine, select, text, update

from jobs.builders import (
    QUEUE,
    WORKER,
    Desk,
    failed,
    try_again,
)
from safelight.db import Database, Tx, db_now, new_id
from safelight.jobs import (
    HandBack,
    Heard,
    Held,
    Job,
    Progressed,
    Settlement,
    beat,
    cancels_of,
    is_held,
    register_worker,
    retire_worker,
    unregister_worker,
)
from safelight.jobs.ends import ISOLATED
from safelight.jobs.job import jobs, workers

pytestmark = pytest.mark.anyio

MakeSettlement = Callable[[Job], Settlement]


# When nobody else is there to do it


async def test_a_lost_job_comes_back_to_its_place(desk: Desk) -> None:
    lost, healthy = await desk.running(), await desk.running()
    assert await desk.write(desk.jobs.record_remote_id, lost.id, 1, "remote-1")
    job = await desk.lose(lost.id)
    assert (job.status, job.version, job.queue, job.crash_count) == ("pending", 3, QUEUE, 0)
    assert (job.retry_count, job.run_at, job.released_at) == (0, lost.run_at, None)
    assert job.provider_job_id == "remote-1"  # it may still be there to be adopted
    assert job.error is not None and job.error["code"] == "worker_lost"
    assert [attempt.outcome for attempt in await desk.attempts(job.id)] == ["lost"]
    assert desk.told(job.id)[-1] == (3, "job.pending")
    assert await desk.job(healthy.id) == healthy
    assert await desk.write(desk.jobs.recover_lost) == []


async def suspect(desk: Desk) -> Job:
    """A job that was in two processes that died."""
    job = await desk.running()
    await desk.lose(job.id)
    await desk.run(job.id)
    return await desk.lose(job.id)


async def test_only_what_was_in_two_dead_processes_runs_alone(desk: Desk) -> None:
    """One machine that is taken away has hundreds of jobs with it: they go on side by side."""
    ids = [(await desk.running()).id for _ in range(20)]
    for job_id in ids:
        await desk.orphan(job_id)
    assert {job.queue for job in await desk.write(desk.jobs.recover_lost)} == {QUEUE}
    again = ids[7]
    await desk.run(again)
    assert (await desk.lose(again)).queue == ISOLATED
    assert {(await desk.job(job_id)).queue for job_id in ids if job_id != again} == {QUEUE}


async def test_only_crashes_in_isolation_count_and_the_third_convicts(desk: Desk) -> None:
    job = await suspect(desk)
    for crashes in (0, 1, 2):
        assert (job.status, job.queue, job.crash_count) == ("pending", ISOLATED, crashes)
        await desk.run(job.id)
        job = await desk.lose(job.id)
    assert (job.status, job.crash_count, job.attempt) == ("failed", 3, 5)
    assert job == await desk.job(job.id)
    assert job.error is not None and job.error["code"] == "worker_lost"
    assert [attempt.outcome for attempt in await desk.attempts(job.id)] == ["lost"] * 5
    assert [version for version, _ in desk.told(job.id)] == list(range(2, 12))


async def test_an_import_had_a_process_of_its_own_and_no_suspect_waits_for_it(desk: Desk) -> None:
    """It comes back to the queue of imports, and all crashes after the first count."""
    job = await desk.running(kind="media.import")
    for crashes in (0, 1, 2):
        job = await desk.lose(job.id)
        assert (job.status, job.queue, job.crash_count) == ("pending", "imports", crashes)
        await desk.run(job.id)
    assert (await desk.lose(job.id)).status == "failed"


async def test_a_suspect_that_proved_itself_leaves_isolation(desk: Desk) -> None:
    job = await desk.run((await suspect(desk)).id)
    back = await desk.settle(job, try_again(job))
    assert back is not None and back.queue == QUEUE
    job = await desk.run(job.id)
    assert (await desk.lose(job.id)).crash_count == 0


async def test_a_suspect_handed_back_stays_in_isolation(desk: Desk) -> None:
    job = await desk.run((await suspect(desk)).id)
    back = await desk.settle(job, HandBack())
    assert back is not None and (back.queue, back.crash_count) == (ISOLATED, 0)


async def test_a_lost_job_that_was_to_stop_is_cancelled(desk: Desk) -> None:
    job = await desk.running()
    await desk.cancel(job.id)
    job = await desk.lose(job.id)
    assert (job.status, job.version) == ("cancelled", 3)
    assert [attempt.outcome for attempt in await desk.attempts(job.id)] == ["lost"]
    assert desk.told(job.id)[-1] == (3, "job.cancelled")


async def test_two_processes_recover_each_lost_job_once(desk: Desk, other_database: Database) -> None:
    ids = [(await desk.running()).id for _ in range(10)]
    for job_id in ids:
        await desk.orphan(job_id)
    there = Desk(other_database)
    found = await asyncio.gather(desk.write(desk.jobs.recover_lost), there.write(there.jobs.recover_lost))
    assert sorted(job.id for jobs in found for job in jobs) == sorted(ids)


async def test_a_job_past_its_hard_limit_fails_although_its_worker_lives(desk: Desk) -> None:
    grace, over = await desk.running(), await desk.running()
    await desk.change(grace.id, deadline_at=db_now(-1.0))
    await desk.change(over.id, deadline_at=db_now(-6.0))
    assert [job.id for job in await desk.write(desk.jobs.fail_overdue)] == [over.id]
    job = await desk.job(over.id)
    assert (job.status, job.version) == ("failed", 3)
    assert job.error is not None and job.error["code"] == "time_limit_exceeded"
    assert [attempt.outcome for attempt in await desk.attempts(job.id)] == ["failed"]
    assert (await desk.job(grace.id)).status == "processing"


async def test_a_job_that_could_not_start_in_time_fails(desk: Desk) -> None:
    late = await desk.submit(start_within_seconds=60.0, hint=True)
    await desk.submit(start_within_seconds=60.0)
    await desk.submit()
    await desk.change(late.id, start_deadline_at=db_now(-0.1))
    assert [job.id for job in await desk.write(desk.jobs.fail_unstarted)] == [late.id]
    job = await desk.job(late.id)
    assert (job.status, job.version, job.attempt) == ("failed", 2, 0)
    assert job.error is not None and job.error["code"] == "start_deadline_exceeded"
    assert await desk.claim(late.id) is None
    assert desk.told(late.id) == [(2, "job.failed")]


async def test_a_job_that_did_start_in_time_is_not_failed_while_it_waits_for_a_retry(desk: Desk) -> None:
    job = await desk.running(start_within_seconds=60.0)
    await desk.settle(job, try_again(job, 30.0))
    await desk.change(job.id, start_deadline_at=db_now(-0.1))
    assert await desk.write(desk.jobs.fail_unstarted) == []


# Heartbeat


async def test_a_beat_renews_the_lease_of_all_and_writes_progress(desk: Desk) -> None:
    job, other = await desk.running(), await desk.running()
    await desk.lease_ends(-1.0)
    heard = await desk.write(beat, WORKER, 2, [Progressed(job.id, 1, 40, "sampling", "Step 8 of 20: ü")], 90.0)
    assert heard is not None and heard.written == {job.id}
    assert set(heard.held) == {Held(job.id, 1, False), Held(other.id, 1, False)}
    now = await desk.job(job.id)
    assert (now.progress, now.stage, now.message) == (40, "sampling", "Step 8 of 20: ü")
    assert (now.version, now.status) == (2, "processing")
    assert (await desk.job(other.id)) == other
    worker = await desk.database.read(lambda tx: tx.execute(select(workers)).one())
    assert timedelta(seconds=60) < worker.lease_until - datetime.now(UTC) < timedelta(seconds=120)
    assert await desk.write(desk.jobs.recover_lost) == []


async def test_a_beat_writes_one_row_however_much_runs(sqlite_url: str) -> None:
    with closing(Database(sqlite_url)) as database:
        desk = Desk(database)
        ids = [(await desk.running()).id for _ in range(50)]
        heard, rows = await desk.write(count_changes, [])
        assert heard is not None and {job.job_id for job in heard.held} == set(ids) and rows == 1
        _, rows = await desk.write(count_changes, [Progressed(ids[7], 1, 40, "sampling", None)])
        assert rows == 2


def count_changes(tx: Tx, news: list[Progressed]) -> tuple[Heard | None, int]:
    changes = text("SELECT total_changes()")
    before = tx.execute(changes).scalar_one()
    heard = beat(tx, WORKER, 50, news, 60.0)
    return heard, tx.execute(changes).scalar_one() - before


async def test_a_beat_hears_of_cancels_and_of_jobs_that_are_gone(desk: Desk) -> None:
    kept, cancelled, ended, older = [await desk.running() for _ in range(4)]
    await desk.cancel(cancelled.id)
    await desk.settle(ended, failed(ended))
    await desk.lose(older.id)
    await desk.run(older.id)
    nowhere = new_id()
    before = [await desk.job(job_id) for job_id in (ended.id, older.id)]
    names = [kept.id, cancelled.id, ended.id, older.id, nowhere]
    heard = await desk.write(beat, WORKER, 1, [Progressed(name, 1, 50, "s", "m") for name in names], 60.0)
    assert heard is not None and heard.written == {kept.id, cancelled.id}
    assert set(heard.held) == {Held(kept.id, 1, False), Held(cancelled.id, 1, True), Held(older.id, 2, False)}
    assert await desk.database.read(cancels_of, WORKER) == [(cancelled.id, 1)]
    assert [await desk.job(job_id) for job_id in (ended.id, older.id)] == before


async def test_a_beat_skips_a_row_that_is_being_changed(postgres_url: str) -> None:
    engine = create_engine(postgres_url)
    with closing(Database(postgres_url)) as database:
        desk = Desk(database)
        busy, free = await desk.running(), await desk.running()
        news = [Progressed(job.id, 1, 1, "s", "m") for job in (busy, free)]
        with engine.connect() as settling:
            settling.execute(select(jobs.c.id).where(jobs.c.id == busy.id).with_for_update())
            heard = await database.write_urgently(beat, WORKER, 2, news, 60.0)
    assert heard is not None and heard.written == {free.id}  # the other is for the next beat
    assert {job.job_id for job in heard.held} == {busy.id, free.id}
    engine.dispose()


async def test_worker_rows(desk: Desk) -> None:
    assert await desk.write(beat, WORKER, 1, [], 60.0) is None  # not registered
    await desk.write(register_worker, WORKER, "io", [QUEUE, "default"], 7, 60.0)
    job = await desk.running()
    await desk.write(change_worker, WORKER, -3600.0)
    assert await desk.write(beat, WORKER, 3, [], 60.0) is not None
    row = await desk.database.read(lambda tx: tx.execute(select(workers)).one())
    assert (row.id, row.name, row.queues, row.slots, row.running) == (WORKER, "io", [QUEUE, "default"], 7, 3)
    assert abs(row.seen_at - datetime.now(UTC)) < timedelta(seconds=10)
    await desk.write(retire_worker, WORKER)
    row = await desk.database.read(lambda tx: tx.execute(select(workers)).one())
    assert (row.queues, row.slots) == ([], 0)
    heard = await desk.write(beat, WORKER, 1, [], 60.0)
    assert heard is not None and [held.job_id for held in heard.held] == [job.id]  # it ends what it began
    await desk.write(unregister_worker, WORKER)
    assert await desk.write(beat, WORKER, 1, [], 60.0) is None
    assert [lost.id for lost in await desk.write(desk.jobs.recover_lost)] == [job.id]


async def test_held_means_this_attempt_and_still_running(desk: Desk) -> None:
    job = await desk.running()
    assert await desk.database.read(is_held, job.id, 1)
    assert not await desk.database.read(is_held, job.id, 2)
    await desk.settle(job, failed(job))
    assert not await desk.database.read(is_held, job.id, 1)
    assert not await desk.database.read(is_held, new_id(), 1)


# What the tests reach for


def change_worker(tx: Tx, worker_id: str, seconds: float) -> None:
    tx.execute(update(workers).where(workers.c.id == worker_id).values(seen_at=db_now(seconds)))
