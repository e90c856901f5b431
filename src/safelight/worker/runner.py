"""The story of an attempt: claim, generate, store, settle.

The runner walks a provider's updates and alone turns them into state. It holds no transaction while it waits, checks
its lease before every effect outside, and enforces the limits itself: at the soft limit the job is failed first and
its code stopped then; at the hard limit the slot is freed whatever the code does.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Literal, assert_never

import structlog
from structlog.contextvars import bound_contextvars

from safelight.artifacts import Artifact, ArtifactStore, BadMedia
from safelight.db import Database
from safelight.errors import Unavailable
from safelight.jobs import (
    Cancelled,
    Claim,
    Completed,
    Failed,
    HandBack,
    Jobs,
    Settlement,
    Verdict,
    describe_artifact,
    is_held,
    job_error,
    reached,
    time_limit_error,
)
from safelight.jobs.events import news
from safelight.pictures import BadPicture
from safelight.providers.base import (
    Accepted,
    BadOutput,
    Generation,
    Output,
    Preview,
    Progress,
    ProviderError,
    Reserved,
    Submitting,
    UnknownOutcome,
    Update,
)
from safelight.providers.registry import Registry
from safelight.stream import Stream
from safelight.worker.attempt import RunningAttempt
from safelight.worker.inputs import InputImages
from safelight.worker.judgement import Judge
from safelight.worker.lease import Lease
from safelight.worker.request import log_fields, mark_of

PROGRESS_SECONDS = 0.25
PREVIEW_SECONDS = 0.5
STOP_SECONDS = 1.0  # how long a cancelled job's code may take before the row is settled without it
SUBMIT_SECONDS = 2.0  # how long a stop waits for the answer to a submit under way
CANCEL_PROVIDER_SECONDS = 10.0
SETTLE_AGAIN_SECONDS = (0.2, 0.5, 1.0, 2.0)
OUTAGE_SECONDS = 1.0  # before the database is asked again

MAX_SEED = 2**63 - 1  # what a row can hold

log = structlog.get_logger()


class LeaseLost(Exception):
    """The job may be somebody else's by now; nothing more may be done for it."""


class Runner:
    """Runs attempts on one event loop; its heartbeat (`heartbeat.py`) keeps `attempts` alive."""

    def __init__(
        self,
        *,
        database: Database,
        jobs: Jobs,
        stream: Stream,
        artifacts: ArtifactStore,
        providers: Registry,
        inputs: InputImages,
        lease: Lease,
        worker_name: str,
        retry_seconds: float,
    ) -> None:
        self._database = database
        self._jobs = jobs
        self._stream = stream
        self._artifacts = artifacts
        self._providers = providers
        self._inputs = inputs
        self._lease = lease
        self._worker_name = worker_name
        self._judge = Judge(retry_seconds)
        self.attempts: dict[str, RunningAttempt] = {}
        self.abandoned = 0  # bodies that swallowed their cancellation and may still run
        self.is_draining = False
        self._claiming = 0
        self._empty = asyncio.Event()

    async def run(self, job_id: str, queue: str) -> None:
        """Carry out one hint: from the claim to the settled row. Never raises."""
        with bound_contextvars(job_id=job_id, task_id=job_id):
            try:
                if self.is_draining or not self._lease.is_live:
                    await self._database.write(self._jobs.decline, job_id)
                    return
                attempt = await self._claim(job_id, queue)
            except Unavailable as error:
                log.warning("hint.unused", reason=error.detail)  # dispatch will send another
                return
            if attempt is None:
                log.debug("hint.outdated", queue=queue)
                return
            job = attempt.job
            with bound_contextvars(**log_fields(job)):
                try:
                    await self._execute(attempt)
                except Exception:
                    log.exception("attempt.broken")  # the lease will run out and the job be recovered
                finally:
                    if self.attempts.get(job.id) is attempt:
                        del self.attempts[job.id]
                    self._tell_if_empty()

    async def _claim(self, job_id: str, queue: str) -> RunningAttempt | None:
        """Take the job, and keep it alive from then on; None: the hint was outdated."""
        claim = Claim(job_id, queue, self._lease.worker_id, self._worker_name)
        self._claiming += 1  # a drain waits for it: what it takes has to be run or handed back
        try:
            # Whoever would remember a claim that SQLite forgot died with the machine; and before anything may cost
            # money, that is written down for good, and this with it.
            job = await self._database.write_one(self._jobs.claim, claim, is_forgettable=True)
            if job is None:
                return None
            attempt = self.attempts[job.id] = RunningAttempt(job, self._lease)
            return attempt
        finally:
            self._claiming -= 1
            self._tell_if_empty()

    def _tell_if_empty(self) -> None:
        if not self.attempts and not self._claiming:
            self._empty.set()

    async def drain(self, grace_seconds: float) -> None:
        """Take nothing new, let running jobs finish for a while, then hand the rest back."""
        self.is_draining = True
        await self._emptied(grace_seconds)
        for attempt in list(self.attempts.values()):
            attempt.interrupt("drain")
        await self._emptied(SUBMIT_SECONDS + STOP_SECONDS + 1)

    async def _emptied(self, seconds: float) -> None:
        self._empty = asyncio.Event()
        if self.attempts or self._claiming:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._empty.wait()

    # --- one attempt --------------------------------------------------------------------------------------------------

    async def _execute(self, attempt: RunningAttempt) -> None:
        job, asked = attempt.job, attempt.job.parameters
        log.info(
            "job.started",
            provider=job.provider,
            model=asked.model,
            mocked=job.mocked,
            width=asked.width,
            height=asked.height,
            batch_size=asked.batch_size,
            seed=asked.seed,
            prompt=asked.prompt[:200],
            queued_seconds=round((job.started_at - job.run_at).total_seconds(), 3) if job.started_at else None,
            adopts=job.provider_job_id,
        )
        body = asyncio.create_task(self._generate(attempt), name=f"job {job.id}")
        await asyncio.wait({body, attempt.interrupted}, timeout=job.soft_limit_seconds, return_when="FIRST_COMPLETED")
        slot_seconds = max(0.0, job.hard_limit_seconds - job.soft_limit_seconds)
        if body.done():
            await self._settle(attempt, self._result_of(attempt, body), attempt.verdict)
        elif not attempt.interrupted.done():
            await self._settle(attempt, Failed(time_limit_error(job)))
            body.cancel()
            await self._cancel_at_provider(attempt)
            await self._stopped(body, slot_seconds)
        else:
            if attempt.interrupted.result() != "lost" and not attempt.answered.is_set():
                # A moment for the answer, or nobody will ever know whether the job was taken and paid.
                answered = asyncio.create_task(attempt.answered.wait())
                await asyncio.wait({body, answered}, timeout=SUBMIT_SECONDS, return_when="FIRST_COMPLETED")
                answered.cancel()
            body.cancel()
            await asyncio.wait({body}, timeout=STOP_SECONDS)
            match attempt.interrupted.result():
                case "cancel":
                    await self._settle(attempt, Cancelled())
                    await self._cancel_at_provider(attempt)
                    await self._stopped(body, slot_seconds)
                case "drain":
                    await self._settle(attempt, HandBack())
                case "lost":
                    log.warning("attempt.lost", seconds=attempt.seconds)
                    await self._stopped(body, slot_seconds)
        if attempt.flush is not None:
            attempt.flush.cancel()

    async def _generate(self, attempt: RunningAttempt) -> Settlement:
        """Walk the provider's updates to the outcome."""
        job = attempt.job
        made: list[Artifact] = []
        try:
            async with contextlib.aclosing(await self._updates(attempt)) as updates:
                async for update in updates:
                    await self._take(attempt, update, made)
            if not made:
                raise BadOutput("The provider ended without a result.")
            await self._record_run(attempt)
            return Completed(made)
        except ProviderError as error:
            return self._judge.of(attempt, error)
        except (BadPicture, BadMedia) as error:
            return self._judge.of(attempt, BadOutput(error.detail))
        except Unavailable as error:
            # The failure is ours (database, storage): the provider's job is well, and the next attempt adopts it.
            ours = job_error(error.code, error.detail, job, error.kind == "unavailable")
            if error.kind != "unavailable":  # a storage that refuses us: not before somebody has seen to it
                return Failed(ours)
            return self._judge.again(attempt, ours, error.retry_after, keeps_provider_job=True)
        except LeaseLost:
            return HandBack()  # refused by the row if it is somebody else's already
        except Exception as error:
            log.exception("provider.broke")
            problem = f"The provider failed in an unexpected way ({type(error).__name__})."
            return self._judge.again(attempt, job_error("provider_error", problem, job, True), keeps_provider_job=True)

    async def _updates(self, attempt: RunningAttempt) -> AsyncGenerator[Update]:
        job = attempt.job
        provider = self._providers.resolve(job.provider)[1]
        if job.provider_job_id is None and job.submitting_at is not None:
            raise UnknownOutcome("An earlier attempt died while it submitted the job; it may have been charged.")
        images = await self._inputs.load(job.parameters.pictures, job.owner_id)
        generation = Generation(job.id, job.attempt, job.parameters, job.soft_limit_seconds, images, attempt.woken)
        if job.provider_job_id is not None:
            log.info("provider.adopted", provider_job_id=job.provider_job_id)
            return provider.resume(generation, job.provider_job_id)
        return provider.generate(generation)

    async def _take(self, attempt: RunningAttempt, update: Update, made: list[Artifact]) -> None:
        """Turn one update into state."""
        job = attempt.job
        if attempt.is_unanswered and not isinstance(update, Reserved):
            attempt.is_unanswered = False
            with contextlib.suppress(Unavailable):
                await self._database.write(reached, job.provider)
        match update:
            case Submitting():
                if not await self._database.write(self._jobs.record_submitting, job.id, job.attempt):
                    raise LeaseLost
                attempt.may_be_paid = True
                attempt.answered.clear()
            case Reserved(remote_id=remote_id) | Accepted(remote_id=remote_id):
                attempt.remote_id = remote_id
                has_it = isinstance(update, Accepted)
                attempt.is_unanswered = not has_it
                if not await self._record_remote_id(attempt, remote_id, job.provider if has_it else None):
                    raise LeaseLost
                if has_it:
                    attempt.is_taken = True
                    attempt.answered.set()
                log.info(f"provider.{type(update).__name__.lower()}", provider_job_id=remote_id)
            case Progress(percent=percent, stage=stage, message=message, is_waiting=is_waiting):
                attempt.waits(is_waiting)
                known = attempt.progress, attempt.stage, attempt.message
                if percent is not None:
                    attempt.progress = max(attempt.progress or 0, min(100, percent))
                attempt.stage, attempt.message = stage, message
                if known != (attempt.progress, stage, message):  # who polls says the same again and again
                    self._tell_progress(attempt)
            case Preview(data=data, content_type=content_type):
                self._tell_preview(attempt, data, content_type)
            case Output(data=data):
                try:
                    await self._store(attempt, update, made)
                finally:
                    if isinstance(data, Path):
                        await asyncio.to_thread(data.unlink, missing_ok=True)
            case _:
                assert_never(update)

    async def _store(self, attempt: RunningAttempt, output: Output, made: list[Artifact]) -> None:
        job, seed = attempt.job, output.seed
        await self._hold(attempt)
        attempt.stage, attempt.message = "storing", "Storing the result"
        artifact = await self._artifacts.store(
            job_id=job.id,
            attempt=job.attempt,
            position=len(made),
            owner_id=job.owner_id,
            data=output.data,
            mark=mark_of(job, seed),
            seed=job.parameters.seed if seed is None else seed if seed <= MAX_SEED else None,
            details=output.details,
        )
        made.append(artifact)
        log.info(
            "artifact.stored",
            artifact_id=artifact.id,
            storage_key=artifact.storage_key,
            size_bytes=artifact.size_bytes,
        )
        self._publish(attempt, "job.output")

    async def _record_remote_id(self, attempt: RunningAttempt, remote_id: str, accepted_by: str | None) -> bool:
        """Write the provider's id down, through any outage of the database: forgetting it would mean to pay twice."""
        while True:
            try:
                return await self._database.write(
                    self._jobs.record_remote_id, attempt.job.id, attempt.job.attempt, remote_id, accepted_by
                )
            except Unavailable as error:
                log.warning("remote_id.waiting", provider_job_id=remote_id, reason=error.detail)
                await asyncio.sleep(OUTAGE_SECONDS)

    async def _record_run(self, attempt: RunningAttempt) -> None:
        """Estimates are learnt from the provider's own time: without its queue, and not from the end of a run alone."""
        is_adopted = attempt.job.provider_job_id is not None
        if not is_adopted and not attempt.waited_seconds:
            return
        seconds = None if is_adopted else attempt.seconds - attempt.waited_seconds
        with contextlib.suppress(Unavailable):
            await self._database.write(self._jobs.record_run, attempt.job.id, attempt.job.attempt, seconds)

    async def _hold(self, attempt: RunningAttempt) -> None:
        """Before an effect outside: if the lease ran out here (a frozen process, a database away), ask the row."""
        while not attempt.is_ours:
            if attempt.interrupted.done():
                raise LeaseLost
            try:
                if not await self._database.read(is_held, attempt.job.id, attempt.job.attempt):
                    raise LeaseLost
                return
            except Unavailable:
                await asyncio.sleep(OUTAGE_SECONDS)

    async def _settle(self, attempt: RunningAttempt, settlement: Settlement, verdict: Verdict | None = None) -> None:
        """Write the end down, through any outage of the database, unless the row is no longer ours."""
        pauses = iter(SETTLE_AGAIN_SECONDS)
        pause = 0.0
        while True:
            try:
                if isinstance(settlement, Completed):
                    done = attempt.job, settlement.artifacts
                    job = await self._database.write_one(self._jobs.complete, done)
                else:
                    job = await self._database.write(self._jobs.settle, attempt.job, settlement, verdict)
                break
            except Unavailable as error:
                pause = next(pauses, pause)
                log.warning("settle.waiting", reason=error.detail)
                await asyncio.sleep(pause)
            except Exception:
                if isinstance(settlement, Failed):
                    raise
                log.exception("settle.refused")
                problem = "The result could not be recorded."
                settlement = Failed(job_error("internal_error", problem, attempt.job, False))
        if job is None:
            log.warning("attempt.refused", outcome=type(settlement).__name__, seconds=attempt.seconds)
        else:
            made = settlement.artifacts if isinstance(settlement, Completed) else ()
            log.info(
                "attempt.settled",
                status=job.status,
                seconds=attempt.seconds,
                retry_count=job.retry_count,
                urls=[describe_artifact(artifact)["url"] for artifact in made],
            )

    async def _stopped(self, body: asyncio.Task[Settlement], seconds: float) -> None:
        """Keep the slot until the cancelled code has ended, or for `seconds` if it never does."""
        if not body.done():
            await asyncio.wait({body}, timeout=seconds)
        if not body.done():
            self.abandoned += 1
            log.error("attempt.abandoned", reason="its code swallowed the cancellation", abandoned=self.abandoned)

    async def _cancel_at_provider(self, attempt: RunningAttempt) -> None:
        if attempt.remote_id is None:
            return
        try:
            async with asyncio.timeout(CANCEL_PROVIDER_SECONDS):
                await self._providers.resolve(attempt.job.provider)[1].cancel(attempt.remote_id)
            log.info("provider.cancelled", provider_job_id=attempt.remote_id)
        except Exception as error:
            log.warning("provider.cancel_failed", provider_job_id=attempt.remote_id, reason=repr(error))

    # --- judging ------------------------------------------------------------------------------------------------------

    def _result_of(self, attempt: RunningAttempt, body: asyncio.Task[Settlement]) -> Settlement:
        if body.cancelled():
            problem = job_error("provider_error", "The provider cancelled its own work.", attempt.job, True)
            return self._judge.again(attempt, problem, keeps_provider_job=True)
        return body.result()

    # --- telling ------------------------------------------------------------------------------------------------------

    def _tell_progress(self, attempt: RunningAttempt) -> None:
        """At most one every `PROGRESS_SECONDS`; the last one is always sent."""
        if attempt.flush is not None:
            return
        due = attempt.progress_sent_at + PROGRESS_SECONDS - time.monotonic()
        if due <= 0:
            self._publish(attempt, "job.progress")
        else:
            attempt.flush = asyncio.get_running_loop().call_later(due, self._publish, attempt, "job.progress")

    def _tell_preview(self, attempt: RunningAttempt, data: bytes, content_type: str) -> None:
        now = time.monotonic()
        if now - attempt.preview_sent_at < PREVIEW_SECONDS:
            return
        attempt.preview_sent_at = now
        name = f"{attempt.job.attempt}-{attempt.seq + 1}"
        self._stream.put_preview(attempt.job.id, name, data, content_type)
        self._publish(attempt, "job.preview", f"/api/v1/generation-jobs/{attempt.job.id}/previews/{name}")

    def _publish(
        self,
        attempt: RunningAttempt,
        kind: Literal["job.progress", "job.preview", "job.output"],
        preview_url: str | None = None,
    ) -> None:
        if kind == "job.progress":
            attempt.flush = None
            attempt.progress_sent_at = time.monotonic()
        if not attempt.is_ours:
            return
        attempt.seq += 1
        event = news(
            attempt.job,
            kind,
            seq=attempt.seq,
            progress=attempt.progress,
            stage=attempt.stage,
            message=attempt.message,
            preview_url=preview_url,
        )
        payload = event.as_json()
        result = event.as_celery_result()
        self._stream.publish(event.job_id, event.task_id, event.as_message(payload), payload, result, event.batch_id)
