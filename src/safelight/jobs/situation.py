"""How dispatch stands: what its leader found, in one small row that every process reads, and why a job waits by it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from sqlalchemy import Float, Integer, bindparam, func, literal_column, select, union_all, update

from safelight.db import Prepared, Tx, db_now
from safelight.jobs.availability import read_states
from safelight.jobs.capacity import busy_of_owners, lower
from safelight.jobs.job import PROCESSING, RELEASED, Job, jobs, leases, workers

LEASE_NAME = "dispatch"


@dataclass(frozen=True, slots=True)
class QueueLoad:
    """One queue: slots of living workers, jobs in them, hints under way, due jobs waiting (as far as counted).

    Of those that wait, `blocked` are for a provider that may start none: nobody behind them has to wait for them.
    """

    workers: int = 0
    slots: int = 0
    running: int = 0
    released: int = 0
    waiting: int = 0
    blocked: int = 0

    @property
    def room(self) -> int:
        """How many more hints may be under way: about twice the free slots."""
        if self.slots == 0:
            return 0
        return max(0, 2 * max(0, self.slots - self.running) + 1 - self.released)


@dataclass(frozen=True, slots=True)
class Situation:
    """`full`: the providers that have no place, and why. `owner_cap`: jobs of one owner at once. Empty at first."""

    queues: Mapping[str, QueueLoad] = field(default_factory=dict[str, QueueLoad])
    full: Mapping[str, str] = field(default_factory=dict[str, str])
    owner_cap: int | None = None

    @classmethod
    def of(cls, published: Mapping[str, Any]) -> "Situation":
        queues = {name: QueueLoad(*numbers) for name, numbers in published["queues"].items()}
        return cls(queues, published["full"], published["owner_cap"])

    def as_json(self) -> dict[str, Any]:
        """For the row; `of` reads it again."""
        queues = {
            name: [load.workers, load.slots, load.running, load.released, load.waiting, load.blocked]
            for name, load in self.queues.items()
        }
        return {"queues": queues, "full": dict(self.full), "owner_cap": self.owner_cap}


def read_loads(tx: Tx, alive_seconds: float) -> dict[str, QueueLoad]:
    """The slots of every queue that has a worker or a busy job, counted now; without what waits."""
    totals: dict[str, list[int]] = {}
    for queues, slots in tx.run(_WORKERS, {"since": -alive_seconds}):
        for queue in queues:
            total = totals.setdefault(queue, [0, 0, 0, 0])
            total[0] += 1
            total[1] += slots
    for queue, place, count in tx.run(_BUSY, {}):
        totals.setdefault(queue, [0, 0, 0, 0])[place] = count
    return {queue: QueueLoad(*numbers) for queue, numbers in totals.items()}


_WORKERS = Prepared(
    select(workers.c.queues, workers.c.slots).where(workers.c.seen_at > db_now(bindparam("since", type_=Float)))
)
_BUSY = Prepared(
    union_all(
        *(
            select(jobs.c.queue, literal_column(str(place), Integer), func.count()).where(state).group_by(jobs.c.queue)
            for place, state in ((2, PROCESSING), (3, RELEASED))
        )
    )
)


def read_situation(tx: Tx) -> tuple[str | None, Situation | None, datetime]:
    """Who leads (None: nobody, at the moment), what was published last, and the database's time."""
    [(holder, is_led, published, now)] = tx.run(_LED, {})
    return holder if is_led else None, None if published is None else Situation.of(published), now


_LED = Prepared(
    select(leases.c.holder, leases.c.until > db_now(), leases.c.published, db_now()).where(leases.c.name == LEASE_NAME)
)


def read_queues(tx: Tx, alive_seconds: float) -> dict[str, QueueLoad]:
    """The slots of every queue, counted now, and what waits there as its leader found lately."""
    loads = read_loads(tx, alive_seconds)
    situation = read_situation(tx)[1] or Situation()
    for queue, known in situation.queues.items():
        if queue in loads or known.waiting:
            load = loads.get(queue, QueueLoad())
            loads[queue] = replace(load, waiting=known.waiting, blocked=known.blocked)
    return loads


def publish(tx: Tx, holder: str, situation: Situation) -> None:
    """Let every process know; nothing, if another leads by now."""
    ours = update(leases).where(leases.c.name == LEASE_NAME, leases.c.holder == holder)
    tx.execute(ours.values(published=situation.as_json()))


def explain(tx: Tx, some: Sequence[Job]) -> list[Job]:
    """The same jobs; those that wait with their `blocked_reason`, if there is one, and `blocked_until`."""
    if not any(job.status == "pending" and job.line_at is not None for job in some):
        return list(some)
    situation = read_situation(tx)[1]
    if situation is None:
        return list(some)
    states = {state.provider: state for state in read_states(tx)}
    caps = {job.id: lower(job.owner_limit, situation.owner_cap) for job in some}
    busy = busy_of_owners(tx, {job.owner_id for job in some if caps[job.id] is not None and _is_in_line(job)})

    def why(job: Job) -> tuple[str, datetime | None] | None:
        if situation.queues.get(job.queue, QueueLoad()).workers == 0:
            return "no_worker", None
        state = states.get(job.provider)
        if state is not None and state.unavailability is not None and state.probe_job_id != job.id:
            return state.unavailability.code, state.unavailability.until
        cap = caps[job.id]
        if job.released_at is not None:
            return None
        if cap is not None and busy[job.owner_id] >= cap:
            return "owner_limit", None
        full = situation.full.get(job.provider)
        return None if full is None else (full, None)

    def explained(job: Job) -> Job:
        reason = why(job) if job.status == "pending" and job.line_at is not None else None
        return job if reason is None else replace(job, blocked_reason=reason[0], blocked_until=reason[1])

    return [explained(job) for job in some]


def _is_in_line(job: Job) -> bool:
    return job.status == "pending" and job.line_at is not None and job.released_at is None
