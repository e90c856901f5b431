"""Idempotency keys on both databases: one job for one key, however many submits come and however they come."""

import asyncio

import pytest
from sqlalchemy import select, update

from jobs.builders import (
    Desk,
    completed,
    new_job,
)
from safelight.db import Database, Tx, db_now
from safelight.jobs import (
    IdempotencyKeyReused,
    Submitted,
    idempotency,
)
from safelight.jobs.idempotency import idempotency_keys, purge_idempotency_keys
from safelight.jobs.job import jobs

pytestmark = pytest.mark.anyio


async def count_jobs(database: Database) -> int:
    return await database.read(lambda tx: len(tx.execute(select(jobs.c.id)).all()))


def age_key(tx: Tx, key: str, seconds: float) -> None:
    tx.execute(update(idempotency_keys).where(idempotency_keys.c.key == key).values(created_at=db_now(-seconds)))


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


async def test_old_keys_are_purged_in_bites(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idempotency, "PURGE_BITE", 2)
    for key in ("a", "b", "c", "d", "e"):
        await desk.offer(idempotency_key=key)
    for key in ("a", "d", "e"):
        await desk.write(age_key, key, 24 * 3600 + 1.0)
    assert [await desk.write(purge_idempotency_keys) for _ in range(2)] == [True, False]
    assert await desk.database.read(lambda tx: sorted(tx.execute(select(idempotency_keys.c.key)).scalars())) == [
        "b",
        "c",
    ]


# Many at once


async def test_jobs_accepted_together_keep_their_keys_apart(desk: Desk) -> None:
    first, other, again, reused = (
        new_job(idempotency_key="k", fingerprint="f"),
        new_job(hint=True),
        new_job(idempotency_key="k", fingerprint="f"),
        new_job(idempotency_key="k", fingerprint="g"),
    )
    outcomes = await desk.database.write(desk.jobs.submit, [first, other, again, reused])
    assert [outcome.job.id for outcome in outcomes[:3] if isinstance(outcome, Submitted)] == [
        first.id,
        other.id,
        first.id,
    ]
    assert [outcome.replayed for outcome in outcomes[:3] if isinstance(outcome, Submitted)] == [False, False, True]
    assert isinstance(outcomes[3], IdempotencyKeyReused)
    assert [job.id for job in desk.tape.hints] == [other.id]
    for outcome in outcomes[:2]:
        assert isinstance(outcome, Submitted) and await desk.job(outcome.job.id) == outcome.job


async def test_one_bad_submit_does_not_take_the_others_with_it(desk: Desk) -> None:
    jobs = [new_job() for _ in range(20)]
    jobs[7] = jobs[3]
    outcomes = await asyncio.gather(
        *(desk.database.write_one(desk.jobs.submit, job) for job in jobs), return_exceptions=True
    )
    failed = [number for number, outcome in enumerate(outcomes) if isinstance(outcome, BaseException)]
    assert failed == [7]
    assert [await desk.job(job.id) for job in jobs[:7]] == [
        outcome.job for outcome in outcomes[:7] if isinstance(outcome, Submitted)
    ]
