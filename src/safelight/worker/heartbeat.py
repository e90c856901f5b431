"""The heartbeat is also the ear: it renews the leases of all attempts of a process and hears what to stop."""

import asyncio
import contextlib
import time
from collections.abc import Sequence

import structlog

from safelight.db import Database
from safelight.errors import Unavailable
from safelight.jobs import beat, register_worker
from safelight.worker.runner import Runner

log = structlog.get_logger()


class Heartbeat:
    """One loop per process. A nudge makes it beat at once; the row, not the nudge, says what was asked for."""

    def __init__(
        self,
        database: Database,
        runner: Runner,
        *,
        worker_id: str,
        name: str,
        queues: Sequence[str],
        slots: int,
        beat_seconds: float,
        lease_seconds: float,
    ) -> None:
        self._database = database
        self._runner = runner
        self._worker_id = worker_id
        self._name = name
        self._queues = tuple(queues)
        self._slots = slots
        self._beat_seconds = beat_seconds
        self._lease_seconds = lease_seconds
        self._wake = asyncio.Event()

    def nudge(self, job_id: str) -> None:
        """Beat now if the job is one of ours."""
        if job_id in self._runner.attempts:
            self._wake.set()

    async def run(self) -> None:
        """Beat for as long as the process lives; the first beat registers the worker."""
        while True:
            self._wake.clear()
            try:
                await self._beat()
            except Unavailable as error:
                log.warning("heartbeat.missed", reason=error.detail, running=len(self._runner.attempts))
            except Exception:
                log.exception("heartbeat.failed")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._beat_seconds):
                    await self._wake.wait()

    async def _beat(self) -> None:
        attempts = dict(self._runner.attempts)
        sent = time.monotonic()
        beats = [attempt.beat() for attempt in attempts.values()]
        pulse = await self._database.write_urgently(beat, self._worker_id, beats, self._lease_seconds)
        if pulse is None:
            if not self._runner.is_draining:
                await self._database.write_urgently(
                    register_worker, self._worker_id, self._name, self._queues, self._slots
                )
                log.info("worker.registered", worker=self._name, queues=self._queues, slots=self._slots)
                self._wake.set()  # and beat again at once: nothing was renewed
            return
        for job_id, cancel_requested in pulse.renewed.items():
            attempts[job_id].lease_ends = sent + self._lease_seconds
            if cancel_requested:
                attempts[job_id].interrupt("cancel")
        for job_id in pulse.gone:
            if self._runner.attempts.get(job_id) is attempts[job_id]:
                attempts[job_id].interrupt("lost")
