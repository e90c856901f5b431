"""What can be done to a job. The only writer of `status`, and only along the transition table.

Every method here is a transaction (`await database.write(jobs.cancel, ...)`): plain code over rows. Each change of
state is one conditional UPDATE that raises `version` by one; nothing updated means that somebody else was first. What
must follow the commit, an event or a hint, is a note on the transaction.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Any, Protocol, assert_never

from sqlalchemy import ColumnElement, Select, and_, bindparam, exists, func, select, update

from safelight import artifacts as results
from safelight.artifacts import Artifact
from safelight.db import Tx, db_now
from safelight.errors import FieldError, SafelightError
from safelight.jobs import availability, batch, events, idempotency, lookup, step
from safelight.jobs.availability import BreakerPolicy, Verdict
from safelight.jobs.batch import BatchDeleted, BatchEnded, BatchNotFound, NewBatch, Standing, SubmittedBatch
from safelight.jobs.events import JobEvent
from safelight.jobs.follower import Follower
from safelight.jobs.idempotency import IdempotencyKeyReused
from safelight.jobs.job import (
    PENDING,
    QUEUE_OF_KIND,
    WAITING,
    Job,
    JobDeleted,
    JobEnded,
    JobNotFound,
    NewJob,
    Outcome,
    attempts,
    has_status,
    jobs,
)
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

ISOLATED = "isolated"
ALONE = (ISOLATED, "imports")  # queues whose jobs have a process each
MAX_CRASHES = 3
OVERDUE_GRACE_SECONDS = 5.0
RECOVERY_BATCH = 200
CANCEL_BITE = 100  # each is an event to be told by the loop
MAX_FIELD_ERRORS = 50
MAX_DEFERRALS = 100  # beyond this they count as retries: nothing goes round for ever
MAX_OUTAGES = 100  # of its provider that a job may meet, likewise; each may be as long as it is
MAX_PAUSE_DOUBLINGS = 5


class InputImageMissing(SafelightError):
    """There is no such picture."""

    kind = "invalid"
    code = "invalid_request"


@dataclass(frozen=True, slots=True)
class Claim:
    """A hint that a worker wants to carry out."""

    job_id: str
    queue: str
    worker_id: str
    worker_name: str
    lease_seconds: float


@dataclass(frozen=True, slots=True)
class Submitted:
    job: Job
    replayed: bool


class Announcer(Protocol):
    """Where events, hints and nudges go once they are committed, and who hears of jobs that wait for dispatch (one of
    those accepted together). None of them waits or fails."""

    def event(self, job: Job, event: JobEvent) -> None: ...

    def hint(self, job: Job) -> None: ...

    def waits(self, job: Job) -> None: ...

    def nudge(self, job_id: str) -> None: ...


class Jobs:
    """The transactions on jobs. Rows of other slices follow in those that accept and settle."""

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

    # --- by request ---------------------------------------------------------------------------------------------------

    def submit(self, tx: Tx, new: Sequence[NewJob]) -> list[Submitted | SafelightError]:
        """Accept each of these jobs, or find the one its idempotency key stands for."""
        outcomes: dict[str, Submitted | SafelightError] = {}
        accepted: list[NewJob] = []
        keys: set[tuple[str, str]] = set()
        for each in new:
            if each.idempotency_key is not None:
                key = (each.owner_id, each.idempotency_key)
                if key in keys:
                    outcomes |= self._insert(tx, accepted)  # it has to be found
                    accepted, keys = [], set()
                keys.add(key)
                earlier = _first_with_key(tx, each)
                if earlier is not None:
                    outcomes[each.id] = earlier
                    continue
            missing = _take_inputs(tx, each)
            if missing:
                outcomes[each.id] = _nothing_made(tx, [each], each, missing)
                continue
            accepted.append(each)
        outcomes |= self._insert(tx, accepted, is_last=len(new) == 1)
        return [outcomes[each.id] for each in new]

    def submit_batch(self, tx: Tx, new: NewBatch) -> SubmittedBatch | SafelightError:
        """Accept all these jobs or none, or find the batch that the idempotency key stands for."""
        if new.idempotency_key is not None:
            first = idempotency.reserve(tx, new.owner_id, new.idempotency_key, new.fingerprint, new.id)
            if isinstance(first, str):
                found = batch.look_at_batch(tx, first, new.owner_id)
                return BatchDeleted() if found is None else SubmittedBatch(*found, replayed=True)
            if first is not None:
                return first
        missing: list[FieldError] = []
        for place, each in enumerate(new.jobs):
            missing += _take_inputs(tx, each, f"#/jobs/{place}")
        if missing:
            return _nothing_made(tx, new.jobs, new, missing)
        self._insert(tx, [replace(each, values={**each.values, "batch_id": new.id}) for each in new.jobs])
        made = batch.insert_batch(tx, new)
        return SubmittedBatch(made, Standing.fresh(made.total), [each.id for each in new.jobs], replayed=False)

    def _insert(self, tx: Tx, accepted: Sequence[NewJob], *, is_last: bool = False) -> dict[str, Submitted]:
        if not accepted:
            return {}
        rows: dict[str, dict[str, Any]] = {
            each.id: {
                **step.GIVEN,
                **step.FRESH,
                **each.values,
                "id": each.id,
                "celery_task_id": each.id,
                "kind": each.kind,
                "owner_id": each.owner_id,
                "tier": each.tier,
                "queue": each.queue,
                "hint_count": int(each.hint),
            }
            for each in accepted
        }
        times = [
            {
                "run_at_or_now": each.run_at,
                "start_within": each.start_within_seconds,
                "b_priority": each.values["priority"],
                "hint_moved": 0.0 if each.hint else None,
            }
            for each in accepted
        ]
        awaited = [(follower, [each.id for each in accepted if follower.awaits(each)]) for follower in self._followers]
        is_last = is_last and not any(ids for _, ids in awaited)
        full = [row | moments for row, moments in zip(rows.values(), times, strict=True)]
        made: dict[str, Job] = {}
        for clock in tx.run_last(step.INSERT, full[0]) if is_last else tx.run_each(step.INSERT, full):
            values: dict[str, Any] = {**step.BLANK, **rows[clock[0]], **dict(zip(step.CLOCKS, clock, strict=True))}
            made[clock[0]] = Job(**values)
        for each in accepted:
            if each.hint:
                tx.on_commit(partial(self._announcer.hint, made[each.id]))
        for follower, ids in awaited:
            if ids:
                follower.accepted(tx, [made[job_id] for job_id in ids])
        waiting = next((made[each.id] for each in accepted if not each.hint), None)
        if waiting is not None:
            tx.on_commit(partial(self._announcer.waits, waiting))
        # No event: nobody can be watching a job whose id has not been told yet.
        return {job_id: Submitted(job, replayed=False) for job_id, job in made.items()}

    def cancel(self, tx: Tx, job_id: str, owner_id: str) -> Job | JobNotFound | JobDeleted | JobEnded:
        """End a pending job now; ask the worker of a processing one to stop. Cancelling twice changes nothing."""
        while True:
            row = tx.execute(step.CANCEL_PENDING, {"b_id": job_id, "b_owner": owner_id}).one_or_none()
            if row is not None:
                job = Job.of(row)
                self._settled(tx, job, ())
                return job
            row = tx.execute(step.REQUEST_CANCEL, {"b_id": job_id, "b_owner": owner_id}).one_or_none()
            if row is not None:
                tx.on_commit(lambda: self._announcer.nudge(job_id))
                return Job.of(row)
            job = get(tx, job_id, owner_id)
            if job is None:
                return JobNotFound()
            if job.deleted_at is not None:
                return JobDeleted()
            if job.is_terminal:
                return job if job.status == "cancelled" else JobEnded(f"The job has already {job.status}.")
            # PostgreSQL: it came back to the queue between the two statements. Look again.

    def cancel_batch(self, tx: Tx, batch_id: str, owner_id: str) -> int | BatchNotFound | BatchEnded:
        """End a bite of its waiting jobs now and ask the workers of its running ones to stop.

        Returns how many are left for another call: the rest, and those that another transaction is changing. A batch
        that was cancelled before is no error.
        """
        if batch.get_batch(tx, batch_id, owner_id) is None:
            return BatchNotFound(f"There is no batch {batch_id}.")
        standing = batch.standings(tx, owner_id, [batch_id])[batch_id]
        if standing.is_terminal:
            return 0 if standing.status == "cancelled" else BatchEnded(f"The batch has already {standing.status}.")
        unasked = batch.unasked(batch_id, owner_id)
        bite = tx.execute(unasked.limit(CANCEL_BITE).with_for_update(skip_locked=True)).all()
        waiting = {"b_ids": [row.id for row in bite if row.status == "pending"]}
        for row in tx.execute(step.CANCEL_THESE, waiting).all():
            self._settled(tx, Job.of(row), ())
        running = {"b_ids": [row.id for row in bite if row.status == "processing"]}
        for job_id in tx.execute(step.REQUEST_THESE, running).scalars():
            tx.on_commit(partial(self._announcer.nudge, job_id))
        return tx.execute(select(func.count()).select_from(unasked.order_by(None).subquery())).scalar_one()

    # --- by its worker ------------------------------------------------------------------------------------------------

    def claim(self, tx: Tx, claims: Sequence[Claim]) -> list[Job | None]:
        """Take released jobs for workers; None where there is nothing to take (a doubled or outdated hint)."""
        taken: dict[str, Job] = {}
        alike: dict[Claim, list[str]] = {}
        for each in claims:
            alike.setdefault(replace(each, job_id=""), []).append(each.job_id)
        for kind, ids in alike.items():
            taken |= self._claim(tx, kind, ids, is_alone=len(claims) == 1)
        return [taken.pop(each.job_id, None) for each in claims]

    def _claim(self, tx: Tx, kind: Claim, ids: Sequence[str], *, is_alone: bool) -> dict[str, Job]:
        where = {"b_queue": kind.queue}
        claim = {**where, "b_worker": kind.worker_id, "b_lease": kind.lease_seconds}
        if tx.is_postgresql and is_alone:
            rows = tx.run_last(step.CLAIM_ONE, {**claim, "b_id": ids[0], "b_worker_name": kind.worker_name})
        elif tx.is_postgresql:
            rows = tx.run(step.CLAIM_SOME, {**claim, "b_ids": ids, "b_worker_name": kind.worker_name})
        else:
            rows = [row for job_id in ids for row in tx.run(step.CLAIM, {**claim, "b_id": job_id})]
        taken = {job.id: job for job in map(Job.of, rows)}
        refused = [job_id for job_id in ids if job_id not in taken]  # these hints are used up, were they worth nothing
        if refused and tx.is_postgresql:
            tx.run(step.WITHDRAW_SOME, {**where, "b_ids": refused})
        elif refused:
            tx.run_many(step.WITHDRAW, [{**where, "b_id": job_id} for job_id in refused])
        if taken and not tx.is_postgresql:
            begun = [
                {
                    "job_id": job.id,
                    "number": job.attempt,
                    "worker_id": kind.worker_id,
                    "worker_name": kind.worker_name,
                    "queue": kind.queue,
                    "provider": job.provider,
                    "provider_job_id": job.provider_job_id,
                    "started_version": job.version,
                }
                for job in taken.values()
            ]
            tx.run_many(step.BEGIN_ATTEMPT, begun)
        for job in taken.values():
            tx.on_commit(partial(self._tell, job))
        return taken

    def _tell(self, job: Job) -> None:
        self._announcer.event(job, events.of_state(job))

    def decline(self, tx: Tx, job_id: str) -> None:
        """A leaving worker met a hint: let dispatch send another at once."""
        tx.execute(update(jobs).where(jobs.c.id == job_id, has_status("pending")).values(hinted_at=None))

    def record_submitting(self, tx: Tx, job_id: str, attempt: int) -> bool:
        """Write down that money may be spent from here on. False: the job is no longer this attempt's."""
        statement = update(jobs).where(step.OURS).values(submitting_at=db_now())
        return tx.execute(statement, _ours(job_id, attempt)).rowcount == 1

    def record_remote_id(
        self, tx: Tx, job_id: str, attempt: int, remote_id: str, accepted_by: str | None = None
    ) -> bool:
        """Write down under which id the provider has the job, or will have it: a later attempt goes on from there.

        `accepted_by` names the provider if it has it: so it can be reached. False as above.
        """
        statement = update(jobs).where(step.OURS).values(provider_job_id=remote_id, updated_at=db_now())
        if tx.execute(statement, _ours(job_id, attempt)).rowcount != 1:
            return False
        noted = {"b_id": job_id, "b_attempt": attempt, "b_remote_id": remote_id, "b_provider": accepted_by}
        if tx.is_postgresql:
            tx.run(step.NOTE_REMOTE_ID_AND_REACHED, noted)
        else:
            tx.run(step.NOTE_REMOTE_ID, noted)
            if accepted_by is not None:
                availability.reached(tx, accepted_by)
        return True

    def record_run(self, tx: Tx, job_id: str, attempt: int, seconds: float | None) -> None:
        """The provider's own time for what this attempt made, if that is not the attempt's; None: nobody knows it."""
        learnt = {"run_seconds": seconds} if seconds is not None else {"estimate_key": None}
        tx.execute(update(jobs).where(step.OURS).values(learnt), _ours(job_id, attempt))

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
        if tx.is_postgresql:
            run = tx.run if any(self._is_followed(job) for job, _ in ends) else tx.run_last
            rows = results.as_rows(artifact for artifacts in made.values() for artifact in artifacts)
            if len(made) == 1:
                [(job_id, attempt)] = made
                moved = run(step.COMPLETE_ONE, {**_ours(job_id, attempt), "b_made": rows})
            else:
                whose = {"b_ids": [id for id, _ in made], "b_attempts": [f"{id}/{attempt}" for id, attempt in made]}
                moved = run(step.COMPLETE_SOME, {**whose, "b_made": rows})
        else:
            moved = [row for job, artifacts in ends for row in self._complete_one(tx, job, artifacts)]
        completed = {(job.id, job.attempt): job for job in map(Job.of, moved)}
        for key, job in completed.items():
            self._settled(tx, job, made[key])
        return [completed.get((job.id, job.attempt)) for job, _ in ends]

    def _settle(self, tx: Tx, job: Job, settlement: Settlement, *, is_probe: bool) -> Job | None:
        ours = _ours(job.id, job.attempt)
        match settlement:
            case Completed(artifacts=made):
                return self.complete(tx, [(job, made)])[0]
            case Failed(error=error):
                return self._end(tx, step.FAIL, {**ours, **_because(error)}, "failed", error)
            case Cancelled():
                return self._end(tx, step.CANCEL, ours, "cancelled", None)
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
            closures = availability.closures_of(availability.read_states(tx))
            place = availability.next_open(job.route, closures) or 0
            if availability.move(tx, job, place, error["code"], error["message"], closures):
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
        return self._end(tx, step.RETURN, {**_ours(job.id, job.attempt), **back}, outcome, error)

    # --- by dispatch, when nobody else is there to do it --------------------------------------------------------------

    def recover_lost(self, tx: Tx) -> list[Job]:
        """Bring back the jobs whose lease ran out; their process is gone or frozen."""
        lost = select(*jobs.c).where(jobs.c.status == "processing", jobs.c.lease_until < db_now())
        return [
            moved
            for row in tx.execute(_some(lost.order_by(jobs.c.lease_until)))
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
            ours = {**_ours(job.id, job.attempt), "b_status": "pending", **_because(error)}
            for moved in map(Job.of, tx.run(step.FAIL.alone, ours)):
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
            return self._end(tx, step.FAIL, {**_ours(job.id, job.attempt), **_because(error)}, "lost", error)
        queue = ISOLATED if is_suspect and job.queue not in ALONE else job.queue
        return self._give_back(tx, job, "lost", error, queue=queue, crashes=int(crashed_alone), forget=False)

    def _fail(self, tx: Tx, job: Job, error: Mapping[str, Any]) -> Job | None:
        return self._end(tx, step.FAIL, {**_ours(job.id, job.attempt), **_because(error)}, "failed", error)

    def _end(
        self,
        tx: Tx,
        end: step.End,
        parameters: Mapping[str, Any],
        outcome: Outcome,
        error: Mapping[str, Any] | None,
    ) -> Job | None:
        """One attempt's end: status and attempt row together; late writers change nothing."""
        if_cancelled: Outcome = "lost" if outcome == "lost" else "cancelled"
        how: dict[str, Any] = {"b_attempt_error": dict(error) if error is not None else None}
        if tx.is_postgresql:
            rows = tx.run(end.with_attempt, {**parameters, **how, "b_outcome": outcome, "b_if_cancelled": if_cancelled})
        else:
            rows = tx.run(end.alone, {**parameters, **how})
        if not rows:
            return None
        job = Job.of(rows[0])
        if not tx.is_postgresql:
            how["b_outcome"] = if_cancelled if job.status == "cancelled" else outcome
            tx.run(step.END_ATTEMPT, {"b_id": job.id, "b_attempt": job.attempt, "b_version": job.version, **how})
        self._settled(tx, job, ())
        return job

    def _complete_one(self, tx: Tx, job: Job, made: Sequence[Artifact]) -> list[tuple[Any, ...]]:
        rows = tx.run(step.COMPLETE, _ours(job.id, job.attempt))
        if rows:
            version = Job.of(rows[0]).version
            how = {"b_outcome": "completed", "b_attempt_error": None}
            tx.run(step.END_ATTEMPT, {"b_id": job.id, "b_attempt": job.attempt, "b_version": version, **how})
            results.insert(tx, made)
            availability.worked(tx, job.provider)
        return rows

    def _is_followed(self, job: Job) -> bool:
        return any(follower.concerns(job) for follower in self._followers)

    def _settled(self, tx: Tx, job: Job, made: Sequence[Artifact]) -> None:
        for follower in self._followers:
            follower.settled(tx, job)
        tx.on_commit(lambda: self._announcer.event(job, events.of_state(job, made)))


def get(tx: Tx, job_id: str, owner_id: str) -> Job | None:
    """A job of this owner; another's job does not exist for them."""
    row = tx.execute(_GET, {"b_id": job_id, "b_owner": owner_id}).one_or_none()
    return None if row is None else Job.of(row)


_GET = select(*jobs.c).where(jobs.c.id == bindparam("b_id"), jobs.c.owner_id == bindparam("b_owner"))


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


def _ours(job_id: str, attempt: int) -> dict[str, Any]:
    return {"b_id": job_id, "b_attempt": attempt, "b_status": "processing"}


def _because(error: Mapping[str, Any]) -> dict[str, Any]:
    return {"b_message": error["message"], "b_error": dict(error)}


def _some(statement: Any) -> Any:
    """A bounded bite; rows that another transaction is changing are left to it (PostgreSQL)."""
    return statement.limit(RECOVERY_BATCH).with_for_update(skip_locked=True)


def _first_with_key(tx: Tx, new: NewJob) -> Submitted | IdempotencyKeyReused | JobDeleted | None:
    """Reserve the key for this job; if it was taken, the job it was taken for."""
    first = idempotency.reserve(tx, new.owner_id, new.idempotency_key or "", new.fingerprint, new.id)
    if first is None or isinstance(first, IdempotencyKeyReused):
        return first
    job = get(tx, first, new.owner_id)
    if job is not None and job.deleted_at is not None:
        return JobDeleted("The job that this Idempotency-Key stands for was deleted.")
    return None if job is None else Submitted(job, replayed=True)


def _take_inputs(tx: Tx, new: NewJob, where: str = "#") -> list[FieldError]:
    """Note the artifacts it starts from, which are kept as long as it needs them; returns what is wrong with them."""
    given: list[str] = new.values.get("input_images") or []
    ids = [reference for reference in given if "://" not in reference]
    missing = results.give_inputs(tx, new.id, new.owner_id, ids) if ids else set[str]()
    if not missing:
        return []
    results.forget_inputs(tx, [new.id])
    return [
        FieldError(f"{where}/input_images/{place}", f"There is no picture {reference}.")
        for place, reference in enumerate(given)
        if reference in missing
    ]


def _nothing_made(
    tx: Tx, refused: Sequence[NewJob], asked: NewJob | NewBatch, errors: Sequence[FieldError]
) -> InputImageMissing:
    """Leave no trace of what is refused: of its inputs, and of its key, which may come again with another body."""
    results.forget_inputs(tx, [each.id for each in refused])
    if asked.idempotency_key is not None:
        idempotency.give_back(tx, asked.owner_id, asked.idempotency_key)
    errors = errors[:MAX_FIELD_ERRORS]
    return InputImageMissing(" ".join(error.detail for error in errors[:3]), errors=errors)
