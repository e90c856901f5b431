"""The heartbeat is also the ear: it renews the leases of all attempts of a process and hears what to stop."""

import asyncio
import contextlib
import time
from collections.abc import Mapping, Sequence

import structlog

from safelight.db import Database
from safelight.errors import Unavailable
from safelight.jobs import beat, register_worker
from safelight.worker.attempt import Attempt
from safelight.worker.runner import Runner

log = structlog.get_logger()


class Heartbeat:
    """One loop per process. A nudge has it look after one job at once; the row says what was asked for."""

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
        self._nudged: set[str] = set()
        self._wake = asyncio.Event()

    def nudge(self, job_id: str) -> None:
        """Look after this job now, if it is one of ours."""
        attempt = self._runner.attempts.get(job_id)
        if attempt is not None:
            attempt.woken.set()
            self._nudged.add(job_id)
            self._wake.set()

    async def run(self) -> None:
        """Beat for as long as the process lives; the first beat registers the worker."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(due):
                    await self._wake.wait()
            self._wake.clear()
            nudged, self._nudged = self._nudged, set()
            attempts = dict(self._runner.attempts)
            if loop.time() >= due:
                due = loop.time() + self._beat_seconds
            else:
                attempts = {job_id: attempt for job_id, attempt in attempts.items() if job_id in nudged}
            try:
                await self._beat(attempts)
            except Unavailable as error:
                log.warning("heartbeat.missed", reason=error.detail, running=len(self._runner.attempts))
                self._nudged |= nudged
            except Exception:
                log.exception("heartbeat.failed")

    async def _beat(self, attempts: Mapping[str, Attempt]) -> None:
        sent = time.monotonic()
        beats = [attempt.beat() for attempt in attempts.values()]
        running = len(self._runner.attempts)
        pulse = await self._database.write_urgently(beat, self._worker_id, running, beats, self._lease_seconds)
        if pulse is None:
            if self._runner.is_draining:
                return
            await self._database.write_urgently(register_worker, self._worker_id, self._name, self._queues, self._slots)
            log.info("worker.registered", worker=self._name, queues=self._queues, slots=self._slots)
            await self._beat(attempts)
            return
        for job_id, cancel_requested in pulse.renewed.items():
            attempts[job_id].lease_ends = sent + self._lease_seconds
            if cancel_requested:
                attempts[job_id].interrupt("cancel")
        for job_id in pulse.gone:
            if self._runner.attempts.get(job_id) is attempts[job_id]:
                attempts[job_id].interrupt("lost")
