"""One worker process's engine: an event loop in a thread of its own, and all that runs on it.

It is free of Celery. Doors hand it hints: `spawn` for the loop pool, `run_blocking` for pools of threads or processes.
"""

import asyncio
import faulthandler
import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import structlog
import uvloop

from safelight.bootstrap import open_safelight
from safelight.config import Settings
from safelight.errors import Unavailable
from safelight.jobs import retire_worker, unregister_worker
from safelight.worker.heartbeat import Heartbeat
from safelight.worker.inputs import InputImages
from safelight.worker.lease import Lease
from safelight.worker.runner import Runner

MAX_ABANDONED = 20

log = structlog.get_logger()


class Engine:
    """Start it once in a process; every method but `start` and `stop` may be called from any thread."""

    def __init__(self, settings: Settings, *, name: str, queues: Sequence[str], slots: int, dispatches: bool) -> None:
        self._settings = settings
        self._name = name
        self._queues = queues
        self._slots = slots
        self._dispatches = dispatches
        self._loop = uvloop.new_event_loop()
        self._started = threading.Event()
        self._stop: asyncio.Event
        self._runner: Runner
        self._drained = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="engine", daemon=True)
        self._failure: BaseException | None = None

    def start(self) -> None:
        """Open the world on the engine's loop. Raises what stood in the way (bad settings, never an outage)."""
        self._thread.start()
        self._started.wait()
        if self._failure is not None:
            raise self._failure

    def spawn(self, job_id: str, queue: str, done: Callable[[], None]) -> None:
        """Carry out a hint on the loop; `done` is called there at its end."""
        self._loop.call_soon_threadsafe(self._spawn, job_id, queue, done)

    @property
    def is_busy(self) -> bool:
        """Whether jobs are under way."""
        return bool(self._runner.attempts)

    def run_blocking(self, job_id: str, queue: str) -> None:
        """Carry out a hint; returns at its end."""
        asyncio.run_coroutine_threadsafe(self._runner.run(job_id, queue), self._loop).result()

    def drain(self) -> None:
        """Begin to leave: no new jobs, running ones finish or are handed back. Returns at once."""
        self._loop.call_soon_threadsafe(self._begin, self._drain())

    def wait_drained(self) -> None:
        """Wait for the end of `drain`, which is bounded by `drain_seconds` and a few more."""
        self._drained.wait(self._settings.drain_seconds + 6)

    def stop(self) -> None:
        """Drain if that was not done, close everything, end the loop."""
        if not self._thread.is_alive():
            return
        self.drain()
        self.wait_drained()
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(timeout=5)
        if self._thread.is_alive():
            log.warning("worker.close_timed_out")

    # --- on the loop --------------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._live())
        except BaseException as error:
            self._failure = error
            self._started.set()
            self._drained.set()

    async def _live(self) -> None:
        settings = self._settings
        self._stop = asyncio.Event()
        self._tasks: set[asyncio.Future[Any]] = set()
        async with open_safelight(settings) as safelight:
            self._lease = Lease()
            self._database = safelight.database
            self._dispatcher = safelight.dispatcher
            inputs = InputImages(safelight.database, safelight.storage, safelight.pictures, settings.max_upload_bytes)
            self._runner = Runner(
                database=safelight.database,
                jobs=safelight.jobs,
                stream=safelight.stream,
                artifacts=safelight.artifacts,
                providers=safelight.providers,
                inputs=inputs,
                lease=self._lease,
                worker_name=self._name,
                retry_seconds=settings.retry_seconds,
            )
            heartbeat = Heartbeat(
                safelight.database,
                self._runner,
                self._lease,
                name=self._name,
                queues=self._queues,
                slots=self._slots,
                beat_seconds=settings.beat_seconds,
                lease_seconds=settings.lease_seconds,
            )
            safelight.stream.listen_for_nudges(heartbeat.nudge)
            background = [self._begin(heartbeat.run()), self._begin(self._watch())]
            if self._dispatches:
                background.append(self._begin(safelight.dispatcher.run()))
            gc.collect()
            gc.freeze()
            gc.set_threshold(20_000, 20, 50)
            self._started.set()
            await self._stop.wait()
            for task in background:
                task.cancel()
            await asyncio.wait(background)

    async def _drain(self) -> None:
        if self._runner.is_draining:
            return
        log.info("worker.draining", running=len(self._runner.attempts), grace_seconds=self._settings.drain_seconds)
        self._runner.is_draining = True
        try:
            await self._database.write(retire_worker, self._lease.worker_id)
            if self._dispatches:
                await self._dispatcher.release_lease()
        except Unavailable as error:
            log.warning("worker.retire_failed", reason=error.detail)
        await self._runner.drain(self._settings.drain_seconds)
        try:
            await self._database.write(unregister_worker, self._lease.worker_id)
        except Unavailable as error:
            log.warning("worker.unregister_failed", reason=error.detail)
        log.info("worker.drained", left=len(self._runner.attempts))
        self._drained.set()

    async def _watch(self) -> None:
        """Re-arm the watchdog, a C thread that needs no GIL: it ends a process whose loop stands still, with a trace.

        And leave in order when too much abandoned code has gathered. The trace goes to the real standard error: what
        others put in the place of `sys.stderr` may have no descriptor, and a watch that ends leaves the dog armed.
        """
        try:
            while True:
                faulthandler.dump_traceback_later(
                    self._settings.stuck_loop_seconds, exit=True, file=sys.__stderr__ or sys.stderr
                )
                if self._runner.abandoned >= MAX_ABANDONED and not self._runner.is_draining:
                    log.error("worker.leaving", reason="too much abandoned code", abandoned=self._runner.abandoned)
                    os.kill(os.getpid(), signal.SIGTERM)
                await asyncio.sleep(min(1.0, self._settings.stuck_loop_seconds / 4))
        finally:
            faulthandler.cancel_dump_traceback_later()  # nobody is left to arm it again: `stop` has a limit of its own

    def _spawn(self, job_id: str, queue: str, done: Callable[[], None]) -> None:
        task = self._begin(self._runner.run(job_id, queue))
        task.add_done_callback(lambda _: done())

    def _begin(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
