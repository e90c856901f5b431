"""Saturation and low load: the same durable work through Safelight, Celery prefork and Dramatiq."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

from benchmarks.ground import Backend
from benchmarks.listener import Listener
from benchmarks.process import Child, check_alive, cpu_seconds, pss_mb
from benchmarks.sample import Bench, Sample, percentile, turns, twice

NAME = "throughput"
LONGEST_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class System:
    """A way to run workers and the client that feeds them."""

    name: str
    client: str
    settings: tuple[tuple[str, str], ...] = ()
    only: Backend | None = None

    def start_workers(self, bench: Bench, environment: dict[str, str]) -> list[Child]:
        start = bench.ground.start
        match self.client:
            case "celery":
                worker = ("worker", "--concurrency=2", "--loglevel=WARNING")
                return [start("celery", "-A", "benchmarks.systems.celery_peer", *worker, environment=environment)]
            case "dramatiq":
                size = ("--processes", "2", "--threads", "8")
                return [start("dramatiq", "benchmarks.systems.dramatiq_peer", *size, environment=environment)]
            case _:
                module = "benchmarks.systems.safelight_worker"
                return [start(module, f"io-{number}", environment=environment) for number in (1, 2)]


SYSTEMS = (
    System("safelight", "null"),
    System("celery prefork", "celery"),
    System("dramatiq threads", "dramatiq"),
    System("safelight, full path", "mock", (("BENCH_FULL_PATH", "1"), ("SAFELIGHT_LOG_LEVEL", "info"))),
    System("celery prefork, NORMAL", "celery", (("BENCH_SYNCHRONOUS", "NORMAL"),), only="sqlite"),
    System("dramatiq threads, NORMAL", "dramatiq", (("BENCH_SYNCHRONOUS", "NORMAL"),), only="sqlite"),
)


def run(bench: Bench) -> Iterator[Sample]:
    for backend in bench.options.backends:
        systems = [system for system in SYSTEMS if system.only in (None, backend)]
        if bench.options.quick:
            systems = systems[:2]
        for number, system in turns(systems, bench.options.rounds):
            values = twice(lambda system=system, backend=backend: _measure(bench, backend, system))
            yield Sample(NAME, backend, system.name, number, values)


def _measure(bench: Bench, backend: Backend, system: System) -> dict[str, float]:
    ground, size = bench.ground, bench.options.size
    singles = size(200, 10)
    burst = size(500 if system.client == "mock" else 1000, 40)
    url = ground.database(backend)
    ground.valkey.flush()
    environment = ground.environment(url, **dict(system.settings))
    with ExitStack() as stack:
        stack.callback(ground.drop, url)
        listener = Listener(ground.redis_url)
        stack.callback(listener.close)
        workers = [stack.enter_context(worker) for worker in system.start_workers(bench, environment)]
        client = ground.start("benchmarks.systems.client", system.client, environment=environment, speaks=True)
        stack.enter_context(client)
        client.hear()
        _burst(client, listener, size(64, 4))
        time.sleep(size(1, 0))  # a second process of the same system may still be starting
        _burst(client, listener, size(128, 4))
        time.sleep(0.3)

        pids = [worker.pid for worker in workers]
        everybody = [*pids, client.pid, *ground.server_pids]
        worker_cpu, all_cpu = cpu_seconds(pids), cpu_seconds(everybody)
        seconds = _burst(client, listener, burst)
        time.sleep(0.2)  # what follows the last event: acknowledgements, log lines
        worker_cpu, all_cpu = cpu_seconds(pids) - worker_cpu, cpu_seconds(everybody) - all_cpu
        events = listener.events
        memory = pss_mb(pids)

        single_cpu = cpu_seconds(pids)
        waits: list[float] = client.ask(do="single", count=singles)["waits"]
        single_cpu = cpu_seconds(pids) - single_cpu
        check_alive(workers)
    return {
        "jobs_per_second": burst / seconds,
        "worker_cpu_ms": worker_cpu / burst * 1000,
        "all_cpu_ms": all_cpu / burst * 1000,
        "events_per_job": events / burst,
        "pss_mb": memory,
        "low_load_p50_ms": percentile(waits, 0.5) * 1000,
        "low_load_p99_ms": percentile(waits, 0.99) * 1000,
        "low_load_worker_cpu_ms": single_cpu / singles * 1000,
    }


def _burst(client: Child, listener: Listener, count: int) -> float:
    """Seconds from the first submit to the last end."""
    listener.reset()
    began: float = client.ask(do="burst", count=count)["began"]
    return listener.wait_for_ends(count, LONGEST_SECONDS) - began
