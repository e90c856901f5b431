"""Who runs next, and what is done for jobs that nobody holds any more.

Every API and io worker process runs a `Dispatcher`; one at a time holds the lease row and works. It releases due jobs
(sets `hinted_at` and sends a hint) while workers have room, says why the others wait, sends hints again that nobody
claimed, and recovers jobs whose worker died. All of it can be repeated or interrupted at any point.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import structlog
from sqlalchemy import ColumnElement, Subquery, and_, case, delete, func, or_, select, text, update

from safelight.db import Database, Tx, db_now
from safelight.errors import Unavailable
from safelight.jobs.job import Job, jobs, leases, workers
from safelight.jobs.service import Jobs, purge_idempotency_keys

LEASE_NAME = "dispatch"
LEASE_SECONDS = 4.0
IDLE_SECONDS = 0.5
BUSY_SECONDS = 0.05
MAX_RELEASED = 500
REHINT_FACTORS = (1.0, 2.0, 6.0, 12.0)  # 5, 10, 30, 60 s
HOUSEKEEPING_SECONDS = 600.0

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class QueueLoad:
    """One queue as the rows tell it: slots of living workers, jobs in them, hints under way, due jobs waiting."""

    workers: int = 0
    slots: int = 0
    running: int = 0
    hinted: int = 0
    waiting: int = 0

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
    must_act: bool
    next_due_seconds: float | None
    leader: str | None
    at: datetime


@dataclass(frozen=True, slots=True)
class Caps:
    """Jobs at once, counted from `processing` rows and released hints, so that a crash frees its place.

    `owner` is for all owners; a job may bear a lower cap of its owner's (`owner_limit`).
    """

    providers: Mapping[str, int] = field(default_factory=dict[str, int])
    owner: int | None = None


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
    ) -> None:
        self._database = database
        self._service = service
        self._holder = holder
        self._hint = hint
        self._can_hint = can_hint
        self._caps = caps
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

    def take_room(self, queue: str, provider: str, owner_limit: int | None = None) -> bool:
        """Whether a job submitted now may be hinted at once, by its maker; dispatch decides about all others."""
        if owner_limit is not None or self._caps.owner is not None or provider in self._caps.providers:
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
        self._room = {queue: load.room if load.waiting == 0 else 0 for queue, load in pulse.loads.items()}
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
        done = await self._database.write(self._dispatch, now >= self._healthy_since, self._can_hint())
        if done is None:
            return IDLE_SECONDS
        self._lease_ends = started + LEASE_SECONDS
        for job in done.released:
            self._hint(job)
        for job in done.recovered:
            log.warning(
                "job.recovered",
                job_id=job.id,
                task_id=job.celery_task_id,
                request_id=job.request_id,
                attempt=job.attempt,
                to=job.status,
            )
        if now >= self._housekeeping_at:
            self._housekeeping_at = now + HOUSEKEEPING_SECONDS
            self._housekeeping_task = asyncio.create_task(self._keep_house())
        return BUSY_SECONDS if done.released else IDLE_SECONDS

    async def _keep_house(self) -> None:
        """Now and then, by whoever dispatches: forget old keys, and whatever else the house has to tidy."""
        try:
            await self._database.write(purge_idempotency_keys)
            await self._housekeeping()
        except Unavailable as error:
            log.warning("housekeeping.postponed", reason=error.detail)
        except Exception:
            log.exception("housekeeping.failed")

    def _dispatch(self, tx: Tx, may_recover: bool, may_hint: bool) -> "_Done | None":
        """One round, in one transaction that is only ours if the lease is."""
        if not take_lease(tx, self._holder):
            return None
        recovered: list[Job] = []
        if may_recover:
            recovered += self._service.recover_lost(tx)
            recovered += self._service.fail_overdue(tx)
        recovered += self._service.fail_unstarted(tx)
        tx.execute(delete(workers).where(workers.c.seen_at < db_now(-20 * self._alive_seconds)))
        loads = read_loads(tx, self._alive_seconds)
        released: list[Job] = []
        if may_hint:
            released += rehint(tx, [queue for queue, load in loads.items() if load.slots], self._rehint_seconds)
            for queue, load in loads.items():
                room = min(load.room, MAX_RELEASED)
                if room > 0 and load.waiting > 0:
                    released += release(tx, queue, room, self._caps)
        explain_waiting(tx, [queue for queue, load in loads.items() if load.slots], self._caps)
        return _Done(released, recovered)


@dataclass(frozen=True, slots=True)
class _Done:
    released: Sequence[Job]
    recovered: Sequence[Job]


def _pause(pulse: Pulse) -> float:
    if any(load.waiting and load.slots for load in pulse.loads.values()):
        return BUSY_SECONDS  # all slots are taken: look often, so that none stays free
    if pulse.next_due_seconds is not None:
        return min(IDLE_SECONDS, max(BUSY_SECONDS, pulse.next_due_seconds))
    return IDLE_SECONDS


# --- rows -------------------------------------------------------------------------------------------------------------

_DUE = and_(jobs.c.status == "pending", jobs.c.run_at <= db_now())
_UNHINTED = jobs.c.hinted_at.is_(None)


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
        return totals.setdefault(queue, [0, 0, 0, 0, 0])

    for queues, slots in tx.execute(
        select(workers.c.queues, workers.c.slots).where(workers.c.seen_at > db_now(-alive_seconds))
    ):
        for queue in queues:
            of(queue)[0] += 1
            of(queue)[1] += slots
    processing = select(jobs.c.queue, func.count()).where(jobs.c.status == "processing").group_by(jobs.c.queue)
    for queue, count in tx.execute(processing):
        of(queue)[2] += count
    waiting = case((_UNHINTED, 1), else_=0)
    pending = select(jobs.c.queue, func.count(), func.sum(waiting)).where(_DUE).group_by(jobs.c.queue)
    for queue, count, unhinted in tx.execute(pending):
        of(queue)[3] += count - unhinted
        of(queue)[4] += unhinted
    return {queue: QueueLoad(*numbers) for queue, numbers in totals.items()}


def read_pulse(tx: Tx, alive_seconds: float, rehint_seconds: float) -> Pulse:
    """Whether there is anything to do, cheaply; most rounds there is not."""
    loads = read_loads(tx, alive_seconds)
    leader = tx.execute(
        select(leases.c.holder).where(leases.c.name == LEASE_NAME, leases.c.until > db_now())
    ).scalar_one_or_none()
    urgent = (
        select(jobs.c.id).where(jobs.c.status == "processing", jobs.c.lease_until < db_now()).limit(1),
        select(jobs.c.id).where(jobs.c.status == "processing", jobs.c.deadline_at < db_now()).limit(1),
        select(jobs.c.id)
        .where(jobs.c.status == "pending", jobs.c.attempt == 0, jobs.c.start_deadline_at < db_now())
        .limit(1),
        select(jobs.c.id).where(_stale_hint(rehint_seconds)).limit(1),
        select(jobs.c.id).where(_misexplained([queue for queue, load in loads.items() if load.slots])).limit(1),
    )
    must_act = any(load.waiting and load.room for load in loads.values()) or any(
        tx.execute(query).first() is not None for query in urgent
    )
    future = select(func.min(jobs.c.run_at), db_now()).where(jobs.c.status == "pending", jobs.c.run_at > db_now())
    next_run, now = tx.execute(future).one()
    return Pulse(loads, must_act, None if next_run is None else (next_run - now).total_seconds(), leader, now)


def release(tx: Tx, queue: str, room: int, caps: Caps) -> list[Job]:
    """Choose up to `room` due jobs of a queue, by priority and age within the caps, and mark them as released."""
    order = (jobs.c.priority.desc(), jobs.c.run_at, jobs.c.id)
    due = select(jobs.c.id).where(_DUE, _UNHINTED, jobs.c.queue == queue)
    if not _has_caps(tx, caps, [queue]):
        chosen = due.order_by(*order).limit(room).with_for_update(skip_locked=True)
    else:
        free_providers = _free_of_providers(tx, caps)
        taken = _taken(jobs.c.owner_id)
        free_of_owner = _free_of_owner(caps, taken)
        # Who is at a limit is left out before ranking: else their waiting jobs would hold up everybody behind them.
        ranked = (
            select(
                jobs.c.id,
                jobs.c.priority,
                jobs.c.run_at,
                jobs.c.provider,
                free_of_owner.label("free_of_owner"),
                func.row_number().over(partition_by=jobs.c.provider, order_by=order).label("of_provider"),
                func.row_number().over(partition_by=jobs.c.owner_id, order_by=order).label("of_owner"),
            )
            .select_from(jobs.outerjoin(taken, taken.c.holder == jobs.c.owner_id))
            .where(
                _DUE,
                _UNHINTED,
                jobs.c.queue == queue,
                jobs.c.provider.not_in(_full(free_providers)),
                or_(free_of_owner.is_(None), free_of_owner > 0),
            )
        )
        line = ranked.subquery()
        chosen = select(line.c.id).where(or_(line.c.free_of_owner.is_(None), line.c.of_owner <= line.c.free_of_owner))
        for provider, free in free_providers.items():
            chosen = chosen.where(or_(line.c.provider != provider, line.c.of_provider <= free))
        chosen = chosen.order_by(line.c.priority.desc(), line.c.run_at, line.c.id).limit(room)
    ids = list(tx.execute(chosen).scalars())
    if not ids:
        return []
    marked = (
        update(jobs)
        .where(jobs.c.id.in_(ids), jobs.c.status == "pending", _UNHINTED)
        .values(hinted_at=db_now(), hint_count=1, blocked_reason=None)
        .returning(*jobs.c)
    )
    position = {job_id: index for index, job_id in enumerate(ids)}
    return sorted((Job.of(row) for row in tx.execute(marked)), key=lambda job: position[job.id])


def rehint(tx: Tx, queues: Sequence[str], rehint_seconds: float) -> list[Job]:
    """Send again the hints that nobody claimed, ever more rarely."""
    stale = select(jobs.c.id).where(_stale_hint(rehint_seconds), jobs.c.queue.in_(queues)).limit(MAX_RELEASED)
    ids = list(tx.execute(stale).scalars())
    if not ids:
        return []
    again = (
        update(jobs)
        .where(jobs.c.id.in_(ids), jobs.c.status == "pending")
        .values(hinted_at=db_now(), hint_count=jobs.c.hint_count + 1)
        .returning(*jobs.c)
    )
    sent = [Job.of(row) for row in tx.execute(again)]
    log.info("hints.repeated", count=len(sent))
    return sent


def explain_waiting(tx: Tx, served: Sequence[str], caps: Caps) -> None:
    """Give every due job that waits its reason, and take the reason from those that no longer have one."""
    tx.execute(
        update(jobs).where(_misexplained(served)).values(blocked_reason=_no_worker_reason(served), updated_at=db_now())
    )
    if not _has_caps(tx, caps, served):
        return
    taken = _taken(jobs.c.owner_id)
    reason = case(
        (_free_of_owner(caps, taken) <= 0, "owner_limit"),
        (jobs.c.provider.in_(_full(_free_of_providers(tx, caps))), "provider_limit"),
        else_=None,
    )
    due = and_(_DUE, _UNHINTED, jobs.c.queue.in_(served))
    found = (
        select(jobs.c.id, reason.label("reason"))
        .select_from(jobs.outerjoin(taken, taken.c.holder == jobs.c.owner_id))
        .where(due, jobs.c.blocked_reason.is_distinct_from(reason))
    )
    reasons: dict[str | None, list[str]] = {}
    for job_id, why in tx.execute(found):
        reasons.setdefault(why, []).append(job_id)
    for why, ids in reasons.items():
        for start in range(0, len(ids), MAX_RELEASED):
            some = jobs.c.id.in_(ids[start : start + MAX_RELEASED])
            tx.execute(update(jobs).where(some, due).values(blocked_reason=why, updated_at=db_now()))


def _no_worker_reason(served: Sequence[str]) -> ColumnElement[Any]:
    return case((jobs.c.queue.in_(served), None), else_="no_worker")


def _misexplained(served: Sequence[str]) -> ColumnElement[bool]:
    """Due jobs that lack the reason `no_worker`, or have it although a worker is back."""
    return and_(
        _DUE,
        or_(
            and_(jobs.c.queue.not_in(served), jobs.c.blocked_reason.is_distinct_from("no_worker")),
            and_(jobs.c.queue.in_(served), jobs.c.blocked_reason == "no_worker"),
        ),
    )


def _stale_hint(rehint_seconds: float) -> ColumnElement[bool]:
    waits = case(
        *((jobs.c.hint_count <= n, rehint_seconds * factor) for n, factor in enumerate(REHINT_FACTORS[:-1], start=1)),
        else_=rehint_seconds * REHINT_FACTORS[-1],
    )
    return and_(jobs.c.status == "pending", jobs.c.hinted_at < db_now(-waits))


def _taken(column: ColumnElement[Any]) -> Subquery:
    """How many jobs run or are released, by a column: `holder`, `count`."""
    busy = or_(jobs.c.status == "processing", and_(jobs.c.status == "pending", jobs.c.hinted_at.is_not(None)))
    return select(column.label("holder"), func.count().label("count")).where(busy).group_by(column).subquery()


def _free_of_providers(tx: Tx, caps: Caps) -> dict[str, int]:
    if not caps.providers:
        return {}
    taken = _taken(jobs.c.provider)
    counts: dict[str, int] = {row[0]: row[1] for row in tx.execute(select(taken.c.holder, taken.c.count))}
    return {provider: cap - counts.get(provider, 0) for provider, cap in caps.providers.items()}


def _full(free_providers: Mapping[str, int]) -> list[str]:
    """The providers that run as many jobs as they may."""
    return [provider for provider, free in free_providers.items() if free <= 0]


def _free_of_owner(caps: Caps, taken: Subquery) -> ColumnElement[Any]:
    """How many more jobs may run of a job's owner, as far as this job is concerned; NULL without a cap."""
    own = jobs.c.owner_limit
    cap = own if caps.owner is None else case((own < caps.owner, own), else_=caps.owner)
    return cap - func.coalesce(taken.c.count, 0)


def _has_caps(tx: Tx, caps: Caps, queues: Sequence[str]) -> bool:
    """Whether anything waits that a cap could hold back; without caps choosing is much cheaper."""
    if caps.owner is not None or caps.providers:
        return True
    # The words of the index's condition, so that it can serve: it is empty where there are no tiers.
    capped = select(jobs.c.id).where(
        text("status = 'pending' AND owner_limit IS NOT NULL"), jobs.c.queue.in_(queues), jobs.c.run_at <= db_now()
    )
    return tx.execute(capped.limit(1)).first() is not None
