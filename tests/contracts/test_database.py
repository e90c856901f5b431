"""The database port on SQLite and PostgreSQL: transactions that are functions, column types, and trouble."""

import asyncio
import contextlib
import sqlite3
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import (
    Column,
    Float,
    Integer,
    MetaData,
    String,
    Table,
    create_engine,
    func,
    insert,
    select,
    text,
    update,
)
from sqlalchemy import event as sa_event
from sqlalchemy.exc import IntegrityError

from safelight import db as db_module
from safelight.db import Database, DatabaseUnavailable, Instant, Json, RowId, Tx, db_now, new_id
from safelight.errors import Invalid
from safelight.migrations import migrate
from servers import Postgres, PostgresServer

pytestmark = pytest.mark.anyio

things = Table(
    "things",
    MetaData(),
    Column("id", Integer, primary_key=True),
    Column("name", String(40)),
    Column("moment", Instant),
    Column("seconds", Float),
    Column("row_id", RowId),
    Column("data", Json),
)


def make_things(url: str) -> None:
    engine = create_engine(url)
    things.create(engine)
    engine.dispose()


@contextlib.contextmanager
def opened(url: str, **options: Any) -> Generator[Database]:
    database = Database(url, **options)
    try:
        yield database
    finally:
        database.close()


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    make_things(database_url)
    with opened(database_url) as database:
        yield database


def add(tx: Tx, number: int, **values: Any) -> int:
    tx.execute(insert(things).values(id=number, **values))
    return number


def numbers(tx: Tx) -> list[int]:
    return list(tx.execute(select(things.c.id).order_by(things.c.id)).scalars())


def count_commits(database: Database) -> list[str]:
    commits: list[str] = []
    sa_event.listen(database._engine, "commit", lambda connection: commits.append(threading.current_thread().name))
    return commits


@contextlib.asynccontextmanager
async def held(database: Database) -> AsyncGenerator[None]:
    """Keep the writer busy with a transaction, so that what is written meanwhile comes as one batch."""
    running, go_on = threading.Event(), threading.Event()

    def hold(tx: Tx) -> None:
        tx.execute(select(1))
        running.set()
        go_on.wait(10)

    holding = asyncio.ensure_future(database.write(hold))
    assert await asyncio.to_thread(running.wait, 10)
    try:
        yield
        await asyncio.sleep(0)  # let the writes of this turn reach the queue
    finally:
        go_on.set()
        await holding


async def outcomes(*writes: Any) -> list[Any]:
    return await asyncio.gather(*writes, return_exceptions=True)


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
        writes = asyncio.ensure_future(outcomes(*(database.write(note, number) for number in range(10))))
    results = await writes
    assert isinstance(results[5], ValueError)
    others = [number for number in range(10) if number != 5]
    assert [result for result in results if isinstance(result, int)] == others
    assert await database.read(numbers) == others
    assert runs == [0, 1, 2, 3, 4, 5, *range(10)]  # together up to the trouble, then each alone
    assert told == others  # once each, though some ran twice


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
    async with asyncio.timeout(5):
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
        go_on.wait(10)

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
            time.sleep(0.001)

    ordinary = [asyncio.ensure_future(database.write(work, "later")) for _ in range(3 * db_module.MAX_BATCH)]
    await asyncio.sleep(0)
    await database.write_urgently(work, "urgent")
    assert order.index("urgent") <= 2 * db_module.MAX_BATCH
    assert not ordinary[-1].done()
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


# Trouble with SQLite


@pytest.fixture
def sqlite(sqlite_url: str) -> Iterator[Database]:
    make_things(sqlite_url)
    with opened(sqlite_url) as database:
        sa_event.listen(
            database._engine, "connect", lambda connection, _: connection.execute("PRAGMA busy_timeout=150")
        )
        yield database


async def test_a_write_lock_held_elsewhere_refuses_in_time_and_is_outlived(sqlite: Database, sqlite_url: str) -> None:
    ran: list[int] = []

    def work(tx: Tx, number: int) -> None:
        ran.append(number)
        add(tx, number)

    await sqlite.write(add, 0)
    other = sqlite3.connect(sqlite_url.removeprefix("sqlite:///"), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    began = time.monotonic()
    results = await outcomes(*(sqlite.write(work, number) for number in range(3)))
    assert [type(result) for result in results] == [DatabaseUnavailable] * 3
    assert "locked" in results[0].detail
    assert time.monotonic() - began < 3
    with pytest.raises(DatabaseUnavailable):
        await sqlite.write_urgently(work, 7)
    assert await sqlite.read(numbers) == [0]  # readers are not held up
    other.execute("COMMIT")
    other.close()
    await sqlite.write(work, 9)
    assert ran == [9] and await sqlite.read(numbers) == [0, 9]


async def test_a_file_lock_held_by_another_process_refuses_in_time_and_is_outlived(
    sqlite: Database, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(db_module, "QUEUE_TIMEOUT_SECONDS", 0.15)
    with locked_elsewhere(sqlite_url.removeprefix("sqlite:///") + ".lock"):
        began = time.monotonic()
        results = await outcomes(*(sqlite.write(add, number) for number in range(3)), sqlite.write_urgently(add, 7))
        assert [type(result) for result in results] == [DatabaseUnavailable] * 4
        assert time.monotonic() - began < 2
        assert await sqlite.read(numbers) == []
    monkeypatch.undo()
    await sqlite.write(add, 9)
    assert await sqlite.read(numbers) == [9]  # the refused ones never ran


@contextlib.contextmanager
def locked_elsewhere(path: str) -> Generator[None]:
    """A process of its own holds the file lock."""
    hold = "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.flock(f, 2); print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-I", "-S", "-c", hold, path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdin is not None
        holder.stdout.readline()
        try:
            yield
        finally:
            holder.stdin.close()
            holder.wait(5)


async def test_a_missing_folder_refuses_until_it_is_there(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/later/safelight.db"
    with opened(url) as database:
        for ask in (database.write, database.write_urgently, database.read):
            began = time.monotonic()
            with pytest.raises(DatabaseUnavailable):
                await ask(numbers)
            assert time.monotonic() - began < 2
        migrate(url)
        make_things(url)
        await database.write(add, 1)
        await database.write_urgently(add, 2)
        assert await database.read(numbers) == [1, 2]


async def test_what_was_committed_before_the_trouble_is_answered_so(database: Database) -> None:
    """A batch is redone one by one; when the database fails in the middle, those before it did happen."""

    def bad(tx: Tx) -> None:
        raise ValueError

    def broken(tx: Tx) -> None:
        tx.execute(text("SELECT * FROM not_migrated_yet"))

    told: list[int] = []

    def noted(tx: Tx) -> int:
        tx.on_commit(lambda: told.append(1))
        return add(tx, 1)

    async with held(database):
        writes = asyncio.ensure_future(
            outcomes(database.write(noted), database.write(bad), database.write(broken), database.write(add, 4))
        )
    results = await writes
    assert results[0] == 1 and told == [1]
    assert [type(result) for result in results[1:]] == [ValueError, DatabaseUnavailable, DatabaseUnavailable]
    assert await database.read(numbers) == [1]


# Trouble with either


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'empty.db'}"
    server: Postgres = request.getfixturevalue("postgres")
    return server.url("postgres")


async def test_a_missing_schema_says_what_to_do(empty_url: str) -> None:
    with opened(empty_url) as database:
        for ask in (database.write, database.write_urgently, database.read):
            with pytest.raises(DatabaseUnavailable, match="safelight migrate"):
                await ask(numbers)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "safelight.db",
        "mysql://localhost/safelight",
        "sqlite://",
        "sqlite:///:memory:",
        "postgresql+nothing://localhost/x",
        "postgresql://localhost:port/x",
        "nothing://localhost",
    ],
)
def test_a_wrong_url_is_refused_at_once(url: str) -> None:
    with pytest.raises(Invalid) as caught:
        Database(url)
    assert "database_url" in caught.value.detail


def test_a_refused_url_is_not_quoted() -> None:
    with pytest.raises(Invalid) as caught:
        Database("mysql://me:secret@localhost/x")
    assert "secret" not in caught.value.detail


# Trouble with PostgreSQL


async def test_a_killed_server_refuses_and_its_return_heals(postgres_server: Callable[[], PostgresServer]) -> None:
    server = postgres_server()
    url = server.database("safelight")
    make_things(url)
    with opened(url, readers=1) as database:
        await database.write(add, 1)
        await database.write_urgently(add, 2)
        await database.read(numbers)
        server.kill()
        for _ in range(2):  # on the old connection, then on none
            results = await outcomes(database.write(add, 3), database.write_urgently(add, 4), database.read(numbers))
            assert [type(result) for result in results] == [DatabaseUnavailable] * 3, results
        server.start()
        await database.write(add, 5)
        await database.write_urgently(add, 6)
        assert await database.read(numbers) == [1, 2, 5, 6]


async def test_a_server_restarted_while_nobody_asked_refuses_nobody(
    postgres_server: Callable[[], PostgresServer],
) -> None:
    server = postgres_server()
    url = server.database("safelight")
    make_things(url)
    with opened(url, readers=1) as database:
        await database.write(add, 1)
        await database.write_urgently(add, 2)
        await database.read(numbers)
        server.restart()
        await database.write(add, 3)
        await database.write_urgently(add, 4)
        assert await database.read(numbers) == [1, 2, 3, 4]


async def test_batches_that_lock_each_other_out_are_redone_alone(postgres_url: str) -> None:
    make_things(postgres_url)
    with opened(postgres_url) as one, opened(postgres_url) as other:
        await one.write(lambda tx: add(tx, 1, name="") + add(tx, 2, name=""))
        meeting = threading.Barrier(2)
        runs: list[str] = []

        def touch(tx: Tx, number: int, letter: str) -> str:
            runs.append(letter)
            tx.execute(update(things).where(things.c.id == number).values(name=things.c.name + letter))
            if letter in "ac" and runs.count(letter) == 1:
                meeting.wait(5)
            return letter

        async with held(one), held(other):
            writes = asyncio.gather(
                one.write(touch, 1, "a"),
                one.write(touch, 2, "b"),
                other.write(touch, 2, "c"),
                other.write(touch, 1, "d"),
            )
        assert await writes == ["a", "b", "c", "d"]
        assert len(runs) > 4, "they did not meet"
        names = await one.read(lambda tx: list(tx.execute(select(things.c.name).order_by(things.c.id)).scalars()))
        assert [sorted(name) for name in names] == [["a", "d"], ["b", "c"]]


async def test_a_lone_write_that_is_locked_out_is_redone(postgres_url: str) -> None:
    make_things(postgres_url)
    with opened(postgres_url) as one, opened(postgres_url) as other:
        await one.write(lambda tx: add(tx, 1, name="") + add(tx, 2, name=""))
        meeting = threading.Barrier(2)
        runs: list[str] = []

        def touch_both(tx: Tx, letter: str, order: tuple[int, int]) -> str:
            runs.append(letter)
            for number in order:
                tx.execute(update(things).where(things.c.id == number).values(name=things.c.name + letter))
                if number == order[0] and runs.count(letter) == 1:
                    meeting.wait(5)
            return letter

        writes = (one.write(touch_both, "a", (1, 2)), other.write(touch_both, "b", (2, 1)))
        assert await asyncio.gather(*writes) == ["a", "b"]
        assert len(runs) == 3, "they did not meet"
        names = await one.read(lambda tx: list(tx.execute(select(things.c.name)).scalars()))
        assert [sorted(name) for name in names] == [["a", "b"], ["a", "b"]]


async def test_a_row_locked_for_too_long_is_unavailable(postgres_url: str) -> None:
    make_things(postgres_url)
    engine = create_engine(postgres_url)
    with opened(postgres_url) as database, engine.connect() as other:
        await database.write(add, 1)
        await database.write(lambda tx: tx.execute(text("SET SESSION lock_timeout = '100ms'")) and None)
        other.execute(select(things.c.id).with_for_update())
        change = update(things).values(name="x")
        with pytest.raises(DatabaseUnavailable, match="lock"):
            await database.write(lambda tx: tx.execute(change).rowcount)
        other.rollback()
        assert await database.write(lambda tx: tx.execute(change).rowcount) == 1
    engine.dispose()
