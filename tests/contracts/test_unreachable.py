"""Providers that cannot be reached, on both databases: who waits for them, for how long, and how they are tried."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from test_availability import Counter

from jobs.builders import QUEUE, completed, failed, outline, stop
from safelight.db import Database, db_now
from safelight.jobs import BreakerPolicy, Job, Jobs, Unreached, availability, job_error
from safelight.jobs import ends as ends_module

pytestmark = pytest.mark.anyio

REASON = "Nobody answers at http://gpu-1:8188."


class Operator(Counter):
    """An office whose providers go away."""

    async def reach_nobody(self, job: Job, *, keeps: bool = False) -> Job:
        error = job_error("provider_unavailable", REASON, job, True)
        settled = await self.write(self.jobs.settle, job, Unreached(error, keeps))
        assert settled is not None
        return settled

    async def cool_down(self, provider: str = "mock") -> None:
        await self.change_state(provider, retry_at=db_now(-0.1))

    async def claimed(self, job_id: str) -> Job:
        job = await self.claim(job_id)
        assert job is not None
        return job

    async def probe(self) -> Job:
        """The one job that may try now, claimed."""
        await self.cool_down()
        [job_id] = await self.round()
        return await self.claimed(job_id)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = Database(database_url, readers=1)
    yield database
    database.close()


@pytest.fixture
async def office(database: Database, monkeypatch: pytest.MonkeyPatch) -> Operator:
    """It is tried again when a test says so."""
    monkeypatch.setattr(availability, "PROBE_SECONDS", (3600.0, 3600.0))
    office = Operator(database)
    await office.worker(slots=100)
    return office


async def test_a_lone_job_waits_in_its_place_at_no_cost(office: Operator) -> None:
    job = await office.running(max_retries=0)
    back = await office.reach_nobody(job)
    assert (back.status, back.retry_count, back.run_at, back.submitting_at) == ("pending", 0, job.run_at, None)
    later = await office.submit()
    assert await office.round() == []
    state = await office.state()
    for waiting in (job, later):
        row = await office.job(waiting.id)
        assert (row.blocked_reason, row.blocked_until) == ("provider_unreachable", state.retry_at)
    assert office.dispatcher.unavailable["mock"].reason == REASON
    assert not office.dispatcher.take_room(QUEUE, "mock")
    assert [attempt.outcome for attempt in await office.attempts(job.id)] == ["unreachable"]
    assert outline(await office.history(job.id))[1:] == outline(office.tape.of(job.id))
    probe = await office.probe()
    assert probe.id == job.id  # first in line as before
    assert await office.reason(later) == "provider_unreachable"
    await office.settle(probe, completed(probe))
    assert await office.round() == [later.id]
    state = await office.state()
    assert (state.breaker, state.unreachable_since, state.unreachable_reason) == ("closed", None, None)


@pytest.mark.parametrize("count", [1, 6])
async def test_neighbours_make_no_difference(office: Operator, count: int) -> None:
    jobs = [await office.running(max_retries=1) for _ in range(count)]
    for job in jobs:
        await office.reach_nobody(job)
    assert await office.round() == []
    for _ in range(5):
        await office.reach_nobody(await office.probe())
    rows = [await office.job(job.id) for job in jobs]
    assert {(row.status, row.retry_count) for row in rows} == {("pending", 0)}


async def test_it_is_tried_ever_more_rarely_and_once_a_minute_in_the_end(
    office: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(availability, "PROBE_SECONDS", (2.0, 60.0))
    await office.reach_nobody(await office.running())
    pauses: list[float] = []
    for away in (0.0, 5.0, 30.0, 3600.0):
        await office.change_state(unreachable_since=db_now(-away))
        await office.reach_nobody(await office.probe())
        state = await office.state()
        assert state.retry_at is not None and state.opened_at is not None
        pauses.append((state.retry_at - state.opened_at).total_seconds())
    assert pauses == pytest.approx([2.0, 5.0, 30.0, 60.0], abs=2.0)


async def test_who_found_it_out_late_puts_nothing_off(office: Operator) -> None:
    late = [await office.running(), await office.running()]
    await office.reach_nobody(await office.running())
    before = await office.state()
    await office.reach_nobody(late[0])
    assert (await office.state()).retry_at == before.retry_at
    await office.probe()
    await office.reach_nobody(late[1])
    assert (await office.state()).breaker == "half_open"


async def test_a_breaker_that_is_turned_off_makes_no_difference(database: Database) -> None:
    office = Operator(database)
    office.jobs = Jobs(office.tape, breaker=BreakerPolicy(failures=0))
    await office.worker(slots=100)
    job = await office.running(max_retries=0)
    await office.reach_nobody(job)
    assert await office.round() == []
    assert await office.reason(job) == "provider_unreachable"


async def test_when_it_takes_a_job_all_go_on_though_that_one_runs_for_long(office: Operator) -> None:
    await office.reach_nobody(await office.running())
    waiting = [(await office.submit()).id for _ in range(12)]
    probe = await office.probe()
    assert await office.round() == []
    assert await office.write(office.jobs.record_remote_id, probe.id, probe.attempt, "r1", "mock")
    assert (await office.round())[:8] == waiting[:8]


async def test_an_id_that_is_only_reserved_proves_nothing(office: Operator) -> None:
    await office.reach_nobody(await office.running())
    probe = await office.probe()
    assert await office.write(office.jobs.record_remote_id, probe.id, probe.attempt, "r1")
    assert (await office.state()).breaker == "half_open"


async def test_one_that_can_be_reached_and_fails_is_no_longer_out_of_reach(office: Operator) -> None:
    job = await office.running()
    await office.reach_nobody(job)
    await office.break_down(await office.probe())
    await office.round()
    assert await office.reason(job) == "breaker_open"
    assert (await office.state()).unreachable_since is None


# For how long


async def test_patience_ends_with_the_error_of_the_provider(office: Operator) -> None:
    tried = await office.running()
    await office.reach_nobody(tried)
    waited, young = await office.submit(), await office.submit()
    other = await office.submit(provider="other", run_at=datetime.now(UTC) - timedelta(hours=1))
    await office.round()
    for job in (tried, waited):
        await office.change(job.id, queued_at=db_now(-901.0))
    await office.round()
    assert (await office.job(waited.id)).status == "pending"  # it is not away for so long
    await office.change_state(unreachable_since=db_now(-901.0))
    await office.round()
    for job in (tried, waited):
        row = await office.job(job.id)
        assert row.status == "failed" and row.error is not None and row.blocked_reason is None
        assert (row.error["code"], row.error["message"]) == ("provider_unavailable", REASON)
        assert row.error["retryable"]
        assert office.tape.of(job.id)[-1].status == "failed"
    assert await office.reason(young) == "provider_unreachable"
    assert (await office.job(other.id)).status == "pending"


async def test_what_is_scheduled_for_later_waits_from_then_on(office: Operator) -> None:
    later = await office.submit(run_at=datetime.now(UTC) + timedelta(hours=1))
    await office.reach_nobody(await office.running())
    await office.change_state(unreachable_since=db_now(-7200.0))
    await office.change(later.id, run_at=db_now(-10.0), queued_at=db_now(-10.0), created_at=db_now(-7200.0))
    await office.round()
    await office.round()
    assert await office.reason(later) == "provider_unreachable"


async def test_a_long_line_fails_in_bites(office: Operator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ends_module, "RECOVERY_BATCH", 3)
    jobs = [await office.submit() for _ in range(5)]
    await office.reach_nobody(await office.running())
    await office.round()
    for job in jobs:
        await office.change(job.id, queued_at=db_now(-1000.0))
    await office.change_state(unreachable_since=db_now(-1000.0))
    left: list[int] = []
    for _ in range(2):
        await office.write(office.jobs.fail_unreachable)
        left.append(sum([(await office.job(job.id)).status == "pending" for job in jobs]))
    assert left == [2, 0]


async def test_the_probe_is_not_failed_while_it_tries(office: Operator) -> None:
    await office.reach_nobody(await office.running())
    probe = await office.probe()
    await office.change_state(unreachable_since=db_now(-1000.0))
    await office.change(probe.id, queued_at=db_now(-1000.0))
    await office.write(office.jobs.fail_unreachable)
    assert (await office.job(probe.id)).status == "processing"
    await office.settle(probe, completed(probe))


async def test_many_tries_in_one_outage_cost_nothing_and_many_outages_do(
    office: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ends_module, "MAX_OUTAGES", 2)
    monkeypatch.setattr(ends_module, "MAX_DEFERRALS", 2)
    job = await office.running(max_retries=1)
    await office.reach_nobody(job)
    for _ in range(5):
        job = await office.reach_nobody(await office.probe())
    assert (job.status, job.retry_count) == ("pending", 0)
    await office.change_state(breaker="closed", unreachable_since=None)
    job = await office.reach_nobody(await office.run(job.id))
    assert (job.status, job.retry_count) == ("pending", 1)
    await office.change_state(breaker="closed", unreachable_since=None)
    job = await office.reach_nobody(await office.run(job.id))
    assert (job.status, job.retry_count) == ("failed", 1)


async def test_a_start_deadline_is_kept(office: Operator) -> None:
    job = await office.running(start_within_seconds=60.0)
    await office.reach_nobody(job)
    await office.change(job.id, start_deadline_at=db_now(-1.0))
    await office.round()
    assert ((await office.job(job.id)).error or {})["code"] == "start_deadline_exceeded"


async def test_a_cancel_ends_the_wait(office: Operator) -> None:
    job = await office.running()
    await office.reach_nobody(job)
    await office.cancel(job.id)
    assert (await office.job(job.id)).status == "cancelled"


# Other ways


async def test_a_job_with_a_route_does_not_wait(office: Operator) -> None:
    routed = await office.running(route=[stop("second")], max_retries=3)
    await office.reach_nobody(routed)
    assert await office.round() == [routed.id]
    assert (await office.job(routed.id)).provider == "second"
    assert await office.skips(routed) == [("mock", "provider_unreachable")]


async def test_what_the_provider_has_taken_stays_with_it(office: Operator) -> None:
    job = await office.running(route=[stop("second")])
    await office.write(office.jobs.record_submitting, job.id, job.attempt)
    await office.write(office.jobs.record_remote_id, job.id, job.attempt, "r1", "mock")
    await office.reach_nobody(job, keeps=True)
    await office.round()
    row = await office.job(job.id)
    assert (row.provider, row.provider_job_id, row.blocked_reason) == ("mock", "r1", "provider_unreachable")


async def test_a_job_that_fails_for_itself_leaves_the_line_to_the_next_probe(office: Operator) -> None:
    await office.reach_nobody(await office.running())
    second = await office.submit()
    probe = await office.probe()
    await office.settle(probe, failed(probe))
    assert await office.round() == [second.id]
