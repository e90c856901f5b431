"""Jobs that wait: which of them are released, within what caps, and why the others are not.

The parts of a round of dispatch, each of them plain code over rows. What a round may do for each provider stands in its
`Gates`, which are opened once and then used up.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import structlog
from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Select,
    Subquery,
    and_,
    case,
    func,
    literal,
    null,
    or_,
    select,
    union_all,
    update,
)

from safelight.db import Instant, Tx, db_now
from safelight.jobs import availability
from safelight.jobs.availability import Closure, ProviderState
from safelight.jobs.job import PROCESSING, RELEASED, WAITING, Job, has_status, jobs
from safelight.limits import Policy

MAX_RELEASED = 500
REHINT_FACTORS = (1.0, 2.0, 6.0, 12.0)  # 5, 10, 30, 60 s
MIN_LOOK = 64  # jobs looked at together
MAX_LOOKS = 8
EXPLAINED = 1000  # jobs given another reason in one round, the next to run first

CLOSED = ("provider_paused", "breaker_open", "provider_unreachable")

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Caps:
    """Jobs at once, counted from `processing` rows and released hints, so that a crash frees its place.

    `owner` is for all owners; a job may bear a lower cap of its owner's (`owner_limit`). `rates` say how many jobs a
    provider may start in a time.
    """

    providers: Mapping[str, int] = field(default_factory=dict[str, int])
    owner: int | None = None
    rates: Mapping[str, Policy] = field(default_factory=dict[str, Policy])


class Gates:
    """What a round may release, as caps, rates, pauses and breakers leave it.

    `free` holds the providers of which not any number may start, and how many may.
    """

    def __init__(
        self,
        closures: Mapping[str, Closure],
        free: dict[str, int],
        why: dict[str, str],
        unprobed: set[str],
        *,
        owner_cap: int | None,
        has_owner_caps: bool,
    ) -> None:
        self.owner_cap = owner_cap
        self.has_owner_caps = has_owner_caps  # everybody's or a job's own; else what runs of whom is not counted
        self.closures = closures
        self.free = free
        self.unprobed = unprobed  # half open, and nobody tries yet
        self._why = why

    @property
    def shut(self) -> list[str]:
        """The providers of which none may start."""
        return [provider for provider, free in self.free.items() if free <= 0]

    def why(self, provider: str) -> tuple[str, datetime | None]:
        """Why it is shut, and until when, if that is known."""
        closure = self.closures.get(provider)
        return (self._why[provider], None) if closure is None else (closure.code, closure.until)

    def pass_one(self, provider: str) -> bool:
        """Whether one more may start there; it is counted."""
        free = self.free.get(provider)
        if free is None:
            return True
        self.free[provider] = free - 1
        return free > 0


def open_gates(
    tx: Tx, caps: Caps, states: Sequence[ProviderState] = (), allowances: Mapping[str, int] | None = None
) -> Gates:
    """`allowances` is how many jobs the rates leave to each provider that has one."""
    closures = availability.closures_of(states)
    free: dict[str, int] = {}
    why: dict[str, str] = {}

    def narrow(provider: str, count: int, reason: str) -> None:
        if provider not in free or count < free[provider]:
            free[provider], why[provider] = count, reason

    if caps.providers:
        taken = _taken(jobs.c.provider)
        counts: dict[str, int] = {row[0]: row[1] for row in tx.execute(select(taken.c.holder, taken.c.count))}
        for provider, cap in caps.providers.items():
            narrow(provider, cap - counts.get(provider, 0), "provider_limit")
    for provider, count in (allowances or {}).items():
        narrow(provider, count, "rate_limited")
    for state in states:
        if state.allowance is not None:
            narrow(state.provider, state.allowance - _started_since(tx, state), "rate_limited")
    trying = [state for state in states if state.breaker == "half_open" and not state.has_probe]
    for state in trying:
        narrow(state.provider, 1, state.breaker_code)
    for provider in closures:
        free[provider] = 0
    limited = select(jobs.c.id).where(WAITING, jobs.c.owner_limit.is_not(None)).limit(1)
    has_owner_caps = caps.owner is not None or tx.execute(limited).first() is not None
    unprobed = {state.provider for state in trying}
    return Gates(closures, free, why, unprobed, owner_cap=caps.owner, has_owner_caps=has_owner_caps)


def withdraw(tx: Tx, closures: Mapping[str, Closure]) -> None:
    """Take back the release of what a provider that was closed meanwhile may not start; its probe may."""
    if not closures:
        return
    released = (
        select(jobs.c.id)
        .where(RELEASED, jobs.c.provider.in_(list(closures)), availability.is_closed())
        .with_for_update(skip_locked=True)
    )
    tx.execute(update(jobs).where(jobs.c.id.in_(released), has_status("pending")).values(hinted_at=None, hint_count=0))


def release(tx: Tx, queue: str, room: int, gates: Gates) -> list[Job]:
    """Choose up to `room` due jobs of a queue, by priority and age within the gates, and mark them as released."""
    ids = _choose(tx, queue, room, gates)
    if not ids:
        return []
    marked = (
        update(jobs)
        .where(jobs.c.id.in_(ids), has_status("pending"), jobs.c.hinted_at.is_(None))
        .values(hinted_at=db_now(), hint_count=1, blocked_reason=None, blocked_until=None)
        .returning(*jobs.c)
    )
    position = {job_id: index for index, job_id in enumerate(ids)}
    released = sorted((Job.of(row) for row in tx.execute(marked)), key=lambda job: position[job.id])
    for job in released:
        if job.provider in gates.unprobed:
            gates.unprobed.discard(job.provider)
            availability.set_probe(tx, job.provider, job.id)
    return released


def _choose(tx: Tx, queue: str, room: int, gates: Gates) -> list[str]:
    """Walk along the line, some jobs at a time. Who is at a limit is left out of the next look, not walked past: else
    their waiting jobs would hold up everybody behind them."""
    chosen: list[str] = []
    started: dict[str, int] = {}  # by owner
    full: set[str] = set()
    for _ in range(MAX_LOOKS):
        wanted = max(MIN_LOOK, room - len(chosen))
        line = tx.execute(_line(queue, gates, full, chosen).limit(wanted)).all()
        for row in line:
            if len(chosen) == room:
                break
            count = started.get(row.owner_id, 0)
            if row.free_of_owner is not None and row.free_of_owner <= count:
                full.add(row.owner_id)
            elif gates.pass_one(row.provider):
                started[row.owner_id] = count + 1
                chosen.append(row.id)
        if len(line) < wanted or len(chosen) == room:
            break
    return chosen


def _line(queue: str, gates: Gates, full: set[str], chosen: Sequence[str]) -> Select[*tuple[Any, ...]]:
    """The due jobs of a queue that nothing holds back, first to last."""
    columns = (jobs.c.id, jobs.c.owner_id, jobs.c.provider)
    due = [WAITING, jobs.c.queue == queue, jobs.c.run_at <= db_now()]
    for column, left_out in ((jobs.c.provider, gates.shut), (jobs.c.owner_id, full), (jobs.c.id, chosen)):
        if left_out:
            due.append(column.not_in(list(left_out)))
    if gates.has_owner_caps:
        taken = _taken(jobs.c.owner_id)
        free = _free_of_owner(gates.owner_cap, taken)
        line = select(*columns, free.label("free_of_owner")).select_from(
            jobs.outerjoin(taken, taken.c.holder == jobs.c.owner_id)
        )
        due.append(or_(free.is_(None), free > 0))
    else:
        line = select(*columns, null().label("free_of_owner"))
    return (
        line.where(*due)
        .order_by(jobs.c.priority.desc(), jobs.c.run_at, jobs.c.id)
        .with_for_update(skip_locked=True, of=jobs)
    )


def rehint(tx: Tx, queues: Sequence[str], rehint_seconds: float) -> list[Job]:
    """Send again the hints that nobody claimed, ever more rarely."""
    stale = select(jobs.c.id).where(stale_hint(rehint_seconds), jobs.c.queue.in_(queues)).limit(MAX_RELEASED)
    ids = list(tx.execute(stale).scalars())
    if not ids:
        return []
    again = (
        update(jobs)
        .where(jobs.c.id.in_(ids), has_status("pending"))
        .values(hinted_at=db_now(), hint_count=jobs.c.hint_count + 1)
        .returning(*jobs.c)
    )
    sent = [Job.of(row) for row in tx.execute(again)]
    log.info("hints.repeated", count=len(sent))
    return sent


def explain_waiting(tx: Tx, served: Sequence[str], gates: Gates) -> bool:
    """Give every due job that waits its reason, and take the reason from those that no longer have one.

    True: there may be more to explain.
    """
    no_worker = case((jobs.c.queue.in_(served), None), else_="no_worker")
    tx.execute(
        update(jobs)
        .where(RELEASED, _without_worker(served))
        .values(blocked_reason=no_worker, blocked_until=None, updated_at=db_now())
    )
    unserved = jobs.c.queue.not_in(served)
    reasons: list[tuple[ColumnElement[bool], Any]] = [(unserved, "no_worker")]
    ends: list[tuple[ColumnElement[bool], Any]] = [(unserved, literal(None, Instant))]
    for provider in gates.closures:
        code, until = gates.why(provider)
        reasons.append((jobs.c.provider == provider, code))
        ends.append((jobs.c.provider == provider, literal(until, Instant)))
    waiting = jobs
    if gates.has_owner_caps:
        taken = _taken(jobs.c.owner_id)
        waiting = jobs.outerjoin(taken, taken.c.holder == jobs.c.owner_id)
        reasons.append((_free_of_owner(gates.owner_cap, taken) <= 0, "owner_limit"))
    full = [provider for provider in gates.shut if provider not in gates.closures]
    reasons += [(jobs.c.provider == provider, gates.why(provider)[0]) for provider in full]
    reason = case(*reasons, else_=None)
    until = case(*ends, else_=None)
    due = and_(WAITING, jobs.c.run_at <= db_now())
    found = (
        select(jobs.c.id, reason.label("reason"), until.label("until"))
        .select_from(waiting)
        .where(due, or_(jobs.c.blocked_reason.is_distinct_from(reason), jobs.c.blocked_until.is_distinct_from(until)))
        .limit(EXPLAINED)
    )
    groups: dict[tuple[str | None, datetime | None], list[str]] = {}
    for job_id, why, end in tx.execute(found):
        groups.setdefault((why, end), []).append(job_id)
    for (why, end), ids in groups.items():
        for start in range(0, len(ids), MAX_RELEASED):
            some = jobs.c.id.in_(ids[start : start + MAX_RELEASED])
            changed = {"blocked_reason": why, "blocked_until": end, "updated_at": db_now()}
            tx.execute(update(jobs).where(some, due).values(changed))
    return sum(map(len, groups.values())) == EXPLAINED


def misexplained(served: Sequence[str], closures: Mapping[str, Closure]) -> list[Select[str]]:
    """Due jobs of which something is to be said or taken back: that no worker serves them, that a provider is closed.

    What caps hold back is not among them: that is found out when there is room.
    """
    closed = list(closures)
    silent = or_(jobs.c.blocked_reason.is_(None), jobs.c.blocked_reason.not_in((*CLOSED, "no_worker")))
    of_provider = or_(
        and_(jobs.c.provider.in_(closed), silent),
        and_(jobs.c.provider.not_in(closed), jobs.c.blocked_reason.in_(CLOSED)),
    )
    due = jobs.c.run_at <= db_now()
    return [
        select(jobs.c.id).where(WAITING, due, or_(_without_worker(served), of_provider)),
        select(jobs.c.id).where(RELEASED, due, _without_worker(served)),
        select(jobs.c.id).where(RELEASED, jobs.c.provider.in_(closed), availability.is_closed()),
    ]


def _without_worker(served: Sequence[str]) -> ColumnElement[bool]:
    """Jobs that lack the reason `no_worker`, or have it although a worker is back."""
    return or_(
        and_(jobs.c.queue.not_in(served), jobs.c.blocked_reason.is_distinct_from("no_worker")),
        and_(jobs.c.queue.in_(served), jobs.c.blocked_reason == "no_worker"),
    )


def stale_hint(rehint_seconds: float | BindParameter[float]) -> ColumnElement[bool]:
    """Released jobs whose hint nobody followed."""
    waits = case(
        *((jobs.c.hint_count <= n, rehint_seconds * factor) for n, factor in enumerate(REHINT_FACTORS[:-1], start=1)),
        else_=rehint_seconds * REHINT_FACTORS[-1],
    )
    return and_(RELEASED, jobs.c.hinted_at < db_now(-waits))


def _taken(column: ColumnElement[Any]) -> Subquery:
    """How many jobs run or are released, by a column: `holder`, `count`."""
    # Two looks along two small indexes: with OR, SQLite would walk through the whole table.
    busy = union_all(*(select(column.label("holder")).where(state) for state in (PROCESSING, RELEASED))).subquery()
    return select(busy.c.holder, func.count().label("count")).group_by(busy.c.holder).subquery()


def _started_since(tx: Tx, state: ProviderState) -> int:
    """How many jobs were started or released at a provider since its pause was over, and have not ended."""
    started = and_(PROCESSING, jobs.c.started_at >= state.paused_until)
    counts = (select(func.count()).where(jobs.c.provider == state.provider, which) for which in (started, RELEASED))
    return sum(tx.execute(count).scalar_one() for count in counts)


def _free_of_owner(cap: int | None, taken: Subquery) -> ColumnElement[Any]:
    """How many more jobs may run of a job's owner, as far as this job is concerned; NULL without a cap."""
    own = jobs.c.owner_limit
    least = own if cap is None else case((own < cap, own), else_=cap)
    return least - func.coalesce(taken.c.count, 0)
