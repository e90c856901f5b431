"""A small table for the tests of the database port, and ways to use and to hold it."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Generator, Sequence
from typing import Any

from sqlalchemy import (
    Column,
    Float,
    Integer,
    MetaData,
    String,
    Table,
    create_engine,
    insert,
    select,
)
from sqlalchemy import event as sa_event

from patience import PATIENCE_SECONDS
from safelight.db import Database, Instant, Json, Prepared, RowId, Tx

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


def add(tx: Tx, number: int, **values: Any) -> int:
    tx.execute(insert(things).values(id=number, **values))
    return number


_ADD = Prepared(insert(things).returning(things.c.id), columns=["id"])


def add_last(tx: Tx, given: Sequence[int]) -> list[int]:
    """For `write_one`: each with the statement its transaction ends with, of which there is one at a time as a rule."""
    return [row[0] for number in given for row in tx.run_last(_ADD, {"id": number})]


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
        go_on.wait(PATIENCE_SECONDS)

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
