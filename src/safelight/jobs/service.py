"""What can be done to a job. With `ends.py` the only writer of `status`, and only along the transition table.

Every method here is a transaction (`await database.write(jobs.cancel, ...)`): plain code over rows. Each change of
state is one conditional UPDATE that raises `version` by one; nothing updated means that somebody else was first. What
must follow the commit, an event or a hint, is a note on the transaction.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from sqlalchemy import bindparam, func, select, update

from safelight import artifacts as results
from safelight.db import Tx, db_now
from safelight.errors import FieldError, SafelightError
from safelight.jobs import batch, events, idempotency, step
from safelight.jobs.batch import BatchDeleted, BatchEnded, BatchNotFound, BatchState, NewBatch, SubmittedBatch
from safelight.jobs.ends import Ends
from safelight.jobs.idempotency import IdempotencyKeyReused
from safelight.jobs.job import (
    Claim,
    Job,
    JobDeleted,
    JobEnded,
    JobNotFound,
    NewJob,
    has_status,
    jobs,
)
from safelight.jobs.statements import statements

CANCEL_BITE = 100  # each is an event to be told by the loop
MAX_FIELD_ERRORS = 50


class InputImageMissing(SafelightError):
    """There is no such picture."""

    kind = "invalid"
    code = "invalid_request"


@dataclass(frozen=True, slots=True)
class Submitted:
    job: Job
    replayed: bool


class Jobs(Ends):
    """The transactions on jobs. Rows of other slices follow in those that accept and settle."""

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
        return SubmittedBatch(made, BatchState.fresh(made.total), [each.id for each in new.jobs], replayed=False)

    def _insert(self, tx: Tx, accepted: Sequence[NewJob], *, is_last: bool = False) -> dict[str, Submitted]:
        if not accepted:
            return {}
        rows: dict[str, dict[str, Any]] = {
            each.id: {
                **step.GIVEN,
                **step.FRESH,
                **each.values,
                "prompt": each.parameters.prompt,
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
        state = batch.states_of(tx, owner_id, [batch_id])[batch_id]
        if state.is_terminal:
            return 0 if state.status == "cancelled" else BatchEnded(f"The batch has already {state.status}.")
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
            for job in statements(tx).claim(tx, kind, ids, is_alone=len(claims) == 1):
                taken[job.id] = job
                tx.on_commit(partial(self._tell, job))
        return [taken.pop(each.job_id, None) for each in claims]

    def _tell(self, job: Job) -> None:
        self._announcer.event(job, events.of_state(job))

    def decline(self, tx: Tx, job_id: str) -> None:
        """A leaving worker met a hint: let dispatch send another at once."""
        tx.execute(update(jobs).where(jobs.c.id == job_id, has_status("pending")).values(released_at=None))

    def record_submitting(self, tx: Tx, job_id: str, attempt: int) -> bool:
        """Write down that money may be spent from here on. False: the job is no longer this attempt's."""
        statement = update(jobs).where(step.OURS).values(submitting_at=db_now())
        return tx.execute(statement, step.ours(job_id, attempt)).rowcount == 1

    def record_remote_id(
        self, tx: Tx, job_id: str, attempt: int, remote_id: str, accepted_by: str | None = None
    ) -> bool:
        """Write down under which id the provider has the job, or will have it: a later attempt goes on from there.

        `accepted_by` names the provider if it has it: so it can be reached. False as above.
        """
        statement = update(jobs).where(step.OURS).values(provider_job_id=remote_id, updated_at=db_now())
        if tx.execute(statement, step.ours(job_id, attempt)).rowcount != 1:
            return False
        statements(tx).note_remote_id(tx, job_id, attempt, remote_id, accepted_by)
        return True

    def record_run(self, tx: Tx, job_id: str, attempt: int, seconds: float | None) -> None:
        """The provider's own time for what this attempt made, if that is not the attempt's; None: nobody knows it."""
        learnt = {"run_seconds": seconds} if seconds is not None else {"estimate_key": None}
        tx.execute(update(jobs).where(step.OURS).values(learnt), step.ours(job_id, attempt))


def get(tx: Tx, job_id: str, owner_id: str) -> Job | None:
    """A job of this owner; another's job does not exist for them."""
    row = tx.execute(_GET, {"b_id": job_id, "b_owner": owner_id}).one_or_none()
    return None if row is None else Job.of(row)


_GET = select(*jobs.c).where(jobs.c.id == bindparam("b_id"), jobs.c.owner_id == bindparam("b_owner"))


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
    pictures = new.parameters.pictures
    ids = [reference for reference in pictures.values() if "://" not in reference]
    missing = results.give_inputs(tx, new.id, new.owner_id, ids) if ids else set[str]()
    if not missing:
        return []
    results.forget_inputs(tx, [new.id])
    return [
        FieldError(f"{where}/{field.replace('.', '/')}", f"There is no picture {reference}.")
        for field, reference in pictures.items()
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
