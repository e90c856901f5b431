"""Who runs next, and what is done for jobs that nobody holds any more.

Every API and io worker process runs a `Dispatcher`; one at a time holds the lease row and leads. It puts jobs whose
time has come into their lines, releases from the lines (sets `released_at` and sends a hint) while workers have room,
sends hints again that nobody claimed, and recovers jobs whose worker died. The others read what it publishes. A round
costs what it does, not what waits. All of it can be repeated or interrupted at any point.
"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import structlog
from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Float,
    and_,
    bindparam,
    case,
    exists,
    func,
    or_,
    select,
    update,
)

from safelight.db import Database, Prepared, Tx, db_now
from safelight.errors import Unavailable
from safelight.jobs import availability
from safelight.jobs.availability import ProviderState, Unavailability, read_states, unavailable_of
from safelight.jobs.capacity import Capacity, Caps, read_capacity
from safelight.jobs.ends import is_unstarted
from safelight.jobs.idempotency import purge_idempotency_keys
from safelight.jobs.job import PROCESSING, RELEASED, Job, has_status, jobs, leases
from safelight.jobs.line import MAX_RELEASED, SCHEDULED, Turns, count_waiting, release, ripen
from safelight.jobs.presence import has_lost
from safelight.jobs.service import Jobs
from safelight.jobs.situation import LEASE_NAME, QueueLoad, Situation, publish, read_loads, read_situation
from safelight.limits import Limiter, RateDecision

LEASE_SECONDS = 4.0
IDLE_SECONDS = 0.5
BUSY_SECONDS = 0.05
WAKE_SECONDS = 0.01  # how often one process wakes the leader at most
HOUSEKEEPING_SECONDS = 600.0
REHINT_FACTORS = (1.0, 2.0, 6.0, 12.0)  # 5, 10, 30, 60 s
COUNTED = 1000  # of what waits for a provider, at each look;
SAMPLED, SAMPLE_SECONDS = 100_000, 5.0  # and so many, and beyond them nobody is told, as often as this

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a process sees. `needs`: there is something to do for a leader; `is_urgent`: for jobs nobody holds."""

    leader: str | None
    situation: Situation
    states: Sequence[ProviderState]
    at: datetime
    needs: bool = False
    is_urgent: bool = False
    next_due_seconds: float | None = None  # a job's time comes, or an unavailable provider's


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
        wake_leader: Callable[[], None] = lambda: None,
    ) -> None:
        """`limiter` counts for the rates of `caps`; without one they are not kept. `wake_leader` tells its process."""
        self._database = database
        self._service = service
        self._holder = holder
        self._hint = hint
        self._can_hint = can_hint
        self._caps = caps
        self._limiter = limiter
        self._wake_leader = wake_leader
        self._woken = asyncio.Event()
        self._tells_at = 0.0
        self._telling: asyncio.TimerHandle | None = None
        self._alive_seconds = 3 * beat_seconds
        self._settling_seconds = 2 * beat_seconds
        self._rehint_seconds = rehint_seconds
        self._room: dict[str, int] = {}
        self._healthy_since = -1e9
        self._looked_at: datetime | None = None
        self._was_away = False
        self._lease_ends = 0.0
        self._look_due = 0.0
        self._turns = Turns()
        self._moves: dict[str, str] = {}
        self._sampled: dict[tuple[str, str], int] = {}
        self._sampled_at = -1e9
        self._housekeeping = housekeeping
        self._housekeeping_at = time.monotonic() + HOUSEKEEPING_SECONDS
        self._housekeeping_task: asyncio.Task[None] | None = None
        self.situation = Situation()
        self.unavailable: Mapping[str, Unavailability] = {}
        self._restricted: frozenset[str] = frozenset()  # unavailable, open to one probe only, or starting slowly

    def take_room(self, queue: str, provider: str, owner_limit: int | None = None) -> bool:
        """Whether a job submitted now may be hinted at once, by its maker; dispatch decides about all others."""
        caps = self._caps
        if owner_limit is not None or caps.owner is not None or provider in caps.providers or provider in caps.rates:
            return False
        if provider in self._restricted:
            return False
        if not self._can_hint():
            return False
        room = self._room.get(queue, 0)
        if room <= 0:
            return False
        self._room[queue] = room - 1
        return True

    def changed(self, job: Job) -> None:
        """A job waits, left its place or came back: whoever waits for that may start, and the leader looks now."""
        if job.status == "processing":
            return
        caps = self._caps
        is_capped = job.owner_limit is not None or caps.owner is not None or job.provider in caps.providers
        load = self.situation.queues.get(job.queue)
        if not (is_capped or job.status == "pending" or (load is not None and load.waiting > 0)):
            return
        if self._is_leading:
            self._woken.set()
            return
        now = asyncio.get_running_loop().time()
        if now >= self._tells_at:
            self._tells_at = now + WAKE_SECONDS
            self._wake_leader()
        elif self._telling is None:  # once more, for all that come until then
            self._telling = asyncio.get_running_loop().call_at(self._tells_at, self._tell)

    def _tell(self) -> None:
        self._telling = None
        self._wake_leader()

    def wake(self) -> None:
        """Another process says that something changed."""
        if self._is_leading:
            self._woken.set()

    @property
    def _is_leading(self) -> bool:
        return time.monotonic() < self._lease_ends

    async def run(self) -> None:
        """Dispatch for as long as the process lives."""
        while True:
            # Woken between two looks, a leader knows enough to release at once.
            knows = self._woken.is_set() and time.monotonic() < min(self._look_due, self._lease_ends - IDLE_SECONDS)
            self._woken.clear()
            try:
                pause = await (self._release(None) if knows else self._tick())
            except Unavailable as error:
                log.warning("dispatch.waiting", reason=error.detail)
                # Workers could not renew their leases either: give them time to, before believing that they died.
                self._was_away = True
                self._room.clear()
                pause = 1.0
            except Exception:
                log.exception("dispatch.failed")
                pause = 1.0
            await asyncio.sleep(WAKE_SECONDS)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._woken.wait()

    async def release_lease(self) -> None:
        """Let another process take over at once; for a clean exit."""
        if self._is_leading:
            with contextlib.suppress(Unavailable):
                await self._database.write(give_up_lease, self._holder)

    async def _tick(self) -> float:
        """One turn: a look, and a round if we lead and something is to be done. Returns how long to rest."""
        self._look_due = time.monotonic() + IDLE_SECONDS
        snapshot = await self._database.read(self._look)
        self._notice_time(snapshot.at)
        self._take_in(snapshot.situation, snapshot.states, is_leader=snapshot.leader == self._holder)
        now = time.monotonic()
        leading = snapshot.leader == self._holder
        if snapshot.leader is not None and not leading:
            self._lease_ends = 0.0
            return IDLE_SECONDS
        if leading and not snapshot.needs and now < self._lease_ends - LEASE_SECONDS / 2:
            return self._pause(snapshot)
        if not leading:
            # A candidate does not see what kept the holder from writing, and the workers too: they come first.
            self._healthy_since = max(self._healthy_since, now + self._settling_seconds)
        if snapshot.is_urgent:
            await self._recover(may_recover=now >= self._healthy_since)
        return await self._release(snapshot.next_due_seconds)

    def _notice_time(self, at: datetime) -> None:
        """If the database, the machine or we stood still, so perhaps did the heartbeats: let them come first."""
        stood_still = timedelta(seconds=self._settling_seconds + 2 * IDLE_SECONDS)
        if self._was_away or (self._looked_at is not None and at - self._looked_at > stood_still):
            self._healthy_since = time.monotonic() + self._settling_seconds
            self._was_away = False
        self._looked_at = at

    async def _recover(self, *, may_recover: bool) -> None:
        """Do what is overdue; what ends here has ended for good."""
        for job in await self._database.write(self._end_overdue, may_recover):
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

    async def _release(self, next_due_seconds: float | None) -> float:
        started = time.monotonic()
        left = await self._take_tokens(dict.fromkeys(self._caps.rates, 0))
        allowances = {provider: int(verdict.tokens) for provider, verdict in left.items()}
        done = await self._database.write_beside(self._dispatch, self._can_hint(), allowances)
        if done is None:
            return IDLE_SECONDS
        self._lease_ends = started + LEASE_SECONDS
        self._take_in(done.situation, done.states, is_leader=True)
        for job in (*done.repeated, *done.released):
            self._hint(job)
        starts = Counter(job.provider for job in done.released)
        await self._take_tokens({provider: starts[provider] for provider in self._caps.rates if starts[provider]})
        if started >= self._housekeeping_at:
            self._housekeeping_at = started + HOUSEKEEPING_SECONDS
            self._housekeeping_task = asyncio.create_task(self._keep_house())
        self._notice_time(done.at)
        if done.released or done.repeated or done.is_unfinished:
            return BUSY_SECONDS
        return _until_due(next_due_seconds)

    def _take_in(self, situation: Situation, states: Sequence[ProviderState], *, is_leader: bool) -> None:
        known, self.unavailable = self.unavailable, unavailable_of(states)
        if is_leader:
            _log_changes(known, self.unavailable)
        slow = {s.provider for s in states if s.breaker == "half_open" or s.allowance is not None}
        self._restricted = frozenset(self.unavailable.keys() | slow)
        self.situation = situation
        self._room = {
            queue: load.room if load.waiting == load.blocked else 0 for queue, load in situation.queues.items()
        }

    def _pause(self, snapshot: Snapshot) -> float:
        if any(load.waiting > load.blocked and load.slots for load in snapshot.situation.queues.values()):
            return BUSY_SECONDS  # all slots are taken: look often, so that none stays free
        return _until_due(snapshot.next_due_seconds)

    async def _take_tokens(self, counts: Mapping[str, int]) -> dict[str, RateDecision]:
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

    # --- rows ---------------------------------------------------------------------------------------------------------

    def _look(self, tx: Tx) -> Snapshot:
        """Whether there is anything to do, cheaply; most rounds there is not. Who does not lead reads what is told."""
        leader, published, now = read_situation(tx)
        states = read_states(tx)
        if leader is not None and leader != self._holder:
            return Snapshot(leader, published or Situation(), states, now)
        survey = self._survey(tx, states)
        [(next_run,)] = tx.run(_NEXT_RUN, {})
        is_urgent = bool(tx.run(_IS_OVERDUE, {})[0][0]) or has_lost(tx) or self._service.has_unreachable(tx)
        needs = (
            is_urgent
            or survey.situation != published
            or survey.has_room
            or any(state.is_due for state in states)
            or (next_run is not None and next_run <= now)
            or bool(tx.run(_IS_STALE, {"rehint": self._rehint_seconds})[0][0])
            or availability.concerns(tx, survey.capacity.unavailable)
        )
        ahead = [seconds for state in states if (seconds := state.opens_in_seconds) is not None]
        if next_run is not None:
            ahead.append((next_run - now).total_seconds())
        return Snapshot(leader, survey.situation, states, now, needs, is_urgent, min(ahead, default=None))

    def _survey(
        self, tx: Tx, states: Sequence[ProviderState], allowances: Mapping[str, int] | None = None
    ) -> "_Survey":
        waiting = count_waiting(tx, COUNTED)
        if COUNTED in waiting.values():
            if time.monotonic() > self._sampled_at + SAMPLE_SECONDS:
                self._sampled, self._sampled_at = count_waiting(tx, SAMPLED), time.monotonic()
            waiting = {pair: max(count, self._sampled.get(pair, 0)) for pair, count in waiting.items()}
        loads = read_loads(tx, self._alive_seconds)
        return _Survey(loads, waiting, read_capacity(tx, self._caps, states, allowances), self._caps.owner)

    def _end_overdue(self, tx: Tx, may_recover: bool) -> list[Job]:
        """For jobs that nobody holds, in one transaction that is only ours if the lease is."""
        if not take_lease(tx, self._holder):
            return []
        ended: list[Job] = []
        if may_recover:
            ended += self._service.recover_lost(tx)
            ended += self._service.fail_overdue(tx)
        ended += self._service.fail_unstarted(tx)
        ended += self._service.fail_unreachable(tx)
        return ended

    def _dispatch(self, tx: Tx, may_hint: bool, allowances: Mapping[str, int]) -> "_Done | None":
        """One round, likewise. Nothing in it is lost with the machine that the next would not do again."""
        if not take_lease(tx, self._holder):
            return None
        states = read_states(tx)
        if any(state.is_due for state in states):
            availability.half_open(tx)
            states = read_states(tx)
        unavailable = unavailable_of(states)
        availability.withdraw(tx, unavailable)
        more_to_move = availability.leave_unavailable(tx, unavailable, self._moves)
        more_to_come = ripen(tx)
        survey = self._survey(tx, states, allowances)
        released: list[Job] = []
        repeated: list[Job] = []
        more_to_look = False
        if may_hint:
            repeated += rehint(tx, [queue for queue, load in survey.loads.items() if load.slots], self._rehint_seconds)
            for queue, load in list(survey.loads.items()):
                room, providers = min(load.room, MAX_RELEASED), survey.providers(queue)
                if room > 0 and providers:
                    some, has_more = release(tx, queue, providers, room, survey.capacity, self._turns)
                    released += some
                    more_to_look = more_to_look or has_more
        survey.note(released)
        publish(tx, self._holder, survey.situation)
        at: datetime = tx.execute(select(db_now())).scalar_one()
        return _Done(
            released, repeated, survey.situation, states, at, is_unfinished=more_to_move or more_to_come or more_to_look
        )


@dataclass(slots=True)
class _Survey:
    """How everything stands: the queues without what waits, what waits by queue and provider, and what may start."""

    loads: dict[str, QueueLoad]
    waiting: dict[tuple[str, str], int]
    capacity: Capacity
    owner_cap: int | None

    @property
    def situation(self) -> Situation:
        loads = dict(self.loads)
        for (queue, provider), count in self.waiting.items():
            load = loads.get(queue, QueueLoad())
            blocked = 0 if self.capacity.left(provider) > 0 else count
            loads[queue] = replace(load, waiting=load.waiting + count, blocked=load.blocked + blocked)
        return Situation(loads, self.capacity.full, self.owner_cap)

    @property
    def has_room(self) -> bool:
        """Whether something that waits may start."""
        return any(
            queue in self.loads and self.loads[queue].room > 0 and self.capacity.left(provider) > 0
            for queue, provider in self.waiting
        )

    def providers(self, queue: str) -> list[str]:
        """Those that have a line in this queue."""
        return [provider for name, provider in self.waiting if name == queue]

    def note(self, released: Sequence[Job]) -> None:
        """These wait no longer."""
        for pair, count in Counter((job.queue, job.provider) for job in released).items():
            load = self.loads[pair[0]]
            self.loads[pair[0]] = replace(load, released=load.released + count)
            self.waiting[pair] = max(0, self.waiting[pair] - count)


@dataclass(frozen=True, slots=True)
class _Done:
    released: Sequence[Job]
    repeated: Sequence[Job]
    situation: Situation
    states: Sequence[ProviderState]
    at: datetime
    is_unfinished: bool  # there was more to do than is done in one round


def _log_changes(before: Mapping[str, Unavailability], now: Mapping[str, Unavailability]) -> None:
    for provider in now.keys() - before.keys():
        why = now[provider]
        log.warning("provider.unavailable", provider=provider, code=why.code, until=why.until, reason=why.reason)
    for provider in before.keys() - now.keys():
        log.info("provider.available", provider=provider)


def _until_due(next_due_seconds: float | None) -> float:
    if next_due_seconds is None:
        return IDLE_SECONDS
    return min(IDLE_SECONDS, max(BUSY_SECONDS, next_due_seconds))


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


def rehint(tx: Tx, queues: Sequence[str], rehint_seconds: float) -> list[Job]:
    """Send again the hints that nobody claimed, ever more rarely."""
    stale = select(jobs.c.id).where(_stale_hint(rehint_seconds), jobs.c.queue.in_(queues)).limit(MAX_RELEASED)
    ids = list(tx.execute(stale).scalars())
    if not ids:
        return []
    again = (
        update(jobs)
        .where(jobs.c.id.in_(ids), has_status("pending"))
        .values(released_at=db_now(), hint_count=jobs.c.hint_count + 1)
        .returning(*jobs.c)
    )
    sent = [Job.of(row) for row in tx.execute(again)]
    log.info("hints.repeated", count=len(sent))
    return sent


def _stale_hint(rehint_seconds: float | BindParameter[float]) -> ColumnElement[bool]:
    """Released jobs whose hint nobody followed."""
    waits = case(
        *((jobs.c.hint_count <= n, rehint_seconds * factor) for n, factor in enumerate(REHINT_FACTORS[:-1], start=1)),
        else_=rehint_seconds * REHINT_FACTORS[-1],
    )
    return and_(RELEASED, jobs.c.released_at < db_now(-waits))


_NEXT_RUN = Prepared(select(func.min(jobs.c.run_at)).where(SCHEDULED))
_IS_STALE = Prepared(select(exists().where(_stale_hint(bindparam("rehint", type_=Float)))))
_IS_OVERDUE = Prepared(
    select(or_(exists().where(PROCESSING, jobs.c.deadline_at < db_now()), exists().where(is_unstarted())))
)
