"""Threads with a connection each: they run functions in transactions, many together where many wait."""

import asyncio
import contextlib
import contextvars
import fcntl
import os
import queue
import random
import select
import socket
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, CursorResult, Engine, Executable
from sqlalchemy.exc import DBAPIError

from safelight.db.statement import Prepared
from safelight.errors import Unavailable

QUEUE_TIMEOUT_SECONDS = 5.0
LOCKED_OUT_TRIES = 3
PSYCOPG_IDLE = 0  # no transaction; SQLite needs no psycopg to be imported
STUCK_SECONDS = 15.0  # PostgreSQL ends a statement after 10 s: by then nobody answers on this connection any more
Rows = CursorResult[*tuple[Any, ...]]
RETRY_ALONE = {"40001", "40P01"}  # PostgreSQL: serialization failure, deadlock
BUSY = RETRY_ALONE | {"55P03"}  # and a row that was locked for too long


class DatabaseUnavailable(Unavailable):
    """The database cannot be used at the moment."""

    code = "database_unavailable"


class _ConnectionLost(DatabaseUnavailable):
    """The connection ended before anything was committed on it."""


class Tx:
    """An open transaction, as the functions given to `write` and `read` see it."""

    __slots__ = ("_connection", "_is_only", "_notes")

    def __init__(self, connection: Connection, notes: list[Callable[[], None]], *, is_only: bool = False) -> None:
        self._connection = connection
        self._notes = notes
        self._is_only = is_only  # nothing but one function given to `write_one` runs in it

    @property
    def is_postgresql(self) -> bool:
        return self._connection.dialect.name == "postgresql"

    def execute(
        self, statement: Executable, parameters: dict[str, Any] | Sequence[dict[str, Any]] | None = None
    ) -> Rows:
        return self._connection.execute(statement, parameters)

    def run(self, statement: Prepared, parameters: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        """The rows that a prepared statement gives back."""
        return statement.run(self._connection, parameters)

    def run_last(self, statement: Prepared, parameters: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        """Run the statement that a function given to `write_one` ends with.

        On PostgreSQL, if it is also the first and nobody shares the transaction, it commits itself: one journey instead
        of three. What the function did after it would be another transaction.
        """
        if not self._is_only or not self.is_postgresql:
            return self.run(statement, parameters)
        driver: Any = self._connection.connection.driver_connection
        if driver.pgconn.transaction_status != PSYCOPG_IDLE or _has_spoken(driver):
            return self.run(statement, parameters)
        driver.autocommit = True
        try:
            return self.run(statement, parameters)
        except DBAPIError as error:
            if error.connection_invalidated:  # nobody knows whether it was committed: it must not be run again
                raise _explain(error) from error
            raise
        finally:
            if not driver.closed:
                driver.autocommit = False

    def run_many(self, statement: Prepared, parameters: Sequence[Mapping[str, Any]]) -> None:
        """Run a prepared statement for each of these."""
        statement.run_many(self._connection, parameters)

    def run_each(self, statement: Prepared, parameters: Sequence[Mapping[str, Any]]) -> list[tuple[Any, ...]]:
        """The one row that a prepared statement gives back for each of these."""
        return statement.run_each(self._connection, parameters)

    def on_commit(self, note: Callable[[], None]) -> None:
        """Run `note()` on the event loop once this is committed. Nobody waits for it and it must not block."""
        self._notes.append(note)


class _Call:
    __slots__ = (
        "args", "connection", "context", "ended", "error", "finished", "fn", "future", "is_forgettable", "is_shared",
        "loop", "notes", "result", "since", "started", "timer",
    )  # fmt: skip

    def __init__(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        loop: asyncio.AbstractEventLoop,
        *,
        is_shared: bool,
        is_forgettable: bool,
    ) -> None:
        self.fn = fn
        self.args = args
        self.is_shared = is_shared  # one run of `fn` serves the arguments of many calls
        self.is_forgettable = is_forgettable  # may be lost with the machine
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


def _run(batch: list[_Call], connection: Connection) -> None:
    alone: list[_Call] = []
    together: dict[Callable[..., Any], list[_Call]] = {}
    for call in batch:
        if call.is_shared:
            together.setdefault(call.fn, []).append(call)
        else:
            alone.append(call)
    for call in alone:
        call.notes = []
        call.result = call.fn(Tx(connection, call.notes), *call.args)
    for fn, calls in together.items():
        first, *_ = calls
        first.notes = []
        tx = Tx(connection, first.notes, is_only=not alone and len(together) == 1)
        answers = fn(tx, [call.args[0] for call in calls])
        for call, answer in zip(calls, answers, strict=True):
            call.result = answer


def _run_apart(batch: list[_Call], connection: Connection) -> None:
    """The same with a savepoint each: who raises is told so, and takes nothing of the others with it."""
    for call in batch:
        try:
            with connection.begin_nested():
                _run([call], connection)
            call.error = None
        except BaseException as error:
            if _is_unusable(error) or _wants_retry(error):
                raise
            call.error = _judge(error)


class Lane:
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

    async def run(
        self, fn: Callable[..., Any], args: tuple[Any, ...], *, is_shared: bool = False, is_forgettable: bool = False
    ) -> Any:
        loop = asyncio.get_running_loop()
        call = _Call(fn, args, loop, is_shared=is_shared, is_forgettable=is_forgettable)
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
        failure = self._attempt(connection, batch, _run)
        if failure is None:
            return
        if len(batch) == 1 and not _wants_retry(failure):
            batch[0].error = _judge(failure)
            return
        # One of them raised: the others commit together all the same, unless it is about locks that they hold.
        if not _wants_retry(failure) and self._attempt(connection, batch, _run_apart) is None:
            return
        for call in batch:
            self._commit_alone(connection, call)
            call.finished = True  # whatever happens to those after it

    def _attempt(
        self, connection: Connection, batch: list[_Call], run: Callable[[list[_Call], Connection], None]
    ) -> BaseException | None:
        """Run and commit the batch; returns what a function of it raised. Raises what ends the connection."""
        is_committing = False
        try:
            with self._synchrony(batch, connection), connection.begin():
                run(batch, connection)
                is_committing = True
            return None
        except DatabaseUnavailable:
            raise
        except BaseException as error:
            if run is _run_apart and not is_committing:
                return error  # whatever it is, some of the batch may be possible without the rest
            if isinstance(error, DBAPIError) and error.connection_invalidated and not is_committing:
                raise _ConnectionLost(_explain(error).detail) from error
            if _is_unusable(error):
                raise _explain(error) from error
            return error

    def _synchrony(self, batch: list[_Call], connection: Connection) -> AbstractContextManager[object]:
        is_sqlite_writer = self._lock_path is not None
        forgettable = is_sqlite_writer and all(call.is_forgettable for call in batch)
        return _unsynchronised(connection) if forgettable else contextlib.nullcontext()

    def _commit_alone(self, connection: Connection, call: _Call) -> None:
        """Commit one call; a deadlock is tried again a few times, because both sides may be the victim."""
        for tries_left in reversed(range(LOCKED_OUT_TRIES)):
            try:
                with connection.begin():
                    _run([call], connection)
                call.error = None
                return
            except DatabaseUnavailable:
                raise
            except BaseException as error:
                if _is_unusable(error):
                    raise _explain(error) from error
                if not (tries_left and _wants_retry(error)):
                    call.error = _judge(error)
                    return
            time.sleep(random.uniform(0, 0.05))  # a thread of its own: let the other side go first


@contextlib.contextmanager
def _unsynchronised(connection: Connection) -> Generator[None]:
    """SQLite: commit without waiting for the disk. Every later commit that does wait takes this one with it."""
    driver: Any = connection.connection.driver_connection
    driver.execute("PRAGMA synchronous=NORMAL")
    try:
        yield
    finally:
        driver.execute("PRAGMA synchronous=FULL")


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


def _has_spoken(driver: Any) -> bool:
    """Whether the server said something unasked: as a rule that it is gone, which a BEGIN finds out at no risk."""
    ear = select.poll()
    ear.register(driver.fileno(), select.POLLIN)
    return bool(ear.poll(0))


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
