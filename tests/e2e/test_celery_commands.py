"""Celery's own commands, as they come, on real workers: what runs, what can be run, and the events of tasks."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from running_stack import ASKED, IO_WORKER, Stack

from patience import await_true
from safelight.queue import TASK_NAME
from safelight_client import Client

Celery = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def celery(plain: Stack) -> Iterator[Celery]:
    """Begin the stock command, told of the queue as a worker is."""
    queue = json.loads((plain.data_dir / "stack.json").read_text())["redis_url"]
    begun: list[subprocess.Popen[str]] = []

    def begin(*arguments: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "safelight.worker.tasks", *arguments],
            env={**os.environ, "SAFELIGHT_REDIS_URL": queue},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        begun.append(process)
        return process

    yield begin
    for process in begun:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def answer(process: "subprocess.Popen[str]") -> str:
    words, _ = process.communicate()
    assert process.returncode == 0, words
    return words


def ours(data_dir: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`safelight celery ...` beside the stack of a data directory."""
    return subprocess.run(
        [sys.executable, "-m", "safelight", "celery", *arguments],
        env={**os.environ, "SAFELIGHT_DATA_DIR": str(data_dir)},
        capture_output=True,
        text=True,
    )


def test_inspect_tells_what_runs_and_what_can(plain: Stack, celery: Celery) -> None:
    with Client(plain.url) as client:
        job = client.submit(prompt="slow", provider_options={"duration_seconds": 600}, width=64, height=64)
        await_true(lambda: client.get(job["id"])["status"] == "processing")
        asked = {what: celery("inspect", *ASKED, "--json", what) for what in ("registered", "stats")}
        told = {what: json.loads(answer(process))[IO_WORKER] for what, process in asked.items()}
        done = ours(
            plain.data_dir, "inspect", *ASKED, "--json", "active"
        )  # which finds the queue of the stack by itself
        client.cancel(job["id"])
    assert done.returncode == 0, done.stderr
    assert [task["id"] for task in json.loads(done.stdout)[IO_WORKER]] == [job["task_id"]]
    assert TASK_NAME in told["registered"]
    assert told["stats"]["pool"]["max-concurrency"] == 1000


def test_task_events_tell_of_a_job_from_beginning_to_end(plain: Stack, celery: Celery) -> None:
    answer(celery("control", *ASKED, "enable_events"))
    dump = celery("events", "--dump")
    assert dump.stdout is not None
    lines = iter(dump.stdout.readline, "")
    assert any("heartbeat" in line for line in lines)  # it is listening
    with Client(plain.url) as client:
        job = client.submit(prompt="x", provider_options={"duration_seconds": 0}, width=64, height=64)
    told: list[str] = []
    for line in lines:
        told += [word for word in ("received", "started", "succeeded") if f"task {word}" in line and job["id"] in line]
        if "succeeded" in told:
            break
    assert told == ["received", "started", "succeeded"]


def test_without_a_queue_it_says_which_setting_is_missing(tmp_path: Path) -> None:
    done = ours(tmp_path, "inspect", "ping")
    assert done.returncode == 2
    assert "SAFELIGHT_REDIS_URL is not set" in done.stderr
