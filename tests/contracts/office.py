"""A process that dispatches, in the words of a test, and what time does to its rows."""

import time
from datetime import datetime

from sqlalchemy import select, update

from jobs.builders import LEASE_SECONDS, QUEUE, Desk
from safelight.db import Database, Tx, db_now, new_id
from safelight.jobs import Caps, Dispatcher, Job, QueueLoad, read_queues, register_worker
from safelight.jobs.job import leases, workers
from safelight.jobs.situation import LEASE_NAME

BEAT_SECONDS = 5.0
REHINT_SECONDS = 60.0  # longer than a test takes on a busy machine


class Office(Desk):
    """A process that dispatches, and what it hinted."""

    def __init__(self, database: Database, caps: Caps | None = None, *, beat_seconds: float = BEAT_SECONDS) -> None:
        super().__init__(database)
        self.hinted: list[str] = []
        self.broker_is_there = True
        self.holder = new_id()
        self.houses_kept = 0
        self.dispatcher = Dispatcher(
            database,
            self.jobs,
            holder=self.holder,
            hint=lambda job: self.hinted.append(job.id),
            can_hint=lambda: self.broker_is_there,
            caps=caps or Caps(),
            beat_seconds=beat_seconds,
            rehint_seconds=REHINT_SECONDS,
            housekeeping=self.keep_house,
        )

    async def keep_house(self) -> None:
        self.houses_kept += 1

    async def round(self) -> list[str]:
        """One turn of the dispatcher's loop; what it hinted, in order."""
        self.hinted.clear()
        await self.dispatcher._tick()
        return list(self.hinted)

    async def lead(self) -> None:
        """Hold the lease, with the time behind it that a new holder gives the workers of the old one."""
        await self.round()
        assert self.dispatcher._healthy_since > time.monotonic()
        self.dispatcher._healthy_since = time.monotonic()

    async def worker(self, *queues: str, slots: int) -> str:
        worker_id = new_id()
        await self.write(register_worker, worker_id, "io", queues or (QUEUE,), slots, LEASE_SECONDS)
        return worker_id

    async def loads(self) -> dict[str, QueueLoad]:
        return await self.database.read(read_queues, 3 * BEAT_SECONDS)

    async def reason(self, job: Job) -> str | None:
        return (await self.job(job.id)).blocked_reason


def age_worker(tx: Tx, worker_id: str, seconds: float) -> None:
    tx.execute(update(workers).where(workers.c.id == worker_id).values(seen_at=db_now(-seconds)))


def end_lease(tx: Tx) -> None:
    tx.execute(update(leases).where(leases.c.name == LEASE_NAME).values(until=db_now(-0.1)))


async def lease(office: Office) -> tuple[str, datetime]:
    holder, until = await office.database.read(lambda tx: tx.execute(select(leases.c.holder, leases.c.until)).one())
    return holder, until
