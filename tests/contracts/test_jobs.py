"""The transactions on jobs, on both databases: what each does to the rows, and what it tells the world."""

import asyncio
import random
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import create_engine, insert, select, text, update

from jobs.builders import (
    LEASE_SECONDS,
    OWNER,
    QUEUE,
    WORKER,
    Desk,
    completed,
    failed,
    new_job,
    outline,
    try_again,
)
from safelight.db import Database, Tx, db_now, new_id
from safelight.jobs import (
    Beat,
    Cancelled,
    Filter,
    HandBack,
    IdempotencyKeyReused,
    Job,
    JobEnded,
    JobNotFound,
    Jobs,
    Page,
    Pulse,
    Settlement,
    Submitted,
    artifacts_of,
    beat,
    find,
    get,
    is_held,
    missed,
    register_worker,
    run_seconds,
    unregister_worker,
    with_artifacts,
)
from safelight.jobs.job import idempotency_keys, jobs, workers
from safelight.jobs.service import ISOLATED, purge_idempotency_keys

pytestmark = pytest.mark.anyio

MakeSettlement = Callable[[Job], Settlement]


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = Database(database_url, readers=1)
    yield database
    database.close()


@pytest.fixture
def other_database(database_url: str) -> Iterator[Database]:
    """The same rows as another process sees them."""
    database = Database(database_url, readers=1)
    yield database
    database.close()


@pytest.fixture
def desk(database: Database) -> Desk:
    return Desk(database)


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
    assert (job.hinted_at, job.hint_count, job.started_at, job.lease_until) == (None, 0, None, None)
    assert (job.id, job.celery_task_id, job.owner_id, job.queue) == (new.id, new.id, OWNER, QUEUE)
    assert {name: getattr(job, name) for name in new.values} == dict(new.values)
    assert job.run_at == job.created_at == job.updated_at
    assert abs(job.created_at - datetime.now(UTC)) < timedelta(seconds=10)
    assert desk.tape.hints == [] and desk.tape.events == []


async def test_a_submit_that_found_room_is_released_and_hinted(desk: Desk) -> None:
    job = await desk.submit(hint=True)
    assert [hinted.id for hinted in desk.tape.hints] == [job.id]
    assert job.hint_count == 1 and job.hinted_at == job.created_at
    assert await desk.claim(job.id) is not None


async def test_deadlines_and_delays_are_counted_in_database_time(desk: Desk) -> None:
    later = datetime.now(UTC) + timedelta(hours=3, microseconds=17)
    job = await desk.submit(run_at=later, start_within_seconds=90.5)
    assert job.run_at == later
    assert job.start_deadline_at == job.created_at + timedelta(seconds=90.5)


# Idempotency


async def test_the_same_key_and_body_give_the_first_job_again(desk: Desk) -> None:
    first = await desk.offer(idempotency_key="k")
    again = await desk.offer(idempotency_key="k", prompt="never looked at: the fingerprint says it is the same")
    assert isinstance(first, Submitted) and isinstance(again, Submitted)
    assert (first.replayed, again.replayed) == (False, True)
    assert again.job == first.job
    assert await count_jobs(desk.database) == 1


async def test_a_replay_shows_how_the_first_job_stands_now_and_hints_nothing(desk: Desk) -> None:
    job = await desk.running(idempotency_key="k")
    await desk.settle(job, completed(job))
    again = await desk.offer(idempotency_key="k", hint=True)
    assert isinstance(again, Submitted) and again.job.status == "completed"
    assert desk.tape.hints == []


async def test_the_same_key_with_another_body_is_refused(desk: Desk) -> None:
    await desk.offer(idempotency_key="k")
    assert isinstance(await desk.offer(idempotency_key="k", fingerprint="e" * 64), IdempotencyKeyReused)
    assert await count_jobs(desk.database) == 1


async def test_keys_belong_to_their_owner(desk: Desk) -> None:
    await desk.offer(idempotency_key="k")
    other = await desk.offer(idempotency_key="k", fingerprint="e" * 64, owner_id="bob")
    assert isinstance(other, Submitted) and not other.replayed
    assert await count_jobs(desk.database) == 2


async def test_many_submits_at_once_with_one_key_make_one_job(desk: Desk, other_database: Database) -> None:
    there = Desk(other_database)
    answers = await asyncio.gather(*(at.offer(idempotency_key="k") for at in [desk, there] * 10))
    ids = {answer.job.id for answer in answers if isinstance(answer, Submitted)}
    assert len(ids) == 1 and len(answers) == 20
    assert [answer.replayed for answer in answers if isinstance(answer, Submitted)].count(False) == 1
    assert await count_jobs(desk.database) == 1


async def test_a_key_is_forgotten_after_a_day(desk: Desk) -> None:
    await desk.offer(idempotency_key="young")
    first = await desk.offer(idempotency_key="old")
    await desk.write(age_key, "young", 24 * 3600 - 60.0)
    await desk.write(age_key, "old", 24 * 3600 + 1.0)
    kept = await desk.offer(idempotency_key="young")
    assert isinstance(kept, Submitted) and kept.replayed
    second = await desk.offer(idempotency_key="old", fingerprint="e" * 64)
    assert isinstance(first, Submitted) and isinstance(second, Submitted)
    assert not second.replayed and second.job.id != first.job.id


async def test_old_keys_are_purged(desk: Desk) -> None:
    for key in ("a", "b", "c"):
        await desk.offer(idempotency_key=key)
    await desk.write(age_key, "a", 24 * 3600 + 1.0)
    assert await desk.write(purge_idempotency_keys) == 1
    assert await desk.database.read(lambda tx: sorted(tx.execute(select(idempotency_keys.c.key)).scalars())) == [
        "b",
        "c",
    ]


# Claim


async def test_a_claim_takes_the_job_for_one_attempt(desk: Desk) -> None:
    job = await desk.submit()
    await desk.change(job.id, blocked_reason="no_worker")
    job = await desk.run(job.id)
    assert (job.status, job.version, job.attempt) == ("processing", 2, 1)
    assert (job.worker_id, job.stage, job.progress, job.hinted_at) == (WORKER, "starting", 0, None)
    assert (job.hint_count, job.blocked_reason) == (0, None)
    assert job.started_at is not None and job.lease_until is not None and job.deadline_at is not None
    assert job.lease_until - job.started_at == timedelta(seconds=LEASE_SECONDS)
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
    assert (await desk.job(waiting.id)).hinted_at is None
    assert await desk.job(running.id) == running


# Settle


async def test_a_completed_attempt_brings_its_artifacts(desk: Desk) -> None:
    job = await desk.running()
    settlement = completed(job, 2)
    settled = await desk.settle(job, settlement)
    assert settled == await desk.job(job.id)
    assert settled is not None and settled.is_terminal
    assert (settled.status, settled.version, settled.progress, settled.error) == ("completed", 3, 100, None)
    assert (settled.lease_until, settled.deadline_at) == (None, None) and settled.finished_at is not None
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
    assert await desk.write(desk.jobs.record_accepted, job.id, 1, "remote-1")
    settled = await desk.settle(job, try_again(job, 20.0))
    assert settled is not None and settled == await desk.job(job.id)
    assert (settled.status, settled.version, settled.retry_count, settled.crash_count) == ("pending", 3, 1, 0)
    assert settled.run_at == settled.updated_at + timedelta(seconds=20)
    assert (settled.hinted_at, settled.lease_until, settled.progress) == (None, None, None)
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
    assert await desk.write(desk.jobs.record_accepted, job.id, 1, "remote-1")
    settled = await desk.settle(job, HandBack())
    assert settled is not None
    assert (settled.status, settled.version, settled.retry_count, settled.queue) == ("pending", 3, 0, QUEUE)
    assert (settled.provider_job_id, settled.error, settled.run_at) == ("remote-1", None, settled.updated_at)
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
    assert not await desk.write(desk.jobs.record_accepted, old.id, 1, "zombie")
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

    def follow(tx: Tx, job: Job) -> None:
        followed.append((job.id, job.status))
        if job.status == "failed":
            raise ValueError("the story's row is missing")

    desk.jobs = Jobs(desk.tape, on_settled=[follow])
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
    await desk.change(job.id, blocked_reason="no_worker")
    cancelled = await desk.cancel(job.id)
    assert isinstance(cancelled, Job) and cancelled == await desk.job(job.id)
    assert (cancelled.status, cancelled.version, cancelled.blocked_reason) == ("cancelled", 2, None)
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
        assert await desk.database.read(with_artifacts, job.id, "bob") is None
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


# When nobody else is there to do it


async def test_a_lost_job_comes_back_as_a_suspect(desk: Desk) -> None:
    lost, healthy = await desk.running(), await desk.running()
    assert await desk.write(desk.jobs.record_accepted, lost.id, 1, "remote-1")
    job = await desk.lose(lost.id)
    assert (job.status, job.version, job.queue, job.crash_count) == ("pending", 3, ISOLATED, 0)
    assert (job.retry_count, job.run_at, job.hinted_at) == (0, job.updated_at, None)
    assert job.provider_job_id == "remote-1"  # it may still be there to be adopted
    assert job.error is not None and job.error["code"] == "worker_lost"
    assert [attempt.outcome for attempt in await desk.attempts(job.id)] == ["lost"]
    assert desk.told(job.id)[-1] == (3, "job.pending")
    assert await desk.job(healthy.id) == healthy
    assert await desk.write(desk.jobs.recover_lost) == []


async def test_only_crashes_in_isolation_count_and_the_third_convicts(desk: Desk) -> None:
    job = await desk.running()
    for crashes in (0, 1, 2):
        job = await desk.lose(job.id)
        assert (job.status, job.queue, job.crash_count) == ("pending", ISOLATED, crashes)
        await desk.run(job.id)
    job = await desk.lose(job.id)
    assert (job.status, job.crash_count, job.attempt) == ("failed", 3, 4)
    assert job == await desk.job(job.id)
    assert job.error is not None and job.error["code"] == "worker_lost"
    assert [attempt.outcome for attempt in await desk.attempts(job.id)] == ["lost"] * 4
    assert [version for version, _ in desk.told(job.id)] == list(range(2, 10))


async def test_a_suspect_that_proved_itself_leaves_isolation(desk: Desk) -> None:
    job = await desk.running()
    await desk.lose(job.id)
    job = await desk.run(job.id)
    back = await desk.settle(job, try_again(job))
    assert back is not None and back.queue == QUEUE
    job = await desk.run(job.id)
    assert (await desk.lose(job.id)).crash_count == 0


async def test_a_suspect_handed_back_stays_in_isolation(desk: Desk) -> None:
    job = await desk.running()
    await desk.lose(job.id)
    job = await desk.run(job.id)
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
        await desk.change(job_id, lease_until=db_now(-1.0))
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


async def test_a_beat_renews_leases_and_writes_progress(desk: Desk) -> None:
    await desk.write(register_worker, WORKER, "io", ["image_generation", "default"], 10)
    job, other = await desk.running(), await desk.running()
    for each in (job, other):
        await desk.change(each.id, lease_until=db_now(1.0))
    pulse = await desk.write(
        beat, WORKER, 1, [Beat(job.id, 1, 40, "sampling", "Step 8 of 20: ü"), Beat(other.id, 1, None, None, None)], 90.0
    )
    assert pulse == Pulse({job.id: False, other.id: False}, frozenset())
    renewed = await desk.job(job.id)
    assert (renewed.progress, renewed.stage, renewed.message) == (40, "sampling", "Step 8 of 20: ü")
    assert (renewed.version, renewed.status) == (2, "processing")
    assert renewed.lease_until is not None
    assert timedelta(seconds=60) < renewed.lease_until - datetime.now(UTC) < timedelta(seconds=120)
    assert (await desk.job(other.id)).progress is None
    assert await desk.write(desk.jobs.recover_lost) == []


async def test_a_beat_hears_of_cancels_and_of_jobs_that_are_gone(desk: Desk) -> None:
    await desk.write(register_worker, WORKER, "io", [QUEUE], 10)
    kept, cancelled, ended, older = [await desk.running() for _ in range(4)]
    await desk.cancel(cancelled.id)
    await desk.settle(ended, failed(ended))
    await desk.lose(older.id)
    await desk.run(older.id)
    nowhere = new_id()
    before = [await desk.job(job_id) for job_id in (ended.id, older.id)]
    names = [kept.id, cancelled.id, ended.id, older.id, nowhere]
    pulse = await desk.write(beat, WORKER, 1, [Beat(name, 1, 50, "s", "m") for name in names], 60.0)
    assert pulse == Pulse({kept.id: False, cancelled.id: True}, frozenset({ended.id, older.id, nowhere}))
    assert [await desk.job(job_id) for job_id in (ended.id, older.id)] == before


async def test_a_beat_skips_a_row_that_is_being_changed(postgres_url: str) -> None:
    engine = create_engine(postgres_url)
    with closing(Database(postgres_url)) as database:
        desk = Desk(database)
        await desk.write(register_worker, WORKER, "io", [QUEUE], 10)
        busy, free = await desk.running(), await desk.running()
        beats = [Beat(job.id, 1, 1, "s", "m") for job in (busy, free)]
        with engine.connect() as settling:
            settling.execute(select(jobs.c.id).where(jobs.c.id == busy.id).with_for_update())
            pulse = await database.write_urgently(beat, WORKER, 2, beats, 60.0)
    assert pulse == Pulse({free.id: False}, frozenset())  # neither renewed nor gone: the next beat will tell
    engine.dispose()


async def test_worker_rows(desk: Desk) -> None:
    assert await desk.write(beat, WORKER, 1, [], 60.0) is None  # not registered
    await desk.write(register_worker, WORKER, "io", [QUEUE, "default"], 7)
    job = await desk.running()
    await desk.write(change_worker, WORKER, -3600.0)
    assert await desk.write(beat, WORKER, 3, [Beat(job.id, 1, None, None, None)], 60.0) is not None
    row = await desk.database.read(lambda tx: tx.execute(select(workers)).one())
    assert (row.id, row.name, row.queues, row.slots, row.running) == (WORKER, "io", [QUEUE, "default"], 7, 3)
    assert abs(row.seen_at - datetime.now(UTC)) < timedelta(seconds=10)
    await desk.write(unregister_worker, WORKER)
    assert await desk.write(beat, WORKER, 1, [], 60.0) is None


async def test_held_means_this_attempt_and_still_running(desk: Desk) -> None:
    job = await desk.running()
    assert await desk.database.read(is_held, job.id, 1)
    assert not await desk.database.read(is_held, job.id, 2)
    await desk.settle(job, failed(job))
    assert not await desk.database.read(is_held, job.id, 1)
    assert not await desk.database.read(is_held, new_id(), 1)


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
        quiet.id: [("job.snapshot", 1, False)],  # a reason to wait comes and goes without a state event
        running.id: [("job.started", 2, False)],
        done.id: [("job.started", 2, False), ("job.completed", 3, True)],
    }
    live = desk.tape.of(done.id)[-1].as_message()
    assert found[done.id][-1] == live  # to the byte
    assert await desk.database.read(missed, {done.id: 3, running.id: 7}) == {}


async def test_watchers_of_a_waiting_job_are_told_how_it_stands(desk: Desk) -> None:
    """Why it waits comes and goes without a state event."""
    job = await desk.submit()
    seqs: list[int] = []
    for reason in ("no_worker", None):
        await desk.change(job.id, blocked_reason=reason, updated_at=db_now())
        (told,) = (await desk.database.read(missed, {job.id: 1}))[job.id]
        assert (told.version, told.is_state, told.is_terminal) == (1, False, False)
        assert (b'"blocked_reason":"no_worker"' in told.frame) == (reason is not None)
        seqs.append(told.seq)
        await asyncio.sleep(0.003)
    assert seqs[1] > seqs[0]  # a watch keeps the later one
    states = (await desk.database.read(missed, {job.id: 0}))[job.id]
    assert [(message.version, message.is_state) for message in states] == [(1, True), (1, False)]
    await desk.change(job.id, updated_at=db_now(-60.0))
    assert await desk.database.read(missed, {job.id: 1}) == {}


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
    size: dict[str, Any] = {"provider": "mock", "model": None, "width": 512, "height": 512}
    assert await desk.database.read(run_seconds, "mock", None, 512, 512) is None

    async def ran(seconds: float, ago: float, **values: Any) -> None:
        job = await desk.running(**{**size, **values})
        await desk.settle(job, completed(job))
        await desk.change(job.id, started_at=db_now(-ago - seconds), finished_at=db_now(-ago))

    for seconds in (10.0, 30.0, 20.0):
        await ran(seconds, ago=60.0)
    await ran(500.0, ago=60.0, model="slow")
    await ran(500.0, ago=60.0, width=1024)
    failing = await desk.running(**size)
    await desk.settle(failing, failed(failing))
    assert await desk.database.read(run_seconds, "mock", None, 512, 512) == pytest.approx(20.0, abs=0.01)
    assert await desk.database.read(run_seconds, "mock", "slow", 512, 512) == pytest.approx(500.0, abs=0.01)
    for _ in range(20):
        await ran(4.0, ago=1.0)
    assert await desk.database.read(run_seconds, "mock", None, 512, 512) == pytest.approx(4.0, abs=0.01)


# What the tests reach for


async def count_jobs(database: Database) -> int:
    return await database.read(lambda tx: len(tx.execute(select(jobs.c.id)).all()))


async def everything(desk: Desk, job_id: str) -> tuple[Any, ...]:
    return (
        await desk.job(job_id),
        await desk.attempts(job_id),
        await desk.artifacts(job_id),
        list(desk.tape.events),
    )


def age_key(tx: Tx, key: str, seconds: float) -> None:
    tx.execute(update(idempotency_keys).where(idempotency_keys.c.key == key).values(created_at=db_now(-seconds)))


def change_worker(tx: Tx, worker_id: str, seconds: float) -> None:
    tx.execute(update(workers).where(workers.c.id == worker_id).values(seen_at=db_now(seconds)))


def ordered_id(number: int) -> str:
    return f"01900000-0000-7000-8000-{number:012d}"


def insert_copies(tx: Tx, job_id: str, ids: list[str]) -> None:
    row = dict(tx.execute(select(jobs).where(jobs.c.id == job_id)).one()._mapping)
    tx.execute(insert(jobs), [{**row, "id": each} for each in ids])


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
