"""Hundreds of jobs in one io process that wait on a provider: a socket each (ComfyUI), or polling (ModelsLab).

Everything is as shipped but for two limits, so that the jobs are in flight and not in line: the number of jobs inside
one ComfyUI server (2) and those of the providers. The far sides are one process, the watchers' API another.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

from benchmarks.ground import free_port
from benchmarks.listener import Listener
from benchmarks.process import Child, cpu_seconds, pss_mb
from benchmarks.sample import Bench, Sample, percentile
from benchmarks.workloads.requests import PATHS, wait_for_http
from stand_ins.modelslab import KEY

NAME = "following"
PER_SECOND = 1.0  # news of each job
WARM = 4
COMFYUI, MODELSLAB = "comfyui", "modelslab"


def run(bench: Bench) -> Iterator[Sample]:
    """On one database, PostgreSQL if there is a choice: what is measured is waiting."""
    count = bench.options.size(500, 5)
    stages = [(COMFYUI, MODELSLAB)] if bench.options.quick else [(COMFYUI,), (MODELSLAB,)]
    for number in range(bench.options.rounds):
        for cases in stages:
            for case, values in _measure(bench, count, cases):
                yield Sample(NAME, f"{count} jobs, {case}", "safelight", number, values)


def _measure(bench: Bench, count: int, cases: Sequence[str]) -> Iterator[tuple[str, dict[str, float]]]:
    ground = bench.ground
    url = ground.database(bench.options.backends[-1])
    ground.valkey.flush()
    port = free_port()
    with ExitStack() as stack:
        stack.callback(ground.drop, url)
        far_side = ground.start("benchmarks.systems.slow_providers", environment=ground.environment(url), speaks=True)
        stack.enter_context(far_side)
        urls = far_side.hear()
        environment = ground.environment(
            url,
            AI_MOCK_MODE="false",
            BENCH_FULL_PATH="1",
            BENCH_COMFYUI_PLACES=str(count),
            SAFELIGHT_PORT=str(port),
            SAFELIGHT_COMFYUI_URLS=urls[COMFYUI],
            SAFELIGHT_MODELSLAB_BASE_URL=urls[MODELSLAB],
            SAFELIGHT_MODELSLAB_KEY=KEY,
            SAFELIGHT_PROVIDER_LIMITS=f'{{"comfyui": {count}, "modelslab": {count}}}',
        )
        api = stack.enter_context(ground.start("benchmarks.systems.safelight_api", environment=environment))
        client = ground.start("benchmarks.systems.client", COMFYUI, environment=environment, speaks=True)
        stack.enter_context(client)
        worker = ground.start("benchmarks.systems.safelight_worker", "io-1", environment=environment)
        stack.enter_context(worker)
        watchers = stack.enter_context(ground.start("benchmarks.watchers", environment=environment, speaks=True))
        listener = Listener(ground.redis_url, keeps_times=True)
        stack.callback(listener.close)
        client.hear()
        wait_for_http(port, api)
        for case in cases:
            crowd = _Crowd(bench, case, client, worker, far_side, listener)
            if not bench.options.quick:  # what is loaded once is no job's memory
                crowd.fill(WARM)
                crowd.finish()
            idle = pss_mb([worker.pid])
            ids = crowd.fill(count)
            time.sleep(bench.options.size(3, 0))
            values = {"kb_per_job": (pss_mb([worker.pid]) - idle) * 1024 / count, "idle_pss_mb": idle}
            values["silent_cpu_percent"] = crowd.cpu_percent(10 if not bench.options.quick else 0.1)
            if case == COMFYUI:
                values |= crowd.watched(watchers, ids, port)
                crowd.finish()
            else:
                values |= crowd.told_after_ready()
            yield case, values


class _Crowd:
    """The jobs of one provider in one worker."""

    def __init__(
        self, bench: Bench, case: str, client: Child, worker: Child, far_side: Child, listener: Listener
    ) -> None:
        self._bench = bench
        self._case = case
        self._client = client
        self._worker = worker
        self._far_side = far_side
        self._listener = listener
        self._ids: list[str] = []

    def fill(self, count: int) -> list[str]:
        """So many more jobs, once all of them are at the provider."""
        self._listener.reset()
        self._ids = self._client.ask(do="burst", provider=self._case, count=count)["ids"]
        deadline = time.monotonic() + 120
        while self._far_side.ask(do="count")[self._case] < count:
            if time.monotonic() > deadline:
                raise TimeoutError(f"not all of {count} jobs reached {self._case}:\n{self._worker.tail()}")
            time.sleep(0.05)
        return self._ids

    def finish(self) -> dict[str, float]:
        """Let them end, and wait for it; when each became ready (ModelsLab)."""
        ready: dict[str, float] = self._far_side.ask(do="finish")["ready"]
        self._listener.wait_for_ends(len(self._ids), 120)
        return ready

    def cpu_percent(self, seconds: float) -> float:
        """Of one core, while nobody disturbs it."""
        before = cpu_seconds([self._worker.pid])
        time.sleep(seconds)
        return 100 * (cpu_seconds([self._worker.pid]) - before) / seconds

    def watched(self, watchers: Child, ids: list[str], port: int) -> dict[str, float]:
        """News of every job once a second: what it costs the worker, and how long it takes to its watcher."""
        seconds = self._bench.options.size(10, 1)
        watchers.ask(paths=[f"{PATHS['safelight']}/{job_id}/events" for job_id in ids], port=port)
        before = cpu_seconds([self._worker.pid])
        sent = self._far_side.ask(do="tell", seconds=seconds, per_second=PER_SECOND)["sent"]
        cpu = cpu_seconds([self._worker.pid]) - before
        time.sleep(0.5)
        latencies: list[float] = watchers.ask(stop=True)["latencies_ms"]
        return {
            "busy_cpu_percent": 100 * cpu / seconds,
            "delivered_percent": 100 * len(latencies) / sent,
            "p50_ms": percentile(latencies, 0.5),
            "p99_ms": percentile(latencies, 0.99),
        }

    def told_after_ready(self) -> dict[str, float]:
        """How long after a result was there its job had ended."""
        ready = self.finish()
        waits = [self._listener.wait_for(job_id, 1) - moment for job_id, moment in ready.items()]
        return {"ready_p50_seconds": percentile(waits, 0.5), "ready_p99_seconds": percentile(waits, 0.99)}
