"""The real stack, started by its own command: a job through every door, and nothing left behind however it ends."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from running_stack import Stack, command, noted, read_until, run

from patience import PATIENCE_SECONDS, await_true
from safelight.supervisor.guard import living
from safelight_client import Client

PNG = b"\x89PNG\r\n\x1a\n"
SLOW = ("--option", "duration_seconds=60")


@pytest.fixture
def stack(plain: Stack) -> Stack:
    return plain


@pytest.fixture
def client(stack: Stack) -> Iterator[Client]:
    with Client(stack.url) as client:
        yield client


def test_a_picture_from_the_running_stack(stack: Stack, tmp_path: Path) -> None:
    target = tmp_path / "lighthouse.png"
    code, output, words = run(stack.data_dir, "generate", "a lighthouse at dusk", "-o", str(target))
    assert (code, output) == (0, f"{target}\n"), words
    assert target.read_bytes().startswith(PNG)
    assert "Starting Safelight" not in words


def test_several_pictures_and_the_job_as_json(stack: Stack, tmp_path: Path) -> None:
    size = ("--width", "128", "--height", "128", "--batch-size", "2", "--option", "duration_seconds=0")
    code, output, words = run(stack.data_dir, "generate", "boats", *size, "-o", str(tmp_path / "b.png"), "--json")
    assert code == 0, words
    assert json.loads(output)["saved"] == [str(tmp_path / "b-1.png"), str(tmp_path / "b-2.png")]


def test_a_refused_picture(stack: Stack, tmp_path: Path) -> None:
    refusal = ("--option", 'mock={"refuse": "No lighthouses today."}')
    code, output, words = run(stack.data_dir, "generate", "x", *refusal, "-o", str(tmp_path / "x.png"))
    assert (code, output) == (1, "")
    assert "content_rejected" in words


def test_a_wrong_option_is_named(stack: Stack) -> None:
    code, _, words = run(stack.data_dir, "generate", "x", "--option", "colour=red")
    assert code == 2
    assert "colour" in words


def test_gives_up_watching_and_the_job_goes_on(stack: Stack, client: Client) -> None:
    code, _, words = run(stack.data_dir, "generate", "slow", *SLOW, "--timeout", "0.5")
    assert code == 6
    job_id = words.split(" watch ")[1].split()[0]
    assert not client.get(job_id)["is_terminal"]
    client.cancel(job_id)


def test_two_interrupts_cancel_the_job(stack: Stack, client: Client) -> None:
    process = command(stack.data_dir, "generate", "slow", *SLOW)
    read_until(process, "processing")
    process.send_signal(signal.SIGINT)
    job_id = read_until(process, "again within").split(" watch ")[1].split()[0]
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 130
    assert client.get(job_id, wait=60)["status"] == "cancelled"


def test_events_go_on_over_a_killed_api(stack: Stack, client: Client) -> None:
    job = client.submit(prompt="x", provider_options={"duration_seconds": 4}, width=64, height=64)
    types: list[str] = []
    for event in client.events(job["id"]):
        types.append(event.type)
        if event.type == "job.progress" and "killed" not in types:
            os.kill(stack.child("api"), signal.SIGKILL)
            types.append("killed")
    assert types[0] == "job.snapshot"
    assert types[-1] in ("job.completed", "job.snapshot")
    assert "killed" in types
    assert client.get(job["id"])["status"] == "completed"


def test_a_job_survives_its_killed_worker(stack: Stack, client: Client) -> None:
    job = client.submit(prompt="x", provider_options={"duration_seconds": 2}, width=64, height=64)
    await_true(lambda: client.get(job["id"])["status"] == "processing")
    os.kill(stack.child("io-1"), signal.SIGKILL)
    await_true(lambda: client.get(job["id"], wait=2)["is_terminal"])
    ended = client.get(job["id"])
    assert ended["status"] == "completed"
    assert ended["attempt"] >= 2


def test_a_second_start_is_refused(stack: Stack) -> None:
    code, _, words = run(stack.data_dir, "up", "--port", "0")
    assert code == 1
    assert f"already runs on {stack.data_dir} at {stack.url}" in words
    assert stack.process.poll() is None


@pytest.mark.long
def test_a_killed_stack_leaves_nothing_and_starts_again(tmp_path: Path) -> None:
    killed = Stack(tmp_path / "data")
    assert len(living(killed.groups, killed.mark)) >= 4
    with Client(killed.url) as client:
        job = client.submit(prompt="x", provider_options={"duration_seconds": 3}, width=64, height=64)
        await_true(lambda: client.get(job["id"])["status"] == "processing")
    killed.process.kill()
    killed.process.wait()
    await_true(lambda: not living(killed.groups, killed.mark))

    # Who only asks starts none; its job is finished by the next one.
    code, _, words = run(tmp_path / "data", "watch", job["id"])
    assert code == 5 and "No Safelight runs" in words
    following = Stack(tmp_path / "data")
    try:
        code, _, words = run(tmp_path / "data", "watch", job["id"], "-o", str(tmp_path / "x.png"))
    finally:
        following.close()
    assert code == 0, words
    assert (tmp_path / "x.png").read_bytes().startswith(PNG)


@pytest.mark.long
def test_a_stack_for_one_picture(tmp_path: Path) -> None:
    """Detached, it stops in order; the job stays, and goes on with the next stack."""
    data_dir = tmp_path / "data"
    process = command(data_dir, "generate", "x", "--option", "duration_seconds=3", "-o", str(tmp_path / "x.png"))
    read_until(process, "processing")
    mark, groups = noted(data_dir)
    process.send_signal(signal.SIGINT)
    _, words = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 6
    assert not living(groups, mark)
    assert not (data_dir / "stack.json").exists()

    job_id = words.split(" watch ")[1].split()[0]
    following = Stack(data_dir)
    try:
        assert run(data_dir, "watch", job_id, "-o", str(tmp_path / "x.png"))[0] == 0
    finally:
        following.close()
    assert (tmp_path / "x.png").read_bytes().startswith(PNG)
