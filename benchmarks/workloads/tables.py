"""Job tables of 10,000 and of 1,000,000 rows: what an installation does all day must not notice the difference."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from typing import Any

from benchmarks.rows import KNOWN_KIND, WORKER, fill, job_id
from benchmarks.sample import Bench, Sample, percentile
from benchmarks.systems.client import new_null_job
from benchmarks.workloads.requests import seem_to_have_workers
from safelight.db import Database
from safelight.jobs import Claim, Filter, Job, JobEvent, Jobs, Submitted, find, with_artifacts
from safelight.jobs.lookup import run_seconds
from safelight.stories import PICTURE

NAME = "tables"
OWNER = "local"
Timed = Callable[[int], Awaitable[Any]]


class Silence:
    """Nobody is told of anything."""

    def event(self, job: Job, event: JobEvent) -> None: ...

    def hint(self, job: Job) -> None: ...

    def waits(self, job: Job) -> None: ...

    def nudge(self, job_id: str) -> None: ...


def run(bench: Bench) -> Iterator[Sample]:
    sizes = (300, 600) if bench.options.quick else (10_000, 1_000_000)
    for backend in bench.options.backends:
        databases: dict[int, tuple[str, int]] = {}
        for size in sizes:
            databases[size] = bench.ground.database(backend), int(time.time() * 1000)
            fill(databases[size][0], size, databases[size][1])
            seem_to_have_workers(databases[size][0])
        for number in range(bench.options.rounds):
            for size, (url, now_ms) in databases.items():
                for name, times in asyncio.run(_measure(bench, url, size, now_ms)).items():
                    values = {"p50_ms": percentile(times, 0.5) * 1000, "p99_ms": percentile(times, 0.99) * 1000}
                    yield Sample(NAME, f"{name}, {backend}", f"{size:,} rows", number, values)
        for url, _ in databases.values():
            bench.ground.drop(url)


async def _measure(bench: Bench, url: str, size: int, now_ms: int) -> dict[str, list[float]]:
    database = Database(url)
    try:
        times: dict[str, list[float]] = {}
        for name, do in _work(database, size, now_ms).items():
            await do(0)  # connections, statement caches
            repeats = bench.options.size(100, 3)
            deadline = time.perf_counter() + 1.5
            for number in range(1, repeats + 1):
                began = time.perf_counter()
                await do(number)
                times.setdefault(name, []).append(time.perf_counter() - began)
                if time.perf_counter() > deadline:
                    break
        return times
    finally:
        database.close()


def _work(database: Database, size: int, now_ms: int) -> dict[str, Timed]:
    """What is timed, by name. Each is one transaction, as the service runs it."""
    jobs = Jobs(Silence())
    middle = job_id(size // 2, size, now_ms)
    filters = {
        "list, first page": Filter(OWNER),
        "list, page in the middle": Filter(OWNER, before_id=middle),
        "list, by 50 ids": Filter(
            OWNER, ids=[job_id(number, size, now_ms) for number in range(1, size, max(1, size // 50))][:50]
        ),
        "list, status=pending": Filter(OWNER, statuses=["pending"]),
        "list, status=failed": Filter(OWNER, statuses=["failed"]),
        "list, two statuses": Filter(OWNER, statuses=["failed", "cancelled"]),
        "list, kind": Filter(OWNER, kind="image.generate"),
        "list, common provider": Filter(OWNER, provider="mock"),
        "list, rare provider": Filter(OWNER, provider="comfyui"),
        "list, unknown provider": Filter(OWNER, provider="nobody"),
        "list, project": Filter(OWNER, project_id="project-7"),
        "list, unknown project": Filter(OWNER, project_id="nothing"),
        "list, chapter": Filter(OWNER, chapter_id="chapter-7"),
        "list, scene": Filter(OWNER, chapter_id="chapter-7", scene_number=3),
        "scene, status": Filter(OWNER, kind=PICTURE, chapter_id="chapter-7", scene_number=3, limit=1),
        # So few that the small table fills the page, too.
        "chapter, ten pictures": Filter(OWNER, kind=PICTURE, chapter_id="chapter-9", statuses=["completed"], limit=10),
        "chapter, ten pictures from the middle": Filter(
            OWNER, kind=PICTURE, chapter_id="chapter-9", statuses=["completed"], before_id=middle, limit=10
        ),
        "chapter of failures, pictures": Filter(  # all jobs of this one failed, see `rows.fill`
            OWNER, kind=PICTURE, chapter_id="chapter-7", statuses=["completed"]
        ),
        "list, character": Filter(OWNER, character_id="character-9"),
        "list, common text": Filter(OWNER, text="lighthouse"),
        "list, text of one job": Filter(OWNER, text=f"number {size // 2},"),
        "list, last hour": Filter(OWNER, younger_than_seconds=3600),
        "list, older than a day": Filter(OWNER, older_than_seconds=86_400),
    }

    def listing(wanted: Filter) -> Timed:
        return lambda _: database.read(find, wanted)

    async def submit(_: int) -> None:
        assert isinstance(await database.write_one(jobs.submit, replace(new_null_job(), hint=True)), Submitted)

    async def life(_: int) -> None:
        outcome = await database.write_one(jobs.submit, replace(new_null_job(), hint=True))
        assert isinstance(outcome, Submitted)
        claim = Claim(outcome.job.id, outcome.job.queue, WORKER, "bench")
        claimed = await database.write_one(jobs.claim, claim)
        assert claimed is not None
        await database.write(jobs.cancel, outcome.job.id, OWNER)

    return {
        **{name: listing(wanted) for name, wanted in filters.items()},
        "GET by id": lambda n: database.read_one(with_artifacts, (job_id(n * 13 % size + 1, size, now_ms), OWNER)),
        "estimate": lambda _: database.read(run_seconds, KNOWN_KIND),
        "estimate, new kind of job": lambda _: database.read(run_seconds, "another"),
        "submit": submit,
        "submit, claim, cancel": life,
    }
