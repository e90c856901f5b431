"""Threads with a connection each: they run functions in transactions, many together where many wait.

Our own, since no pool lets transactions share a commit, which is what a write on SQLite waits for.
"""

import asyncio
import contextlib
import contextvars
import fcntl
import os
import queue
import random
import socket
import threading
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from safelight.db.transaction import Tx
from safelight.db.trouble import DatabaseUnavailable, explain, is_unusable, judge, wants_retry

QUEUE_TIMEOUT_SECONDS = 5.0
LOCKED_OUT_TRIES = 3
STUCK_SECONDS = 15.0  # PostgreSQL ends a statement after 10 s: by then nobody answers on this connection any more


class _ConnectionLost(DatabaseUnavailable):
    """The connection ended before anything was committed on it."""


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
            if is_unusable(error) or wants_retry(error):
                raise
            call.error = judge(error)


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
                reason = error if isinstance(error, DatabaseUnavailable) else explain(error)
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
        if len(batch) == 1 and not wants_retry(failure):
            batch[0].error = judge(failure)
            return
        # One of them raised: the others commit together all the same, unless it is about locks that they hold.
        if not wants_retry(failure) and self._attempt(connection, batch, _run_apart) is None:
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
                raise _ConnectionLost(explain(error).detail) from error
            if is_unusable(error):
                raise explain(error) from error
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
                if is_unusable(error):
                    raise explain(error) from error
                if not (tries_left and wants_retry(error)):
                    call.error = judge(error)
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


def _shut(driver: Any) -> None:
    """End the socket under a connection of another thread, which is then told that it is lost. SQLite has none."""
    with contextlib.suppress(Exception):  # whatever it is, it has ended by itself
        if hasattr(driver, "fileno"):
            with socket.socket(fileno=os.dup(driver.fileno())) as twin:
                twin.shutdown(socket.SHUT_RDWR)
