"""Submit, claim, settle and cancel on both databases: what each does to the rows, and what it tells the world."""

import asyncio
import random
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import create_engine, text, update
from things import held

from jobs.builders import (
    OWNER,
    QUEUE,
    WORKER,
    Desk,
    completed,
    failed,
    new_job,
    try_again,
)
from safelight.artifacts import as_rows
from safelight.db import Database, Prepared, Tx, db_now, new_id
from safelight.db.statement import driver_cursor
from safelight.jobs import (
    Cancelled,
    Defer,
    Follower,
    HandBack,
    Job,
    JobEnded,
    JobNotFound,
    Jobs,
    Settlement,
    artifacts_of,
    get,
    job_error,
    statements_postgresql,
    statements_sqlite,
    step,
    with_artifacts,
)
from safelight.jobs.ends import ISOLATED
from safelight.jobs.job import jobs

pytestmark = pytest.mark.anyio

MakeSettlement = Callable[[Job], Settlement]


# Submit


async def test_a_submitted_job_waits_unreleased_with_all_it_was_given(desk: Desk) -> None:
    new = new_job(
        negative_prompt="fog",
        model="m1",
        checkpoint_model="c.safetensors",
        lora_models=[{"name": "ink", "strength_model": 0.5}],
        width=640,
        height=480,
        batch_size=2,
        seed=2**63 - 1,
        sampler_params={"steps": 20, "nested": {"ü": [1, None]}},
        provider_options={"script": []},
        image_type="scene",
        project_id="p",
        chapter_id="c",
        script_id="s",
        scene_number=4,
        character_id="x",
        metadata={"k": "v"},
        priority=-10,
    )
    told = await desk.submit(new)
    job = await desk.job(new.id)
    assert told == job
    assert (job.status, job.version, job.attempt, job.retry_count, job.crash_count) == ("pending", 1, 0, 0, 0)
    assert (job.released_at, job.hint_count, job.started_at, job.worker_id) == (None, 0, None, None)
    assert (job.id, job.celery_task_id, job.owner_id, job.queue) == (new.id, new.id, OWNER, QUEUE)
    assert {name: getattr(job, name) for name in new.values} == dict(new.values)
    assert job.run_at == job.created_at == job.updated_at
    assert abs(job.created_at - datetime.now(UTC)) < timedelta(seconds=10)
    assert desk.tape.hints == [] and desk.tape.events == []


async def test_a_submit_that_found_room_is_released_and_hinted(desk: Desk) -> None:
    job = await desk.submit(hint=True)
    assert [hinted.id for hinted in desk.tape.hints] == [job.id]
    assert job.hint_count == 1 and job.released_at == job.created_at
    assert await desk.claim(job.id) is not None


async def test_deadlines_and_delays_are_counted_in_database_time(desk: Desk) -> None:
    later = datetime.now(UTC) + timedelta(hours=3, microseconds=17)
    job = await desk.submit(run_at=later, start_within_seconds=90.5)
    assert job.run_at == later
    assert job.start_deadline_at == job.created_at + timedelta(seconds=90.5)


# Claim


async def test_a_claim_takes_the_job_for_one_attempt(desk: Desk) -> None:
    job = await desk.submit()
    job = await desk.run(job.id)
    assert (job.status, job.version, job.attempt) == ("processing", 2, 1)
    assert (job.worker_id, job.stage, job.progress, job.released_at) == (WORKER, "starting", 0, None)
    assert job.hint_count == 0
    assert job.started_at is not None and job.deadline_at is not None and job.worker_id == WORKER
    assert job.deadline_at - job.started_at == timedelta(seconds=330)
    (attempt,) = await desk.attempts(job.id)
    assert (attempt.number, attempt.worker_id, attempt.worker_name, attempt.queue) == (1, WORKER, "io", QUEUE)
    assert (attempt.started_version, attempt.ended_version, attempt.finished_at, attempt.outcome) == (
        2,
        None,
        None,
        None,
    )
    assert desk.told(job.id) == [(2, "job.started")]


async def test_only_what_was_released_is_claimed_and_only_on_its_queue(desk: Desk) -> None:
    job = await desk.submit()
    assert await desk.claim(job.id) is None  # an old hint cannot get round a cap or a delay
    await desk.release(job.id)
    assert await desk.claim(job.id, ISOLATED) is None
    assert await desk.claim(new_id()) is None
    assert (await desk.job(job.id)).version == 1
    assert await desk.attempts(job.id) == []
    assert await desk.claim(job.id) is not None


async def test_a_doubled_hint_claims_once(desk: Desk) -> None:
    job = await desk.running()
    assert await desk.claim(job.id) is None
    assert len(await desk.attempts(job.id)) == 1
    assert desk.told(job.id) == [(2, "job.started")]


async def test_of_many_claims_at_once_from_two_processes_exactly_one_wins(desk: Desk, other_database: Database) -> None:
    there = Desk(other_database)
    ids = [(await desk.submit(hint=True)).id for _ in range(20)]
    hints = [(at, job_id) for job_id in ids for at in (desk, there, there, desk)]
    random.Random(7).shuffle(hints)  # opposite orders in the two: what could lock each other out
    won = await asyncio.gather(*(at.claim(job_id) for at, job_id in hints))
    assert sorted(job.id for job in won if job) == sorted(ids)
    for job_id in ids:
        assert [attempt.number for attempt in await desk.attempts(job_id)] == [1]
    assert len(desk.tape.events) + len(there.tape.events) == 20


async def test_a_leaving_worker_gives_a_hint_back_to_dispatch(desk: Desk) -> None:
    waiting = await desk.submit(hint=True)
    running = await desk.running()
    for job in (waiting, running):
        await desk.write(desk.jobs.decline, job.id)
    assert (await desk.job(waiting.id)).released_at is None
    assert await desk.job(running.id) == running


# Settle


async def test_a_completed_attempt_brings_its_artifacts(desk: Desk) -> None:
    job = await desk.running()
    settlement = completed(job, 2)
    settled = await desk.settle(job, settlement)
    assert settled == await desk.job(job.id)
    assert settled is not None and settled.is_terminal
    assert (settled.status, settled.version, settled.progress, settled.error) == ("completed", 3, 100, None)
    assert settled.deadline_at is None and settled.finished_at is not None
    assert await desk.artifacts(job.id) == list(settlement.artifacts)
    assert await desk.database.read(artifacts_of, settled) == list(settlement.artifacts)
    (attempt,) = await desk.attempts(job.id)
    assert (attempt.outcome, attempt.ended_version, attempt.error) == ("completed", 3, None)
    assert attempt.finished_at is not None and attempt.finished_at - settled.finished_at < timedelta(seconds=1)
    (_, event) = desk.tape.of(job.id)
    assert (event.type, event.version, event.is_terminal) == ("job.completed", 3, True)
    assert [shown["id"] for shown in event.artifacts] == [artifact.id for artifact in settlement.artifacts]


async def test_a_failed_attempt_ends_the_job_with_its_error(desk: Desk) -> None:
    job = await desk.running()
    settlement = failed(job)
    settled = await desk.settle(job, settlement)
    assert settled is not None and settled == await desk.job(job.id)
    assert (settled.status, settled.version, settled.error) == ("failed", 3, dict(settlement.error))
    assert settled.message == "The provider refused the prompt."
    (attempt,) = await desk.attempts(job.id)
    assert (attempt.outcome, attempt.ended_version, attempt.error) == ("failed", 3, dict(settlement.error))
    assert desk.told(job.id) == [(2, "job.started"), (3, "job.failed")]


async def test_a_cancelled_attempt_ends_the_job(desk: Desk) -> None:
    job = await desk.running()
    settled = await desk.settle(job, Cancelled())
    assert settled is not None and (settled.status, settled.version, settled.error) == ("cancelled", 3, None)
    assert [attempt.outcome for attempt in await desk.attempts(job.id)] == ["cancelled"]
    assert desk.told(job.id)[-1] == (3, "job.cancelled")


async def test_a_transient_failure_brings_the_job_back_later(desk: Desk) -> None:
    job = await desk.running()
    assert await desk.write(desk.jobs.record_submitting, job.id, 1)
    assert await desk.write(desk.jobs.record_remote_id, job.id, 1, "remote-1")
    settled = await desk.settle(job, try_again(job, 20.0))
    assert settled is not None and settled == await desk.job(job.id)
    assert (settled.status, settled.version, settled.retry_count, settled.crash_count) == ("pending", 3, 1, 0)
    assert settled.run_at == settled.updated_at + timedelta(seconds=20)
    assert (settled.released_at, settled.deadline_at, settled.progress) == (None, None, None)
    assert settled.error is not None and settled.error["code"] == "provider_unavailable"
    assert (settled.provider_job_id, settled.submitting_at) == (None, None)  # that provider's job ended with it
    (attempt,) = await desk.attempts(job.id)
    assert (attempt.outcome, attempt.ended_version, attempt.provider_job_id) == ("retry", 3, "remote-1")
    assert desk.told(job.id)[-1] == (3, "job.pending")
    assert await desk.claim(job.id) is None  # not before dispatch releases it
    second = await desk.run(job.id)
    assert (second.attempt, second.version, second.error) == (2, 4, None)


async def test_a_handed_back_job_goes_on_where_it_was(desk: Desk) -> None:
    job = await desk.running()
    assert await desk.write(desk.jobs.record_submitting, job.id, 1)
    assert await desk.write(desk.jobs.record_remote_id, job.id, 1, "remote-1")
    settled = await desk.settle(job, HandBack())
    assert settled is not None
    assert (settled.status, settled.version, settled.retry_count, settled.queue) == ("pending", 3, 0, QUEUE)
    assert (settled.provider_job_id, settled.error, settled.run_at) == ("remote-1", None, job.run_at)
    assert [attempt.outcome for attempt in await desk.attempts(job.id)] == ["handed_back"]
    second = await desk.run(job.id)
    assert second.provider_job_id == "remote-1"
    assert [attempt.provider_job_id for attempt in await desk.attempts(job.id)] == ["remote-1", "remote-1"]


ALL_SETTLEMENTS: list[MakeSettlement] = [
    completed,
    failed,
    try_again,
    lambda job: Cancelled(),
    lambda job: HandBack(),
]


@pytest.mark.parametrize("late", ALL_SETTLEMENTS)
async def test_a_late_writer_changes_nothing(desk: Desk, late: MakeSettlement) -> None:
    """By an older attempt while a newer one runs, and by any attempt after the end."""
    old = await desk.running()
    await desk.lose(old.id)
    new = await desk.run(old.id)
    before = await everything(desk, old.id)
    assert await desk.settle(old, late(old)) is None
    assert not await desk.write(desk.jobs.record_submitting, old.id, 1)
    assert not await desk.write(desk.jobs.record_remote_id, old.id, 1, "zombie")
    assert await everything(desk, old.id) == before
    await desk.settle(new, completed(new))
    before = await everything(desk, old.id)
    for attempt in (old, new):
        assert await desk.settle(attempt, late(attempt)) is None
    assert await everything(desk, old.id) == before
    assert {artifact.attempt for artifact in await desk.artifacts(old.id)} == {2}


async def test_what_hangs_on_the_settling_commits_with_it(database: Database) -> None:
    """And a slice that fails takes the settling back: no event, no status."""
    desk = Desk(database)
    followed: list[tuple[str, str]] = []

    class Story(Follower):
        def settled(self, tx: Tx, job: Job) -> None:
            followed.append((job.id, job.status))
            if job.status == "failed":
                raise ValueError("the story's row is missing")

    desk.jobs = Jobs(desk.tape, [Story()])
    job = await desk.running()
    with pytest.raises(ValueError, match="story's row"):
        await desk.settle(job, failed(job))
    assert (await desk.job(job.id)).status == "processing"
    assert desk.told(job.id) == [(2, "job.started")]
    await desk.settle(job, completed(job))
    assert followed[-1] == (job.id, "completed")


# Cancel


async def test_a_pending_job_is_cancelled_at_once(desk: Desk) -> None:
    job = await desk.submit(hint=True)
    cancelled = await desk.cancel(job.id)
    assert isinstance(cancelled, Job) and cancelled == await desk.job(job.id)
    assert (cancelled.status, cancelled.version) == ("cancelled", 2)
    assert cancelled.finished_at is not None
    assert desk.told(job.id) == [(2, "job.cancelled")]
    assert await desk.claim(job.id) is None  # the hint is still under way
    assert await desk.attempts(job.id) == []


async def test_the_worker_of_a_processing_job_is_asked_to_stop(desk: Desk) -> None:
    job = await desk.running()
    asked = await desk.cancel(job.id)
    assert isinstance(asked, Job) and asked.cancel_requested_at is not None
    assert (asked.status, asked.version) == ("processing", 2)  # not a state of its own: no event, no version
    assert desk.tape.nudges == [job.id]
    again = await desk.cancel(job.id)
    assert isinstance(again, Job) and again.cancel_requested_at == asked.cancel_requested_at
    assert desk.told(job.id) == [(2, "job.started")]


async def test_a_job_cancelled_between_two_tries_has_no_error(desk: Desk) -> None:
    job = await desk.run((await desk.submit()).id)
    waiting = await desk.settle(job, try_again(job, 20.0))
    assert waiting is not None and waiting.error is not None
    cancelled = await desk.cancel(job.id)
    assert isinstance(cancelled, Job) and (cancelled.status, cancelled.error) == ("cancelled", None)
    assert [attempt.error is not None for attempt in await desk.attempts(job.id)] == [True]


async def test_cancelling_a_cancelled_job_answers_it_again(desk: Desk) -> None:
    job = await desk.submit()
    first = await desk.cancel(job.id)
    assert await desk.cancel(job.id) == first
    assert desk.told(job.id) == [(2, "job.cancelled")]


@pytest.mark.parametrize("end", [completed, failed])
async def test_an_ended_job_cannot_be_cancelled(desk: Desk, end: MakeSettlement) -> None:
    job = await desk.running()
    ended = await desk.settle(job, end(job))
    answer = await desk.cancel(job.id)
    assert isinstance(answer, JobEnded) and ended is not None and ended.status in answer.detail
    assert await desk.job(job.id) == ended


async def test_another_owners_job_does_not_exist(desk: Desk) -> None:
    waiting, running = await desk.submit(), await desk.running()
    for job in (waiting, running):
        assert isinstance(await desk.cancel(job.id, "bob"), JobNotFound)
        assert await desk.job(job.id) == job
        assert await desk.database.read(get, job.id, "bob") is None
        assert await desk.database.read_one(with_artifacts, (job.id, "bob")) is None
    assert isinstance(await desk.cancel(new_id()), JobNotFound)
    assert desk.tape.nudges == []


@pytest.mark.parametrize(
    ("settlement", "status"),
    [
        (try_again, "cancelled"),
        (lambda _: HandBack(), "cancelled"),
        (lambda _: Cancelled(), "cancelled"),
        (completed, "completed"),  # the picture was there first
        (failed, "failed"),
    ],
)
async def test_a_job_asked_to_stop_never_goes_back_to_the_queue(
    desk: Desk, settlement: MakeSettlement, status: str
) -> None:
    job = await desk.running()
    await desk.cancel(job.id)
    settled = await desk.settle(job, settlement(job))
    assert settled is not None and (settled.status, settled.version) == (status, 3)
    assert [attempt.outcome for attempt in await desk.attempts(job.id)] == [status]
    assert desk.told(job.id)[1:] == [(3, f"job.{status}")]


async def test_a_cancel_that_meets_a_returning_job_still_cancels_it(postgres_url: str) -> None:
    """Between its two statements the job can come back to the queue (SQLite has one writer at a time: no between)."""
    engine = create_engine(postgres_url)
    with closing(Database(postgres_url)) as here, closing(Database(postgres_url)) as there:
        desk = Desk(here)
        job = await desk.running()
        with engine.connect() as worker:
            worker.execute(update(jobs).where(jobs.c.id == job.id).values(status="pending", version=3))
            asked = asyncio.ensure_future(Desk(there).cancel(job.id))
            assert await until_waiting_for_lock(here)
            worker.commit()
        answer = await asked
    assert isinstance(answer, Job) and (answer.status, answer.version) == ("cancelled", 4)
    engine.dispose()


async def test_a_cancel_that_commits_while_the_attempt_ends_is_not_overtaken(postgres_url: str) -> None:
    """The worker's statement waits for the row that the cancel holds, and sees it as the cancel leaves it."""
    engine = create_engine(postgres_url)
    for settlement in (try_again, lambda _: HandBack(), deferred):
        with closing(Database(postgres_url)) as here, closing(Database(postgres_url)) as there:
            desk = Desk(here)
            job = await desk.running()
            with engine.connect() as owner:
                owner.execute(update(jobs).where(jobs.c.id == job.id).values(cancel_requested_at=db_now()))
                settled = asyncio.ensure_future(Desk(there).settle(job, settlement(job)))
                assert await until_waiting_for_lock(here)
                owner.commit()
            ended = await settled
            assert ended is not None and (ended.status, ended.attempt) == ("cancelled", 1)
            assert [attempt.outcome for attempt in await desk.attempts(job.id)] == ["cancelled"]
            assert await desk.claim(job.id) is None
    engine.dispose()


async def test_what_is_to_be_cancelled_is_never_claimed(desk: Desk) -> None:
    job = await desk.submit(hint=True)
    await desk.change(job.id, cancel_requested_at=db_now())
    assert await desk.claim(job.id) is None


# What the tests reach for


def deferred(job: Job) -> Settlement:
    return Defer(job_error("rate_limited", "Later.", job, True), 1.0)


async def everything(desk: Desk, job_id: str) -> tuple[Any, ...]:
    return (
        await desk.job(job_id),
        await desk.attempts(job_id),
        await desk.artifacts(job_id),
        list(desk.tape.events),
    )


async def until_waiting_for_lock(database: Database) -> bool:
    """Until some connection to this PostgreSQL database waits for a row's lock."""
    for _ in range(500):
        waiting = await database.read(_waiting_for_lock)
        if waiting:
            return True
        await asyncio.sleep(0.01)
    return False


def _waiting_for_lock(tx: Tx) -> int:
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    return tx.execute(text(waiting)).scalar_one()


# A crowd


async def test_ends_that_come_together_are_told_apart(desk: Desk) -> None:
    """Attempts that end in the same moment share a statement: each its results, and a late one has none."""
    old = await desk.running()
    await desk.lose(old.id)
    new = await desk.run(old.id)
    others = [await desk.running() for _ in range(3)]
    ends = [(job, completed(job).artifacts) for job in (old, *others, new)]
    async with held(desk.database):
        waiting = asyncio.gather(*(desk.database.write_one(desk.jobs.complete, end) for end in ends))
    late, *settled = await waiting
    assert late is None
    for job, attempt in zip(settled, (*others, new), strict=True):
        assert job is not None and job == await desk.job(attempt.id)
        assert (job.status, job.attempt, job.error) == ("completed", attempt.attempt, None)
        recorded = await desk.artifacts(job.id)
        assert [(artifact.job_id, artifact.attempt) for artifact in recorded] == [(job.id, attempt.attempt)]
        assert [ended.outcome for ended in await desk.attempts(job.id)][-1] == "completed"
        assert desk.told(job.id)[-1] == (job.version, "job.completed")
    alone = await desk.running()
    assert await desk.database.write_one(desk.jobs.complete, (alone, ())) == await desk.job(alone.id)
    assert await desk.database.write_one(desk.jobs.complete, (alone, ())) is None


async def test_a_job_is_sought_by_its_id_and_not_among_all_that_run(desk: Desk) -> None:
    """However many are processing or released, and whatever the planner has learnt of them by then."""
    await desk.database.write(desk.jobs.submit, [new_job(hint=True) for _ in range(300)])
    await desk.database.write(lambda tx: tx.execute(update(jobs).values(worker_id=WORKER)) and None)
    ours = {"b_id": new_id(), "b_attempt": 1, "b_status": "processing"}
    claiming = {**ours, "b_worker": new_id(), "b_queue": QUEUE, "b_worker_name": "io"}
    if desk.database.backend == "postgresql":
        claim, complete = statements_postgresql._CLAIM_ONE, statements_postgresql._COMPLETE_ONE
    else:
        claim, complete = statements_sqlite._CLAIM, statements_sqlite._COMPLETE
    sought = [
        (claim, claiming),
        (complete, {**ours, "b_made": as_rows([])}),
        (step.FAIL.move, {**ours, "b_message": "", "b_error": None}),
    ]
    for status in ("pending", "processing"):
        await desk.database.write(lambda tx, to=status: tx.execute(update(jobs).values(status=to)) and None)
        for statement, parameters in sought:
            plan = await desk.database.read(plan_of, statement, parameters)
            assert "pk_jobs" in plan or "sqlite_autoindex_jobs_1" in plan, plan
            assert "ix_jobs" not in plan, plan


def plan_of(tx: Tx, statement: Prepared, parameters: dict[str, Any]) -> str:
    compiled = statement._for(tx._connection.dialect)
    explain = "EXPLAIN " if tx.is_postgresql else "EXPLAIN QUERY PLAN "
    with driver_cursor(tx._connection, explain) as cursor:
        cursor.execute(explain + compiled._sql, compiled.bound(parameters))
        return "\n".join(str(row[-1]) for row in cursor.fetchall())
