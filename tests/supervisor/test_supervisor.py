"""The supervisor over pretending children: order, restart, refusal, and that nothing stays behind."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from patience import PATIENCE_SECONDS, await_true
from safelight.supervisor.guard import living

FAKE_STACK = Path(__file__).with_name("fake_stack.py")


class FakeStack:
    """A supervisor process on a data directory, seen from outside."""

    def __init__(self, data_dir: Path, **environment: str) -> None:
        self.data_dir = data_dir
        self.process = subprocess.Popen(
            [sys.executable, str(FAKE_STACK), "up", str(data_dir)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            text=True,
        )
        self.mark = ""
        self.groups: set[int] = set()

    def wait_until_ready(self) -> None:
        await_true(lambda: (self.data_dir / "stack.json").exists() or self.process.poll() is not None)
        assert self.process.poll() is None, self.process.stdout and self.process.stdout.read()
        self.read_mark()

    def wait_until_deaf(self) -> None:
        """A stubborn worker says that it works once it ignores what it will be asked."""
        log = self.data_dir / "logs" / "io-1.log"
        await_true(lambda: log.exists() and "working" in log.read_text())

    def read_mark(self) -> None:
        noted = json.loads((self.data_dir / "children.json").read_text())
        self.mark, self.groups = noted["mark"], set(noted["children"].values())

    def child(self, name: str) -> int:
        return json.loads((self.data_dir / "children.json").read_text())["children"][name]

    def remains(self) -> dict[int, int]:
        """Every process of the stack but the supervisor and the guard."""
        return living(self.groups, self.mark)

    def output(self) -> str:
        return self.process.communicate(timeout=PATIENCE_SECONDS)[0]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., FakeStack]]:
    stacks: list[FakeStack] = []

    def begin(**environment: str) -> FakeStack:
        stacks.append(FakeStack(tmp_path / "data", **environment))
        return stacks[-1]

    yield begin
    for stack in stacks:
        stack.process.kill()
        stack.process.communicate()
    for stack in stacks:
        if stack.mark:
            await_true(lambda stack=stack: not stack.remains())


def test_stops_in_order_and_leaves_nothing(start: Callable[..., FakeStack]) -> None:
    stack = start()
    stack.wait_until_ready()
    await_true(lambda: len(stack.remains()) == 11)  # valkey, the API, three workers with two children each

    stack.process.send_signal(signal.SIGINT)
    output = stack.output()

    assert stack.process.returncode == 0
    assert not stack.remains()
    assert not (stack.data_dir / "stack.json").exists()
    assert "io-1      | working" in output
    assert "Safelight is ready:  http://127.0.0.1:" in output
    assert (stack.data_dir / "logs" / "io-1.log").read_text() == "working\n"


def test_what_is_waited_for_is_told(start: Callable[..., FakeStack]) -> None:
    stack = start(FAKE_API="busy", FAKE_TELL="0.1")
    log = stack.data_dir / "logs" / "safelight.log"
    await_true(lambda: log.exists() and "Waiting for the API to answer, " in log.read_text())
    stack.process.send_signal(signal.SIGINT)
    assert "Waiting for the API to answer, " in stack.output()


def test_nothing_is_waited_for_longer_than_the_setting_says(start: Callable[..., FakeStack]) -> None:
    stack = start(SAFELIGHT_START_SECONDS="0.001")
    assert "Valkey did not answer within 0.001 s. SAFELIGHT_START_SECONDS lets" in stack.output()
    assert stack.process.returncode == 5


def test_kills_what_ignores_the_request_to_stop(start: Callable[..., FakeStack]) -> None:
    stack = start(FAKE_WORKER="stubborn")
    stack.wait_until_ready()
    stack.wait_until_deaf()
    stack.process.send_signal(signal.SIGTERM)
    assert "io-1 did not stop within 2.5 s; killing it." in stack.output()
    assert not stack.remains()


def test_a_second_interrupt_kills_at_once(start: Callable[..., FakeStack]) -> None:
    stack = start(FAKE_WORKER="stubborn", FAKE_GRACE="600")
    stack.wait_until_ready()
    stack.wait_until_deaf()
    stack.process.send_signal(signal.SIGINT)
    await_true(lambda: "Stopping" in (stack.data_dir / "logs" / "safelight.log").read_text())
    stack.process.send_signal(signal.SIGINT)
    stack.output()
    assert not stack.remains()


def test_a_killed_supervisor_leaves_nothing_behind(start: Callable[..., FakeStack]) -> None:
    """Its children and theirs, in its groups and out of them; the directory is free when the last has gone."""
    stack = start(FAKE_WORKER="stubborn")
    stack.wait_until_ready()
    stack.wait_until_deaf()
    runtime_dir = next(
        Path(word).parent for word in command_line(stack.child("valkey")) if word.endswith("valkey.sock")
    )
    stack.process.kill()
    stack.process.wait()

    refused = start()
    assert "was killed and is still being cleared away" in refused.output()
    assert refused.process.returncode == 5

    await_true(lambda: not stack.remains())
    await_true(lambda: not runtime_dir.exists())
    start().wait_until_ready()


def command_line(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")


def test_a_second_start_is_refused_with_the_address(start: Callable[..., FakeStack]) -> None:
    stack = start()
    stack.wait_until_ready()
    url = json.loads((stack.data_dir / "stack.json").read_text())["url"]
    refused = start()
    output = refused.output()
    assert refused.process.returncode == 5
    assert f"already runs on {stack.data_dir} at {url} (process {stack.process.pid})" in output
    assert stack.process.poll() is None
    assert (stack.data_dir / "stack.json").exists()


def test_a_dead_child_is_started_again_without_its_leftovers(start: Callable[..., FakeStack]) -> None:
    stack = start()
    stack.wait_until_ready()
    first = stack.child("io-1")
    group = {first}
    await_true(lambda: len(living(group)) == 2)
    os.kill(first, signal.SIGKILL)
    await_true(lambda: stack.child("io-1") != first if "io-1" in children(stack) else False)
    assert not living(group)
    stack.process.send_signal(signal.SIGINT)
    assert "io-1 was killed by SIGKILL after" in stack.output()


def children(stack: FakeStack) -> dict[str, int]:
    return json.loads((stack.data_dir / "children.json").read_text())["children"]


def test_the_guard_is_replaced(start: Callable[..., FakeStack]) -> None:
    stack = start()
    stack.wait_until_ready()
    first = guard_of(stack)
    os.kill(first, signal.SIGKILL)
    await_true(lambda: guard_of(stack) not in (0, first))
    stack.process.kill()
    await_true(lambda: not stack.remains())


def guard_of(stack: FakeStack) -> int:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and entry.joinpath("stat").exists():
            words = command_line(int(entry.name))
            if stack.mark in words and any(word.endswith("guard.py") for word in words):
                return int(entry.name)
    return 0


def test_gives_up_on_a_child_that_never_lives(start: Callable[..., FakeStack], monkeypatch: pytest.MonkeyPatch) -> None:
    stack = start(FAKE_WORKER="broken")
    stack.wait_until_ready()
    output = stack.output()
    assert stack.process.returncode == 1
    assert "the 5th time in a row. Giving up." in output
    assert output.count("    I cannot work like this") >= 1
    assert not stack.remains()


def test_a_taken_port_is_said_before_anything_starts(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-m", "safelight", "up", "--port", str(port), "--data-dir", str(tmp_path)],
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert f"Port {port} on 127.0.0.1 is in use" in done.stderr
    assert not (tmp_path / "logs").exists()


def test_damaged_queue_files_do_not_keep_it_from_starting(start: Callable[..., FakeStack], tmp_path: Path) -> None:
    directory = tmp_path / "data" / "valkey" / "appendonlydir"
    directory.mkdir(parents=True)
    (directory / "appendonly.aof.manifest").write_text("not a manifest\n")
    stack = start()
    stack.wait_until_ready()
    assert list(stack.data_dir.glob("valkey-unreadable-*"))
