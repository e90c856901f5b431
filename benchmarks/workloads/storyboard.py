"""A chapter of a hundred scenes, from one POST to a picture in each row, over HTTP and two worker processes."""

import json
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

from benchmarks.ground import Backend, free_port
from benchmarks.process import check_alive, cpu_seconds
from benchmarks.sample import Bench, Sample, percentile, turns
from benchmarks.workloads.requests import post, wait_for_http

NAME = "storyboard"
API = "/api/v1"
LONGEST_SECONDS = 120.0
LOOK_SECONDS = 0.02
SYSTEMS = {"safelight": {}, "safelight, full path": {"BENCH_FULL_PATH": "1"}}


def run(bench: Bench) -> Iterator[Sample]:
    """What takes no time is drawn, so that the rest is measured; on the full path the mock draws and all is stored."""
    scenes = bench.options.size(100, 5)
    for backend in bench.options.backends:
        for number, system in turns(list(SYSTEMS)[: 1 if bench.options.quick else None], bench.options.rounds):
            values = _measure(bench, backend, system, scenes)
            yield Sample(NAME, f"{scenes} scenes, {backend}", system, number, values)


def _measure(bench: Bench, backend: Backend, system: str, scenes: int) -> dict[str, float]:
    ground = bench.ground
    url = ground.database(backend)
    ground.valkey.flush()
    port = free_port()
    with ExitStack() as stack:
        stack.callback(ground.drop, url)
        environment = ground.environment(url, SAFELIGHT_PORT=str(port), **SYSTEMS[system])
        server = stack.enter_context(ground.start("benchmarks.systems.safelight_api", environment=environment))
        workers = [
            stack.enter_context(ground.start("benchmarks.systems.safelight_worker", name, environment=environment))
            for name in ("io-1", "io-2")
        ]
        wait_for_http(port, server)
        project = _made(port, f"{API}/projects", title="A hundred scenes", style="ink")
        body: dict[str, Any] = {
            "width": 64,
            "height": 64,
            "provider": "mock" if "BENCH_FULL_PATH" in environment else "null",
        }
        if "BENCH_FULL_PATH" in environment:
            body["provider_options"] = {"duration_seconds": 0}
        _draw(port, project, 5 if scenes > 5 else 1, body)  # connections, statement caches, workers that just started
        pids = [server.pid, *(worker.pid for worker in workers)]
        cpu = cpu_seconds(pids)
        values = _draw(port, project, scenes, body)
        values["cpu_ms_per_scene"] = (cpu_seconds(pids) - cpu) / scenes * 1000
        check_alive(workers)
    return values


def _draw(port: int, project: str, scenes: int, body: dict[str, Any]) -> dict[str, float]:
    chapter = _made(port, f"{API}/projects/{project}/chapters", title="One")
    began = time.perf_counter()
    for number in range(1, scenes + 1):
        _made(port, f"{API}/chapters/{chapter}/scenes", scene_number=number, description=f"What happens in {number}")
    written = time.perf_counter()
    post(port, f"{API}/chapters/{chapter}/images", json.dumps(body))
    accepted = time.perf_counter()
    looks: list[float] = []
    while True:
        asked = time.perf_counter()
        rows = _get(port, f"{API}/chapters/{chapter}/scenes?limit=100")["items"]
        looks.append(time.perf_counter() - asked)
        if all(row["image_url"] for row in rows):
            break
        if time.perf_counter() - accepted > LONGEST_SECONDS:
            raise TimeoutError(f"{sum(row['image_url'] is None for row in rows)} scenes have no picture")
        time.sleep(LOOK_SECONDS)
    return {
        "write_ms_per_scene": (written - began) / scenes * 1000,
        "accept_ms": (accepted - written) * 1000,
        "all_pictures_seconds": time.perf_counter() - written,
        "look_p50_ms": percentile(looks, 0.5) * 1000,
    }


def _made(port: int, path: str, **fields: Any) -> str:
    return post(port, path, json.dumps(fields))["id"]


def _get(port: int, path: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        return json.load(answer)
