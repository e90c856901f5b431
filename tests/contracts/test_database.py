"""The database port on SQLite and PostgreSQL: transactions that are functions, and column types."""

import asyncio
import threading
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from sqlalchemy import (
    create_engine,
    func,
    select,
)
from sqlalchemy.exc import IntegrityError
from things import add, add_last, count_commits, held, make_things, numbers, opened, outcomes, things

from patience import PATIENCE_SECONDS
from safelight import db as db_module
from safelight.db import Database, DatabaseUnavailable, Tx, db_now, new_id

pytestmark = pytest.mark.anyio


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    make_things(database_url)
    with opened(database_url) as database:
        yield database


# Writing together


async def test_what_arrives_during_a_commit_is_committed_together(database: Database) -> None:
    async with held(database):
        commits = count_commits(database)
        writes = asyncio.gather(*(database.write(add, number) for number in range(100)))
    assert await writes == list(range(100))
    assert len(commits) == 2, commits  # the one that held, and all others
    assert await database.read(numbers) == list(range(100))


async def test_a_write_that_was_answered_is_seen_by_every_later_read(database: Database) -> None:
    for number in range(30):
        await database.write(add, number)
        assert number in await database.read(numbers)


async def test_one_that_raises_disturbs_nobody_else(database: Database) -> None:
    runs: list[int] = []
    told: list[int] = []

    def note(tx: Tx, number: int) -> int:
        runs.append(number)
        add(tx, number)
        tx.on_commit(lambda: told.append(number))
        if number == 5:
            raise ValueError("five")
        return number

    async with held(database):
        commits = count_commits(database)
        writes = asyncio.ensure_future(outcomes(*(database.write(note, number) for number in range(10))))
    results = await writes
    assert len(commits) == 2, commits  # the one that held, and all nine together
    assert isinstance(results[5], ValueError)
    others = [number for number in range(10) if number != 5]
    assert [result for result in results if isinstance(result, int)] == others
    assert await database.read(numbers) == others
    assert set(runs) == set(range(10))
    assert all(runs.count(number) <= 2 for number in runs)  # together up to the trouble, then each in a savepoint
    assert told == others  # once each, though some ran twice


async def test_a_last_statement_commits_itself_only_where_it_is_alone(
    database: Database,
) -> None:
    assert await database.write_one(add_last, 1) == 1

    def add_and_fail(tx: Tx, number: int) -> None:
        add_last(tx, [number])
        raise ValueError("after it")

    with pytest.raises(ValueError, match="after it"):
        await database.write(add_and_fail, 2)  # not given to `write_one`: its caller may go on
    async with held(database):
        writes = [database.write_one(add_last, 3), database.write(add_and_fail, 4), database.write_one(add_last, 5)]
        waiting = asyncio.gather(*writes, return_exceptions=True)
    three, failed, five = await waiting
    assert (three, type(failed), five) == (3, ValueError, 5)
    assert await database.read(numbers) == [1, 3, 5]


async def test_a_broken_rule_of_the_schema_is_its_writers_alone(database: Database) -> None:
    await database.write(add, 3)
    async with held(database):
        writes = asyncio.ensure_future(outcomes(*(database.write(add, number) for number in range(6))))
    results = await writes
    assert isinstance(results.pop(3), IntegrityError)
    assert results == [0, 1, 2, 4, 5]
    assert await database.read(numbers) == list(range(6))


async def test_notes_run_after_the_commit_and_before_the_answer(database: Database, database_url: str) -> None:
    elsewhere = create_engine(database_url)
    seen: list[tuple[str, int]] = []

    def count(where: str) -> None:
        with elsewhere.connect() as connection:
            seen.append((where, connection.execute(select(func.count()).select_from(things)).scalar_one()))

    def work(tx: Tx) -> None:
        add(tx, 1)
        count("inside")
        tx.on_commit(lambda: count("note"))

    await database.write(work)
    seen.append(("answer", 1))
    assert seen == [("inside", 0), ("note", 1), ("answer", 1)]
    elsewhere.dispose()


async def test_notes_of_what_was_rolled_back_never_run(database: Database) -> None:
    told: list[str] = []

    def work(tx: Tx) -> None:
        tx.on_commit(lambda: told.append("it happened"))
        raise ValueError

    with pytest.raises(ValueError):
        await database.write(work)
    await database.write(add, 1)
    assert told == []


async def test_a_note_that_fails_costs_nobody_an_answer(database: Database) -> None:
    complaints: list[dict[str, Any]] = []
    told: list[int] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))

    def bad(tx: Tx) -> str:
        tx.on_commit(lambda: told[99])  # pyright: ignore[reportArgumentType]
        tx.on_commit(lambda: told.append(1))
        return "bad"

    async with held(database):
        writes = asyncio.gather(database.write(bad), database.write(add, 2))
    async with asyncio.timeout(PATIENCE_SECONDS):
        assert await writes == ["bad", 2]
    asyncio.get_running_loop().set_exception_handler(None)
    assert told == [1]
    assert [type(context["exception"]) for context in complaints] == [IndexError]


async def test_a_caller_that_gave_up_does_not_take_its_write_back(database: Database) -> None:
    async with held(database):
        write = asyncio.ensure_future(database.write(add, 1))
        await asyncio.sleep(0)
        write.cancel()
    await database.write(add, 2)
    assert write.cancelled()
    assert await database.read(numbers) == [1, 2]


async def test_a_read_sees_only_what_is_committed_and_cannot_write(database: Database) -> None:
    running, go_on = threading.Event(), threading.Event()

    def slow(tx: Tx) -> None:
        add(tx, 1)
        running.set()
        go_on.wait(PATIENCE_SECONDS)

    write = asyncio.ensure_future(database.write(slow))
    assert await asyncio.to_thread(running.wait, 10)
    assert await database.read(numbers) == []
    go_on.set()
    await write
    assert await database.read(numbers) == [1]
    if database.backend == "sqlite":
        with pytest.raises(DatabaseUnavailable, match="readonly"):
            await database.read(add, 9)


async def test_heartbeats_do_not_wait_in_the_writers_line(database: Database) -> None:
    """On SQLite for the transaction under way, but not for those that wait for the writer."""
    order: list[str] = []

    def work(tx: Tx, name: str) -> None:
        tx.execute(select(1))
        order.append(name)
        if name != "urgent":
            time.sleep(0.0001)

    ordinary = [asyncio.ensure_future(database.write(work, "later")) for _ in range(16 * db_module.MAX_BATCH)]
    await asyncio.sleep(0)
    await database.write_urgently(work, "urgent")
    assert not ordinary[-1].done()  # the file's lock is nobody's turn: on a busy machine some batches come before
    await asyncio.gather(*ordinary)


async def test_two_processes_take_turns(database: Database, database_url: str) -> None:
    with opened(database_url) as other:
        both = [database.write(add, number) for number in range(0, 200, 2)]
        both += [other.write(add, number) for number in range(1, 200, 2)]
        assert len(await asyncio.gather(*both)) == 200
    assert await database.read(numbers) == list(range(200))


async def test_close_finishes_what_was_asked_for(database_url: str) -> None:
    make_things(database_url)
    with opened(database_url) as database:
        async with held(database):
            writes = [asyncio.ensure_future(database.write(add, number)) for number in range(5)]
            await asyncio.sleep(0)
    assert await asyncio.gather(*writes) == list(range(5))
    with opened(database_url) as database:
        assert await database.read(numbers) == list(range(5))


# Column types

MOMENTS = [
    datetime(2026, 2, 28, 23, 59, 59, 999999, tzinfo=UTC),
    datetime(1970, 1, 1, tzinfo=UTC),
    datetime(1969, 12, 31, 23, 59, 59, 1, tzinfo=UTC),
    datetime(2286, 11, 20, 17, 46, 39, 123457, tzinfo=UTC),
    datetime(2024, 3, 31, 2, 30, 0, 7, tzinfo=timezone(timedelta(hours=5, minutes=45))),
]


async def test_moments_come_back_to_the_microsecond_in_utc(database: Database) -> None:
    for number, moment in enumerate([*MOMENTS, None]):
        await database.write(lambda tx, n=number, m=moment: add(tx, n, moment=m))
    found = await database.read(lambda tx: list(tx.execute(select(things.c.moment).order_by(things.c.id)).scalars()))
    assert found == [*MOMENTS, None]
    assert {moment.tzinfo for moment in found if moment} == {UTC}


async def test_moments_sort_and_compare_in_sql(database: Database) -> None:
    for number, moment in enumerate(MOMENTS):
        await database.write(lambda tx, n=number, m=moment: add(tx, n, moment=m))
    order = sorted(range(5), key=lambda number: MOMENTS[number])
    by_moment = select(things.c.id).order_by(things.c.moment)
    assert await database.read(lambda tx: list(tx.execute(by_moment).scalars())) == order
    edge = MOMENTS[0]
    for operator, expected in ((things.c.moment < edge, 3), (things.c.moment <= edge, 4), (things.c.moment == edge, 1)):
        assert (
            len(await database.read(lambda tx, o=operator: tx.execute(select(things.c.id).where(o)).all())) == expected
        )
    past = select(things.c.id).where(things.c.moment < db_now()).order_by(things.c.id)
    assert await database.read(lambda tx: list(tx.execute(past).scalars())) == [
        number for number, moment in enumerate(MOMENTS) if moment < datetime.now(UTC)
    ]


async def test_the_databases_clock_moves_by_seconds_and_by_columns(database: Database) -> None:
    await database.write(lambda tx: add(tx, 1, seconds=90.25))
    await database.write(lambda tx: add(tx, 2, seconds=None))
    asked = select(
        db_now(), db_now(30), db_now(-0.5), db_now(things.c.seconds), db_now(things.c.seconds) > db_now()
    ).order_by(things.c.id)
    before = datetime.now(UTC) - timedelta(milliseconds=2)
    first, second = await database.read(lambda tx: tx.execute(asked).all())
    now = first[0]
    assert before <= now <= datetime.now(UTC)
    assert first[1] - now == timedelta(seconds=30)
    assert now - first[2] == timedelta(seconds=0.5)
    assert first[3] - now == timedelta(seconds=90.25)
    assert first[4] is not None and bool(first[4])
    assert second[3] is None  # no seconds, no time


async def test_the_databases_clock_goes_on_within_a_transaction(database: Database) -> None:
    def twice(tx: Tx) -> list[datetime]:
        times: list[datetime] = []
        for _ in range(2):
            times.append(tx.execute(select(db_now())).scalar_one())
            time.sleep(0.003)
        return times

    first, second = await database.write(twice)
    assert second > first


async def test_ids_and_documents_come_back_as_they_were(database: Database) -> None:
    document = {"ü": [1, 2.5, None, True, {"deep": "\u2028"}], "big": 2**53 + 1, "empty": {}}
    row_id = new_id()
    await database.write(lambda tx: add(tx, 1, row_id=row_id, data=document))
    await database.write(lambda tx: add(tx, 2, row_id=None, data=None))
    await database.write(lambda tx: add(tx, 3, data=[]))
    rows = await database.read(
        lambda tx: tx.execute(select(things.c.row_id, things.c.data).order_by(things.c.id)).all()
    )
    assert [tuple(row) for row in rows] == [(row_id, document), (None, None), (None, [])]
    empty = select(things.c.id).where(things.c.data.is_(None))
    assert await database.read(lambda tx: list(tx.execute(empty).scalars())) == [2]  # SQL's NULL, not JSON's
    assert (
        await database.read(lambda tx: tx.execute(select(things.c.id).where(things.c.row_id == row_id)).scalar_one())
        == 1
    )


def test_ids_are_uuids_that_sort_by_time() -> None:
    began = time.time_ns() // 1_000_000
    ids: list[str] = []
    for _ in range(20):
        ids += [new_id() for _ in range(50)]
        time.sleep(0.0011)
    ended = time.time_ns() // 1_000_000
    assert len(set(ids)) == 1000
    stamps: list[int] = []
    for each in ids:
        parsed = uuid.UUID(each)
        assert str(parsed) == each and parsed.version == 7 and parsed.variant == uuid.RFC_4122
        stamps.append(parsed.int >> 80)
    assert stamps == sorted(stamps) and began <= stamps[0] and stamps[-1] <= ended
    assert sorted(ids, key=lambda each: each[:13]) == ids
