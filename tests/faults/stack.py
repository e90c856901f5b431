"""A whole Safelight of real processes that an experiment may kill, freeze and cut off, with short leases."""

import contextlib
import fcntl
import functools
import json
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any, Self, TypeVar

import httpx

from faults.launch import become
from faults.rows import Rows
from patience import PATIENCE_SECONDS
from servers import ValkeyServer, descendants

TESTS = Path(__file__).resolve().parent.parent
LEASE_SECONDS = 1.5
BEAT_SECONDS = 0.4
NAMESPACE = "safelight-dev:"
T = TypeVar("T")


def until(
    condition: Callable[[], T | None],
    *,
    seconds: float = PATIENCE_SECONDS,
    what: str | Callable[[], str] = "the condition",
) -> T:
    """Wait for a condition to hold and return what it gave."""
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{what if isinstance(what, str) else what()} did not come about in {seconds:g} s")
        time.sleep(0.02)
    return result


def born(pid: int) -> str | None:
    """When a running process began: with its number, what tells it from a later one, since numbers come again.

    None if it has gone, or is dead and waits for its parent to notice.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in ("Z", "X") else fields[19]


def kill_pid(pid: int, number: int = signal.SIGKILL) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


@functools.cache
def _starter() -> ForkServerContext:
    """Forks processes that have imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["faults.launch"])
    path = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(TESTS), *([path] if path else [])])
    try:
        forkserver.ensure_running()
    finally:
        os.environ.pop("PYTHONPATH")
        if path:
            os.environ["PYTHONPATH"] = path
    return context


class Process:
    """A real process of the stack, in a session of its own; it ends with us."""

    def __init__(self, name: str, arguments: Iterable[str], environment: dict[str, str], log: Path) -> None:
        self.name = name
        self.log = log
        log.touch()
        self._process = _starter().Process(target=become, args=(list(arguments), environment, log), daemon=True)
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid
        self._family: dict[int, str] = {}  # every process ever seen below it, and when it was born

    @property
    def is_alive(self) -> bool:
        return self._process.is_alive()

    @property
    def holder(self) -> str | None:
        """Its name in the row of the dispatch lease."""
        return next((line["holder"] for line in self.events("launch.holder")), None)

    def children(self) -> list[int]:
        found = descendants(self.pid) if self.is_alive else []
        for pid in found:
            if pid not in self._family and (birth := born(pid)) is not None:
                self._family[pid] = birth
        return found

    def signal(self, number: int) -> None:
        if self.is_alive:
            kill_pid(self.pid, number)

    def signal_all(self, number: int) -> None:
        """To the process and all below it; nobody, once it has been waited for: its number may be another's by now."""
        for pid in [self.pid, *self.children()] if self.is_alive else []:
            kill_pid(pid, number)

    def kill(self) -> None:
        """SIGKILL to the process and all its children."""
        self.signal_all(signal.SIGKILL)
        self.signal_all(signal.SIGKILL)  # whoever was born while we looked
        self.wait(PATIENCE_SECONDS)

    def kill_main(self) -> None:
        """SIGKILL to the process alone: its children must notice."""
        self.children()
        self.signal(signal.SIGKILL)
        self.wait(PATIENCE_SECONDS)

    def freeze(self) -> None:
        self.signal_all(signal.SIGSTOP)

    def thaw(self) -> None:
        self.signal_all(signal.SIGCONT)

    def stop(self, seconds: float = PATIENCE_SECONDS) -> int:
        """SIGTERM, and the exit code."""
        self.children()
        self.signal(signal.SIGTERM)
        return self.wait(seconds)

    def wait(self, seconds: float) -> int:
        """Until it ends: the exit code."""
        self._process.join(seconds)
        assert self._process.exitcode is not None, f"{self.name} did not end in {seconds:g} s"
        return self._process.exitcode

    def close(self) -> None:
        if self.is_alive:
            self.thaw()
            self.kill()
        for pid in self._survivors():
            kill_pid(pid)

    def survivors(self) -> list[int]:
        """What still runs of a dead process's family."""
        return [] if self.is_alive else self._survivors()

    def _survivors(self) -> list[int]:
        return [pid for pid, birth in self._family.items() if born(pid) == birth]

    def lines(self) -> list[dict[str, Any]]:
        """Its log, line by line."""
        lines = (line for line in self.log.read_text(errors="replace").splitlines() if line.startswith("{"))
        found: list[dict[str, Any]] = []
        for line in lines:
            with contextlib.suppress(ValueError):  # a line that its writer did not live to finish
                found.append(json.loads(line))
        return found

    def events(self, name: str) -> list[dict[str, Any]]:
        """The log lines of this event."""
        return [line for line in self.lines() if line.get("event") == name]


class Stack:
    """Valkey, a database, an API and workers. Processes of the crew have fixed names: api, io-1, io-2, local."""

    def __init__(
        self, folder: Path, database_url: str, valkey: ValkeyServer, *, data: Path | None = None, **settings: str
    ) -> None:
        self.folder = folder
        data = data or folder / "data"
        self.database_url = database_url
        self.valkey = valkey
        self.rows = Rows(database_url)
        self.ledger = folder / "ledger"
        self.ledger.touch()
        self.files = data / "files"
        self.imports = data / "imports"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.http = httpx.Client(base_url=f"{self.url}/api/v1", timeout=PATIENCE_SECONDS)
        self.environment = {
            **os.environ,
            "SAFELIGHT_DATA_DIR": str(data),
            "SAFELIGHT_DATABASE_URL": database_url,
            "SAFELIGHT_REDIS_URL": f"{valkey.url}?db=0",
            "SAFELIGHT_PORT": str(self.port),
            "SAFELIGHT_MOCK_LEDGER": str(self.ledger),
            "SAFELIGHT_LOG_FORMAT": "json",
            "SAFELIGHT_BEAT_SECONDS": str(BEAT_SECONDS),
            "SAFELIGHT_LEASE_SECONDS": str(LEASE_SECONDS),
            "SAFELIGHT_REHINT_SECONDS": "0.5",
            "SAFELIGHT_RETRY_SECONDS": "0.3",
            "SAFELIGHT_BREAKER_SECONDS": "0.5",
            "SAFELIGHT_DRAIN_SECONDS": "0.5",
            "SAFELIGHT_HARD_LIMIT_SECONDS": "301.5",
            "SAFELIGHT_STUCK_LOOP_SECONDS": "90",
            "SAFELIGHT_MEDIA_ALLOW_PRIVATE": "127.0.0.1/32",
            "SAFELIGHT_MEDIA_KEEP_FREE_BYTES": "0",
            **settings,
        }
        self.processes: list[Process] = []
        self.crew_members: dict[str, Process] = {}
        self._settings_of: dict[str, dict[str, str]] = {}
        self._starting = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for process in self.processes:
            process.close()
        self.http.close()
        self.rows.close()

    # --- processes ----------------------------------------------------------------------------------------------------

    def start_api(self, *options: str, **settings: str) -> Process:
        return self._start("api", ["api", *options], settings)

    def start_worker(self, kind: str = "io", name: str = "io-1", *options: str, **settings: str) -> Process:
        return self._start(name, ["worker", kind, name, *options], settings)

    def crew(self, *, api: bool = True, io: int = 1, local: int = 0, imports: int = 0, slots: int = 200) -> None:
        """Have this crew, and nobody else, alive and ready. Missing processes are started side by side."""
        wanted = [*(["api"] if api else []), *(f"io-{n}" for n in range(1, io + 1))]
        wanted += [*(["local"] if local else []), *(["imports"] if imports else [])]
        for process in self.processes:
            if process.is_alive and self.crew_members.get(process.name) is not process:
                process.thaw()
                process.kill()
        for name, member in list(self.crew_members.items()):
            if name not in wanted:
                if member.is_alive:
                    member.thaw()
                    member.kill()
                del self.crew_members[name]
        for name in wanted:
            slots_of = {
                "local": {"SAFELIGHT_LOCAL_SLOTS": str(local)},
                "imports": {"SAFELIGHT_IMPORT_SLOTS": str(imports)},
                "api": {"SAFELIGHT_HOST": "127.0.0.1"},
            }
            self.hire(name, **slots_of.get(name, {"SAFELIGHT_IO_SLOTS": str(slots)}))
        self.wait_for_workers(image_generation=io, isolated=local, imports=imports)
        if api:
            self.wait_for_api()

    def hire(self, name: str, **settings: str) -> Process:
        """The crew member of this name: the one that lives, or else a new one, with the settings of the one before.

        With settings it is one that has exactly these; without, `crew` has said what they are.
        """
        wanted = settings or self._settings_of.get(name, {})
        member = self.crew_members.get(name)
        if member is not None and member.is_alive:
            if wanted == self._settings_of.get(name):
                return member
            member.thaw()
            member.kill()
        kind = name if name in ("local", "imports") else "io"
        member = self.start_api(**wanted) if name == "api" else self.start_worker(kind, name, **wanted)
        self.crew_members[name] = member
        self._settings_of[name] = wanted
        return member

    def member(self, name: str) -> Process:
        return self.crew_members[name]

    def wait_for_api(self) -> None:
        until(self.api_answers, what=self._api_log)

    def api_answers(self) -> bool:
        try:
            return self.http.get("/health/live", timeout=2).status_code == 200
        except httpx.TransportError:
            return False

    def _api_log(self) -> str:
        logs = [process.log.read_text()[-2000:] for process in self.processes if process.name == "api"]
        return f"the API ({logs[-1] if logs else 'never started'})"

    def wait_for_workers(self, **queues: int) -> None:
        """Until as many workers as named serve each queue."""

        def ready() -> bool:
            counts = self.rows.workers(3 * BEAT_SECONDS)
            return all(counts.get(name, 0) >= count for name, count in queues.items())

        until(ready, what=lambda: f"workers {queues}; there are {self.rows.workers(3 * BEAT_SECONDS)}")

    def lease_holder(self) -> Process | None:
        """The process that dispatches."""
        holder = self.rows.dispatcher()
        return next((p for p in self.processes if p.is_alive and holder is not None and p.holder == holder), None)

    def survivors(self) -> list[int]:
        return [pid for process in self.processes for pid in process.survivors()]

    def _start(self, name: str, arguments: Sequence[str], settings: dict[str, str]) -> Process:
        with self._starting:
            log = self.folder / f"{len(self.processes):03}-{name}.log"
            process = Process(name, arguments, self.environment | settings, log)
            self.processes.append(process)
        return process

    # --- what it says -------------------------------------------------------------------------------------------------

    def job(self, job_id: str) -> dict[str, Any]:
        return self.http.get(f"/generation-jobs/{job_id}").json()

    def is_write_locked(self) -> bool:
        """Whether a process holds the lock for writing to SQLite's file at this moment."""
        if not self.database_url.startswith("sqlite"):
            return False
        with Path(self.database_url.removeprefix("sqlite:///") + ".lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            fcntl.flock(lock, fcntl.LOCK_UN)
        return False

    def submits(self) -> dict[str, list[int]]:
        """For each job, the attempts that asked the provider: the mock's own book-keeping."""
        found: dict[str, list[int]] = {}
        for line in self.ledger.read_text().splitlines():
            job_id, attempt, *_ = line.split()
            if job_id != "cancel":
                found.setdefault(job_id, []).append(int(attempt))
        return found


class keep_running:  # noqa: N801 - reads as a statement
    """Start members of the crew again whenever they die, as a supervisor does."""

    def __init__(self, stack: Stack, *names: str) -> None:
        self._stack = stack
        self._names = names
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.restarts = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.05):
            for name in self._names:
                if not self._stack.crew_members[name].is_alive:
                    self.restarts += 1
                    self._stack.hire(name)
