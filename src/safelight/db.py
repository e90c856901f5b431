"""Rows: the two databases behind one door, transactions that are functions, and the column types both share.

`await database.write(fn, ...)` runs the plain function `fn(tx, ...)` in the process's writer thread and returns once it
is committed. Everything that arrived while the last commit was under way is committed together, optimistically: if one
function raises, the batch is rolled back and each is run again on its own. So a function touches rows and nothing else
(it may run twice), and refusals it expects are returned, not raised. `await database.read(fn, ...)` runs in a reader
thread on a snapshot. A transaction that is a function cannot be held open across a wait.
"""

import asyncio
import contextlib
import contextvars
import fcntl
import os
import queue
import random
import secrets
import socket
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, TypeVar, TypeVarTuple

import orjson
from sqlalchemy import JSON, BigInteger, Connection, CursorResult, Engine, Executable, MetaData, String, create_engine
from sqlalchemy import event as sa_event
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP, UUID
from sqlalchemy.engine import make_url
from sqlalchemy.engine.interfaces import Dialect
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.pool import NullPool
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeDecorator, TypeEngine

from safelight.errors import Invalid, Unavailable

MAX_BATCH = 128
READ_BATCH = 8  # share a snapshot, and its BEGIN and COMMIT; a slow one holds up no more than these
LOOK_UP_BATCH = 64  # keys of one statement
QUEUE_TIMEOUT_SECONDS = 5.0
LOCKED_OUT_TRIES = 3
STUCK_SECONDS = 15.0  # PostgreSQL ends a statement after 10 s: by then nobody answers on this connection any more
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
Ts = TypeVarTuple("Ts")
T = TypeVar("T")
R = TypeVar("R")
Rows = CursorResult[*tuple[Any, ...]]
RETRY_ALONE = {"40001", "40P01"}  # PostgreSQL: serialization failure, deadlock
BUSY = RETRY_ALONE | {"55P03"}  # and a row that was locked for too long

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


class DatabaseUnavailable(Unavailable):
    """The database cannot be used at the moment."""

    code = "database_unavailable"


class _ConnectionLost(DatabaseUnavailable):
    """The connection ended before anything was committed on it."""


# --- column types -----------------------------------------------------------------------------------------------------


class Instant(TypeDecorator[datetime]):
    """A moment as an aware UTC datetime: `timestamptz` on PostgreSQL, integer microseconds since 1970 on SQLite."""

    impl = BigInteger
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name == "postgresql":
            return dialect.type_descriptor(TIMESTAMP(timezone=True))
        return dialect.type_descriptor(BigInteger())

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:
        if value is None or dialect.name == "postgresql":
            return value
        return (value - EPOCH) // MICROSECOND

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if dialect.name == "postgresql":
            return value.astimezone(UTC)
        return EPOCH + timedelta(microseconds=value)


RowId = String(36).with_variant(UUID(as_uuid=False), "postgresql")
Json = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")


class db_now(FunctionElement[datetime]):  # noqa: N801 - reads as the SQL function it is
    """The database's clock, optionally moved by a number or column of seconds: `db_now()`, `db_now(30)`."""

    inherit_cache = True
    type = Instant()
    name = "db_now"


@compiles(db_now, "sqlite")
def _sqlite_now(element: db_now, compiler: SQLCompiler, **kw: Any) -> str:
    # SQLite 3.40 has no unixepoch('subsec'); julianday gives milliseconds.
    now = "CAST((julianday('now') - 2440587.5) * 86400000.0 AS INTEGER) * 1000"
    moved = compiler.process(element.clauses, **kw)
    return f"({now} + CAST(({moved}) * 1000000 AS INTEGER))" if moved else f"({now})"


@compiles(db_now, "postgresql")
def _postgresql_now(element: db_now, compiler: SQLCompiler, **kw: Any) -> str:
    moved = compiler.process(element.clauses, **kw)
    return f"(statement_timestamp() + ({moved}) * interval '1 second')" if moved else "statement_timestamp()"


def new_id() -> str:
    """A UUIDv7 (RFC 9562, clock as fine as that allows): ids sort by creation time, to a quarter of a microsecond."""
    milliseconds, nanoseconds = divmod(time.time_ns(), 1_000_000)
    value = milliseconds << 80 | 0x7 << 76 | (nanoseconds * 4096 // 1_000_000) << 64 | 0b10 << 62 | secrets.randbits(62)
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


# --- transactions -----------------------------------------------------------------------------------------------------


class Tx:
    """An open transaction, as the functions given to `write` and `read` see it."""

    __slots__ = ("_connection", "_notes")

    def __init__(self, connection: Connection, notes: list[Callable[[], None]]) -> None:
        self._connection = connection
        self._notes = notes

    @property
    def is_postgresql(self) -> bool:
        return self._connection.dialect.name == "postgresql"

    def execute(
        self, statement: Executable, parameters: dict[str, Any] | Sequence[dict[str, Any]] | None = None
    ) -> Rows:
        return self._connection.execute(statement, parameters)

    def on_commit(self, note: Callable[[], None]) -> None:
        """Run `note()` on the event loop once this is committed. Nobody waits for it and it must not block."""
        self._notes.append(note)


class _Call:
    __slots__ = (
        "args", "connection", "context", "ended", "error", "finished", "fn", "future", "is_shared", "loop", "notes",
        "result", "since", "started", "timer",
    )  # fmt: skip

    def __init__(
        self, fn: Callable[..., Any], args: tuple[Any, ...], loop: asyncio.AbstractEventLoop, is_shared: bool
    ) -> None:
        self.fn = fn
        self.args = args
        self.is_shared = is_shared  # one run of `fn` serves the arguments of many calls
        self.loop = loop
        self.context = contextvars.copy_context()  # for the notes: their log lines tell whose they are
        self.future: asyncio.Future[Any] = loop.create_future()
        self.started = False
        self.finished = False
        self.ended = False
        self.connection: Any = None  # the driver's, on which it runs, and since when (monotonic)
        self.since = 0.0
        self.timer: asyncio.TimerHandle | None = None
        self.result: Any = None
        self.error: BaseException | None = None
        self.notes: list[Callable[[], None]] = []

    def run(self, connection: Connection) -> None:
        self.notes = []
        self.result = self.fn(Tx(connection, self.notes), *self.args)


def _run(batch: list[_Call], connection: Connection) -> None:
    together: dict[Callable[..., Any], list[_Call]] = {}
    for call in batch:
        if call.is_shared:
            together.setdefault(call.fn, []).append(call)
        else:
            call.run(connection)
    for fn, calls in together.items():
        first, *_ = calls
        first.notes = []
        answers = fn(Tx(connection, first.notes), [call.args[0] for call in calls])
        for call, answer in zip(calls, answers, strict=True):
            call.result = answer


class _Lane:
    """Threads with a connection each that serve one queue of calls."""

    def __init__(self, engine: Engine, name: str, *, threads: int, batch: int, file: Path | None, writes: bool) -> None:
        self._engine = engine
        self._batch = batch
        self._file = file  # SQLite's
        self._lock_path = Path(f"{file}.lock") if file is not None and writes else None
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._starting = threading.Lock()
        self._threads = [threading.Thread(target=self._serve, name=f"db-{name}", daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    async def run(self, fn: Callable[..., Any], args: tuple[Any, ...], *, is_shared: bool = False) -> Any:
        loop = asyncio.get_running_loop()
        call = _Call(fn, args, loop, is_shared)
        self._calls.put(call)
        call.timer = loop.call_later(QUEUE_TIMEOUT_SECONDS, self._give_up, call)
        try:
            return await call.future
        finally:
            if not call.future.cancelled():  # else the thread may still be at it, and may be stuck
                call.timer.cancel()

    def close(self) -> None:
        for _ in self._threads:
            self._calls.put(None)
        for thread in self._threads:
            thread.join(timeout=2)

    def _give_up(self, call: _Call) -> None:
        """A call that could not even start in time is refused, and will never run; one that runs is looked after."""
        with self._starting:
            if call.started and not call.ended:
                call.timer = call.loop.call_later(STUCK_SECONDS, self._cut_off, call)
            if call.started or call.future.done():
                return
            call.started = True
        call.future.set_exception(DatabaseUnavailable("The database is busy or locked by another process."))

    def _cut_off(self, call: _Call) -> None:
        """End a connection that went dead without a word (half-open): its thread would wait for ever."""
        with self._starting:
            if call.ended:
                return
            left = STUCK_SECONDS
            if call.connection is not None:
                left -= time.monotonic() - call.since
                if left <= 0:
                    _shut(call.connection)
            call.timer = call.loop.call_later(max(1.0, left), self._cut_off, call)

    def _use(self, batch: list[_Call], connection: Connection | None) -> None:
        driver = None if connection is None else connection.connection.driver_connection
        with self._starting:
            for call in batch:
                call.connection, call.since, call.ended = driver, time.monotonic(), connection is None

    def _take(self) -> list[_Call] | None:
        first = self._calls.get()
        if first is None:
            return None
        batch = [first]
        share = 1 + self._calls.qsize() // len(self._threads)  # leave the others theirs
        while len(batch) < min(self._batch, share):
            try:
                call = self._calls.get_nowait()
            except queue.Empty:
                break
            if call is None:
                self._calls.put(None)
                break
            batch.append(call)
        return batch

    def _serve(self) -> None:
        connection: Connection | None = None
        identity: tuple[int, int] | None = None
        lock: int | None = None
        while (batch := self._take()) is not None:
            try:
                if self._lock_path is not None:
                    if lock is None:
                        lock = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                    fcntl.flock(lock, fcntl.LOCK_EX)
                with self._starting:
                    batch = [call for call in batch if not call.started]
                    for call in batch:
                        call.started = True
                if self._file is not None:
                    known, identity = identity, _identity(self._file)
                    if known != identity:
                        connection = _discard(connection)
                if connection is None:
                    connection = self._engine.connect()
                try:
                    self._use(batch, connection)
                    self._commit(connection, batch)
                except _ConnectionLost:  # while nobody used it, as a rule: the server was restarted
                    connection = _discard(connection)
                    connection = self._engine.connect()
                    self._use(batch, connection)
                    self._commit(connection, batch)
            except BaseException as error:
                reason = error if isinstance(error, DatabaseUnavailable) else _explain(error)
                for call in batch:
                    if not call.finished:
                        call.error = reason
                connection = _discard(connection)
            finally:
                self._use(batch, None)
                if lock is not None:
                    fcntl.flock(lock, fcntl.LOCK_UN)
            _deliver(batch)
        _discard(connection)
        if lock is not None:
            os.close(lock)

    def _commit(self, connection: Connection, batch: list[_Call]) -> None:
        """Commit the batch together, or each alone. Raises only if the connection itself cannot be used."""
        is_committing = False
        try:
            with connection.begin():
                _run(batch, connection)
                is_committing = True
            return
        except BaseException as error:
            if isinstance(error, DBAPIError) and error.connection_invalidated and not is_committing:
                raise _ConnectionLost(_explain(error).detail) from error
            if _is_unusable(error):
                raise _explain(error) from error
            if len(batch) == 1 and not _wants_retry(error):
                batch[0].error = _judge(error)
                return
        for call in batch:
            self._commit_alone(connection, call)
            call.finished = True  # whatever happens to those after it

    def _commit_alone(self, connection: Connection, call: _Call) -> None:
        """Commit one call; a deadlock is tried again a few times, because both sides may be the victim."""
        for tries_left in reversed(range(LOCKED_OUT_TRIES)):
            try:
                with connection.begin():
                    _run([call], connection)
                return
            except BaseException as error:
                if _is_unusable(error):
                    raise _explain(error) from error
                if not (tries_left and _wants_retry(error)):
                    call.error = _judge(error)
                    return
            time.sleep(random.uniform(0, 0.05))  # a thread of its own: let the other side go first


def _identity(file: Path) -> tuple[int, int]:
    """Which file a path names now: an open connection would go on writing to one that was deleted or replaced."""
    try:
        found = file.stat()
    except OSError as error:
        reason = f"The database file {file} cannot be found: {error.strerror} (`safelight migrate` makes it)."
        raise DatabaseUnavailable(reason) from error
    return found.st_dev, found.st_ino


def _deliver(batch: list[_Call]) -> None:
    for loop in {call.loop for call in batch}:
        calls = [call for call in batch if call.loop is loop]
        if not loop.is_closed():
            loop.call_soon_threadsafe(_resolve, calls)


def _resolve(calls: list[_Call]) -> None:
    for call in calls:
        if call.error is None:
            for note in call.notes:
                try:
                    call.context.run(note)
                except Exception as error:  # the commit stands, and others of its batch wait for their answers
                    call.loop.call_exception_handler({"message": "A note on a transaction failed", "exception": error})
        if call.future.done():
            continue
        if call.error is not None:
            call.future.set_exception(call.error)
        else:
            call.future.set_result(call.result)


def _discard(connection: Connection | None) -> None:
    if connection is not None:
        try:
            connection.invalidate()
            connection.close()
        except DBAPIError:
            pass  # it is being thrown away because it is broken


def _shut(driver: Any) -> None:
    """End the socket under a connection of another thread, which is then told that it is lost. SQLite has none."""
    with contextlib.suppress(Exception):  # whatever it is, it has ended by itself
        if hasattr(driver, "fileno"):
            with socket.socket(fileno=os.dup(driver.fileno())) as twin:
                twin.shutdown(socket.SHUT_RDWR)


def _sqlstate(error: BaseException) -> str | None:
    return getattr(error.orig, "sqlstate", None) if isinstance(error, DBAPIError) else None


def _wants_retry(error: BaseException) -> bool:
    return _sqlstate(error) in RETRY_ALONE


def _is_unusable(error: BaseException) -> bool:
    """Whether the database, rather than one function, is in trouble."""
    if not isinstance(error, DBAPIError) or _wants_retry(error):
        return False
    kind = type(error.orig).__name__ if error.orig is not None else ""
    return (
        error.connection_invalidated
        or kind in {"OperationalError", "InterfaceError", "InternalError"}
        or isinstance(error.orig, ConnectionError)
        or (_sqlstate(error) or "").startswith(("08", "25", "53", "57", "58"))
        or _sqlstate(error) in {"42P01", "42703"}
    )


def _judge(error: BaseException) -> BaseException:
    """What the caller of one function is told."""
    return _explain(error) if _sqlstate(error) in BUSY else error


def _explain(error: BaseException) -> DatabaseUnavailable:
    text = str(getattr(error, "orig", error)).strip().splitlines()[0:1]
    reason = text[0] if text else type(error).__name__
    if "no such table" in reason or "no such column" in reason or _sqlstate(error) in {"42P01", "42703"}:
        reason += " (is the schema up to date? run `safelight migrate`)"
    elif "disk is full" in reason or _sqlstate(error) == "53100":
        reason = "the disk that holds the database is full"
    return DatabaseUnavailable(f"The database cannot be used: {reason}.")


class Database:
    """One database and the threads of this process that talk to it."""

    def __init__(self, url: str, *, readers: int | None = None, admit: Callable[[Any], None] | None = None) -> None:
        """`admit` is shown every new DB-API connection and may refuse it by raising `DatabaseUnavailable`."""
        try:
            parsed = make_url(url)
            name = parsed.get_backend_name()
            if name == "sqlite":
                self._engine, reading = _sqlite_engines(url)
                file = Path(parsed.database or "")
            elif name == "postgresql":
                self._engine, reading = _postgresql_engine(url, None), _postgresql_engine(url, "REPEATABLE READ")
                file = None
            else:
                raise Invalid(f"database_url: {name} is not supported; use sqlite:///path or postgresql://...")
        except (ArgumentError, NoSuchModuleError, ValueError) as error:
            raise Invalid("database_url is not a database URL; use sqlite:///path or postgresql://...") from error
        self.backend = name
        if admit is not None:
            for engine in (self._engine, reading):
                sa_event.listen(engine, "connect", _admission(admit))
        self._writer = _Lane(self._engine, "writer", threads=1, batch=MAX_BATCH, file=file, writes=True)
        # Leases must be renewed even while the writer's queue is long.
        self._urgent = _Lane(self._engine, "urgent", threads=1, batch=1, file=file, writes=True)
        # One thread, so that look-ups gather while one is under way; a slow list in the readers' lane delays none.
        self._lookups = _Lane(reading, "lookup", threads=1, batch=LOOK_UP_BATCH, file=file, writes=False)
        count = readers or (2 if name == "sqlite" else 3)
        self._readers = _Lane(reading, "reader", threads=count, batch=READ_BATCH, file=file, writes=False)

    async def write(self, fn: Callable[[Tx, *Ts], R], *args: *Ts) -> R:
        """Run `fn(tx, *args)` in a write transaction and return its result once that is committed."""
        return await self._writer.run(fn, args)

    async def write_one(self, fn: Callable[[Tx, Sequence[T]], Sequence[R]], given: T) -> R:
        """One of the results of `fn(tx, given)`: what is to be written at the same time shares one run of it."""
        return await self._writer.run(fn, (given,), is_shared=True)

    async def write_urgently(self, fn: Callable[[Tx, *Ts], R], *args: *Ts) -> R:
        """Like `write`, in the lane of its own that heartbeats use."""
        return await self._urgent.run(fn, args)

    async def read(self, fn: Callable[[Tx, *Ts], R], *args: *Ts) -> R:
        """Run `fn(tx, *args)` on a snapshot, beside the writer."""
        return await self._readers.run(fn, args)

    async def read_one(self, fn: Callable[[Tx, Sequence[T]], Sequence[R]], wanted: T) -> R:
        """One of the answers of `fn(tx, wanted)`: look-ups that wait at the same time share one run of it."""
        return await self._lookups.run(fn, (wanted,), is_shared=True)

    def close(self) -> None:
        """Finish what was queued and close the connections."""
        for lane in (self._writer, self._urgent, self._lookups, self._readers):
            lane.close()
        self._engine.dispose()


def _admission(admit: Callable[[Any], None]) -> Callable[[Any, Any], None]:
    def connect(connection: Any, record: Any) -> None:
        try:
            admit(connection)
        except BaseException:
            connection.close()  # nobody else would
            raise

    return connect


def _dumps(value: Any) -> str:
    return orjson.dumps(value).decode()


def _sqlite_engines(url: str) -> tuple[Engine, Engine]:
    path = make_url(url).database
    if not path or path == ":memory:":
        raise Invalid("database_url: SQLite needs a file, as in sqlite:////var/lib/safelight/safelight.db")
    engines: list[Engine] = []
    for begin, pragmas in (("BEGIN IMMEDIATE", ("synchronous=FULL",)), ("BEGIN", ("query_only=ON",))):
        engine = create_engine(
            url,
            poolclass=NullPool,
            json_serializer=_dumps,
            json_deserializer=orjson.loads,
            connect_args={"check_same_thread": False, "isolation_level": None},
        )
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
        connection.exec_driver_sql(statement)

    return begin


def _postgresql_engine(url: str, isolation: Literal["REPEATABLE READ"] | None) -> Engine:
    return create_engine(
        url,
        poolclass=NullPool,
        **({} if isolation is None else {"isolation_level": isolation}),
        json_serializer=_dumps,
        json_deserializer=orjson.loads,
        connect_args={
            "connect_timeout": 5,
            "application_name": "safelight",
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 10_000,
            "options": "-c statement_timeout=10000 -c lock_timeout=5000 -c idle_in_transaction_session_timeout=15000",
        },
    )
