"""What may be released in a round: free places, as caps, rates, pauses and breakers leave them.

Read once and then used up. Nothing here grows with what waits: only what runs or is released is counted.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from sqlalchemy import ColumnElement, and_, func, select, union_all

from safelight.db import Tx
from safelight.jobs import availability
from safelight.jobs.availability import ProviderState, Unavailability
from safelight.jobs.job import PROCESSING, RELEASED, jobs
from safelight.limits import Policy


@dataclass(frozen=True, slots=True)
class Caps:
    """Jobs at once, counted from `processing` rows and released hints, so that a crash frees its place.

    `owner` is for all owners; a job may bear a lower cap of its owner's (`owner_limit`). `rates` say how many jobs a
    provider may start in a time. `weights`: how many jobs go in one turn of an owner's line, by tier; 1 without.
    """

    providers: Mapping[str, int] = field(default_factory=dict[str, int])
    owner: int | None = None
    rates: Mapping[str, Policy] = field(default_factory=dict[str, Policy])
    weights: Mapping[str, int] = field(default_factory=dict[str, int])


class Bounded(Protocol):
    """A job, as far as its owner's cap is concerned."""

    @property
    def owner_id(self) -> str: ...

    @property
    def owner_limit(self) -> int | None: ...


class Capacity:
    """How many may start: at each provider that is bounded, and of each owner that was counted."""

    def __init__(
        self,
        caps: Caps,
        unavailable: Mapping[str, Unavailability],
        free: dict[str, int],
        why: dict[str, str],
        unprobed: set[str],
    ) -> None:
        self.unavailable = unavailable
        self.unprobed = unprobed  # half open, and nobody tries yet
        self.heaviest = max(caps.weights.values(), default=1)
        self._caps = caps
        self._free = free
        self._why = why
        self._busy: dict[str, int] = {}  # by owner

    @property
    def full(self) -> dict[str, str]:
        """The providers of which none may start, though nothing is wrong with them, and why."""
        return {
            name: self._why[name] for name, free in self._free.items() if free <= 0 and name not in self.unavailable
        }

    def left(self, provider: str) -> int:
        """How many more may start there."""
        return self._free.get(provider, sys.maxsize)

    def weight(self, tier: str | None) -> int:
        return self._caps.weights.get(tier or "", 1)

    def count_owners(self, tx: Tx, waiting: Sequence[Bounded]) -> None:
        """Count what runs of the owners of these that are bounded, before they are taken."""
        bounded = {job.owner_id for job in waiting if self._caps.owner is not None or job.owner_limit is not None}
        self._busy |= busy_of_owners(tx, bounded - self._busy.keys())

    def take(self, provider: str, owner_id: str, owner_limit: int | None) -> bool:
        """Whether one more may start; it is counted."""
        free, cap = self.left(provider), lower(self._caps.owner, owner_limit)
        if free <= 0 or (cap is not None and self._busy[owner_id] >= cap):
            return False
        if provider in self._free:
            self._free[provider] = free - 1
        if owner_id in self._busy:
            self._busy[owner_id] += 1
        return True


def read_capacity(
    tx: Tx, caps: Caps, states: Sequence[ProviderState] = (), allowances: Mapping[str, int] | None = None
) -> Capacity:
    """`allowances` is how many jobs the rates leave to each provider that has one."""
    unavailable = availability.unavailable_of(states)
    free: dict[str, int] = {}
    why: dict[str, str] = {}

    def narrow(provider: str, count: int, reason: str) -> None:
        if provider not in free or count < free[provider]:
            free[provider], why[provider] = count, reason

    if caps.providers:
        counts = _busy(tx, jobs.c.provider)
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
    for provider in unavailable:
        free[provider] = 0
    return Capacity(caps, unavailable, free, why, {state.provider for state in trying})


def lower(one: int | None, other: int | None) -> int | None:
    """The lower of two caps, of which either may be none."""
    return min((cap for cap in (one, other) if cap is not None), default=None)


def busy_of_owners(tx: Tx, owners: set[str]) -> dict[str, int]:
    """How many jobs of these owners run or are released."""
    if not owners:
        return {}
    return dict.fromkeys(owners, 0) | _busy(tx, jobs.c.owner_id, jobs.c.owner_id.in_(owners))


def _busy(tx: Tx, column: ColumnElement[Any], *conditions: ColumnElement[bool]) -> dict[str, int]:
    """How many jobs run or are released, by a column."""
    # Two looks along two small indexes: with OR, SQLite would walk through the whole table.
    looks = (select(column.label("holder")).where(state, *conditions) for state in (PROCESSING, RELEASED))
    busy = union_all(*looks).subquery()
    counted = select(busy.c.holder, func.count()).group_by(busy.c.holder)
    return {row[0]: row[1] for row in tx.execute(counted)}


def _started_since(tx: Tx, state: ProviderState) -> int:
    """How many jobs were started or released at a provider since its pause was over, and have not ended."""
    started = and_(PROCESSING, jobs.c.started_at >= state.paused_until)
    counts = (select(func.count()).where(jobs.c.provider == state.provider, which) for which in (started, RELEASED))
    return sum(tx.execute(count).scalar_one() for count in counts)
