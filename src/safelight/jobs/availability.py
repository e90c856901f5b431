"""Which providers must be left alone for a while, as rows, and the ways on for jobs that need not wait for them.

A provider is *unavailable* while it is paused (it asked for that) or while its breaker is open (it fails). Both are
rows, so they survive an emptied Redis and are the same for all processes. A provider without a row never failed.

A breaker opens after some failures in a row, and after its cool-down is half open: one job, the probe, may try. If that
fails it is open again; any success closes it.

One that cannot be reached is unavailable as soon as anybody finds that out, and probed ever more rarely until it can
be; whoever waits for it longer than the service allows fails.

What is available again starts slowly: a few jobs, then twice as many every second. Else the hundreds that waited would
all run into the same limit again, and those at the end of the line be turned away until their patience is over.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import (
    Column,
    ColumnElement,
    Integer,
    String,
    Table,
    Text,
    and_,
    bindparam,
    case,
    exists,
    func,
    or_,
    select,
    update,
)

from safelight.db import Instant, Prepared, RowId, Tx, db_now, metadata
from safelight.jobs.job import PROCESSING, RELEASED, WAITING, Job, has_status, jobs
from safelight.providers.parameters import Parameters

Breaker = Literal["closed", "open", "half_open"]
UnavailableBy = Literal["provider_paused", "breaker_open", "provider_unreachable"]
Verdict = Literal["worked", "failed"]

ROUTE_PATIENCE_SECONDS = 5.0  # a pause shorter than this is waited for, whatever else the route offers
MAX_PAUSE_SECONDS = 86400.0
SLOW_START_JOBS = 8  # at once after a pause; doubled every second for so long:
SLOW_START_SECONDS = 10.0
MOVE_BATCH = 200
PROBE_SECONDS = (2.0, 60.0)  # after which one that cannot be reached is tried again: at first, and at most
NIL = "00000000-0000-0000-0000-000000000000"

provider_states = Table(
    "provider_states",
    metadata,
    Column("provider", String(80), primary_key=True),
    Column("paused_until", Instant),  # or, if that is later, when its breaker closed: it starts slowly from then on
    Column("pause_reason", Text),
    Column("breaker", String(10), nullable=False),
    Column("failures", Integer, nullable=False),  # in a row
    Column("opened_at", Instant),
    Column("retry_at", Instant),
    Column("probe_job_id", RowId),
    Column("updated_at", Instant, nullable=False),
    Column("unreachable_since", Instant),  # open or half open for this reason
    Column("unreachable_reason", Text),
)
_states = provider_states.c


@dataclass(frozen=True, slots=True)
class BreakerPolicy:
    """Opens after `failures` in a row (0: never), for `cooldown_seconds`."""

    failures: int = 5
    cooldown_seconds: float = 15.0


@dataclass(frozen=True, slots=True)
class Unavailability:
    """Why a provider may start nothing, and until when, if that is known."""

    code: UnavailableBy
    until: datetime | None
    reason: str
    is_long: bool  # not worth waiting for while there is another way


@dataclass(frozen=True, slots=True)
class ProviderState:
    """A row of `provider_states`, in the table's order, and how it looked when it was read.

    `has_probe`: the job that tries for all is released or runs. `at`: the database's time of reading.
    """

    provider: str
    paused_until: datetime | None
    pause_reason: str | None
    breaker: Breaker
    failures: int
    opened_at: datetime | None
    retry_at: datetime | None
    probe_job_id: str | None
    updated_at: datetime
    unreachable_since: datetime | None
    unreachable_reason: str | None
    has_probe: bool
    at: datetime

    @property
    def unavailability(self) -> Unavailability | None:
        """Why it may start nothing now; None if it may (half open, without a probe: one job)."""
        if self.paused_until is not None and self.paused_until > self.at:
            is_long = (self.paused_until - self.at).total_seconds() > ROUTE_PATIENCE_SECONDS
            reason = self.pause_reason or "It asked for a pause."
            return Unavailability("provider_paused", self.paused_until, reason, is_long)
        if self.breaker == "open":
            reason = self.unreachable_reason or f"It failed {self.failures} times in a row."
            return Unavailability(self.breaker_code, self.retry_at, reason, is_long=True)
        if self.breaker == "half_open" and self.has_probe:
            reason = self.unreachable_reason or "It failed lately, and one job tries whether it works."
            return Unavailability(self.breaker_code, None, reason, is_long=True)
        return None

    @property
    def breaker_code(self) -> Literal["breaker_open", "provider_unreachable"]:
        """Why its breaker is not closed."""
        return "breaker_open" if self.unreachable_since is None else "provider_unreachable"

    @property
    def allowance(self) -> int | None:
        """How many jobs it may have started since it is available again; None: any number."""
        if self.paused_until is None:
            return None
        seconds = (self.at - self.paused_until).total_seconds()
        return SLOW_START_JOBS << int(seconds) if 0 <= seconds < SLOW_START_SECONDS else None

    @property
    def opens_in_seconds(self) -> float | None:
        """When something will be possible again that is not now."""
        moments = [self.paused_until, self.retry_at if self.breaker == "open" else None]
        ahead = [(moment - self.at).total_seconds() for moment in moments if moment is not None and moment > self.at]
        return min(ahead, default=None)

    @property
    def is_due(self) -> bool:
        """Its breaker has cooled down."""
        return self.breaker == "open" and self.retry_at is not None and self.retry_at <= self.at


def read_states(tx: Tx) -> list[ProviderState]:
    """Every provider that ever failed or was paused."""
    return [ProviderState(*row) for row in tx.run(_STATES, {})]


_PROBES = exists().where(jobs.c.id == _states.probe_job_id, or_(PROCESSING, RELEASED))
_STATES = Prepared(select(*_states, _PROBES, db_now()))


def unavailable_of(states: Sequence[ProviderState]) -> dict[str, Unavailability]:
    """The unavailable providers among them."""
    return {state.provider: unavailability for state in states if (unavailability := state.unavailability) is not None}


def is_unavailable() -> ColumnElement[bool]:
    """Of a job, in SQL: whether its provider may not start it now."""
    return exists().where(
        _states.provider == jobs.c.provider,
        or_(
            _states.paused_until > db_now(),
            _states.breaker == "open",
            and_(_states.breaker == "half_open", _states.probe_job_id.is_distinct_from(jobs.c.id)),
        ),
    )


# --- what attempts tell -----------------------------------------------------------------------------------------------

# Hardly ever is there anything to write.
_HAS_FAILED = or_(_states.failures > 0, _states.breaker != "closed")
_RESUMES = and_(_states.breaker != "closed", or_(_states.paused_until.is_(None), _states.paused_until < db_now()))
CLOSE_BREAKER = (
    update(provider_states)
    .where(_HAS_FAILED)
    .values(
        breaker="closed",
        failures=0,
        opened_at=None,
        retry_at=None,
        probe_job_id=None,
        unreachable_since=None,
        unreachable_reason=None,
        paused_until=case((_RESUMES, db_now()), else_=_states.paused_until),
        updated_at=db_now(),
    )
)
_CLOSE_ITS_BREAKER = Prepared(CLOSE_BREAKER.where(_states.provider == bindparam("b_provider")))


def worked(tx: Tx, provider: str) -> None:
    """It answered as it should."""
    tx.run(_CLOSE_ITS_BREAKER, {"b_provider": provider})


CLOSE_REACHED = CLOSE_BREAKER.where(_states.provider == bindparam("b_provider"), _states.unreachable_since.is_not(None))
_CLOSE_REACHED = Prepared(CLOSE_REACHED)


def reached(tx: Tx, provider: str) -> None:
    """It took a job: if it could not be reached before, all go on."""
    tx.run(_CLOSE_REACHED, {"b_provider": provider})


def failed(tx: Tx, job: Job, policy: BreakerPolicy) -> None:
    """It failed on its side or timed out, in an attempt of this job."""
    if policy.failures == 0:
        return
    _make_row(tx, job.provider)
    is_probe = and_(_states.breaker == "half_open", _states.probe_job_id == job.id)
    opens = or_(is_probe, and_(_states.breaker == "closed", _states.failures + 1 >= policy.failures))
    tx.execute(
        update(provider_states)
        .where(_states.provider == job.provider)
        .values(
            failures=_states.failures + 1,
            breaker=case((opens, "open"), else_=_states.breaker),
            opened_at=case((opens, db_now()), else_=_states.opened_at),
            retry_at=case((opens, db_now(policy.cooldown_seconds)), else_=_states.retry_at),
            probe_job_id=case((opens, None), else_=_states.probe_job_id),
            unreachable_since=case((opens, None), else_=_states.unreachable_since),
            unreachable_reason=case((opens, None), else_=_states.unreachable_reason),
            updated_at=db_now(),
        )
    )


def unreachable(tx: Tx, job: Job, reason: str) -> None:
    """It could not be reached in an attempt of this job.

    It is probed again after as long as it has been away by now: each pause is about twice the one before.
    """
    _make_row(tx, job.provider)
    columns = (_states.breaker, _states.probe_job_id, _states.unreachable_since, db_now().label("at"))
    row = tx.execute(select(*columns).where(_states.provider == job.provider).with_for_update()).one()
    if row.breaker == "open" or (row.breaker == "half_open" and row.probe_job_id != job.id):
        return  # it was under way when somebody else found it out
    away = 0.0 if row.unreachable_since is None else (row.at - row.unreachable_since).total_seconds()
    tx.execute(
        update(provider_states)
        .where(_states.provider == job.provider)
        .values(
            failures=_states.failures + 1,
            breaker="open",
            opened_at=db_now(),
            retry_at=db_now(min(max(PROBE_SECONDS[0], away), PROBE_SECONDS[1])),
            probe_job_id=None,
            unreachable_since=func.coalesce(_states.unreachable_since, db_now()),
            unreachable_reason=reason,
            updated_at=db_now(),
        )
    )


def unreachable_since(tx: Tx, provider: str) -> datetime | None:
    """Since when it cannot be reached; None if it can, as far as anybody knows."""
    return tx.execute(select(_states.unreachable_since).where(_states.provider == provider)).scalar_one_or_none()


def given_up(tx: Tx, seconds: float) -> Sequence[tuple[str, str]]:
    """The providers that could not be reached for so long, and why."""
    columns = (_states.provider, _states.unreachable_reason)
    rows = tx.execute(select(*columns).where(_states.unreachable_since <= db_now(-seconds)))
    return [(provider, reason) for provider, reason in rows]


def pause(tx: Tx, provider: str, seconds: float, reason: str) -> None:
    """Start nothing there for so long, or longer if an earlier pause lasts longer."""
    _make_row(tx, provider)
    until = db_now(min(seconds, MAX_PAUSE_SECONDS))
    tx.execute(
        update(provider_states)
        .where(_states.provider == provider, or_(_states.paused_until.is_(None), _states.paused_until < until))
        .values(paused_until=until, pause_reason=reason, updated_at=db_now())
    )


def is_probe(tx: Tx, job: Job) -> bool:
    """Whether this job tries for all whether the provider works again."""
    asked = select(_states.provider).where(
        _states.provider == job.provider, _states.breaker == "half_open", _states.probe_job_id == job.id
    )
    return tx.execute(asked).first() is not None


def half_open(tx: Tx) -> None:
    """Let the breakers that have cooled down be tried."""
    cooled = and_(_states.breaker == "open", _states.retry_at <= db_now())
    tx.execute(update(provider_states).where(cooled).values(breaker="half_open", updated_at=db_now()))


def set_probe(tx: Tx, provider: str, job_id: str) -> None:
    """This job tries for all."""
    tx.execute(
        update(provider_states).where(_states.provider == provider).values(probe_job_id=job_id, updated_at=db_now())
    )


def withdraw(tx: Tx, unavailable: Mapping[str, Unavailability]) -> None:
    """Take back the release of what a provider that became unavailable meanwhile may not start; its probe may."""
    if not unavailable:
        return
    released = (
        select(jobs.c.id)
        .where(RELEASED, jobs.c.provider.in_(list(unavailable)), is_unavailable())
        .with_for_update(skip_locked=True)
    )
    tx.execute(
        update(jobs).where(jobs.c.id.in_(released), has_status("pending")).values(released_at=None, hint_count=0)
    )


def concerns(tx: Tx, unavailable: Mapping[str, Unavailability]) -> bool:
    """Whether there are jobs to `withdraw`, or that may `leave_unavailable`."""
    if not unavailable:
        return False
    released = exists().where(RELEASED, jobs.c.provider.in_(list(unavailable)), is_unavailable())
    long = [provider for provider, unavailability in unavailable.items() if unavailability.is_long]
    routed = exists().where(WAITING, jobs.c.route.is_not(None), jobs.c.provider.in_(long))
    return bool(tx.execute(select(or_(released, routed))).scalar_one())


def _make_row(tx: Tx, provider: str) -> None:
    fresh = {"provider": provider, "breaker": "closed", "failures": 0}
    tx.execute(tx.insert_if_free(provider_states).values(updated_at=db_now()), fresh)


# --- routes -----------------------------------------------------------------------------------------------------------


def skip(provider: str, code: str, reason: str, at: datetime, retry_count: int = 0) -> dict[str, Any]:
    """Why a provider of a route was passed over, as `jobs.skips` keeps it; `retry_count` as it stood then."""
    moment = at.isoformat().replace("+00:00", "Z")
    return {"provider": provider, "code": code, "reason": reason, "at": moment, "retry_count": retry_count}


def as_stop(columns: Mapping[str, Any]) -> dict[str, Any]:
    """The columns by which a provider would take a job, as `jobs.route` keeps them."""
    return {**columns, "parameters": columns["parameters"].as_json()}


def columns_of(stop: Mapping[str, Any]) -> dict[str, Any]:
    """The columns to set for a stop of a route."""
    return {**stop, "parameters": Parameters.of(stop["parameters"])}


def next_available(route: Sequence[Mapping[str, Any]], unavailable: Mapping[str, Unavailability]) -> int | None:
    """The place in a route of the first provider that need not be waited for."""
    for place, stop in enumerate(route):
        unavailability = unavailable.get(stop["provider"])
        if unavailability is None or not unavailability.is_long:
            return place
    return None


def move(tx: Tx, job: Job, place: int, code: str, reason: str, unavailable: Mapping[str, Unavailability]) -> bool:
    """Give a job to the provider at this place of its route, with what that made of its parameters at the submit.

    False: the job is no longer as it was read.
    """
    route = job.route or []
    now: datetime = tx.execute(select(db_now())).scalar_one()
    skips = [*(job.skips or []), skip(job.provider, code, reason, now, job.retry_count)]
    for stop in route[:place]:
        unavailability = unavailable[stop["provider"]]
        skips.append(skip(stop["provider"], unavailability.code, unavailability.reason, now, job.retry_count))
    as_read = and_(jobs.c.id == job.id, jobs.c.version == job.version, jobs.c.provider == job.provider)
    moved = {
        **columns_of(route[place]),
        "route": route[place + 1 :] or None,
        "skips": skips,
        "updated_at": db_now(),
    }
    return tx.execute(update(jobs).where(as_read).values(moved)).rowcount == 1


def leave_unavailable(tx: Tx, unavailable: Mapping[str, Unavailability], seen: dict[str, str]) -> bool:
    """Have a bite of the jobs that wait for an unavailable provider and know another go there. True: there may be more.

    Those that the provider may have accepted stay: elsewhere they would be paid twice. `seen` remembers how far the
    look came, by provider: the next one goes on there, and begins again at the end.
    """
    has_more = False
    for provider, unavailability in unavailable.items():
        if not unavailability.is_long:
            continue
        stuck = (
            select(*jobs.c)
            .where(
                WAITING,
                jobs.c.route.is_not(None),
                jobs.c.provider == provider,
                jobs.c.id > seen.pop(provider, NIL),
                jobs.c.submitting_at.is_(None),
                jobs.c.provider_job_id.is_(None),
            )
            .order_by(jobs.c.id)
            .limit(MOVE_BATCH)
            .with_for_update(skip_locked=True)
        )
        found = [Job.of(row) for row in tx.execute(stuck)]
        moved = 0
        for job in found:
            place = next_available(job.route or [], unavailable)
            if place is not None:
                moved += move(tx, job, place, unavailability.code, unavailability.reason, unavailable)
        if len(found) == MOVE_BATCH:
            seen[provider] = found[-1].id
            has_more = has_more or moved > 0
    return has_more
