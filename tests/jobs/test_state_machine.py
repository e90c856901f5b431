"""The life of jobs under everything that can happen to them, in any order that Hypothesis finds.

A failure here shows the steps as they were found. Set SAFELIGHT_EXAMPLES (to 300, say) for a longer search, with other
examples each time, that also shortens the steps of what it finds.
"""

import os
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from sqlalchemy import Connection, select, update
from sqlalchemy import event as sa_event

from jobs.builders import (
    LEASE_SECONDS,
    OWNER,
    QUEUE,
    Tape,
    artifacts_recorded,
    change_job,
    completed,
    events_of,
    failed,
    look,
    new_job,
    outline,
    stop,
    try_again,
)
from safelight.artifacts import artifacts
from safelight.db import Database, Tx, db_now, new_id
from safelight.jobs import (
    BreakerPolicy,
    Cancelled,
    Caps,
    Claim,
    Defer,
    HandBack,
    Held,
    Job,
    JobEnded,
    Jobs,
    Progressed,
    ProviderState,
    Settlement,
    Submitted,
    Unreached,
    attempts_of,
    availability,
    beat,
    cancels_of,
    is_held,
    read_states,
    register_worker,
)
from safelight.jobs.availability import provider_states
from safelight.jobs.capacity import read_capacity
from safelight.jobs.dispatch import rehint
from safelight.jobs.ends import ISOLATED, MAX_CRASHES
from safelight.jobs.job import TRANSITIONS, attempts, jobs, workers
from safelight.jobs.line import Turns, count_waiting, release, ripen

EXAMPLES = int(os.environ.get("SAFELIGHT_EXAMPLES", "0"))
QUEUES = (QUEUE, ISOLATED)
PROVIDERS = ("mock", "other")
BREAKER = BreakerPolicy(failures=2, cooldown_seconds=60.0)
ENDS: dict[str, Callable[[Job], Settlement]] = {
    "completed": completed,
    "failed": failed,
    "cancelled": lambda job: Cancelled(),
    "retry now": try_again,
    "retry later": lambda job: try_again(job, 3600.0),
    "move on": lambda job: replace(try_again(job), may_move=True),
    "defer": lambda job: Defer(try_again(job).error, 60.0),
    "reach nobody": lambda job: Unreached(try_again(job).error),
    "hand back": lambda job: HandBack(),
}
BACK = ("retry now", "hand back")


class Lives(RuleBasedStateMachine):
    """Every rule is one transaction; after each, what the rows say is compared with what they said before."""

    ids: Bundle[str] = Bundle("ids")
    claims: Bundle[Job] = Bundle("claims")

    connection: ClassVar[Connection]  # Hypothesis makes the machines itself

    def __init__(self) -> None:
        super().__init__()
        self.tape = Tape()
        self.jobs = Jobs(self.tape, breaker=BREAKER)
        self.worker = new_id()
        self.rows: dict[str, Job] = {}  # as they stood after the last rule
        self.waiting_for_time: set[str] = set()
        self.write(self._empty)

    # --- steps --------------------------------------------------------------------------------------------------------

    @precondition(lambda self: sum(not row.is_terminal for row in self.rows.values()) < 2)
    @rule(target=ids, hint=st.booleans(), retries=st.sampled_from([1, 3]), has_route=st.booleans())
    def submit(self, hint: bool, retries: int, has_route: bool) -> str:
        route = [stop("other")] if has_route else None
        [accepted] = self.write(self.jobs.submit, [new_job(hint=hint, max_retries=retries, route=route)])
        assert isinstance(accepted, Submitted)
        return accepted.job.id

    @rule(room=st.integers(1, 3), queue=st.sampled_from(QUEUES), cap=st.sampled_from([None, 1, 2]))
    def dispatch(self, room: int, queue: str, cap: int | None) -> None:
        probing = {name for name, state in self.states().items() if state.breaker == "half_open" or state.is_due}
        released = self.write(one_round, queue, room, Caps(owner=cap))
        assert len(released) <= room
        for job in released:
            before = self.rows[job.id]
            assert (before.status, before.queue, before.released_at) == ("pending", queue, None)
            assert job.id not in self.waiting_for_time
            assert not self.is_unavailable_to(job)
        for name in probing:
            assert sum(job.provider == name for job in released) <= 1
        if cap is not None:
            busy = [
                row for row in self.read_all().values() if row.status == "processing" or row.released_at is not None
            ]
            assert len(busy) <= cap or not released

    @rule()
    def hints_are_lost(self) -> None:
        for job_id, row in self.rows.items():
            if row.released_at is not None:
                self.write(change_job, job_id, {"released_at": db_now(-3600.0)})
        again = {job.id for job in self.write(rehint, QUEUES, 5.0)}
        assert again == {job_id for job_id, row in self.rows.items() if row.released_at is not None}

    @rule(provider=st.sampled_from(PROVIDERS))
    def its_provider_may_be_tried_again(self, provider: str) -> None:
        past = {"paused_until": db_now(-1.0), "retry_at": db_now(-1.0)}
        states = provider_states
        self.write(lambda tx: tx.execute(states.update().where(states.c.provider == provider).values(past)))

    @rule(job_id=ids)
    def its_time_comes(self, job_id: str) -> None:
        self.write(change_job, job_id, {"run_at": db_now(-1.0)})
        self.write(ripen)
        self.waiting_for_time.discard(job_id)
        self.rows[job_id] = self.read_all()[job_id]

    @rule(target=claims, job_id=ids, queue=st.sampled_from((QUEUE, QUEUE, ISOLATED)))
    def hint_arrives(self, job_id: str, queue: str) -> Any:
        before = self.rows[job_id]
        [job] = self.write(self.jobs.claim, [Claim(job_id, queue, self.worker, "io")])
        is_open = not self.is_unavailable_to(before)
        may = before.status == "pending" and before.released_at is not None and before.queue == queue
        assert (job is not None) == (may and is_open)
        if may and not is_open:
            assert self.read_all()[job_id].released_at is None  # else it would wait for a hint that was used up
        if job is not None:
            assert job.attempt == before.attempt + 1
        return job or before  # a claim of what never ran is a stranger's: it must not be able to do anything

    @rule(target=claims, job_id=ids)
    def it_runs(self, job_id: str) -> Any:
        """The way a job usually takes, in one step."""
        before = self.rows[job_id]
        if before.status != "pending" or self.is_unavailable_to(before):
            return before
        self.write(change_job, job_id, {"released_at": db_now(), "run_at": db_now(-1.0)})
        self.waiting_for_time.discard(job_id)
        [job] = self.write(self.jobs.claim, [Claim(job_id, before.queue, self.worker, "io")])
        assert job is not None and job.attempt == before.attempt + 1
        return job

    @rule(target=claims, claim=claims)
    def it_runs_elsewhere_while_its_worker_is_frozen(self, claim: Job) -> Any:
        """The old attempt still lives, and will try to write."""
        before = self.rows[claim.id]
        if not self.is_current(claim) or before.cancel_requested_at is not None or before.crash_count > 1:
            return claim
        self.worker_dies()
        self.the_rows_are_sound()
        return self.it_runs(claim.id)

    @rule(job_id=ids)
    def hint_meets_a_leaving_worker(self, job_id: str) -> None:
        self.write(self.jobs.decline, job_id)

    @rule(claim=claims)
    def heartbeat(self, claim: Job) -> None:
        news = [Progressed(claim.id, claim.attempt, 42, "sampling", None)]
        heard = self.write(beat, self.worker, 1, news, LEASE_SECONDS)
        running = [row for row in self.rows.values() if row.status == "processing"]
        held = {Held(row.id, row.attempt, row.cancel_requested_at is not None) for row in running}
        assert heard is not None and set(heard.held) == held
        with self.transaction() as tx:
            assert set(cancels_of(tx, self.worker)) == {
                (job.job_id, job.attempt) for job in held if job.is_cancel_requested
            }
        assert heard.written == ({claim.id} if self.is_current(claim) else set())
        if not self.is_current(claim):
            self.nothing_changed(claim.id)

    @rule(claim=claims)
    def provider_accepts(self, claim: Job) -> None:
        current = self.is_current(claim)
        assert self.write(self.jobs.record_submitting, claim.id, claim.attempt) == current
        assert self.write(self.jobs.record_remote_id, claim.id, claim.attempt, f"r{claim.attempt}") == current
        if not current:
            self.nothing_changed(claim.id)

    @rule(claim=claims, end=st.sampled_from([*ENDS, *BACK, *BACK]), failed=st.booleans())
    def settle(self, claim: Job, end: str, failed: bool) -> None:
        """By the attempt that runs, or late by one that did."""
        before, current = self.rows[claim.id], self.is_current(claim)
        state = self.states().get(before.provider)
        retries = end in ("retry now", "retry later", "move on")
        verdict = "failed" if failed and retries else "worked" if end == "completed" else None
        is_probe = state is not None and (state.breaker, state.probe_job_id) == ("half_open", claim.id)
        job = self.write(self.jobs.settle, claim, ENDS[end](claim), verdict)
        assert (job is not None) == current
        if job is None:
            self.nothing_changed(claim.id)
            return
        if before.cancel_requested_at is not None and end not in ("completed", "failed"):
            assert job.status == "cancelled"
        elif retries and before.retries_here >= before.max_retries and not (is_probe and verdict == "failed"):
            moves = end == "move on" and before.route is not None
            assert (job.status, job.provider) == (("pending", "other") if moves else ("failed", before.provider))
        else:
            assert job.status == (end if end in ("completed", "failed", "cancelled") else "pending")
        if end == "retry later" and job.retry_count > before.retry_count:
            self.waiting_for_time.add(job.id)
        if end in ("defer", "reach nobody") and job.status == "pending":
            assert self.is_unavailable_to(job)
        if verdict == "failed" and is_probe:
            assert self.states()[before.provider].breaker == "open"
        if verdict == "worked":
            assert state is None or self.states()[before.provider].breaker == "closed"

    @rule(job_id=ids)
    def cancel(self, job_id: str) -> None:
        before = self.rows[job_id]
        answer = self.write(self.jobs.cancel, job_id, OWNER)
        match before.status:
            case "completed" | "failed":
                assert isinstance(answer, JobEnded)
            case "processing":
                assert isinstance(answer, Job) and answer.status == "processing"
                assert answer.cancel_requested_at is not None
            case _:
                assert isinstance(answer, Job) and answer.status == "cancelled"

    @precondition(lambda self: any(row.status == "processing" for row in self.rows.values()))
    @rule()
    def worker_dies(self) -> None:
        """With all that it ran; a process that was frozen beyond its lease finds out, and begins anew."""
        with self.transaction() as tx:
            lost_before = {
                job_id for job_id in self.rows if any(attempt.outcome == "lost" for attempt in attempts_of(tx, job_id))
            }
        self.write(lambda tx: tx.execute(update(workers).values(lease_until=db_now(-1.0))))
        recovered = self.write(self.jobs.recover_lost)
        assert {job.id for job in recovered} == {id for id, row in self.rows.items() if row.status == "processing"}
        for job in recovered:
            self._was_lost(self.rows[job.id], job, job.id in lost_before)
        assert self.write(beat, self.worker, 0, [], LEASE_SECONDS) is None
        with self.transaction() as tx:
            assert not any(is_held(tx, job.id, job.attempt) for job in recovered)
        self.worker = new_id()
        self.write(register_worker, self.worker, "io", QUEUES, 10, LEASE_SECONDS)

    def _was_lost(self, before: Job, job: Job, was_lost_before: bool) -> None:
        if before.cancel_requested_at is not None:
            assert job.status == "cancelled"
        elif before.queue == ISOLATED and before.crash_count + 1 == MAX_CRASHES:
            assert (job.status, job.crash_count) == ("failed", MAX_CRASHES)
        else:
            is_suspect = was_lost_before or before.queue == ISOLATED
            assert (job.status, job.queue) == ("pending", ISOLATED if is_suspect else QUEUE)
            assert job.crash_count == before.crash_count + (before.queue == ISOLATED)

    @rule(job_id=ids)
    def hard_limit_passes(self, job_id: str) -> None:
        if self.rows[job_id].status != "processing":
            return
        self.write(change_job, job_id, {"deadline_at": db_now(-60.0)})
        (job,) = self.write(self.jobs.fail_overdue)
        assert (job.id, job.status) == (job_id, "failed")

    @rule(job_id=ids)
    def start_deadline_passes(self, job_id: str) -> None:
        before = self.rows[job_id]
        if before.is_terminal:
            return
        self.write(change_job, job_id, {"start_deadline_at": db_now(-1.0)})
        late = self.write(self.jobs.fail_unstarted)
        with self.transaction() as tx:
            never_tried = all(attempt.outcome in ("deferred", "unreachable") for attempt in attempts_of(tx, job_id))
        assert [job.id for job in late] == ([job_id] if before.status == "pending" and never_tried else [])

    # --- what always holds --------------------------------------------------------------------------------------------

    @invariant()
    def the_rows_are_sound(self) -> None:
        rows = self.read_all()
        with self.transaction() as tx:
            for job_id, row in rows.items():
                self._check(tx, row, self.rows.get(job_id))
        self.rows = rows

    def _check(self, tx: Tx, row: Job, before: Job | None) -> None:
        told = self.tape.of(row.id)
        assert before is None or not before.is_terminal or row == before, "an end is an end"
        if before is not None:
            if row.version != before.version:
                assert row.version == before.version + 1
                assert row.status in TRANSITIONS[before.status]
            else:
                assert row.status == before.status
            assert row.attempt - before.attempt in (0, 1)
        assert [event.version for event in told] == list(range(2, row.version + 1))
        assert sum(event.is_terminal for event in told) == row.is_terminal
        assert all(event.is_terminal == (event is told[-1] and row.is_terminal) for event in told)
        numbers = [event.attempt for event in told]
        assert numbers == sorted(numbers)
        assert outline(events_of(tx, row.id))[1:] == outline(told)
        assert (row.status == "processing") == (row.deadline_at is not None)
        assert row.status != "processing" or row.worker_id == self.worker
        assert row.status == "pending" or (row.released_at is None)
        made = artifacts_recorded(tx, row.id)
        assert {artifact.attempt for artifact in made} == ({row.attempt} if row.status == "completed" else set())
        tried = attempts_of(tx, row.id)
        assert [attempt.number for attempt in tried] == list(range(1, row.attempt + 1))
        running = [attempt.number for attempt in tried if attempt.outcome is None]
        assert running == ([row.attempt] if row.status == "processing" else [])
        assert row.retry_count == sum(attempt.outcome == "retry" for attempt in tried)
        assert row.crash_count <= MAX_CRASHES

    # --- within -------------------------------------------------------------------------------------------------------

    def is_current(self, claim: Job) -> bool:
        row = self.rows[claim.id]
        return row.status == "processing" and row.attempt == claim.attempt

    def states(self) -> dict[str, ProviderState]:
        with self.transaction() as tx:
            return {state.provider: state for state in read_states(tx)}

    def is_unavailable_to(self, job: Job) -> bool:
        state = self.states().get(job.provider)
        if state is None:
            return False
        is_paused = state.paused_until is not None and state.paused_until > state.at
        is_another = state.breaker == "half_open" and state.probe_job_id != job.id
        return is_paused or state.breaker == "open" or is_another

    def nothing_changed(self, job_id: str) -> None:
        with self.transaction() as tx:
            assert look(tx, job_id) == self.rows[job_id]

    def read_all(self) -> dict[str, Job]:
        with self.transaction() as tx:
            return {row.id: Job.of(row) for row in tx.execute(select(*jobs.c))}

    def write(self, fn: Callable[..., Any], *args: Any) -> Any:
        """What the writer thread does, here and now."""
        notes: list[Callable[[], None]] = []
        with self.transaction(notes) as tx:
            result = fn(tx, *args)
        for note in notes:
            note()
        return result

    @contextmanager
    def transaction(self, notes: list[Callable[[], None]] | None = None) -> Generator[Tx]:
        with self.connection.begin():
            yield Tx(self.connection, [] if notes is None else notes)

    def _empty(self, tx: Tx) -> None:
        for table in (jobs, attempts, artifacts, workers, provider_states):
            tx.execute(table.delete())
        register_worker(tx, self.worker, "io", QUEUES, 10, LEASE_SECONDS)


def one_round(tx: Tx, queue: str, room: int, caps: Caps) -> list[Job]:
    """What the dispatcher does about providers and releases."""
    availability.half_open(tx)
    unavailable = availability.unavailable_of(read_states(tx))
    availability.withdraw(tx, unavailable)
    availability.leave_unavailable(tx, unavailable, {})
    ripen(tx)
    providers = [provider for name, provider in count_waiting(tx, 10) if name == queue]
    return release(tx, queue, providers, room, read_capacity(tx, caps, read_states(tx)), Turns())[0]


@pytest.fixture
def connection(sqlite_url: str) -> Iterator[Connection]:
    """The writer's own kind of connection, without the disk's slowness."""
    database = Database(sqlite_url)
    sa_event.listen(database._engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous=OFF"))
    with database._engine.connect() as connection:
        yield connection
    database.close()


@pytest.mark.timeout(3600 if EXAMPLES else 600)
@pytest.mark.parametrize("examples", [15, pytest.param(45, marks=pytest.mark.long)])
def test_every_life_of_a_job_is_sound(connection: Connection, examples: int) -> None:
    Lives.connection = connection
    run_state_machine_as_test(
        Lives,
        settings=settings(
            max_examples=EXAMPLES or examples,
            stateful_step_count=60 if EXAMPLES else 40,
            derandomize=not EXAMPLES,
            database=None,
            deadline=None,
            phases=[Phase.generate, Phase.shrink] if EXAMPLES else [Phase.generate],  # shrinking takes minutes
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
        ),
    )
