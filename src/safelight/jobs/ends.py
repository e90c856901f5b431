"""How attempts end: the half of `service.py` that brings jobs to an end, or back to their line.

One conditional UPDATE each, with the attempt's row and what was made in the same transaction. A late writer changes
nothing, because each asks for the attempt that it ends.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol, assert_never

from sqlalchemy import ColumnElement, Select, and_, exists, func, select, update

from safelight.artifacts import Artifact
from safelight.db import Tx, db_now
from safelight.jobs import availability, events, lookup, presence, step
from safelight.jobs.availability import BreakerPolicy, Verdict
from safelight.jobs.events import JobEvent
from safelight.jobs.follower import Follower
from safelight.jobs.job import PENDING, PROCESSING, QUEUE_OF_KIND, WAITING, Job, Outcome, attempts, jobs
from safelight.jobs.settlement import (
    Cancelled,
    Completed,
    Defer,
    Failed,
    HandBack,
    Settlement,
    TryAgain,
    Unreached,
    job_error,
    time_limit_error,
)
from safelight.jobs.statements import statements

ISOLATED = "isolated"
ALONE = (ISOLATED, "imports")  # queues whose jobs have a process each
MAX_CRASHES = 3
OVERDUE_GRACE_SECONDS = 5.0
RECOVERY_BATCH = 200
MAX_DEFERRALS = 100  # beyond this they count as retries: nothing goes round for ever
MAX_OUTAGES = 100  # of its provider that a job may meet, likewise; each may be as long as it is
MAX_PAUSE_DOUBLINGS = 5


class Announcer(Protocol):
    """Where events, hints and nudges go once they are committed, and who hears of jobs that wait for dispatch (one of
    those accepted together). None of them waits or fails."""

    def event(self, job: Job, event: JobEvent) -> None: ...

    def hint(self, job: Job) -> None: ...

    def waits(self, job: Job) -> None: ...

    def nudge(self, job_id: str) -> None: ...


class Ends:
    """How attempts end: by their workers, or by dispatch when nobody else is there to end them."""

    def __init__(
        self,
        announcer: Announcer,
        followers: Sequence[Follower] = (),
        *,
        breaker: BreakerPolicy | None = None,
        pause_seconds: float = 5.0,
        provider_wait_seconds: float = 900.0,
    ) -> None:
        """`pause_seconds`: how long a provider is left alone that asks for a pause and does not say how long.

        `provider_wait_seconds`: how long jobs wait for one that cannot be reached.
        """
        self._announcer = announcer
        self._followers = tuple(followers)
        self._breaker = breaker or BreakerPolicy()
        self._pause_seconds = pause_seconds
        self._provider_wait_seconds = provider_wait_seconds

    # --- by its worker ------------------------------------------------------------------------------------------------

    def settle(self, tx: Tx, job: Job, settlement: Settlement, verdict: Verdict | None = None) -> Job | None:
        """Bring the attempt whose claim returned `job` to its end. None: it was no longer this attempt's to end.

        `verdict` is what the attempt tells of its provider, if anything.
        """
        settled = self._settle(tx, job, settlement, is_probe=verdict == "failed" and availability.is_probe(tx, job))
        if settled is not None:
            if verdict == "failed":
                availability.failed(tx, job, self._breaker)
            elif verdict == "worked" and not isinstance(settlement, Completed):
                availability.worked(tx, job.provider)
        return settled

    def complete(self, tx: Tx, ends: Sequence[tuple[Job, Sequence[Artifact]]]) -> list[Job | None]:
        """Bring these attempts to their end with what they made; their providers have worked. None as in `settle`."""
        made = {(job.id, job.attempt): artifacts for job, artifacts in ends}
        is_last = not any(self._is_followed(job) for job, _ in ends)
        completed = {(job.id, job.attempt): job for job in statements(tx).complete(tx, made, is_last=is_last)}
        for key, job in completed.items():
            self._settled(tx, job, made[key])
        return [completed.get((job.id, job.attempt)) for job, _ in ends]

    def _settle(self, tx: Tx, job: Job, settlement: Settlement, *, is_probe: bool) -> Job | None:
        attempt = step.ours(job.id, job.attempt)
        match settlement:
            case Completed(artifacts=made):
                return self.complete(tx, [(job, made)])[0]
            case Failed(error=error):
                return self._end(tx, step.FAIL, {**attempt, **_because(error)}, "failed", error)
            case Cancelled():
                return self._end(tx, step.CANCEL, attempt, "cancelled", None)
            case TryAgain(error=error, keeps_provider_job=keeps) if is_probe and _deferrals(tx, job) < MAX_DEFERRALS:
                # It tried for all, and shall not pay for that.
                return self._give_back(tx, job, "deferred", error, forget=not keeps)
            case TryAgain():
                return self._try_again(tx, job, settlement)
            case Defer(error=error, after_seconds=after, keeps_provider_job=keeps):
                return self._defer(tx, job, error, after, keeps=keeps)
            case Unreached(error=error, keeps_provider_job=keeps):
                return self._await_provider(tx, job, error, keeps=keeps)
            case HandBack():
                return self._give_back(tx, job, "handed_back", None, queue=job.queue, forget=False)
            case _:
                assert_never(settlement)

    def _try_again(self, tx: Tx, job: Job, again: TryAgain) -> Job | None:
        error = again.error
        tried = lookup.attempts_of(tx, job.id) if again.is_last_if_again else ()
        if any(each.error is not None and each.error["code"] == error["code"] for each in tried):
            return self._fail(tx, job, {**error, "retryable": False})
        if not again.counts or job.retries_here < job.max_retries:
            message = f"Trying again in {again.after_seconds:.0f} s: {error.get('message', '')}"
            return self._give_back(
                tx,
                job,
                "retry",
                error,
                message=message,
                after=again.after_seconds,
                retries=int(again.counts),
                forget=not again.keeps_provider_job,
            )
        if again.may_move and job.route:
            unavailable = availability.unavailable_of(availability.read_states(tx))
            place = availability.next_available(job.route, unavailable) or 0
            if availability.move(tx, job, place, error["code"], error["message"], unavailable):
                return self._give_back(tx, job, "moved", error)
        return self._fail(tx, job, error)

    def _defer(
        self, tx: Tx, job: Job, error: Mapping[str, Any], after_seconds: float | None, *, keeps: bool
    ) -> Job | None:
        deferrals = _deferrals(tx, job)
        if after_seconds is None:
            after_seconds = self._pause_seconds * 2.0 ** min(deferrals, MAX_PAUSE_DOUBLINGS)
        if deferrals < MAX_DEFERRALS:
            settled = self._give_back(tx, job, "deferred", error, forget=not keeps)
        else:
            settled = self._try_again(tx, job, TryAgain(error, after_seconds, keeps, may_move=True))
        if settled is not None:
            availability.pause(tx, job.provider, after_seconds, error["message"])
        return settled

    def _await_provider(self, tx: Tx, job: Job, error: Mapping[str, Any], *, keeps: bool) -> Job | None:
        since = availability.unreachable_since(tx, job.provider)
        if _outages(tx, job, since) < MAX_OUTAGES:
            settled = self._give_back(tx, job, "unreachable", error, forget=not keeps)
        else:
            settled = self._try_again(tx, job, TryAgain(error, self._pause_seconds, keeps, may_move=not keeps))
        if settled is not None:
            availability.unreachable(tx, job, error["message"])
        return settled

    def _give_back(
        self,
        tx: Tx,
        job: Job,
        outcome: Outcome,
        error: Mapping[str, Any] | None,
        *,
        message: str | None = None,
        after: float | None = None,
        queue: str | None = None,
        retries: int = 0,
        crashes: int = 0,
        forget: bool = True,
    ) -> Job | None:
        """Back to pending: in its old place in the line, or due in `after` seconds."""
        back: dict[str, Any] = {
            "b_message": message or events.RETURNED[outcome],
            "b_error": None if error is None else dict(error),
            "b_after": after,
            "b_retries": retries,
            "b_crashes": crashes,
            "b_queue": queue or QUEUE_OF_KIND[job.kind],  # it outlived isolation, if it was there
            "b_forget": int(forget),
        }
        return self._end(tx, step.RETURN, {**step.ours(job.id, job.attempt), **back}, outcome, error)

    # --- by dispatch, when nobody else is there to do it --------------------------------------------------------------

    def recover_lost(self, tx: Tx) -> list[Job]:
        """Bury the workers whose lease ran out, gone or frozen, and bring back a bite of what they ran."""
        presence.bury_workers(tx)
        lost = select(*jobs.c).where(PROCESSING, jobs.c.worker_id.in_(presence.lost_workers(tx)))
        return [
            moved
            for row in tx.execute(_some(lost.order_by(jobs.c.started_at)))
            if (moved := self._recover(tx, Job.of(row))) is not None
        ]

    def fail_overdue(self, tx: Tx) -> list[Job]:
        """Fail what ran past its hard limit although its worker still renews the lease."""
        overdue = select(*jobs.c).where(
            jobs.c.status == "processing", jobs.c.deadline_at < db_now(-OVERDUE_GRACE_SECONDS)
        )
        return [
            moved
            for row in tx.execute(_some(overdue))
            if (moved := self._fail(tx, Job.of(row), time_limit_error(Job.of(row)))) is not None
        ]

    def fail_unstarted(self, tx: Tx) -> list[Job]:
        """Fail what could not start within the time its maker gave it."""
        late = select(*jobs.c).where(is_unstarted())
        reason = "The job could not start within the time given."
        return self._fail_pending(tx, late, "start_deadline_exceeded", reason)

    def fail_unreachable(self, tx: Tx) -> list[Job]:
        """Fail what waited long enough for a provider that cannot be reached."""
        failed: list[Job] = []
        for provider, reason in availability.given_up(tx, self._provider_wait_seconds):
            late = select(*jobs.c).where(self._waited_for(provider)).order_by(jobs.c.queued_at)
            failed += self._fail_pending(tx, late, "provider_unavailable", reason)
        return failed

    def has_unreachable(self, tx: Tx) -> bool:
        """Whether there is something for `fail_unreachable`."""
        gone = availability.given_up(tx, self._provider_wait_seconds)
        return any(tx.execute(select(exists().where(self._waited_for(name)))).scalar_one() for name, _ in gone)

    def _waited_for(self, provider: str) -> ColumnElement[bool]:
        return and_(WAITING, jobs.c.provider == provider, jobs.c.queued_at <= db_now(-self._provider_wait_seconds))

    def _fail_pending(self, tx: Tx, late: Select[*tuple[Any, ...]], code: str, reason: str) -> list[Job]:
        failed: list[Job] = []
        for job in map(Job.of, tx.execute(_some(late))):
            error = job_error(code, reason, job, True)
            late_one = {**step.ours(job.id, job.attempt), "b_status": "pending", **_because(error)}
            for moved in map(Job.of, tx.run(step.FAIL.move, late_one)):
                self._settled(tx, moved, ())
                failed.append(moved)
        return failed

    # --- within -------------------------------------------------------------------------------------------------------

    def _recover(self, tx: Tx, job: Job) -> Job | None:
        """Back to its queue at first, since one machine takes hundreds with it; a suspect goes to a process alone."""
        is_suspect = _losses(tx, job) > 0
        crashed_alone = is_suspect and job.queue in ALONE
        error = job_error("worker_lost", "The worker that ran this job was lost.", job, True)
        if crashed_alone and job.crash_count + 1 >= MAX_CRASHES and job.cancel_requested_at is None:
            error = job_error(
                "worker_lost",
                f"The job was in {MAX_CRASHES} workers of its own that died; it will not be tried again.",
                job,
                True,
            )
            tx.execute(update(jobs).where(jobs.c.id == job.id).values(crash_count=jobs.c.crash_count + 1))
            return self._end(tx, step.FAIL, {**step.ours(job.id, job.attempt), **_because(error)}, "lost", error)
        queue = ISOLATED if is_suspect and job.queue not in ALONE else job.queue
        return self._give_back(tx, job, "lost", error, queue=queue, crashes=int(crashed_alone), forget=False)

    def _fail(self, tx: Tx, job: Job, error: Mapping[str, Any]) -> Job | None:
        return self._end(tx, step.FAIL, {**step.ours(job.id, job.attempt), **_because(error)}, "failed", error)

    def _end(
        self,
        tx: Tx,
        end: step.End,
        parameters: Mapping[str, Any],
        outcome: Outcome,
        error: Mapping[str, Any] | None,
    ) -> Job | None:
        """One attempt's end: status and attempt row together; late writers change nothing."""
        job = statements(tx).end(tx, end, parameters, outcome, dict(error) if error is not None else None)
        if job is not None:
            self._settled(tx, job, ())
        return job

    def _is_followed(self, job: Job) -> bool:
        return any(follower.concerns(job) for follower in self._followers)

    def _settled(self, tx: Tx, job: Job, made: Sequence[Artifact]) -> None:
        for follower in self._followers:
            follower.settled(tx, job)
        tx.on_commit(lambda: self._announcer.event(job, events.of_state(job, made)))


def is_unstarted() -> ColumnElement[bool]:
    """Past the time given for its start; an attempt that its provider turned away was none."""
    outcome = attempts.c.outcome
    was_try = and_(outcome.is_distinct_from("deferred"), outcome.is_distinct_from("unreachable"))
    tried = exists().where(attempts.c.job_id == jobs.c.id, was_try)
    return and_(PENDING, jobs.c.start_deadline_at < db_now(), ~tried)


def _deferrals(tx: Tx, job: Job) -> int:
    deferred = select(func.count()).where(attempts.c.job_id == job.id, attempts.c.outcome == "deferred")
    return tx.execute(deferred).scalar_one()


def _outages(tx: Tx, job: Job, since: datetime | None) -> int:
    """How many outages of its provider the job met before the one that began then, if one goes on."""
    met = [attempts.c.job_id == job.id, attempts.c.outcome == "unreachable"]
    if since is not None:
        met.append(attempts.c.finished_at < since)
    return tx.execute(select(func.count()).where(*met)).scalar_one()


def _losses(tx: Tx, job: Job) -> int:
    """How many workers were lost under it before."""
    lost = select(func.count()).where(attempts.c.job_id == job.id, attempts.c.outcome == "lost")
    return tx.execute(lost).scalar_one()


def _because(error: Mapping[str, Any]) -> dict[str, Any]:
    return {"b_message": error["message"], "b_error": dict(error)}


def _some(statement: Any) -> Any:
    """A bounded bite; rows that another transaction is changing are left to it (PostgreSQL)."""
    return statement.limit(RECOVERY_BATCH).with_for_update(skip_locked=True)
