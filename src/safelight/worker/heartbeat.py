"""The heartbeat is also the ear: it renews the lease of a process and hears which of its jobs to stop."""

import asyncio
import contextlib
import time
from collections.abc import Sequence

import structlog

from safelight.db import Database, new_id
from safelight.errors import Unavailable
from safelight.jobs import Heard, beat, cancels_of, register_worker
from safelight.worker.lease import Lease
from safelight.worker.runner import Runner

log = structlog.get_logger()


class Heartbeat:
    """One loop per process. A nudge has it look at once whether a job should stop; the row says so."""

    def __init__(
        self,
        database: Database,
        runner: Runner,
        lease: Lease,
        *,
        name: str,
        queues: Sequence[str],
        slots: int,
        beat_seconds: float,
        lease_seconds: float,
    ) -> None:
        self._database = database
        self._runner = runner
        self._lease = lease
        self._name = name
        self._queues = tuple(queues)
        self._slots = slots
        self._beat_seconds = beat_seconds
        self._lease_seconds = lease_seconds
        self._wake = asyncio.Event()

    def nudge(self, job_id: str) -> None:
        """Look after this job now, if it is one of ours."""
        attempt = self._runner.attempts.get(job_id)
        if attempt is not None:
            attempt.woken.set()
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
            try:
                if loop.time() >= due:
                    due = loop.time() + self._beat_seconds
                    await self._beat()
                else:
                    await self._hear()
            except Unavailable as error:
                log.warning("heartbeat.missed", reason=error.detail, running=len(self._runner.attempts))
            except Exception:
                log.exception("heartbeat.failed")

    async def _hear(self) -> None:
        for job_id, number in await self._database.read(cancels_of, self._lease.worker_id):
            attempt = self._runner.attempts.get(job_id)
            if attempt is not None and attempt.job.attempt == number:
                attempt.interrupt("cancel")

    async def _beat(self) -> None:
        sent = time.monotonic()
        attempts = dict(self._runner.attempts)
        progressed = {job_id: attempt.progressed for job_id, attempt in attempts.items()}
        news = [now for job_id, now in progressed.items() if now != attempts[job_id].written]
        heard = await self._database.write_urgently(
            beat, self._lease.worker_id, len(attempts), news, self._lease_seconds
        )
        if heard is None:
            await self._register()
            heard = Heard((), frozenset())
        else:
            self._lease.ends = sent + self._lease_seconds
        for job_id in heard.written:
            attempts[job_id].written = progressed[job_id]
        held = {(row.job_id, row.attempt): row for row in heard.held}
        for attempt in attempts.values():
            row = held.get((attempt.job.id, attempt.job.attempt))
            if row is not None and row.is_cancel_requested:
                attempt.interrupt("cancel")
            elif row is None and self._runner.attempts.get(attempt.job.id) is attempt:
                attempt.interrupt("lost")

    async def _register(self) -> None:
        """At the start, or when we were taken for dead: what we ran is lost then."""
        if self._runner.is_draining:
            return
        lease = self._lease
        if lease.ends:
            log.warning("worker.taken_for_dead", worker=self._name, running=len(self._runner.attempts))
            lease.worker_id, lease.ends = new_id(), 0.0
        sent = time.monotonic()
        await self._database.write_urgently(
            register_worker, lease.worker_id, self._name, self._queues, self._slots, self._lease_seconds
        )
        lease.ends = sent + self._lease_seconds
        log.info("worker.registered", worker=self._name, queues=self._queues, slots=self._slots)
