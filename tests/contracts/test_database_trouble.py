"""The database port in trouble: locked, gone, restarted, without its schema."""

import asyncio
import contextlib
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path

import pytest
from sqlalchemy import (
    Float,
    bindparam,
    create_engine,
    func,
    select,
    text,
    update,
)
from sqlalchemy import event as sa_event
from things import add, add_last, held, make_things, numbers, opened, outcomes, things

from patience import PATIENCE_SECONDS
from safelight.db import Database, DatabaseUnavailable, Prepared, Tx, lane
from safelight.errors import Invalid
from safelight.migrations import migrate
from servers import Postgres, PostgresServer

pytestmark = pytest.mark.anyio


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    make_things(database_url)
    with opened(database_url) as database:
        yield database


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
    results = await outcomes(*(sqlite.write(work, number) for number in range(3)))
    assert [type(result) for result in results] == [DatabaseUnavailable] * 3
    assert "locked" in results[0].detail
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
    monkeypatch.setattr(lane, "QUEUE_TIMEOUT_SECONDS", 0.15)
    with locked_elsewhere(sqlite_url.removeprefix("sqlite:///") + ".lock"):
        results = await outcomes(*(sqlite.write(add, number) for number in range(3)), sqlite.write_urgently(add, 7))
        assert [type(result) for result in results] == [DatabaseUnavailable] * 4
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
            holder.wait(PATIENCE_SECONDS)


async def test_a_missing_folder_refuses_until_it_is_there(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/later/safelight.db"
    with opened(url) as database:
        for ask in (database.write, database.write_urgently, database.read):
            with pytest.raises(DatabaseUnavailable):
                await ask(numbers)
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
    assert "database URL" in caught.value.detail


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
        server.restart()
        assert await database.write_one(add_last, 5) == 5


async def test_what_may_have_been_committed_on_a_lost_connection_is_not_run_again(postgres_url: str) -> None:
    """The statement commits itself: whether it did before the connection was lost, nobody can know."""
    make_things(postgres_url)
    runs: list[int] = []

    def sleep(tx: Tx, given: Sequence[int]) -> list[int]:
        runs.extend(given)
        tx.run_last(_SLEEP, {"seconds": 30.0})
        return list(given)

    engine = create_engine(postgres_url)
    with opened(postgres_url) as database, engine.connect() as other:
        sleeping = asyncio.create_task(database.write_one(sleep, 1))
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not other.execute(text(_END_SLEEPERS)).scalars().all():
                other.rollback()
                await asyncio.sleep(0.01)
        with pytest.raises(DatabaseUnavailable):
            await sleeping
        assert runs == [1]
        assert await database.write_one(add_last, 2) == 2
    engine.dispose()


async def test_a_commit_whose_fate_is_unknown_is_not_run_again(postgres_url: str) -> None:
    """The connection ends in the COMMIT itself: whether it was carried out, nobody can know."""
    make_things(postgres_url)
    runs: list[int] = []

    def note(tx: Tx, number: int) -> int:
        runs.append(number)
        return add(tx, number)

    engine = create_engine(postgres_url)
    with opened(postgres_url) as database, engine.begin() as other:
        other.execute(text(_DIE_IN_COMMIT))
        other.commit()
        with pytest.raises(DatabaseUnavailable):
            await database.write(note, 1)
        async with held(database):
            writes = asyncio.ensure_future(outcomes(*(database.write(note, number) for number in (2, 3))))
        assert [type(answer) for answer in await writes] == [DatabaseUnavailable] * 2
        assert runs == [1, 2, 3]
    engine.dispose()


_DIE_IN_COMMIT = """
CREATE FUNCTION die() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END $$;
CREATE CONSTRAINT TRIGGER die AFTER INSERT ON things DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION die();
"""


async def test_a_database_file_that_was_replaced_is_noticed(sqlite: Database, sqlite_url: str, tmp_path: Path) -> None:
    """An open connection would go on writing into the file that no name leads to any more."""
    file = Path(sqlite_url.removeprefix("sqlite:///"))
    await sqlite.write(add, 1)
    other = tmp_path / "other.db"
    migrate(f"sqlite:///{other}")
    make_things(f"sqlite:///{other}")
    replace_database(file, other)
    assert await sqlite.read(numbers) == []
    await sqlite.write(add, 2)
    with opened(sqlite_url) as fresh:
        assert await fresh.read(numbers) == [2]


def replace_database(file: Path, other: Path) -> None:
    for suffix in ("-wal", "-shm"):
        Path(f"{file}{suffix}").unlink(missing_ok=True)
    other.replace(file)


_SLEEP = Prepared(select(func.pg_sleep(bindparam("seconds", type_=Float))))
_END_SLEEPERS = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE state = 'active' AND query LIKE '%pg_sleep%' AND pid <> pg_backend_pid()
"""


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
                meeting.wait(PATIENCE_SECONDS)
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
                    meeting.wait(PATIENCE_SECONDS)
            return letter

        writes = (one.write(touch_both, "a", (1, 2)), other.write(touch_both, "b", (2, 1)))
        assert await asyncio.gather(*writes) == ["a", "b"]
        assert len(runs) >= 3, "they did not meet"
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
