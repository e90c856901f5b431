"""POST and GET at 32 connections, beside FastAPI + async SQLAlchemy + `.delay()`; one server process each."""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import sqlalchemy

from benchmarks.ground import Backend, free_port
from benchmarks.process import Child, cpu_seconds, pss_mb
from benchmarks.rows import WORKER
from benchmarks.sample import Bench, Sample, percentile, turns
from safelight.db import EPOCH

NAME = "requests"
CONNECTIONS = 32
BODY = json.dumps({"prompt": "a lighthouse at dusk", "width": 64, "height": 64, "seed": 7})
PATHS = {"safelight": "/api/v1/generation-jobs", "fastapi + .delay()": "/jobs"}
MODULES = {"safelight": "benchmarks.systems.safelight_api", "fastapi + .delay()": "benchmarks.systems.fastapi_peer"}


def run(bench: Bench) -> Iterator[Sample]:
    for backend in bench.options.backends:
        for number, system in turns(list(PATHS), bench.options.rounds):
            for case, values in _measure(bench, backend, system):
                yield Sample(NAME, f"{case}, {backend}", system, number, values)


def _measure(bench: Bench, backend: Backend, system: str) -> Iterator[tuple[str, dict[str, float]]]:
    ground, seconds = bench.ground, 0.3 if bench.options.quick else 4.0
    url = ground.database(backend)
    ground.valkey.flush()
    port = free_port()
    with ExitStack() as stack:
        stack.callback(ground.drop, url)
        seem_to_have_workers(url)
        # A job released here is claimed by nobody; that its hint would be sent again is no part of a request.
        environment = ground.environment(url, SAFELIGHT_PORT=str(port), SAFELIGHT_REHINT_SECONDS="3600")
        server = stack.enter_context(ground.start(MODULES[system], environment=environment))
        load = stack.enter_context(ground.start("benchmarks.load", environment=environment, speaks=True))
        path = PATHS[system]
        wait_for_http(port, server)
        time.sleep(0.8)  # let dispatch see its workers
        paths = [f"{path}/{post(port, path)['task_id']}" for _ in range(bench.options.size(50, 4))]
        for case, method, targets, body in (("POST", "POST", [path], BODY), ("GET", "GET", paths, "")):
            ask = {"method": method, "paths": targets, "port": port, "body": body, "connections": CONNECTIONS}
            load.ask(**ask, seconds=min(1.0, seconds))
            pids = [server.pid]
            cpu, others = cpu_seconds(pids), cpu_seconds(ground.server_pids)
            done = load.ask(**ask, seconds=seconds)
            cpu, others = cpu_seconds(pids) - cpu, cpu_seconds(ground.server_pids) - others
            yield case, _values(done, cpu, others) | {"pss_mb": pss_mb(pids)}


def _values(done: dict[str, Any], cpu: float, others: float) -> dict[str, float]:
    answers = len(done["times"])
    bad = sum(count for status, count in done["statuses"].items() if not status.startswith("2"))
    return {
        "requests_per_second": done["answers"] / done["seconds"],
        "p50_ms": percentile(done["times"], 0.5) * 1000,
        "p99_ms": percentile(done["times"], 0.99) * 1000,
        "server_cpu_us": cpu / answers * 1e6,
        "database_and_redis_cpu_us": others / answers * 1e6,
        "failures": bad + done["broken"],
    }


def seem_to_have_workers(url: str, queues: Sequence[str] = ("image_generation", "default")) -> None:
    """A worker's row, so that a submit hints its job as it would with workers there: peers send a message too."""
    engine = sqlalchemy.create_engine(url)
    with engine.begin() as connection:
        moment: Any = "2100-01-01T00:00:00Z"
        if engine.dialect.name == "sqlite":
            moment = (4_102_444_800 - int(EPOCH.timestamp())) * 1_000_000
        connection.exec_driver_sql(
            "INSERT INTO workers (id, name, queues, slots, running, started_at, seen_at, lease_until) "
            + (
                "VALUES (?, ?, ?, ?, 0, ?, ?, ?)"
                if engine.dialect.name == "sqlite"
                else "VALUES (%s, %s, %s, %s, 0, %s, %s, %s)"
            ),
            (WORKER, "bench", json.dumps(list(queues)), 1_000_000, moment, moment, moment),
        )
    engine.dispose()


def wait_for_http(port: int, server: Child, path: str = "/") -> None:
    """Until the server answers anything at all."""
    deadline = time.monotonic() + 30
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=2).close()
            return
        except urllib.error.HTTPError:
            return
        except OSError:
            if not server.is_alive or time.monotonic() > deadline:
                raise RuntimeError(f"{server.name} does not answer:\n{server.tail()}") from None
            time.sleep(0.05)


def post(port: int, path: str, body: str = BODY) -> dict[str, Any]:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", body.encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 - our own loopback address
        return json.load(answer)
