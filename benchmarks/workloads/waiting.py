"""Hundreds of jobs that wait five seconds for somebody else's HTTP server, in two worker processes."""

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

from benchmarks.ground import Backend, free_port
from benchmarks.listener import Listener
from benchmarks.process import Child, cpu_seconds, pss_mb
from benchmarks.sample import Bench, Sample, turns

NAME = "waiting"
WAIT_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class System:
    """`slots` is how many jobs its two processes hold at once; where that is less, fewer jobs are run."""

    name: str
    client: str
    slots: int

    def start_workers(self, bench: Bench, environment: dict[str, str]) -> list[Child]:
        start = bench.ground.start
        match self.client:
            case "celery":
                worker = ("worker", f"--concurrency={self.slots}", "--loglevel=WARNING")
                return [start("celery", "-A", "benchmarks.systems.celery_peer", *worker, environment=environment)]
            case "dramatiq":
                size = ("--processes", "2", "--threads", str(self.slots // 2))
                environment = {**environment, "BENCH_POOL": "1500"}
                return [start("dramatiq", "benchmarks.systems.dramatiq_peer", *size, environment=environment)]
            case _:
                module = "benchmarks.systems.safelight_worker"
                return [start(module, f"io-{number}", environment=environment) for number in (1, 2)]


SYSTEMS = (
    System("safelight", "waiting", 2000),
    System("dramatiq 2x500 threads", "dramatiq", 1000),
    System("celery prefork -c 8", "celery", 8),
)


def run(bench: Bench) -> Iterator[Sample]:
    """On one database, PostgreSQL if there is a choice: what is measured is waiting."""
    counts = (10,) if bench.options.quick else (300, 1000)
    backend = bench.options.backends[-1]
    for number, system in turns(SYSTEMS[:1] if bench.options.quick else SYSTEMS, bench.options.rounds):
        try:
            for count, values in _measure(bench, backend, system, counts):
                yield Sample(NAME, f"{count} jobs, {backend}", system.name, number, values)
        except (RuntimeError, TimeoutError) as error:
            if system is SYSTEMS[0]:
                raise
            print(f"{system.name} did not finish round {number + 1}: {error}", file=sys.stderr)


def _measure(
    bench: Bench, backend: Backend, system: System, counts: tuple[int, ...]
) -> Iterator[tuple[int, dict[str, float]]]:
    ground, seconds = bench.ground, WAIT_SECONDS if not bench.options.quick else 0.2
    url = ground.database(backend)
    ground.valkey.flush()
    port = free_port()
    environment = ground.environment(url, BENCH_SLOW_SERVER=f"127.0.0.1:{port}")
    with ExitStack() as stack:
        stack.callback(ground.drop, url)
        far_side = ground.start("benchmarks.systems.slow_server", str(port), str(seconds), environment=environment)
        stack.enter_context(far_side)
        listener = Listener(ground.redis_url)
        stack.callback(listener.close)
        workers = [stack.enter_context(worker) for worker in system.start_workers(bench, environment)]
        pids = [worker.pid for worker in workers]
        client = ground.start("benchmarks.systems.client", system.client, environment=environment, speaks=True)
        stack.enter_context(client)
        client.hear()
        warm = min(system.slots, bench.options.size(32, 4))
        client.ask(do="burst", count=warm)
        listener.wait_for_ends(warm, 60)
        time.sleep(bench.options.size(1, 0))
        idle = pss_mb(pids)
        before: tuple[int, float] | None = None
        for count in counts:
            held = min(count, system.slots)
            listener.reset()
            cpu = cpu_seconds(pids)
            began: float = client.ask(do="burst", count=held)["began"]
            time.sleep(max(0.0, began + 0.7 * seconds - time.monotonic()))
            busy = pss_mb(pids)
            makespan = listener.wait_for_ends(held, 120) - began
            time.sleep(0.3)
            cpu = cpu_seconds(pids) - cpu
            # A pool smaller than the crowd works it off in waves: that much is arithmetic and need not be waited for.
            waves = -(-count // held)
            values = {
                "makespan_seconds": makespan * waves,
                "times_ideal": makespan * waves / seconds,
                "worker_cpu_ms": cpu / held * 1000,
                "idle_pss_mb": idle,
                "busy_pss_mb": busy,
                "pss_mb_per_process": busy / 2,
                "jobs_held": float(held),
            }
            if before is not None and held > before[0]:
                values["kb_per_further_job"] = (busy - before[1]) * 1024 / (held - before[0])
            before = held, busy
            yield count, values
