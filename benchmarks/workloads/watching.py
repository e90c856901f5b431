"""SSE fan-out: every watcher follows a job of its own, two events a second each, beside one subscription per client."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import cast

from benchmarks.ground import free_port
from benchmarks.process import cpu_seconds, pss_mb
from benchmarks.rows import fill, job_id
from benchmarks.sample import Bench, Sample, percentile, turns, twice
from benchmarks.workloads.requests import MODULES, PATHS, wait_for_http

NAME = "watching"
PER_SECOND = 2.0
COUNTS = (200, 1000, 4000)
# What answers, and the end of its path. Both peers hold one subscription for each client.
PEER = "fastapi + .delay()"
SYSTEMS = {
    "safelight": ("safelight", "events"),
    "sse-starlette": (PEER, "events"),
    "bare stream": (PEER, "bare-events"),
}


def run(bench: Bench) -> Iterator[Sample]:
    """On one database: rows are read when a watcher comes and every two seconds, and the peer reads none."""
    backend = bench.options.backends[0]
    counts = (20,) if bench.options.quick else COUNTS
    url = bench.ground.database(backend)
    now_ms = int(time.time() * 1000)
    fill(url, max(counts), now_ms, only="processing")
    ids = [job_id(number, max(counts), now_ms) for number in range(1, max(counts) + 1)]
    for count in counts:
        for number, name in turns(list(SYSTEMS)[: 2 if bench.options.quick else None], bench.options.rounds):
            values = twice(lambda name=name, count=count: _measure(bench, url, *SYSTEMS[name], ids[:count]))
            yield Sample(NAME, f"{count} watchers", name, number, values)
    bench.ground.drop(url)


def _measure(bench: Bench, url: str, system: str, ending: str, ids: list[str]) -> dict[str, float]:
    ground, seconds = bench.ground, 0.5 if bench.options.quick else 6.0
    ground.valkey.flush()
    port = free_port()
    environment = ground.environment(url, SAFELIGHT_PORT=str(port))
    with ExitStack() as stack:
        others = _connections(bench)
        server = stack.enter_context(ground.start(MODULES[system], environment=environment))
        watchers = stack.enter_context(ground.start("benchmarks.watchers", environment=environment, speaks=True))
        wait_for_http(port, server)
        time.sleep(0.3)
        idle = pss_mb([server.pid])
        cpu = cpu_seconds([server.pid])
        watchers.ask(paths=[f"{PATHS[system]}/{job_id}/{ending}" for job_id in ids], port=port)
        connecting = cpu_seconds([server.pid]) - cpu
        connections = _connections(bench) - others
        style = "safelight" if system == "safelight" else "plain"
        publisher = ground.start("benchmarks.systems.publisher", style, environment=environment, speaks=True)
        stack.enter_context(publisher)
        publisher.hear()  # connected
        time.sleep(0.1 if bench.options.quick else 0.5)
        cpu, valkey_cpu = cpu_seconds([server.pid]), cpu_seconds([ground.valkey.pid])
        sent = publisher.ask(ids=ids, seconds=seconds, per_second=PER_SECOND)
        time.sleep(bench.options.size(1, 0))  # what is late must not be taken for lost
        cpu, valkey_cpu = cpu_seconds([server.pid]) - cpu, cpu_seconds([ground.valkey.pid]) - valkey_cpu
        memory = pss_mb([server.pid])
        heard = watchers.ask(stop=True)
    latencies: list[float] = heard["latencies_ms"]
    return {
        "delivered_percent": 100 * len(latencies) / sent["sent"],
        "p50_ms": percentile(latencies, 0.5),
        "p99_ms": percentile(latencies, 0.99),
        "cpu_us_per_event": cpu / sent["sent"] * 1e6,
        "connect_cpu_ms": connecting / len(ids) * 1000,
        "pss_mb": memory,
        "kb_per_watcher": (memory - idle) * 1024 / len(ids),
        "redis_connections": connections,
        "redis_cpu_us_per_event": valkey_cpu / sent["sent"] * 1e6,
        "lost": heard["lost"],
    }


def _connections(bench: Bench) -> int:
    info = cast(bytes, bench.ground.valkey.command("INFO", "clients")).decode()
    return int(next(line for line in info.splitlines() if line.startswith("connected_clients:")).partition(":")[2])
