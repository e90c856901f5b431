"""Who runs next, and what is done for jobs that nobody holds any more.

Every API and io worker process runs a `Dispatcher`; one at a time holds the lease row and works. It releases due jobs
(sets `hinted_at` and sends a hint) while workers have room, says why the others wait, sends hints again that nobody
claimed, and recovers jobs whose worker died. All of it can be repeated or interrupted at any point.
"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import structlog
from sqlalchemy import (
    ColumnElement,
    Float,
    Integer,
    Select,
    and_,
    bindparam,
    delete,
    exists,
    func,
    literal_column,
    or_,
    select,
    union_all,
    update,
)

from safelight.db import Database, Prepared, Tx, db_now
from safelight.errors import Unavailable
from safelight.jobs import availability
from safelight.jobs.availability import Closure, ProviderState, closures_of, read_states
from safelight.jobs.idempotency import purge_idempotency_keys
from safelight.jobs.job import PROCESSING, RELEASED, WAITING, Job, jobs, leases, workers
from safelight.jobs.service import Jobs, is_unstarted
from safelight.jobs.waiting import (
    MAX_RELEASED,
    Caps,
    explain_waiting,
    misexplained,
    open_gates,
    rehint,
    release,
    stale_hint,
    withdraw,
)
from safelight.limits import Limiter, Verdict

LEASE_NAME = "dispatch"
LEASE_SECONDS = 4.0
IDLE_SECONDS = 0.5
BUSY_SECONDS = 0.05
HOUSEKEEPING_SECONDS = 600.0

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class QueueLoad:
    """One queue as the rows tell it: slots of living workers, jobs in them, hints under way, due jobs waiting.

    Of those that wait, `blocked` have a reason that is not the queue's: nobody behind them has to wait for them.
    """

    workers: int = 0
    slots: int = 0
    running: int = 0
    hinted: int = 0
    waiting: int = 0
    blocked: int = 0

    @property
    def room(self) -> int:
        """How many more hints may be under way: about twice the free slots."""
        if self.slots == 0:
            return 0
        return max(0, 2 * max(0, self.slots - self.running) + 1 - self.hinted)


@dataclass(frozen=True, slots=True)
class Pulse:
    """What dispatch needs to know at a glance."""

    loads: Mapping[str, QueueLoad]
    states: Sequence[ProviderState]
    must_act: bool
    next_due_seconds: float | None  # a job's time comes, or a closed provider's
    leader: str | None
    at: datetime


class Dispatcher:
    """One process's share of dispatch, and its knowledge of how much room there is."""

    def __init__(
        self,
        database: Database,
        service: Jobs,
        *,
        holder: str,
        hint: Callable[[Job], None],
        can_hint: Callable[[], bool],
        caps: Caps,
        beat_seconds: float,
        rehint_seconds: float,
        housekeeping: Callable[[], Awaitable[None]],
        limiter: Limiter | None = None,
    ) -> None:
        """`limiter` counts for the rates of `caps`; without one they are not kept."""
        self._database = database
        self._service = service
        self._holder = holder
        self._hint = hint
        self._can_hint = can_hint
        self._caps = caps
        self._limiter = limiter
        self._alive_seconds = 3 * beat_seconds
        self._settling_seconds = 2 * beat_seconds
        self._rehint_seconds = rehint_seconds
        self._room: dict[str, int] = {}
        self._healthy_since = -1e9
        self._looked_at: datetime | None = None
        self._was_away = False
        self._lease_ends = 0.0
        self._housekeeping = housekeeping
        self._housekeeping_at = time.monotonic() + HOUSEKEEPING_SECONDS
        self._housekeeping_task: asyncio.Task[None] | None = None
        self.loads: Mapping[str, QueueLoad] = {}
        self.closures: Mapping[str, Closure] = {}
        self._guarded: frozenset[str] = frozenset()  # closed, open to one probe only, or starting slowly

    def take_room(self, queue: str, provider: str, owner_limit: int | None = None) -> bool:
        """Whether a job submitted now may be hinted at once, by its maker; dispatch decides about all others."""
        caps = self._caps
        if owner_limit is not None or caps.owner is not None or provider in caps.providers or provider in caps.rates:
            return False
        if provider in self._guarded:
            return False
        if not self._can_hint():
            return False
        room = self._room.get(queue, 0)
        if room <= 0:
            return False
        self._room[queue] = room - 1
        return True

    async def run(self) -> None:
        """Dispatch for as long as the process lives."""
        while True:
            try:
                pause = await self._tick()
            except Unavailable as error:
                log.warning("dispatch.waiting", reason=error.detail)
                # Workers could not renew their leases either: give them time to, before believing that they died.
                self._was_away = True
                self._room.clear()
                pause = 1.0
            except Exception:
                log.exception("dispatch.failed")
                pause = 1.0
            await asyncio.sleep(pause)

    async def release_lease(self) -> None:
        """Let another process take over at once; for a clean exit."""
        if time.monotonic() < self._lease_ends:
            with contextlib.suppress(Unavailable):
                await self._database.write(give_up_lease, self._holder)

    async def _tick(self) -> float:
        pulse = await self._database.read(read_pulse, self._alive_seconds, self._rehint_seconds)
        stood_still = timedelta(seconds=self._settling_seconds + 2 * IDLE_SECONDS)
        if self._was_away or (self._looked_at is not None and pulse.at - self._looked_at > stood_still):
            # The database, the machine or we stood still, and so perhaps did the heartbeats: let them come first.
            self._healthy_since = time.monotonic() + self._settling_seconds
            self._was_away = False
        self._looked_at = pulse.at
        self.loads = pulse.loads
        known, self.closures = self.closures, closures_of(pulse.states)
        if pulse.leader == self._holder:
            _tell_changes(known, self.closures)
        slow = {s.provider for s in pulse.states if s.breaker == "half_open" or s.allowance is not None}
        self._guarded = frozenset(self.closures.keys() | slow)
        self._room = {queue: load.room if load.waiting == load.blocked else 0 for queue, load in pulse.loads.items()}
        now = time.monotonic()
        leading = pulse.leader == self._holder
        if pulse.leader is not None and not leading:
            return IDLE_SECONDS
        if leading and not pulse.must_act and now < self._lease_ends - LEASE_SECONDS / 2:
            return _pause(pulse)
        started = time.monotonic()
        if not leading:
            # A candidate does not see what kept the holder from writing, and the workers too: they come first.
            self._healthy_since = max(self._healthy_since, now + self._settling_seconds)
        left = await self._take_tokens(dict.fromkeys(self._caps.rates, 0))
        allowances = {provider: int(verdict.tokens) for provider, verdict in left.items()}
        done = await self._database.write(self._dispatch, now >= self._healthy_since, self._can_hint(), allowances)
        if done is None:
            return IDLE_SECONDS
        self._lease_ends = started + LEASE_SECONDS
        for job in (*done.repeated, *done.released):
            self._hint(job)
        starts = Counter(job.provider for job in done.released)
        await self._take_tokens({provider: starts[provider] for provider in self._caps.rates if starts[provider]})
        for job in done.recovered:
            log.warning(
                "job.recovered",
                job_id=job.id,
                task_id=job.celery_task_id,
                request_id=job.request_id,
                owner_id=job.owner_id,
                tier=job.tier,
                attempt=job.attempt,
                to=job.status,
            )
        if now >= self._housekeeping_at:
            self._housekeeping_at = now + HOUSEKEEPING_SECONDS
            self._housekeeping_task = asyncio.create_task(self._keep_house())
        if done.released or done.repeated or done.is_unfinished:
            return BUSY_SECONDS
        return _until_due(pulse)

    async def _take_tokens(self, counts: Mapping[str, int]) -> dict[str, Verdict]:
        """So many from each provider's bucket; none to see how many there are."""
        if not counts or self._limiter is None:
            return {}
        taken = (self._limiter.take(self._caps.rates[name], name, count) for name, count in counts.items())
        return dict(zip(counts, await asyncio.gather(*taken), strict=True))

    async def _keep_house(self) -> None:
        """Now and then, by whoever dispatches: forget old keys, and whatever else the house has to tidy."""
        try:
            while await self._database.write(purge_idempotency_keys):
                pass
            await self._housekeeping()
        except Unavailable as error:
            log.warning("housekeeping.postponed", reason=error.detail)
        except Exception:
            log.exception("housekeeping.failed")

    def _dispatch(self, tx: Tx, may_recover: bool, may_hint: bool, allowances: Mapping[str, int]) -> "_Done | None":
        """One round, in one transaction that is only ours if the lease is."""
        if not take_lease(tx, self._holder):
            return None
        recovered: list[Job] = []
        if may_recover:
            recovered += self._service.recover_lost(tx)
            recovered += self._service.fail_overdue(tx)
        recovered += self._service.fail_unstarted(tx)
        recovered += self._service.fail_unreachable(tx)
        tx.execute(delete(workers).where(workers.c.seen_at < db_now(-20 * self._alive_seconds)))
        states = read_states(tx)
        if any(state.is_due for state in states):
            availability.half_open(tx)
            states = read_states(tx)
        closures = closures_of(states)
        withdraw(tx, closures)
        more_to_move = availability.leave_closed(tx, closures)
        loads = read_loads(tx, self._alive_seconds)
        served = [queue for queue, load in loads.items() if load.slots]
        gates = open_gates(tx, self._caps, states, allowances)
        released: list[Job] = []
        repeated: list[Job] = []
        if may_hint:
            repeated += rehint(tx, served, self._rehint_seconds)
            for queue, load in loads.items():
                room = min(load.room, MAX_RELEASED)
                if room > 0 and load.waiting > 0:
                    released += release(tx, queue, room, gates)
        more_to_say = explain_waiting(tx, served, gates)
        return _Done(released, repeated, recovered, is_unfinished=more_to_move or more_to_say)


@dataclass(frozen=True, slots=True)
class _Done:
    released: Sequence[Job]
    repeated: Sequence[Job]
    recovered: Sequence[Job]
    is_unfinished: bool  # there was more to do than is done in one round


def _tell_changes(before: Mapping[str, Closure], now: Mapping[str, Closure]) -> None:
    for provider in now.keys() - before.keys():
        closure = now[provider]
        log.warning("provider.closed", provider=provider, code=closure.code, until=closure.until, reason=closure.reason)
    for provider in before.keys() - now.keys():
        log.info("provider.opened", provider=provider)


def _pause(pulse: Pulse) -> float:
    if any(load.waiting and load.slots for load in pulse.loads.values()):
        return BUSY_SECONDS  # all slots are taken: look often, so that none stays free
    return _until_due(pulse)


def _until_due(pulse: Pulse) -> float:
    if pulse.next_due_seconds is None:
        return IDLE_SECONDS
    return min(IDLE_SECONDS, max(BUSY_SECONDS, pulse.next_due_seconds))


# --- rows -------------------------------------------------------------------------------------------------------------


def take_lease(tx: Tx, holder: str) -> bool:
    """Take or renew the dispatch lease."""
    mine = (
        update(leases)
        .where(leases.c.name == LEASE_NAME, or_(leases.c.holder == holder, leases.c.until < db_now()))
        .values(holder=holder, until=db_now(LEASE_SECONDS))
    )
    return tx.execute(mine).rowcount == 1


def give_up_lease(tx: Tx, holder: str) -> None:
    """End the lease now."""
    tx.execute(update(leases).where(leases.c.name == LEASE_NAME, leases.c.holder == holder).values(until=db_now(-1.0)))


def read_loads(tx: Tx, alive_seconds: float) -> dict[str, QueueLoad]:
    """Every queue that has a worker or a job."""
    totals: dict[str, list[int]] = {}

    def of(queue: str) -> list[int]:
        return totals.setdefault(queue, [0, 0, 0, 0, 0, 0])

    for queues, slots in tx.run(_WORKERS, {"since": -alive_seconds}):
        for queue in queues:
            of(queue)[0] += 1
            of(queue)[1] += slots
    for queue, *numbers in tx.run(_COUNTS, {}):
        totals[queue] = [known + more for known, more in zip(of(queue), (0, 0, *numbers), strict=True)]
    return {queue: QueueLoad(*numbers) for queue, numbers in totals.items()}


def _counted(place: int, *conditions: ColumnElement[bool]) -> Select[*tuple[Any, ...]]:
    """By queue: running, hinted, waiting and blocked, of which these count as the one in this place."""
    numbers = [func.count() if at == place else literal_column("0", Integer) for at in range(3)]
    blocked = func.count(jobs.c.blocked_reason) if place == 2 else literal_column("0", Integer)
    return select(jobs.c.queue, *numbers, blocked).where(*conditions).group_by(jobs.c.queue)


_WORKERS = Prepared(
    select(workers.c.queues, workers.c.slots).where(workers.c.seen_at > db_now(bindparam("since", type_=Float)))
)
_COUNTS = Prepared(
    union_all(_counted(0, PROCESSING), _counted(1, RELEASED), _counted(2, WAITING, jobs.c.run_at <= db_now()))
)


def read_pulse(tx: Tx, alive_seconds: float, rehint_seconds: float) -> Pulse:
    """Whether there is anything to do, cheaply; most rounds there is not."""
    loads = read_loads(tx, alive_seconds)
    states = read_states(tx)
    must_act = (
        any(load.waiting and load.room for load in loads.values())
        or any(state.is_due for state in states)
        or bool(tx.run(_IS_URGENT, {"rehint": rehint_seconds})[0][0])
        or _is_misexplained(tx, loads, states)
    )
    leader = next((row[0] for row in tx.run(_LEADER, {})), None)
    [(next_run, now)] = tx.run(_NEXT_RUN, {})
    ahead = [seconds for state in states if (seconds := state.opens_in_seconds) is not None]
    if next_run is not None:
        ahead.append((next_run - now).total_seconds())
    return Pulse(loads, states, must_act, min(ahead, default=None), leader, now)


def _is_misexplained(tx: Tx, loads: Mapping[str, QueueLoad], states: Sequence[ProviderState]) -> bool:
    if not any(load.waiting or load.hinted for load in loads.values()):
        return False
    queries = misexplained([queue for queue, load in loads.items() if load.slots], closures_of(states))
    return any(tx.execute(query.limit(1)).first() is not None for query in queries)


_LEADER = Prepared(select(leases.c.holder).where(leases.c.name == LEASE_NAME, leases.c.until > db_now()))
_NEXT_RUN = Prepared(select(func.min(jobs.c.run_at), db_now()).where(WAITING, jobs.c.run_at > db_now()))
_URGENT = (
    and_(PROCESSING, jobs.c.lease_until < db_now()),
    and_(PROCESSING, jobs.c.deadline_at < db_now()),
    is_unstarted(),
    stale_hint(bindparam("rehint", type_=Float)),
)
_IS_URGENT = Prepared(select(or_(*(exists().where(condition) for condition in _URGENT))))
