"""Ten thousand owners with a hundred jobs each: what one of them asks for must not notice the 999,900 others."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from typing import Any

from benchmarks.rows import fill, job_id, owner_of
from benchmarks.sample import Bench, Sample, percentile
from benchmarks.systems.client import new_null_job
from benchmarks.workloads.requests import seem_to_have_workers
from benchmarks.workloads.tables import Silence
from safelight.accounts import tier_of
from safelight.db import Database
from safelight.jobs import Filter, Jobs, Submitted, find, with_artifacts

NAME = "owners"
SECONDS = 1.5  # for each operation
Timed = Callable[[int], Awaitable[Any]]


def run(bench: Bench) -> Iterator[Sample]:
    # Prime numbers of owners: else every job of an owner would have the same status.
    sizes = ((303, 3), (606, 7)) if bench.options.quick else ((10_000, 101), (1_000_000, 10_007))
    for backend in bench.options.backends:
        databases: list[tuple[str, int, int, int]] = []
        for size, owners in sizes:
            url, now_ms = bench.ground.database(backend), int(time.time() * 1000)
            fill(url, size, now_ms, owners=owners)
            seem_to_have_workers(url)
            databases.append((url, size, owners, now_ms))
        for number in range(bench.options.rounds):
            for url, size, owners, now_ms in databases:
                for name, times in asyncio.run(_measure(bench, url, size, owners, now_ms)).items():
                    values = {"p50_ms": percentile(times, 0.5) * 1000, "p99_ms": percentile(times, 0.99) * 1000}
                    yield Sample(NAME, f"{name}, {backend}", f"{size:,} jobs of {owners:,} owners", number, values)
        for url, *_ in databases:
            bench.ground.drop(url)


async def _measure(bench: Bench, url: str, size: int, owners: int, now_ms: int) -> dict[str, list[float]]:
    database = Database(url)
    try:
        times: dict[str, list[float]] = {}
        for name, do in _work(database, size, owners, now_ms).items():
            await do(0)  # connections, statement caches
            deadline = time.perf_counter() + SECONDS
            for number in range(1, bench.options.size(300, 3) + 1):
                began = time.perf_counter()
                await do(number)
                times.setdefault(name, []).append(time.perf_counter() - began)
                if time.perf_counter() > deadline:
                    break
        return times
    finally:
        database.close()


def _work(database: Database, size: int, owners: int, now_ms: int) -> dict[str, Timed]:
    """What is timed, by name; the n-th time for another owner, so that no page is warm by accident."""
    jobs = Jobs(Silence())

    def who(number: int) -> str:
        return owner_of(_numbered(number), owners)

    def jobs_of(number: int) -> list[str]:
        """The ids of fifty jobs of the owner of the n-th time."""
        first = _numbered(number) % owners or owners
        return [job_id(one, size, now_ms) for one in range(first, size + 1, owners)][:50]

    def listing(**wanted: Any) -> Timed:
        return lambda number: database.read(find, Filter(who(number), **wanted))

    async def submit(number: int) -> None:
        new = replace(new_null_job(), owner_id=who(number), hint=True)
        assert isinstance(await database.write_one(jobs.submit, new), Submitted)

    return {
        "list, first page": listing(),
        "list, page in the middle": listing(before_id=job_id(size // 2, size, now_ms)),
        "list, by 50 ids": lambda n: database.read(find, Filter(who(n), ids=jobs_of(n))),
        "list, status=pending": listing(statuses=["pending"]),
        "list, status=failed": listing(statuses=["failed"]),
        "list, unknown provider": listing(provider="nobody"),
        "list, project": listing(project_id="project-7"),
        "list, chapter": listing(chapter_id="chapter-7"),
        "list, text": listing(text="number 7"),
        "list, older than a day": listing(older_than_seconds=86_400),
        "list of somebody without jobs": lambda n: database.read(find, Filter(f"nobody-{n}")),
        "GET by id": lambda n: database.read_one(with_artifacts, (jobs_of(n)[-1], who(n))),
        "GET of another's job": lambda n: database.read_one(with_artifacts, (jobs_of(n)[-1], "nobody")),
        "tier of an owner": lambda n: database.read(tier_of, who(n)),
        "submit": submit,
    }


def _numbered(number: int) -> int:
    """Spreads the repetitions over the owners."""
    return 1 + number * 7919
