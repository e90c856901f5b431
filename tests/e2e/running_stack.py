"""The stack and its commands as processes, seen from outside."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from patience import PATIENCE_SECONDS, await_true
from safelight.supervisor.guard import living

START_SECONDS = 2 * PATIENCE_SECONDS  # the promise of 10 s is measured on an idle machine
IO_WORKER = f"io-1@{socket.gethostname()}"
ASKED = ("--destination", IO_WORKER, "--timeout", "60")  # of one worker: Celery waits for no others then
SHORT = {"SAFELIGHT_BEAT_SECONDS": "0.5", "SAFELIGHT_LEASE_SECONDS": "2"}  # leases short enough for a test


def command(data_dir: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """`safelight ...` in a process of its own. Where it takes no `--data-dir`, the environment says it."""
    takes_it = arguments[:2] != ("db", "copy")
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "safelight", *arguments, *(["--data-dir", str(data_dir)] if takes_it else [])],
        env={**os.environ, **SHORT, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(data_dir: Path, *arguments: str, **environment: str) -> tuple[int, str, str]:
    """Such a process, to its end: exit code, standard output, standard error."""
    process = command(data_dir, *arguments, **environment)
    output, words = process.communicate(timeout=PATIENCE_SECONDS)
    return process.returncode, output, words


def read_until(process: subprocess.Popen[str], words: str) -> str:
    """What it says on standard error, up to the line with these words."""
    assert process.stderr is not None
    seen = ""
    while words not in seen:
        line = process.stderr.readline()
        assert line, seen
        seen += line
    return seen


class Stack:
    """`safelight up` on a data directory, with settings of its own."""

    def __init__(self, data_dir: Path, environment: Mapping[str, str] | None = None) -> None:
        self.data_dir = data_dir
        log = data_dir.with_suffix(".out").open("w")
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "safelight", "up", "--port", "0", "--data-dir", str(data_dir)],
            env={**os.environ, **SHORT, **(environment or {})},
            stdout=log,
            stderr=log,
        )
        log.close()
        try:
            await_true(lambda: (data_dir / "stack.json").exists() or self.process.poll() is not None, START_SECONDS)
            assert self.process.poll() is None, data_dir.with_suffix(".out").read_text()
            self.url = str(json.loads((data_dir / "stack.json").read_text())["url"])
            self.mark, self.groups = noted(data_dir)
        except BaseException:
            self.process.kill()  # what it started ends with it
            self.process.wait()
            raise

    def child(self, name: str) -> int:
        """The process id of one of its children."""
        return json.loads((self.data_dir / "children.json").read_text())["children"][name]

    def stop(self) -> None:
        """In order."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(PATIENCE_SECONDS) in (0, 128 + signal.SIGTERM), self.data_dir.with_suffix(
            ".out"
        ).read_text()

    def close(self) -> None:
        """At once, whatever it does."""
        self.process.kill()
        self.process.wait()
        await_true(lambda: not living(self.groups, self.mark))


def noted(data_dir: Path) -> tuple[str, set[int]]:
    """The mark and the process groups of a stack's children."""
    content = json.loads((data_dir / "children.json").read_text())
    return content["mark"], set(content["children"].values())
