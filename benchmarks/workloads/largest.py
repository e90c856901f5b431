"""The largest bodies that are let in: CPU and seconds of each, and by how much the API's memory grows meanwhile.

ComfyUI checks what it is given, without a server; no worker runs.
"""

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from benchmarks.ground import Backend, free_port
from benchmarks.process import cpu_seconds
from benchmarks.sample import Bench, Sample
from benchmarks.workloads.requests import wait_for_http

NAME = "largest"
API = "/api/v1"
JOBS, BATCHES, TEMPLATE = f"{API}/generation-jobs", f"{API}/batches", f"{API}/templates/large"
NOBODY = "http://127.0.0.1:1"  # where no server is
Body = dict[str, Any]


def run(bench: Bench) -> Iterator[Sample]:
    for backend in bench.options.backends:
        for number in range(bench.options.rounds):
            for case, values in _measure(bench, backend):
                yield Sample(NAME, f"{case}, {backend}", "safelight", number, values)


def _measure(bench: Bench, backend: Backend) -> Iterator[tuple[str, dict[str, float]]]:
    ground, size = bench.ground, bench.options.size
    url, port = ground.database(backend), free_port()
    nodes, inputs, jobs, few = size(5000, 50), size(1000, 10), size(1000, 5), size(100, 2)
    drawn: Body = {"prompt": "x", "provider": "comfyui"}
    workflow: Body = {
        f"{n:04}": {"class_type": "Node", "inputs": {"near": [f"{n - 1:04}", 0] if n else 1, "text": "x" * 25}}
        for n in range(nodes)
    }
    template: Body = {
        "title": "large",
        "workflow": {f"{n:04}": {"class_type": "Node", "inputs": {"near": 0, "input": 0}} for n in range(2 * inputs)},
        "inputs": {
            f"input-{n:04}": {"node": f"{n:04}", "input": "input", "type": "string", "description": "x" * 30}
            for n in range(inputs)
        },
    }
    named = drawn | {"template": "large"}
    long = "\N{GRINNING FACE}" * size(100_000, 100)
    prompts: Body = {"prompt": long, "negative_prompt": long, "provider": "mock"}
    asked: dict[str, tuple[str, str, Body]] = {
        "template": ("PUT", TEMPLATE, template),
        "job of a workflow": ("POST", JOBS, drawn | {"workflow": workflow}),
        "job of a template": ("POST", JOBS, named),
        "job of two prompts of 400 kB": ("POST", JOBS, prompts),
        f"batch of {jobs} jobs, 8 MB": ("POST", BATCHES, {"jobs": [{"prompt": "x" * 7900, "provider": "mock"}] * jobs}),
        f"batch of {few} jobs of a template": ("POST", BATCHES, {"jobs": [named] * few}),
    }
    environment = ground.environment(url, SAFELIGHT_PORT=str(port), AI_MOCK_MODE="false", SAFELIGHT_COMFYUI_URLS=NOBODY)
    with ExitStack() as stack:
        stack.callback(ground.drop, url)
        server = stack.enter_context(ground.start("benchmarks.systems.safelight_api", environment=environment))
        wait_for_http(port, server)
        time.sleep(1.0)
        for case, (method, path, body) in asked.items():
            sent = json.dumps(body, ensure_ascii=False).encode()
            yield case, _cost(server.pid, port, method, path, sent)
        batch = _ask(port, "POST", BATCHES, asked[f"batch of {few} jobs of a template"][2])
        where = f"{BATCHES}/{batch['id']}"
        _ask(port, "POST", f"{where}/cancel")
        yield f"batch of {few} jobs of a template, again", _cost(server.pid, port, "POST", f"{where}/retry", b"")


def _cost(pid: int, port: int, method: str, path: str, body: bytes) -> dict[str, float]:
    before, cpu, began = _memory_mb(pid, "VmRSS"), cpu_seconds([pid]), time.monotonic()
    Path(f"/proc/{pid}/clear_refs").write_text("5")  # forget the peak there was
    _send(port, method, path, body)
    return {
        "seconds": time.monotonic() - began,
        "cpu_seconds": cpu_seconds([pid]) - cpu,
        "peak_growth_mb": _memory_mb(pid, "VmHWM") - before,
        "body_kb": len(body) / 1000,
    }


def _memory_mb(pid: int, name: str) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024


def _ask(port: int, method: str, path: str, body: Body | None = None) -> Body:
    return json.loads(_send(port, method, path, b"" if body is None else json.dumps(body).encode()))


def _send(port: int, method: str, path: str, body: bytes) -> bytes:
    request = Request(f"http://127.0.0.1:{port}{path}", body, {"Content-Type": "application/json"}, method=method)
    with urlopen(request, timeout=120) as answer:  # noqa: S310
        return answer.read()
