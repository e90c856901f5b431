"""SQLite flat out: an API and two io workers write to one file as fast as they can. How long does a write take?"""

import json
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack

from benchmarks.ground import free_port
from benchmarks.sample import Bench, Sample, percentile
from benchmarks.workloads.requests import CONNECTIONS, wait_for_http

NAME = "contention"
PATH = "/api/v1/generation-jobs"
LOCK_ERROR = re.compile(r"database is locked|busy or locked|database_unavailable")


def run(bench: Bench) -> Iterator[Sample]:
    if "sqlite" not in bench.options.backends:
        return
    for number in range(bench.options.rounds):
        yield Sample(NAME, "sqlite", "safelight", number, _measure(bench))


def _measure(bench: Bench) -> dict[str, float]:
    ground, seconds = bench.ground, 0.5 if bench.options.quick else 10.0
    url = ground.database("sqlite")
    ground.valkey.flush()
    port, times_path = free_port(), ground.folder / "write-times.json"
    environment = ground.environment(url, SAFELIGHT_PORT=str(port), BENCH_WRITE_TIMES=str(times_path))
    with ExitStack() as stack:
        stack.callback(ground.drop, url)
        names = ("io-1", "io-2")
        workers = [ground.start("benchmarks.systems.safelight_worker", name, environment=environment) for name in names]
        for worker in workers:
            stack.enter_context(worker)
        api = stack.enter_context(ground.start("benchmarks.systems.safelight_api", environment=environment))
        load = stack.enter_context(ground.start("benchmarks.load", environment=environment, speaks=True))
        wait_for_http(port, api)
        time.sleep(bench.options.size(3, 0))
        body = json.dumps({"prompt": "a lighthouse at dusk", "provider": "null", "seed": 7})
        ask = {"method": "POST", "paths": [PATH], "port": port, "body": body, "connections": CONNECTIONS}
        done = load.ask(**ask, seconds=seconds)
        logs = "".join(process.output() for process in (*workers, api))
        api.close(patience=10)
        times: list[float] = json.loads(times_path.read_text())
    refused = sum(count for status, count in done["statuses"].items() if not status.startswith("2")) + done["broken"]
    return {
        "writes_per_second": done["answers"] / done["seconds"],
        "write_p50_ms": percentile(times, 0.5) * 1000,
        "write_p99_ms": percentile(times, 0.99) * 1000,
        "write_max_ms": max(times) * 1000,
        "refused": refused,
        "lock_errors": len(LOCK_ERROR.findall(logs)),
    }
