"""Batches on both databases: accepted whole or not at all, counted from their jobs, cancelled and forgotten."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import select, text

from jobs.builders import OWNER, Desk, completed, failed, new_job, try_again
from safelight import artifacts as results
from safelight.artifacts import Artifact
from safelight.artifacts.artifact import job_inputs
from safelight.db import Database, Tx, db_now, new_id
from safelight.errors import SafelightError
from safelight.jobs import (
    BatchDeleted,
    BatchEnded,
    BatchNotFound,
    BatchState,
    Filter,
    IdempotencyKeyReused,
    Job,
    Member,
    NewBatch,
    SubmittedBatch,
    find,
    find_batches,
    look_at_batch,
    members_of,
)
from safelight.jobs.batch import batches
from safelight.jobs.idempotency import idempotency_keys
from safelight.jobs.job import jobs
from safelight.jobs.retention import delete_job, purge_tombstones

pytestmark = pytest.mark.anyio


def batch_of(count: int = 3, **values: Any) -> NewBatch:
    owner_id = values.pop("owner_id", OWNER)
    given = values.pop("jobs", None) or [new_job(owner_id=owner_id, prompt=f"scene {n}") for n in range(count)]
    return NewBatch(new_id(), owner_id, given, fingerprint="f" * 64, **values)


async def offer(desk: Desk, new: NewBatch) -> SubmittedBatch | SafelightError:
    return await desk.write(desk.jobs.submit_batch, new)


async def accept(desk: Desk, count: int = 3, **values: Any) -> SubmittedBatch:
    answer = await offer(desk, batch_of(count, **values))
    assert isinstance(answer, SubmittedBatch), answer
    return answer


async def state_of(desk: Desk, batch_id: str) -> BatchState:
    found = await desk.database.read(look_at_batch, batch_id, OWNER)
    assert found is not None
    return found[1]


async def members(desk: Desk, batch_id: str) -> list[Member]:
    return await desk.database.read(members_of, batch_id, OWNER)


async def cancel(desk: Desk, batch_id: str, owner_id: str = OWNER) -> int | SafelightError:
    return await desk.write(desk.jobs.cancel_batch, batch_id, owner_id)


def rows_left(tx: Tx) -> list[int]:
    tables = (jobs, batches, idempotency_keys, job_inputs)
    return [len(tx.execute(select(table)).all()) for table in tables]


def upload(owner_id: str = OWNER) -> Artifact:
    """The record of an uploaded picture."""
    return Artifact(
        new_id(), None, 0, 0, owner_id, "input", "inputs/x.png", "image/png", 7, "0" * 64, 8, 8, "A", None, [],
        datetime.now(UTC),
    )  # fmt: skip


def record(tx: Tx, artifact: Artifact) -> None:
    results.insert(tx, [artifact])


# Submit


async def test_all_jobs_of_a_batch_wait_in_its_order(desk: Desk) -> None:
    new = batch_of(5, name="chapter 1", metadata={"user": "42"}, origin_batch_id=new_id())
    answer = await offer(desk, new)
    assert isinstance(answer, SubmittedBatch) and not answer.replayed
    assert answer.job_ids == [job.id for job in new.jobs]
    found = await desk.database.read(look_at_batch, new.id, OWNER)
    assert found is not None
    batch, stands, ids = found
    assert batch == answer.batch
    assert (batch.name, batch.metadata, batch.origin_batch_id, batch.total) == (
        "chapter 1",
        {"user": "42"},
        new.origin_batch_id,
        5,
    )
    assert (stands.status, stands.progress, stands.finished_at, stands.is_terminal) == ("pending", 0, None, False)
    assert stands.counts == {"pending": 5, "processing": 0, "completed": 0, "failed": 0, "cancelled": 0}
    assert ids == answer.job_ids
    prompts = [(await desk.job(job_id)).prompt for job_id in ids]
    assert prompts == [f"scene {n}" for n in range(5)]
    page = await desk.database.read(find, Filter(owner_id=OWNER, batch_id=new.id, limit=2))
    assert ([job.id for job in page.jobs], page.more) == (ids[:2:-1], True)


async def test_those_that_found_room_are_hinted(desk: Desk) -> None:
    answer = await accept(desk, jobs=[new_job(hint=True), new_job()])
    assert [job.id for job in desk.tape.hints] == [answer.job_ids[0]]


async def test_a_thousand_jobs_are_one_batch(desk: Desk) -> None:
    answer = await accept(desk, 1000)
    assert (await state_of(desk, answer.batch.id)).counts["pending"] == 1000
    assert [member.job_id for member in await members(desk, answer.batch.id)] == list(answer.job_ids)


async def test_one_missing_picture_refuses_all(desk: Desk) -> None:
    mine, hers = upload(), upload("bob")
    for artifact in (mine, hers):
        await desk.write(record, artifact)
    given = [
        new_job(input_images=[mine.id]),
        new_job(input_images=["https://example.com/a.png", hers.id, mine.id]),
        new_job(input_images=[new_id()]),
    ]
    refused = await offer(desk, batch_of(jobs=given, idempotency_key="k"))
    assert isinstance(refused, SafelightError) and refused.code == "invalid_request"
    assert [error.pointer for error in refused.errors] == ["#/jobs/1/input_images/1", "#/jobs/2/input_images/0"]
    assert await desk.database.read(rows_left) == [0, 0, 0, 0]
    accepted = await offer(desk, batch_of(jobs=given[:1], idempotency_key="k"))
    assert isinstance(accepted, SubmittedBatch) and not accepted.replayed
    assert await desk.database.read(rows_left) == [1, 1, 1, 1]


# Idempotency


async def test_the_same_key_and_body_give_the_first_batch_again(desk: Desk) -> None:
    first = await accept(desk, idempotency_key="k")
    await desk.settle(job := await desk.run(first.job_ids[0]), failed(job))
    again = await accept(desk, idempotency_key="k")
    assert (again.replayed, again.batch, again.job_ids) == (True, first.batch, first.job_ids)
    assert again.state == await state_of(desk, first.batch.id)
    assert await desk.database.read(rows_left) == [3, 1, 1, 0]


async def test_the_same_key_with_another_body_is_refused(desk: Desk) -> None:
    await accept(desk, idempotency_key="k")
    other = NewBatch(new_id(), OWNER, [new_job()], idempotency_key="k", fingerprint="e" * 64)
    assert isinstance(await offer(desk, other), IdempotencyKeyReused)
    assert isinstance(await desk.offer(idempotency_key="k", fingerprint="e" * 64), IdempotencyKeyReused)
    assert await desk.database.read(rows_left) == [3, 1, 1, 0]


async def test_two_at_once_make_one_batch(desk: Desk, other_database: Database) -> None:
    there = Desk(other_database)
    answers = await asyncio.gather(*(offer(at, batch_of(20, idempotency_key="k")) for at in [desk, there] * 4))
    made = [answer for answer in answers if isinstance(answer, SubmittedBatch)]
    assert len(made) == 8 and len({answer.batch.id for answer in made}) == 1
    assert [answer.replayed for answer in made].count(False) == 1
    assert await desk.database.read(rows_left) == [20, 1, 1, 0]


# How it stands

COUNTS: list[tuple[Sequence[int], bool, str]] = [
    ((3, 0, 0, 0, 0), False, "pending"),
    ((3, 0, 0, 0, 0), True, "processing"),  # the first attempts were in vain; it has begun all the same
    ((2, 1, 0, 0, 0), True, "processing"),
    ((2, 0, 0, 0, 1), False, "processing"),
    ((0, 1, 1, 1, 0), True, "processing"),
    ((0, 0, 3, 0, 0), True, "completed"),
    ((0, 0, 2, 0, 1), True, "cancelled"),
    ((0, 0, 0, 0, 3), False, "cancelled"),
    ((0, 0, 1, 1, 1), True, "failed"),
]


@pytest.mark.parametrize(("counts", "has_begun", "status"), COUNTS)
def test_its_status_follows_from_its_counts(counts: Sequence[int], has_begun: bool, status: str) -> None:
    names = ("pending", "processing", "completed", "failed", "cancelled")
    stands = BatchState(dict(zip(names, counts, strict=True)), has_begun=has_begun)
    assert stands.status == status
    assert stands.is_terminal == (status in ("completed", "failed", "cancelled"))
    assert (stands.progress == 100) == stands.is_terminal


async def test_it_is_counted_from_the_rows_of_its_jobs(desk: Desk) -> None:
    answer = await accept(desk, 4)
    await accept(desk, 2)  # another's jobs do not count
    batch_id, ids = answer.batch.id, answer.job_ids
    one, two = await desk.run(ids[0]), await desk.run(ids[1])
    await desk.change(one.id, progress=50)
    stands = await state_of(desk, batch_id)
    assert (stands.status, stands.progress, stands.counts["processing"]) == ("processing", 12, 2)
    await desk.settle(one, completed(one))
    await desk.settle(two, failed(two))
    await desk.cancel(ids[2])
    stands = await state_of(desk, batch_id)
    assert (stands.status, stands.progress, stands.finished_at) == ("processing", 75, None)
    three = await desk.run(ids[3])
    await desk.settle(three, completed(three))
    stands = await state_of(desk, batch_id)
    assert (stands.status, stands.progress) == ("failed", 100)
    assert stands.counts == {"pending": 0, "processing": 0, "completed": 2, "failed": 1, "cancelled": 1}
    ends = [(await desk.job(job_id)).finished_at for job_id in ids]
    assert stands.finished_at == max(at for at in ends if at is not None)


async def test_its_progress_never_goes_backwards(desk: Desk) -> None:
    answer = await accept(desk, 1)
    seen: list[int] = []

    async def look() -> None:
        seen.append((await state_of(desk, answer.batch.id)).progress)

    for reached in (60, 30, 80):
        job = await desk.run(answer.job_ids[0])
        await look()
        await desk.change(job.id, progress=reached)
        await look()
        await desk.settle(job, try_again(job))
        await look()
    job = await desk.run(job.id)
    await desk.change(job.id, progress=85)
    await desk.lose(job.id)
    await look()
    assert seen == [0, 60, 60, 60, 60, 60, 60, 80, 80, 85]
    assert [member.progress for member in await members(desk, answer.batch.id)] == [85]


async def test_batches_are_listed_newest_first(desk: Desk) -> None:
    first, second, third = [(await accept(desk, count)).batch for count in (1, 2, 3)]
    await accept(desk, 1, owner_id="bob")
    page = await desk.database.read(find_batches, OWNER, None, 2)
    assert ([batch for batch, _ in page.batches], page.more) == ([third, second], True)
    assert [stands.counts["pending"] for _, stands in page.batches] == [3, 2]
    page = await desk.database.read(find_batches, OWNER, second.id, 2)
    assert ([batch for batch, _ in page.batches], page.more) == ([first], False)
    assert (await desk.database.read(find_batches, "eve", None, 2)).batches == []


async def test_another_owners_batch_does_not_exist(desk: Desk) -> None:
    answer = await accept(desk)
    assert await desk.database.read(look_at_batch, answer.batch.id, "bob") is None
    assert await desk.database.read(members_of, answer.batch.id, "bob") == []
    assert isinstance(await cancel(desk, answer.batch.id, "bob"), BatchNotFound)
    assert (await state_of(desk, answer.batch.id)).counts["pending"] == 3


async def test_the_view_reads_its_jobs_along_an_index(desk: Desk) -> None:
    answer = await accept(desk, 3)
    await accept(desk, 3)
    plan = await desk.database.read(explain, answer.batch.id)
    assert "ix_jobs_batch" in plan


def explain(tx: Tx, batch_id: str) -> str:
    query = "SELECT status, count(*) FROM jobs WHERE owner_id = 'ada' AND batch_id IN (:id) GROUP BY status"
    if tx.is_postgresql:
        tx.execute(text("SET LOCAL enable_seqscan = off"))
        rows = tx.execute(text("EXPLAIN " + query.replace(":id", f"'{batch_id}'")))
    else:
        rows = tx.execute(text("EXPLAIN QUERY PLAN " + query.replace(":id", f"'{batch_id}'")))
    return "\n".join(str(row) for row in rows)


# Cancel


async def test_a_cancelled_batch_ends_what_waits_and_asks_what_runs(desk: Desk) -> None:
    answer = await accept(desk, 4)
    batch_id, ids = answer.batch.id, answer.job_ids
    running, done = await desk.run(ids[0]), await desk.run(ids[1])
    await desk.settle(done, completed(done))
    assert await cancel(desk, batch_id) == 0
    assert [(await desk.job(job_id)).status for job_id in ids] == ["processing", "completed", "cancelled", "cancelled"]
    assert (await desk.job(running.id)).cancel_requested_at is not None
    assert desk.tape.nudges == [running.id]
    assert [desk.told(job_id) for job_id in ids[2:]] == [[(2, "job.cancelled")]] * 2
    assert await cancel(desk, batch_id) == 0  # again changes nothing
    assert desk.tape.nudges == [running.id] and len(desk.told(ids[2])) == 1
    await desk.settle(running, try_again(running))  # which is not done any more
    assert (await state_of(desk, batch_id)).status == "cancelled"
    assert await cancel(desk, batch_id) == 0


@pytest.mark.parametrize("end", ["completed", "failed"])
async def test_what_has_ended_otherwise_cannot_be_cancelled(desk: Desk, end: str) -> None:
    answer = await accept(desk, 1)
    job = await desk.run(answer.job_ids[0])
    await desk.settle(job, completed(job) if end == "completed" else failed(job))
    refused = await cancel(desk, answer.batch.id)
    assert isinstance(refused, BatchEnded) and end in refused.detail


async def test_a_large_batch_is_cancelled_in_bites(desk: Desk) -> None:
    answer = await accept(desk, 250)
    left = [await cancel(desk, answer.batch.id) for _ in range(3)]
    assert left == [150, 50, 0]
    assert (await state_of(desk, answer.batch.id)).counts["cancelled"] == 250
    assert len(desk.tape.events) == 250


# Deletion


async def test_a_batch_goes_with_the_last_of_its_jobs(desk: Desk) -> None:
    answer = await accept(desk, 2, idempotency_key="k")
    batch_id, ids = answer.batch.id, answer.job_ids
    await cancel(desk, batch_id)
    await desk.write(delete_job, ids[0], OWNER)
    stands = await state_of(desk, batch_id)
    assert (stands.status, stands.counts["cancelled"]) == ("cancelled", 2)  # a tombstone still counts
    await desk.write(delete_job, ids[1], OWNER)
    assert await desk.database.read(look_at_batch, batch_id, OWNER) is None
    assert isinstance(await offer(desk, batch_of(idempotency_key="k")), BatchDeleted)


async def test_two_that_delete_its_last_jobs_leave_no_batch(desk: Desk, other_database: Database) -> None:
    there = Desk(other_database)
    for _ in range(5):
        answer = await accept(desk, 2)
        await cancel(desk, answer.batch.id)
        await asyncio.gather(
            desk.write(delete_job, answer.job_ids[0], OWNER), there.write(delete_job, answer.job_ids[1], OWNER)
        )
        assert await desk.database.read(look_at_batch, answer.batch.id, OWNER) is None


async def test_jobs_forgotten_for_good_are_not_counted_any_more(desk: Desk) -> None:
    answer = await accept(desk, 2)
    await cancel(desk, answer.batch.id)
    await desk.write(delete_job, answer.job_ids[0], OWNER)
    await desk.change(answer.job_ids[0], deleted_at=db_now(-86400.0 * 9))
    assert await desk.write(purge_tombstones, 1, 10) == 1
    stands = await state_of(desk, answer.batch.id)
    assert (stands.status, stands.progress, sum(stands.counts.values())) == ("cancelled", 100, 1)


async def test_a_job_of_a_batch_is_a_job_like_any_other(desk: Desk) -> None:
    answer = await accept(desk, 1)
    job = await desk.running()
    member = await desk.run(answer.job_ids[0])
    assert isinstance(job, Job) and (job.batch_id, member.batch_id) == (None, answer.batch.id)
