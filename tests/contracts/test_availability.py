"""Providers that must be left alone, on both databases: pauses, breakers, rates, and jobs that go another way."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from office import Office
from sqlalchemy import update

from jobs.builders import QUEUE, completed, failed, outline, stop, try_again
from safelight.db import Database, Tx, db_now
from safelight.jobs import (
    BreakerPolicy,
    Caps,
    Defer,
    Job,
    Jobs,
    ProviderState,
    TryAgain,
    job_error,
    read_states,
)
from safelight.jobs.availability import provider_states
from safelight.jobs.ends import MAX_DEFERRALS
from safelight.jobs.job import jobs as job_rows
from safelight.limits import Limiter, Policy
from safelight.valkey import Valkey
from servers import ValkeyServer

pytestmark = pytest.mark.anyio


class Counter(Office):
    """An office whose providers fail."""

    def __init__(self, database: Database, caps: Caps | None = None) -> None:
        super().__init__(database, caps)
        self.jobs = Jobs(self.tape, breaker=BreakerPolicy(failures=2, cooldown_seconds=60.0), pause_seconds=4.0)

    async def defer(self, job: Job, seconds: float | None, *, keeps: bool = False) -> Job:
        error = job_error("rate_limited", "Slow down.", job, True)
        settled = await self.write(self.jobs.settle, job, Defer(error, seconds, keeps), "worked")
        assert settled is not None
        return settled

    async def break_down(self, job: Job, after_seconds: float = 0.0, *, may_move: bool = True) -> Job:
        error = job_error("provider_unavailable", "Nobody answers.", job, True)
        again = TryAgain(error, after_seconds, may_move=may_move)
        settled = await self.write(self.jobs.settle, job, again, "failed")
        assert settled is not None
        return settled

    async def open_breaker(self, provider: str = "mock") -> None:
        for _ in range(2):
            job = await self.break_down(await self.running(provider=provider), 3600.0)
            await self.cancel(job.id)

    async def state(self, provider: str = "mock") -> ProviderState:
        states = {state.provider: state for state in await self.database.read(read_states)}
        return states[provider]

    async def change_state(self, provider: str = "mock", **values: Any) -> None:
        await self.write(_change_state, provider, values)

    async def skips(self, job: Job) -> list[tuple[str, str]]:
        return [(skip["provider"], skip["code"]) for skip in (await self.job(job.id)).skips or ()]


def _change_state(tx: Tx, provider: str, values: dict[str, Any]) -> None:
    changed = update(provider_states).where(provider_states.c.provider == provider).values(values)
    assert tx.execute(changed).rowcount == 1


@pytest.fixture
async def office(database: Database) -> Counter:
    office = Counter(database)
    await office.worker(slots=100)
    return office


# Pauses


async def test_a_pause_holds_for_all_jobs_of_the_provider_and_no_other(office: Counter) -> None:
    job, released = await office.running(), await office.submit(hint=True)
    deferred = await office.defer(job, 30.0)
    assert (deferred.status, deferred.retry_count, deferred.attempt, deferred.version) == ("pending", 0, 1, 3)
    assert deferred.run_at == job.run_at  # its place in the line
    waiting, elsewhere = await office.submit(), await office.submit(provider="other")
    assert await office.claim(released.id) is None  # it was released before the pause came
    assert (await office.job(released.id)).released_at is None
    assert await office.round() == [elsewhere.id]
    state = await office.state()
    assert state.paused_until is not None and state.pause_reason == "Slow down."
    assert timedelta(seconds=25) < state.paused_until - state.at <= timedelta(seconds=30)
    for blocked in (job, released, waiting):
        row = await office.job(blocked.id)
        assert (row.status, row.blocked_reason, row.blocked_until) == ("pending", "provider_paused", state.paused_until)
    assert [attempt.outcome for attempt in await office.attempts(job.id)] == ["deferred"]
    assert outline(await office.history(job.id))[1:] == outline(office.tape.of(job.id))
    assert office.told(job.id) == [(2, "job.started"), (3, "job.pending")]
    await office.change_state(paused_until=db_now(-0.1))
    assert await office.round() == [job.id, released.id, waiting.id]
    assert await office.reason(job) is None
    assert (await office.job(job.id)).blocked_until is None


@pytest.mark.parametrize(
    ("seconds", "jobs"), [(-0.1, None), (0, 8), (0.9, 8), (1, 16), (2.5, 32), (9.9, 8 << 9), (10, None)]
)
async def test_so_many_may_start_after_a_pause(office: Counter, seconds: float, jobs: int | None) -> None:
    await office.defer(await office.running(), 30.0)
    [state] = await office.database.read(read_states)
    assert replace(state, paused_until=state.at - timedelta(seconds=seconds)).allowance == jobs


async def test_after_a_pause_jobs_start_slowly(office: Counter, monkeypatch: pytest.MonkeyPatch) -> None:
    allowance: list[int | None] = [8]  # whatever the time
    monkeypatch.setattr(ProviderState, "allowance", property(lambda state: allowance[0]))
    earlier = [await office.running() for _ in range(9)]  # they go on, and are no reason to start nothing
    await office.defer(earlier[0], 30.0)
    for _ in range(60):
        await office.submit()
    await office.round()
    await office.change_state(paused_until=db_now())
    first = await office.round()
    assert len(first) == 8 and await office.round() == []
    assert not office.dispatcher.take_room(QUEUE, "mock")
    waiting = await office.submit()
    await office.round()
    assert (await office.reason(waiting), (await office.job(waiting.id)).blocked_until) == ("rate_limited", None)
    for job_id in first[:2]:
        job = await office.claim(job_id)
        assert job is not None
        await office.settle(job, completed(job))
    allowance[0] = 32
    await office.write(_started_long_ago, [job.id for job in earlier])
    assert len(await office.round()) == 32 - 6
    allowance[0] = None
    assert (await office.round())[-1] == waiting.id
    await office.round()
    assert office.dispatcher.take_room(QUEUE, "mock")


def _started_long_ago(tx: Tx, job_ids: list[str]) -> None:
    tx.execute(update(job_rows).where(job_rows.c.id.in_(job_ids)).values(started_at=db_now(-60.0)))


async def test_hints_under_way_are_withdrawn_by_dispatch_too(office: Counter) -> None:
    released = await office.submit(hint=True)
    await office.defer(await office.running(), 30.0)
    assert await office.round() == []
    row = await office.job(released.id)
    assert (row.released_at, row.hint_count, row.blocked_reason) == (None, 0, "provider_paused")


async def test_the_loop_wakes_when_a_pause_ends(office: Counter) -> None:
    await office.submit(run_at=datetime.now(UTC) + timedelta(seconds=90))
    await office.defer(await office.running(), 30.0)
    await office.round()
    look = await office.database.read(office.dispatcher._look)
    assert look.next_due_seconds == pytest.approx(30, abs=5)


async def test_a_submit_hears_of_a_pause_with_the_next_look(office: Counter) -> None:
    await office.round()
    assert office.dispatcher.take_room(QUEUE, "mock")
    await office.defer(await office.running(), 30.0)
    await office.round()
    assert office.dispatcher.unavailable["mock"].code == "provider_paused"
    assert not office.dispatcher.take_room(QUEUE, "mock")


async def test_jobs_that_wait_for_a_provider_hold_up_no_submit_to_another(office: Counter) -> None:
    await office.defer(await office.running(), 30.0)
    await office.submit()
    await office.round()
    await office.round()
    assert office.dispatcher.take_room(QUEUE, "other")
    assert not office.dispatcher.take_room(QUEUE, "mock")


async def test_a_later_and_shorter_pause_shortens_nothing(office: Counter) -> None:
    first, second = await office.running(), await office.running()
    await office.defer(first, 30.0)
    before = await office.state()
    await office.defer(second, 1.0)
    assert (await office.state()).paused_until == before.paused_until


async def test_without_a_time_the_pauses_grow(office: Counter) -> None:
    job = await office.submit()
    for seconds in (4.0, 8.0, 16.0):
        await office.defer(await office.run(job.id), None)
        state = await office.state()
        assert state.paused_until is not None
        assert (state.paused_until - state.at).total_seconds() == pytest.approx(seconds, abs=2)
        await office.change_state(paused_until=None)


async def test_a_deferred_job_keeps_what_the_provider_has_accepted(office: Counter) -> None:
    job = await office.running()
    await office.write(office.jobs.record_remote_id, job.id, job.attempt, "r1")
    assert (await office.defer(job, 30.0, keeps=True)).provider_job_id == "r1"
    other = await office.running(provider="other")
    await office.write(office.jobs.record_submitting, other.id, other.attempt)
    assert (await office.defer(other, 30.0)).submitting_at is None  # refused: nothing was spent


async def test_a_job_that_was_only_turned_away_has_not_started(office: Counter) -> None:
    job = await office.submit(start_within_seconds=60.0)
    await office.defer(await office.run(job.id), 30.0)
    await office.change(job.id, start_deadline_at=db_now(-1.0))
    await office.round()
    late = await office.job(job.id)
    assert late.status == "failed" and late.error is not None and late.error["code"] == "start_deadline_exceeded"


async def test_nothing_is_deferred_for_ever(office: Counter, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_DEFERRALS >= 20
    monkeypatch.setattr("safelight.jobs.ends.MAX_DEFERRALS", 2)
    job = await office.submit(max_retries=1)
    seen: list[tuple[str, int]] = []
    for _ in range(4):
        settled = await office.defer(await office.run(job.id), 1.0)
        seen.append((settled.status, settled.retry_count))
        await office.change_state(paused_until=None)
    assert seen == [("pending", 0), ("pending", 0), ("pending", 1), ("failed", 1)]


async def test_a_cancel_ends_a_deferred_job(office: Counter) -> None:
    job = await office.running()
    await office.cancel(job.id)
    assert (await office.defer(job, 30.0)).status == "cancelled"


# Breakers


async def test_failures_in_a_row_open_the_breaker(office: Counter) -> None:
    await office.break_down(await office.running(), 3600.0)
    assert ((await office.state()).breaker, (await office.state()).failures) == ("closed", 1)
    job = await office.running()
    await office.write(office.jobs.settle, job, completed(job), "worked")
    assert (await office.state()).failures == 0
    await office.open_breaker()
    state = await office.state()
    assert (state.breaker, state.failures) == ("open", 2)
    assert state.retry_at is not None and 55 < (state.retry_at - state.at).total_seconds() <= 60
    waiting = await office.submit()
    assert await office.round() == []
    row = await office.job(waiting.id)
    assert (row.blocked_reason, row.blocked_until, row.attempt) == ("breaker_open", state.retry_at, 0)
    assert not office.dispatcher.take_room(QUEUE, "mock")


async def test_other_failures_say_nothing_about_the_provider(office: Counter) -> None:
    for _ in range(5):
        job = await office.running()
        await office.write(office.jobs.settle, job, failed(job), "worked")
        job = await office.running()
        await office.settle(job, try_again(job, 3600.0))
    assert await office.database.read(read_states) == []


async def test_half_open_one_job_tries_for_all(office: Counter) -> None:
    await office.open_breaker()
    jobs = [await office.submit() for _ in range(3)]
    await office.round()
    await office.change_state(retry_at=db_now(-0.1))
    assert await office.round() == [jobs[0].id]
    assert await office.round() == []
    state = await office.state()
    assert (state.breaker, state.probe_job_id, state.has_probe) == ("half_open", jobs[0].id, True)
    assert [await office.reason(job) for job in jobs] == [None, "breaker_open", "breaker_open"]
    await office.release(jobs[1].id)
    assert await office.claim(jobs[1].id) is None  # not even with a hint of its own
    probe = await office.claim(jobs[0].id)
    assert probe is not None
    assert await office.round() == []
    await office.write(office.jobs.settle, probe, completed(probe), "worked")
    assert (await office.state()).breaker == "closed"
    later = [await office.submit() for _ in range(7)]
    assert await office.round() == [job.id for job in (*jobs[1:], *later[:6])]  # slowly at first


async def test_a_probe_that_fails_pays_nothing_and_opens_the_breaker_again(office: Counter) -> None:
    await office.open_breaker()
    job = await office.submit(max_retries=0)
    for attempt in (1, 2):
        await office.change_state(retry_at=db_now(-0.1))
        assert await office.round() == [job.id]
        probe = await office.claim(job.id)
        assert probe is not None
        settled = await office.break_down(probe)
        assert (settled.status, settled.retry_count, settled.attempt) == ("pending", 0, attempt)
        assert (await office.state()).breaker == "open"
        assert await office.round() == []
    assert [attempt.outcome for attempt in await office.attempts(job.id)] == ["deferred", "deferred"]


@pytest.mark.parametrize("accident", ["cancelled", "lost", "handed on"])
async def test_a_probe_without_a_verdict_is_followed_by_another(office: Counter, accident: str) -> None:
    await office.open_breaker()
    first, second = await office.submit(), await office.submit()
    await office.change_state(retry_at=db_now(-0.1))
    assert await office.round() == [first.id]
    if accident == "cancelled":
        await office.cancel(first.id)
    else:
        probe = await office.claim(first.id)
        assert probe is not None
        if accident == "lost":
            await office.lose(first.id)
        else:
            await office.settle(probe, failed(probe))
    # A lost job comes back to its place in the line, which is the first; what the others were is over.
    another = first if accident == "lost" else second
    assert await office.round() == [another.id]
    assert (await office.state()).probe_job_id == another.id


async def test_late_failures_move_nothing(office: Counter) -> None:
    """Of attempts that were under way when the breaker opened."""
    late = [await office.running() for _ in range(2)]
    await office.open_breaker()
    await office.break_down(late[0], 3600.0)
    before = (await office.state()).retry_at
    await office.change_state(retry_at=db_now(-0.1))
    probe = await office.submit()
    assert await office.round() == [probe.id]
    await office.break_down(late[1], 3600.0)
    state = await office.state()
    assert (state.breaker, state.probe_job_id) == ("half_open", probe.id)
    assert before is not None


async def test_breakers_can_be_turned_off(database: Database) -> None:
    office = Counter(database)
    office.jobs = Jobs(office.tape, breaker=BreakerPolicy(failures=0))
    for _ in range(3):
        await office.break_down(await office.running(), 3600.0)
    assert await office.database.read(read_states) == []


# Rates


@asynccontextmanager
async def limiter_at(url: str) -> AsyncGenerator[Limiter]:
    client = Valkey(url)
    await client.start()
    await client.wait_connected(5)
    yield Limiter(client, "test")
    await client.close()


async def test_no_more_jobs_start_than_the_rate_allows(database: Database, valkey: ValkeyServer) -> None:
    office = Counter(database, Caps(rates={"mock": Policy("provider", 2, 3600)}))
    await office.worker(slots=100)
    async with limiter_at(valkey.url) as limiter:
        office.dispatcher._limiter = limiter
        jobs = [await office.submit() for _ in range(4)]
        other = await office.submit(provider="other")
        assert await office.round() == [jobs[0].id, other.id, jobs[1].id]
        assert await office.round() == []
        assert [await office.reason(job) for job in jobs] == [None, None, "rate_limited", "rate_limited"]
        assert not office.dispatcher.take_room(QUEUE, "mock")
        successor = Counter(database, Caps(rates={"mock": Policy("provider", 2, 3600)}))
        successor.dispatcher._limiter = limiter
        await office.dispatcher.release_lease()
        assert await successor.round() == []  # they count together
        running = await office.claim(jobs[0].id)
        assert running is not None
        await office.settle(running, completed(running))
        assert await successor.round() == []  # it is about starts, not about what runs


async def test_the_rate_lets_the_next_through_in_time(database: Database, valkey: ValkeyServer) -> None:
    office = Counter(database, Caps(rates={"mock": Policy("provider", 4, 1)}))
    await office.worker(slots=100)
    async with limiter_at(valkey.url) as limiter:
        office.dispatcher._limiter = limiter
        jobs = [await office.submit() for _ in range(5)]
        assert await office.round() == [job.id for job in jobs[:4]]
        await asyncio.sleep(0.3)  # one of four a second
        assert await office.round() == [jobs[4].id]
        assert await office.reason(jobs[4]) is None


# Routes


ROUTE = [stop("second", model="b", width=512), stop("third", model="c")]


async def test_a_job_leaves_an_unavailable_provider_for_the_next_of_its_route(office: Counter) -> None:
    routed, plain = await office.submit(route=ROUTE, model="a"), await office.submit()
    await office.defer(await office.running(), 30.0)
    assert await office.round() == [routed.id]
    moved = await office.job(routed.id)
    assert (moved.provider, moved.route) == ("second", ROUTE[1:])
    assert (moved.parameters.model, moved.parameters.width) == ("b", 512)
    assert (moved.version, moved.attempt, moved.retry_count) == (1, 0, 0)
    assert await office.skips(routed) == [("mock", "provider_paused")]
    assert (moved.skips or [])[0]["reason"] == "Slow down."
    assert (await office.job(plain.id)).provider == "mock"


async def test_a_short_pause_is_waited_for(office: Counter) -> None:
    routed = await office.submit(route=ROUTE)
    await office.defer(await office.running(), 3.0)
    assert await office.round() == []
    assert (await office.job(routed.id)).provider == "mock"
    assert await office.reason(routed) == "provider_paused"


async def test_unavailable_providers_are_passed_over_and_recorded(office: Counter) -> None:
    routed = await office.submit(route=ROUTE)
    await office.open_breaker("mock")
    await office.open_breaker("second")
    assert await office.round() == [routed.id]
    moved = await office.job(routed.id)
    assert (moved.provider, moved.route) == ("third", None)
    assert await office.skips(routed) == [("mock", "breaker_open"), ("second", "breaker_open")]


async def test_with_no_provider_available_a_job_waits_for_the_first_that_is(office: Counter) -> None:
    routed = await office.submit(route=ROUTE[:1])
    await office.open_breaker("mock")
    await office.open_breaker("second")
    assert await office.round() == []
    assert (await office.job(routed.id)).provider == "mock"
    await office.change_state("second", breaker="closed")
    assert await office.round() == [routed.id]
    assert (await office.job(routed.id)).provider == "second"


async def test_a_job_that_may_have_been_accepted_stays(office: Counter) -> None:
    paid, accepted = await office.running(route=ROUTE), await office.running(route=ROUTE)
    await office.write(office.jobs.record_submitting, paid.id, paid.attempt)
    await office.write(office.jobs.record_remote_id, accepted.id, accepted.attempt, "r1")
    await office.lose(paid.id)
    await office.lose(accepted.id)
    await office.open_breaker()
    await office.round()
    for job in (paid, accepted):
        assert (await office.job(job.id)).provider == "mock"
        assert await office.skips(job) == []


async def test_out_of_retries_a_job_goes_to_the_next_with_all_its_retries(office: Counter) -> None:
    job = await office.submit(route=ROUTE[:1], max_retries=1, model="a")
    first = await office.break_down(await office.run(job.id))
    assert (first.status, first.retry_count, first.provider) == ("pending", 1, "mock")
    moved = await office.break_down(await office.run(job.id))
    assert (moved.status, moved.retry_count, moved.provider, moved.parameters.model) == ("pending", 1, "second", "b")
    assert await office.skips(job) == [("mock", "provider_unavailable")]
    retried = await office.break_down(await office.run(job.id))
    assert (retried.status, retried.retry_count, retried.provider) == ("pending", 2, "second")
    ended = await office.break_down(await office.run(job.id))
    assert (ended.status, ended.retry_count) == ("failed", 2)
    attempts = await office.attempts(job.id)
    assert [(attempt.provider, attempt.outcome) for attempt in attempts] == [
        ("mock", "retry"),
        ("mock", "moved"),
        ("second", "retry"),
        ("second", "failed"),
    ]
    history = await office.history(job.id)
    assert outline(history)[1:] == outline(office.tape.of(job.id))
    assert [event.provider for event in history] == [event.provider for event in [history[0], *office.tape.of(job.id)]]


async def test_what_is_no_matter_of_the_provider_does_not_move(office: Counter) -> None:
    job = await office.running(route=ROUTE, max_retries=0)
    settled = await office.break_down(job, may_move=False)
    assert (settled.status, settled.provider) == ("failed", "mock")


async def test_a_long_line_moves_in_bites(office: Counter) -> None:
    jobs = [await office.submit(route=ROUTE) for _ in range(230)]
    await office.defer(await office.running(), 30.0)
    await office.round()
    await office.round()
    assert {(await office.job(job.id)).provider for job in jobs} == {"second"}
