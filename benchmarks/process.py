"""Processes of a run, and what they cost: CPU seconds and proportional memory of whole trees, from /proc (Linux)."""

import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from safelight.supervisor import become

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
ROOT = Path(__file__).resolve().parents[1]


def cpu_seconds(pids: Iterable[int]) -> float:
    """User and system time of these processes, of all below them, and of their children that have ended."""
    total = 0.0
    for pid in _trees(pids):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += sum(int(field) for field in fields[11:15]) / TICKS_PER_SECOND
    return total


def pss_mb(pids: Iterable[int]) -> float:
    """Memory of these processes and all below them; pages shared by n processes count 1/n."""
    total = 0
    for pid in _trees(pids):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1])
    return total / 1024


def _trees(pids: Iterable[int]) -> set[int]:
    """All processes that descend from these, or are of a session that one of them began: orphans are, too."""
    parents: dict[int, int] = {}
    found = set(pids)
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                parents[int(entry.name)] = int(fields[1])
                if int(fields[3]) in found:
                    found.add(int(entry.name))
    wave = found
    while wave:
        wave = {child for child, parent in parents.items() if parent in wave} - found
        found = found | wave
    return found


class Child:
    """A process of ours that ends with us. Lines go in and out as JSON where it speaks with us (`ask`)."""

    def __init__(
        self,
        name: str,
        module: str,
        *arguments: str,
        environment: Mapping[str, str],
        log: Path,
        speaks: bool,
        patience: float,
    ) -> None:
        self.name = name
        self.log = log
        self._patience = patience
        command = [sys.executable, "-m", module, *arguments]
        starter = [sys.executable, "-I", "-S", str(become.__file__), str(os.getpid())]
        self.began_at = log.stat().st_size if log.exists() else 0
        with log.open("ab") as output:
            self._popen = subprocess.Popen(
                [*starter, *command],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
                stdin=subprocess.PIPE if speaks else subprocess.DEVNULL,
                stdout=subprocess.PIPE if speaks else output,
                stderr=output,
                cwd=ROOT,
                start_new_session=True,
            )
        atexit.register(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def is_alive(self) -> bool:
        return self._popen.poll() is None

    def tell(self, **request: Any) -> None:
        """Send one line."""
        assert self._popen.stdin is not None
        try:
            self._popen.stdin.write(json.dumps(request).encode() + b"\n")
            self._popen.stdin.flush()
        except BrokenPipeError:
            raise RuntimeError(f"{self.name} has ended:\n{self.tail()}") from None

    def hear(self) -> dict[str, Any]:
        """Wait for one line."""
        assert self._popen.stdout is not None
        line = self._popen.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} has ended:\n{self.tail()}")
        return json.loads(line)

    def ask(self, **request: Any) -> dict[str, Any]:
        self.tell(**request)
        return self.hear()

    def output(self) -> str:
        """What it wrote to its log since it was started."""
        return self.log.read_bytes()[self.began_at :].decode(errors="replace")

    def tail(self) -> str:
        return self.output()[-3000:]

    def close(self, patience: float | None = None) -> None:
        """SIGTERM, and after `patience` seconds SIGKILL, to the process and all below it."""
        atexit.unregister(self.close)
        everybody = _trees([self.pid])
        if self.is_alive:
            self._popen.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(timeout=self._patience if patience is None else patience)
        else:
            everybody.discard(self.pid)  # the number may be another's by now
        for pid in everybody - {self.pid} if not self.is_alive else everybody:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._popen.wait(timeout=10)
        for pipe in (self._popen.stdin, self._popen.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def check_alive(children: Iterable[Child]) -> None:
    """Raise if one has ended by itself: figures without it would be nobody's."""
    for child in children:
        if not child.is_alive:
            raise RuntimeError(f"{child.name} has ended:\n{child.tail()}")
