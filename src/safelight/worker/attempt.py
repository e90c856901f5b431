"""What a process knows of one attempt it is running."""

import asyncio
import time
from typing import Literal

from safelight.jobs import Job, Progressed, Verdict
from safelight.worker.lease import Lease

Interruption = Literal["cancel", "lost", "drain"]


class RunningAttempt:
    """What a process knows of one attempt it is running."""

    def __init__(self, job: Job, lease: Lease) -> None:
        self.job = job
        self._lease = lease
        self.progress: int | None = job.progress
        self.stage = job.stage
        self.message = job.message
        self.written = self.progressed  # what the row says of it
        self.remote_id = job.provider_job_id
        self.may_be_paid = job.submitting_at is not None
        self.is_taken = self.may_be_paid and job.provider_job_id is not None  # the provider has it, and it may be paid
        self.is_unanswered = False  # since it was reserved
        self.woken = asyncio.Event()  # somebody says that the provider has news
        self.verdict: Verdict | None = None  # what it tells of its provider
        self.interrupted: asyncio.Future[Interruption] = asyncio.get_running_loop().create_future()
        self.started = time.monotonic()
        self.waited_seconds = 0.0  # at the provider, before it began
        self._waits_since: float | None = None
        self.seq = 0
        self.progress_sent_at = 0.0
        self.preview_sent_at = 0.0
        self.flush: asyncio.TimerHandle | None = None
        self.answered = asyncio.Event()  # unset while money is on its way to the provider
        self.answered.set()

    @property
    def is_ours(self) -> bool:
        return self._lease.is_live and not self.interrupted.done()

    @property
    def seconds(self) -> float:
        return round(time.monotonic() - self.started, 3)

    def waits(self, is_waiting: bool) -> None:
        """Whether the provider has begun with it, from now on."""
        now = time.monotonic()
        if self._waits_since is not None:
            self.waited_seconds += now - self._waits_since
        self._waits_since = now if is_waiting else None

    def interrupt(self, why: Interruption) -> None:
        if not self.interrupted.done():
            self.interrupted.set_result(why)

    @property
    def progressed(self) -> Progressed:
        return Progressed(self.job.id, self.job.attempt, self.progress, self.stage, self.message)
