"""A whole Safelight of real processes that a test may kill, freeze and cut off, and an oracle for what must hold."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Self, TypeVar

import httpx

from servers import ValkeyServer, descendants

API = "from safelight.api.server import serve; from safelight.config import Settings; serve(Settings())"
WORKER = (
    "import sys; from safelight.worker.process import run_worker; from safelight.config import Settings; "
    "run_worker(Settings(), kind=sys.argv[1], name=sys.argv[2], pool=sys.argv[3] or None)"
)
# The API dies at the very moment after a commit at which it would send the hint.
API_THAT_DIES_BEFORE_HINT = (
    "import os, signal; from safelight import queue; "
    "queue.HintQueue.send = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL); " + API
)
T = TypeVar("T")
TINY = {"width": 64, "height": 64}
LEASE_SECONDS = 1.5


def until(
    condition: Callable[[], T | None], *, seconds: float = 30.0, what: str | Callable[[], str] = "the condition"
) -> T:
    """Wait for a condition to hold and return what it gave."""
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{what if isinstance(what, str) else what()} did not come about in {seconds:g} s")
        time.sleep(0.02)
    return result


class Process:
    """A real process of the stack, in a group of its own."""

    def __init__(self, name: str, code: str, arguments: Iterable[str], environment: dict[str, str], log: Path) -> None:
        self.name = name
        self.log = log
        with log.open("ab") as output:
            self._popen = subprocess.Popen(
                [sys.executable, "-c", code, *arguments],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    @property
    def is_alive(self) -> bool:
        return self._popen.poll() is None

    def signal(self, number: int) -> None:
        self._popen.send_signal(number)

    def kill(self) -> None:
        """SIGKILL to the process and all its children."""
        for pid in [self._popen.pid, *descendants(self._popen.pid)]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self._popen.wait(timeout=10)

    def stop(self, seconds: float = 15.0) -> int:
        """SIGTERM, and the exit code."""
        self.signal(signal.SIGTERM)
        return self._popen.wait(timeout=seconds)

    def events(self, name: str) -> list[dict[str, Any]]:
        """The log lines of this event."""
        lines = (line for line in self.log.read_text().splitlines() if line.startswith("{"))
        return [line for line in map(json.loads, lines) if line.get("event") == name]


class Stack:
    """Valkey, a database, an API and workers, with short leases."""

    def __init__(self, folder: Path, database_url: str, valkey: ValkeyServer, **settings: str) -> None:
        self.folder = folder
        self.valkey = valkey
        self.ledger = folder / "ledger"
        self.ledger.touch()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.http = httpx.Client(base_url=f"{self.url}/api/v1", timeout=20)
        self.environment = {
            **os.environ,
            "SAFELIGHT_DATA_DIR": str(folder / "data"),
            "SAFELIGHT_DATABASE_URL": database_url,
            "SAFELIGHT_REDIS_URL": f"{valkey.url}?db=0",
            "SAFELIGHT_PORT": str(self.port),
            "SAFELIGHT_MOCK_LEDGER": str(self.ledger),
            "SAFELIGHT_LOG_FORMAT": "json",
            "SAFELIGHT_BEAT_SECONDS": "0.4",
            "SAFELIGHT_LEASE_SECONDS": str(LEASE_SECONDS),
            "SAFELIGHT_REHINT_SECONDS": "0.5",
            "SAFELIGHT_RETRY_SECONDS": "0.3",
            "SAFELIGHT_DRAIN_SECONDS": "0.5",
            **settings,
        }
        self._processes: list[Process] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            if process.is_alive:
                process.signal(signal.SIGCONT)
                process.kill()
        self.http.close()

    def start_api(self, code: str = API) -> Process:
        process = self._start("api", code)

        def answers() -> bool:
            try:
                return self.http.get("/health/live").status_code == 200
            except httpx.TransportError:
                return False

        until(answers, what=lambda: f"the API ({process.log.read_text()[-2000:]})")
        return process

    def start_worker(self, kind: str = "io", name: str = "io-1", pool: str = "", **settings: str) -> Process:
        return self._start(name, WORKER, kind, name, pool, **settings)

    def wait_for_workers(self, **queues: int) -> None:
        """Until as many workers as named serve each queue."""

        def ready() -> bool:
            loads = self.http.get("/health/ready").json()["queues"]
            return all(loads.get(name, {}).get("workers", 0) >= count for name, count in queues.items())

        until(ready, what=lambda: f"workers {queues}")

    def submit(self, duration: float = 0.0, script: dict[str, Any] | None = None, **fields: Any) -> str:
        """A tiny job; its id."""
        options: dict[str, Any] = {"duration_seconds": duration} | ({"mock": script} if script else {})
        body = {"prompt": "a lighthouse at dusk", **TINY, "provider_options": options, **fields}
        answer = self.http.post("/generation-jobs", json=body)
        assert answer.status_code == 202, answer.text
        return answer.json()["id"]

    def job(self, job_id: str) -> dict[str, Any]:
        return self.http.get(f"/generation-jobs/{job_id}").json()

    def attempts(self, job_id: str) -> list[dict[str, Any]]:
        return self.http.get(f"/generation-jobs/{job_id}/attempts").json()["items"]

    def wait_for(self, job_id: str, *statuses: str, seconds: float = 30.0) -> dict[str, Any]:
        def reached() -> dict[str, Any] | None:
            job = self.job(job_id)
            return job if job["status"] in statuses else None

        return until(reached, seconds=seconds, what=lambda: f"{statuses} of {self.job(job_id)}")

    def wait_for_all(self, job_ids: list[str], seconds: float = 60.0) -> list[dict[str, Any]]:
        """The jobs once all have ended."""

        def ended() -> list[dict[str, Any]] | None:
            found: list[dict[str, Any]] = []
            for start in range(0, len(job_ids), 100):
                ids = ",".join(job_ids[start : start + 100])
                found += self.http.get("/generation-jobs", params={"ids": ids}).json()["items"]
            return found if all(job["is_terminal"] for job in found) and len(found) == len(job_ids) else None

        return until(ended, seconds=seconds, what="the end of all jobs")

    def submits_per_job(self) -> Counter[str]:
        """How often the provider was asked for each job: the mock's own book-keeping."""
        lines = (line.split() for line in self.ledger.read_text().splitlines())
        return Counter(line[0] for line in lines if line[0] != "cancel")

    def check(self, job: dict[str, Any]) -> None:
        """What must hold of every ended job: one end, the winner's files, whole, and no other attempt after it."""
        attempts = self.attempts(job["id"])
        assert [attempt["number"] for attempt in attempts] == list(range(1, len(attempts) + 1))
        ends = [attempt for attempt in attempts if attempt["outcome"] in ("completed", "failed", "cancelled")]
        assert len(ends) <= 1 and (not ends or ends[0] is attempts[-1]), attempts
        if job["status"] == "completed":
            assert ends[0]["outcome"] == "completed"
            assert len(job["artifacts"]) == job["batch_size"]
            for path, artifact in zip(job["output_paths"], job["artifacts"], strict=True):
                assert path.startswith(f"jobs/{job['id']}/{job['attempt']}/")
                content = self.http.get(f"{self.url}{artifact['url']}")
                assert content.status_code == 200 and len(content.content) == artifact["size_bytes"]
        else:
            assert job["artifacts"] == []

    def _start(self, name: str, code: str, *arguments: str, **settings: str) -> Process:
        log = self.folder / f"{name}-{len(self._processes)}.log"
        process = Process(name, code, arguments, self.environment | settings, log)
        self._processes.append(process)
        return process
