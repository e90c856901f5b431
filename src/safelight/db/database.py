"""Rows: the two databases behind one door, transactions that are functions, and the column types both share.

`await database.write(fn, ...)` runs the plain function `fn(tx, ...)` in the process's writer thread and returns once it
is committed. Everything that arrived while the last commit was under way is committed together, optimistically: if one
function raises, the batch is rolled back and each is run again on its own. So a function touches rows and nothing else
(it may run twice), and refusals it expects are returned, not raised. `await database.read(fn, ...)` runs in a reader
thread on a snapshot. A transaction that is a function cannot be held open across a wait.
"""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, TypeVarTuple

from sqlalchemy import Connection, Engine
from sqlalchemy import event as sa_event

from safelight.db.address import parse_url
from safelight.db.engine import admit_with, open_engine
from safelight.db.lane import Lane
from safelight.db.statement import driver_cursor
from safelight.db.transaction import Tx
from safelight.folder import disk_hindrance

MAX_BATCH = 128
READ_BATCH = 8  # share a snapshot, and its BEGIN and COMMIT; a slow one holds up no more than these
LOOK_UP_BATCH = 64  # keys of one statement
Ts = TypeVarTuple("Ts")
T = TypeVar("T")
R = TypeVar("R")


class Database:
    """One database and the threads of this process that talk to it."""

    def __init__(self, url: str, *, readers: int | None = None, admit: Callable[[Any], None] | None = None) -> None:
        """`admit` is shown every new DB-API connection and may refuse it by raising `DatabaseUnavailable`.

        Raises `DatabaseUrlInvalid`.
        """
        parsed = parse_url(url)
        name = self.backend = parsed.get_backend_name()
        file = self._file = None
        if name == "sqlite":
            file = self._file = Path(parsed.database or "")
            self._engine, reading = _sqlite_engines(url)
        else:
            self._engine, reading = _postgresql_engine(url, None), _postgresql_engine(url, "REPEATABLE READ")
        if admit is not None:
            for engine in (self._engine, reading):
                admit_with(engine, admit)
        self._writer = Lane(self._engine, "writer", threads=1, batch=MAX_BATCH, file=file, writes=True)
        # Leases must be renewed even while the writer's queue is long.
        self._urgent = Lane(self._engine, "urgent", threads=1, batch=1, file=file, writes=True)
        # A round of dispatch may have hundreds of jobs to release: no submit waits for that, and it for no batch.
        self._dispatch = Lane(self._engine, "dispatch", threads=1, batch=1, file=file, writes=True)
        # One thread, so that look-ups gather while one is under way; a slow list in the readers' lane delays none.
        self._lookups = Lane(reading, "lookup", threads=1, batch=LOOK_UP_BATCH, file=file, writes=False)
        count = readers or (2 if name == "sqlite" else 3)
        self._readers = Lane(reading, "reader", threads=count, batch=READ_BATCH, file=file, writes=False)

    async def write(self, fn: Callable[[Tx, *Ts], R], *args: *Ts) -> R:
        """Run `fn(tx, *args)` in a write transaction and return its result once that is committed."""
        return await self._writer.run(fn, args)

    async def write_one(
        self, fn: Callable[[Tx, Sequence[T]], Sequence[R]], given: T, *, is_forgettable: bool = False
    ) -> R:
        """One of the results of `fn(tx, given)`: what is to be written at the same time shares one run of it.

        `is_forgettable`: on SQLite it does not wait for the disk, and is lost if the machine (not the process) dies.
        """
        return await self._writer.run(fn, (given,), is_shared=True, is_forgettable=is_forgettable)

    async def write_urgently(self, fn: Callable[[Tx, *Ts], R], *args: *Ts) -> R:
        """Like `write`, in the lane of its own that heartbeats use; on SQLite it may be lost if the machine dies."""
        return await self._urgent.run(fn, args, is_forgettable=True)

    async def write_beside(self, fn: Callable[[Tx, *Ts], R], *args: *Ts) -> R:
        """Like `write`, in the lane of its own that dispatch uses: no batch of others is in its transaction."""
        return await self._dispatch.run(fn, args)

    async def read(self, fn: Callable[[Tx, *Ts], R], *args: *Ts) -> R:
        """Run `fn(tx, *args)` on a snapshot, beside the writer."""
        return await self._readers.run(fn, args)

    async def read_one(self, fn: Callable[[Tx, Sequence[T]], Sequence[R]], wanted: T) -> R:
        """One of the answers of `fn(tx, wanted)`: look-ups that wait at the same time share one run of it."""
        return await self._lookups.run(fn, (wanted,), is_shared=True)

    async def hindrance(self) -> str | None:
        """Why SQLite cannot write, though it can read."""
        why = self._file and await asyncio.to_thread(disk_hindrance, self._file.parent)
        return f"The folder of the database cannot be written: {why}." if why else None

    def close(self) -> None:
        """Finish what was queued and close the connections."""
        for lane in (self._writer, self._urgent, self._dispatch, self._lookups, self._readers):
            lane.close()
        self._engine.dispose()


def _sqlite_engines(url: str) -> tuple[Engine, Engine]:
    engines: list[Engine] = []
    for begin, pragmas in (("BEGIN IMMEDIATE", ("synchronous=FULL",)), ("BEGIN", ("query_only=ON",))):
        engine = open_engine(url, connect_args={"check_same_thread": False, "isolation_level": None})
        sa_event.listen(engine, "connect", _sqlite_connect(pragmas))
        sa_event.listen(engine, "begin", _sqlite_begin(begin))
        engines.append(engine)
    return engines[0], engines[1]


def _sqlite_connect(pragmas: tuple[str, ...]) -> Callable[[Any, Any], None]:
    def connect(connection: Any, record: Any) -> None:
        cursor = connection.cursor()
        for pragma in ("busy_timeout=5000", "journal_mode=WAL", "foreign_keys=ON", *pragmas):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    return connect


def _sqlite_begin(statement: str) -> Callable[[Connection], None]:
    def begin(connection: Connection) -> None:
        with driver_cursor(connection, statement) as cursor:
            cursor.execute(statement)

    return begin


def _postgresql_engine(url: str, isolation: Literal["REPEATABLE READ"] | None) -> Engine:
    return open_engine(
        url,
        **({} if isolation is None else {"isolation_level": isolation}),
        session="-c statement_timeout=10000 -c lock_timeout=5000 -c idle_in_transaction_session_timeout=15000",
        connect_args={
            "connect_timeout": 5,
            "application_name": "safelight",
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 10_000,
        },
    )
