"""What waits must not slow down who runs next: rounds of dispatch, and submits beside them, over few and many jobs."""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

from sqlalchemy import insert, update

from benchmarks.rows import fill
from benchmarks.sample import Bench, Sample, percentile
from benchmarks.systems.client import new_null_job
from benchmarks.workloads.tables import Silence
from safelight.db import Database, Tx, db_now, new_id
from safelight.jobs import Caps, Dispatcher, Jobs, Submitted, register_worker
from safelight.jobs.availability import provider_states
from safelight.jobs.job import jobs

NAME = "backlog"
SLOTS = 20
SECONDS = 4.0  # for each round of the benchmark


@dataclass(frozen=True, slots=True)
class Case:
    """So many jobs wait, of so many owners."""

    name: str
    waiting: int
    owners: int = 0
    is_unavailable: bool = False  # their providers are unavailable
    behind: int = 0  # so many more wait before them, of an owner who may run none


def cases(bench: Bench) -> list[Case]:
    few, many, owners = (30, 90, 10) if bench.options.quick else (1_000, 1_000_000, 10_000)
    return [
        Case(f"{few:,} jobs", few),
        Case(f"{many:,} jobs", many),
        Case(f"{many:,} jobs of {owners:,} owners", many, owners),
        Case(f"{few:,} jobs, and {many:,} of an owner at the limit", few, behind=many),
        Case(f"{many:,} jobs, all providers unavailable", many, is_unavailable=True),
    ]


def run(bench: Bench) -> Iterator[Sample]:
    for backend in bench.options.backends:
        databases = {case.name: bench.ground.database(backend) for case in cases(bench)}
        for case in cases(bench):
            _prepare(databases[case.name], case)
        for number in range(bench.options.rounds):
            for case in cases(bench):
                for what, times in asyncio.run(_measure(bench, databases[case.name], case)).items():
                    values = {"p50_ms": percentile(times, 0.5) * 1000, "p99_ms": percentile(times, 0.99) * 1000}
                    yield Sample(NAME, f"{what}, {backend}", case.name, number, values)
        for url in databases.values():
            bench.ground.drop(url)


def _prepare(url: str, case: Case) -> None:
    now_ms = int(time.time() * 1000)
    fill(url, case.waiting + case.behind, now_ms, only="pending", owners=case.owners, at_limit=case.behind)
    asyncio.run(_finish(url, case))


async def _finish(url: str, case: Case) -> None:
    database = Database(url)

    def change(tx: Tx) -> None:
        register_worker(tx, new_id(), "bench", ("image_generation",), SLOTS, 3600.0)
        if case.is_unavailable:
            for provider in ("mock", "comfyui"):
                until = db_now(86_400)
                row = {"provider": provider, "breaker": "closed", "failures": 0}
                tx.execute(insert(provider_states).values(**row, paused_until=until, updated_at=db_now()))

    await database.write(change)
    database.close()


async def _measure(bench: Bench, url: str, case: Case) -> dict[str, list[float]]:
    """Rounds of a leader with free slots, whose releases are taken back after each; and submits while they go on."""
    database = Database(url)
    service = Jobs(Silence())
    released: list[str] = []

    async def nothing() -> None: ...

    dispatcher = Dispatcher(
        database,
        service,
        holder=new_id(),
        hint=lambda job: released.append(job.id),
        can_hint=lambda: True,
        caps=Caps(),
        beat_seconds=3600.0,
        rehint_seconds=3600.0,
        housekeeping=nothing,
    )

    def take_back(tx: Tx) -> None:
        tx.execute(update(jobs).where(jobs.c.id.in_(released)).values(released_at=None, hint_count=0))

    times: dict[str, list[float]] = {"round": [], "submit beside it": []}

    async def rounds() -> None:
        for number in range(bench.options.size(200, 3)):
            began = time.perf_counter()
            await dispatcher._tick()
            if number:
                times["round"].append(time.perf_counter() - began)
            await database.write(take_back)
            assert case.is_unavailable or released, "nothing was released"
            released.clear()
            if time.perf_counter() > deadline:
                break

    async def submits() -> None:
        while True:
            began = time.perf_counter()
            assert isinstance(await database.write_one(service.submit, replace(new_null_job(), hint=False)), Submitted)
            times["submit beside it"].append(time.perf_counter() - began)
            await asyncio.sleep(0.01)

    try:
        await dispatcher._tick()
        await database.write(take_back)
        released.clear()
        deadline = time.perf_counter() + SECONDS
        beside = asyncio.ensure_future(submits())
        await rounds()
        beside.cancel()
        await asyncio.wait([beside])
        return times
    finally:
        await dispatcher.release_lease()
        database.close()
