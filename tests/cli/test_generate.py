"""`safelight generate` and `watch` as a person or a script meets them, against a scripted API."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from patience import PATIENCE_SECONDS
from scripted_api import JOB_ID, JOB_PATH, PNG, Answer, ScriptedApi, document, event, job, problem, stream

JOBS = "/api/v1/generation-jobs"
CONTENT = "/api/v1/artifacts/{}/content"


@pytest.fixture
def api() -> Iterator[ScriptedApi]:
    with ScriptedApi().serving() as api:
        api.answer("GET", "/api/v1/health/live", document({}))
        api.answer("POST", JOBS, document(job(), 202))
        yield api


def begin(*arguments: str, cwd: Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "safelight", *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*arguments: str, cwd: Path, **environment: str) -> tuple[int, str, str]:
    process = begin(*arguments, cwd=cwd, **environment)
    output, words = process.communicate(timeout=PATIENCE_SECONDS)
    return process.returncode, output, words


def completes(api: ScriptedApi, pictures: int = 1) -> None:
    """The job runs and completes with so many pictures."""
    artifacts = [{"id": str(n), "url": CONTENT.format(n), "content_type": "image/png"} for n in range(1, pictures + 1)]
    progress = event("job.progress", 2, status="processing", progress=50, message="Rendering")
    done = event("job.completed", 3, status="completed", progress=100)
    api.answer("GET", f"{JOB_PATH}/events", stream(event("job.snapshot", 1, status="pending"), progress, done))
    api.answer("GET", JOB_PATH, document(job("completed", artifacts=artifacts)))
    for number in range(1, pictures + 1):
        api.answer("GET", CONTENT.format(number), Answer(body=PNG + bytes([number])))


def test_saves_the_picture_and_prints_where(api: ScriptedApi, tmp_path: Path) -> None:
    completes(api)
    code, output, words = run(
        *("generate", "a lighthouse", "-o", "x.png", "--width", "64", "--url", api.url),
        *("--option", "steps=3", "--option", "style=ink"),
        cwd=tmp_path,
    )
    assert (code, output) == (0, "x.png\n"), words
    assert (tmp_path / "x.png").read_bytes() == PNG + b"\x01"
    [submitted] = api.asked("POST", JOBS)
    assert submitted.body == {"prompt": "a lighthouse", "width": 64, "provider_options": {"steps": 3, "style": "ink"}}
    assert "\x1b" not in words


def test_numbers_several_pictures(api: ScriptedApi, tmp_path: Path) -> None:
    completes(api, pictures=2)
    code, output, _ = run("generate", "x", "-o", "x.png", "--batch-size", "2", "--url", api.url, cwd=tmp_path)
    assert (code, output) == (0, "x-1.png\nx-2.png\n")


def test_json_is_the_whole_job(api: ScriptedApi, tmp_path: Path) -> None:
    completes(api)
    code, output, _ = run("watch", JOB_ID, "--json", cwd=tmp_path, SAFELIGHT_URL=api.url)
    found = json.loads(output)
    assert (code, found["status"], found["saved"]) == (0, "completed", [f"{JOB_ID}.png"])


def test_finds_the_stack_of_the_data_directory(api: ScriptedApi, tmp_path: Path) -> None:
    completes(api)
    (tmp_path / ".safelight").mkdir()
    (tmp_path / ".safelight" / "stack.json").write_text(json.dumps({"url": api.url, "pid": 1}))
    assert run("generate", "x", "-o", "x.png", cwd=tmp_path)[0] == 0


def leave_note(folder: Path, name: str, url: str, pid: int) -> None:
    (folder / "safelight").mkdir(exist_ok=True)
    note = {"url": url, "data_dir": str(folder / name), "pid": pid}
    (folder / "safelight" / f"stack-{name}.json").write_text(json.dumps(note))


def test_finds_the_stack_that_runs_from_any_folder(api: ScriptedApi, tmp_path: Path) -> None:
    completes(api)
    leave_note(tmp_path, "mine", api.url, os.getpid())
    leave_note(tmp_path, "left", "http://127.0.0.1:9", 2**22 + 1)
    code, output, words = run("watch", JOB_ID, "-o", "x.png", cwd=tmp_path, XDG_RUNTIME_DIR=str(tmp_path))
    assert (code, output) == (0, "x.png\n"), words
    assert f"Using the Safelight at {api.url}, which runs on {tmp_path / 'mine'}." in words
    assert [note.name for note in (tmp_path / "safelight").iterdir()] == ["stack-mine.json"]

    leave_note(tmp_path, "another", api.url, os.getpid())
    code, _, words = run("watch", JOB_ID, cwd=tmp_path, XDG_RUNTIME_DIR=str(tmp_path))
    assert code == 2
    assert f"--data-dir {tmp_path / 'mine'}" in words and f"--data-dir {tmp_path / 'another'}" in words


@pytest.mark.parametrize("command", [("watch", JOB_ID), ("providers", "ls"), ("templates", "ls")])
@pytest.mark.parametrize("folder", [(), ("--data-dir", "nowhere")])
def test_who_only_asks_starts_nothing(command: tuple[str, ...], folder: tuple[str, ...], tmp_path: Path) -> None:
    code, _, words = run(*command, *folder, cwd=tmp_path, XDG_RUNTIME_DIR=str(tmp_path / "none"))
    assert code == 5
    assert "No Safelight runs" in words and "safelight up" in words and words.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_failed_job(api: ScriptedApi, tmp_path: Path) -> None:
    failed = job("failed", error={"code": "content_rejected", "message": "The provider refused the prompt."})
    api.answer("GET", f"{JOB_PATH}/events", stream(event("job.failed", 2, status="failed")))
    api.answer("GET", JOB_PATH, document(failed))
    code, output, words = run("generate", "x", "-o", "x.png", "--url", api.url, cwd=tmp_path)
    assert (code, output) == (1, "")
    assert "content_rejected: The provider refused the prompt." in words
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("generate",),
        ("generate", "x", "--batch-size", "0"),
        ("generate", "x", "--option", "novalue"),
        ("generate", "x", "-o", "no/such/folder/x.png"),
        ("generate", "x", "--input", "steps=4"),
        ("generate", "x", "--workflow", "no-such-file.json"),
        ("generate", "x", "--workflow", __file__),
        ("generate", "x", "--image", "no-such-file.png"),
        ("up", "--host", "0.0.0.0"),  # noqa: S104
        ("api", "--host", "192.168.1.2"),
        ("nonsense",),
    ],
)
def test_usage_errors(arguments: tuple[str, ...], tmp_path: Path) -> None:
    assert run(*arguments, cwd=tmp_path)[0] == 2
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_setting_is_a_usage_error(tmp_path: Path) -> None:
    code, _, words = run("migrate", cwd=tmp_path, SAFELIGHT_LEASE_SECONDS="never")
    assert code == 2
    assert "SAFELIGHT_LEASE_SECONDS: " in words


def test_a_refused_request_is_a_usage_error(tmp_path: Path) -> None:
    with ScriptedApi().serving() as api:
        api.answer("GET", "/api/v1/health/live", document({}))
        errors = [{"pointer": "#/width", "detail": "must be at least 64"}]
        api.answer("POST", JOBS, problem(422, "invalid_request", errors=errors))
        code, _, words = run("generate", "x", "--width", "1", "--url", api.url, cwd=tmp_path)
    assert code == 2
    assert "--width: must be at least 64" in words


def test_without_a_key_it_says_where_one_comes_from(tmp_path: Path) -> None:
    with ScriptedApi().serving() as api:
        api.answer("GET", "/api/v1/health/live", document({}))
        api.answer("POST", JOBS, problem(401, "unauthenticated"))
        code, _, words = run("generate", "x", "--url", api.url, cwd=tmp_path)
    assert code == 2
    assert "SAFELIGHT_API_KEY" in words and "keys create" in words


def test_nobody_at_the_address(tmp_path: Path) -> None:
    code, _, words = run("generate", "x", "--url", "http://127.0.0.1:9", cwd=tmp_path)
    assert code == 5
    assert "No Safelight answers at http://127.0.0.1:9" in words


@pytest.fixture
def held(api: ScriptedApi) -> Iterator[ScriptedApi]:
    """The job begins and does not come to an end."""
    release = threading.Event()
    started = event("job.started", 2, status="processing", message="Rendering")
    endless = Answer(200, started.encode(), {"Content-Type": "text/event-stream"}, waits_for=release, drops=True)
    api.answer("GET", f"{JOB_PATH}/events", endless)
    api.answer("GET", JOB_PATH, document(job("processing")))
    api.answer("POST", f"{JOB_PATH}/cancel", document(job("cancelled")))
    yield api
    release.set()


def test_gives_up_watching(held: ScriptedApi, tmp_path: Path) -> None:
    code, output, words = run(
        "generate", "x", "-o", "x.png", "--timeout", "0.3", "--url", held.url, cwd=tmp_path, SAFELIGHT_COMMAND="./run"
    )
    assert (code, output) == (6, "")
    assert f"./run watch {JOB_ID} -o x.png --url {held.url}" in words
    assert not held.asked("POST", f"{JOB_PATH}/cancel")


def wait_for_words(process: subprocess.Popen[str], words: str) -> str:
    assert process.stderr is not None
    seen = ""
    while words not in seen:
        line = process.stderr.readline()
        assert line, seen
        seen += line
    return seen


def test_an_interrupt_detaches(held: ScriptedApi, tmp_path: Path) -> None:
    process = begin("generate", "x", "--url", held.url, cwd=tmp_path)
    wait_for_words(process, "Rendering")
    process.send_signal(signal.SIGINT)
    words = wait_for_words(process, "Press Ctrl-C again")
    process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 6
    assert f"safelight watch {JOB_ID} --url {held.url}" in words
    assert not held.asked("POST", f"{JOB_PATH}/cancel")


def test_two_interrupts_cancel(held: ScriptedApi, tmp_path: Path) -> None:
    process = begin("generate", "x", "--url", held.url, cwd=tmp_path)
    wait_for_words(process, "Rendering")
    process.send_signal(signal.SIGINT)
    wait_for_words(process, "Press Ctrl-C again")
    process.send_signal(signal.SIGINT)
    _, words = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 130
    assert "The job is cancelled." in words
    assert len(held.asked("POST", f"{JOB_PATH}/cancel")) == 1


def test_a_client_command_does_not_load_the_server(api: ScriptedApi, tmp_path: Path) -> None:
    completes(api)
    program = (
        "import sys\nfrom safelight.cli.main import group\n"
        f"group(['watch', {JOB_ID!r}, '--url', {api.url!r}], standalone_mode=False)\n"
        "print(sorted(name for name in sys.modules if name.startswith('safelight.') and '.cli' not in name))\n"
        "print(any(name in sys.modules for name in ('pydantic', 'fastapi', 'celery', 'sqlalchemy')))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-2:] == ["['safelight.estimate', 'safelight.stack_note']", "False"]


def test_help_is_quick_and_complete() -> None:
    before = os.times()
    done = subprocess.run([sys.executable, "-m", "safelight", "--help"], capture_output=True, text=True, check=True)
    after = os.times()
    assert after.children_user + after.children_system - before.children_user - before.children_system < 1  # 0.07
    for name in ("generate", "watch", "up", "api", "worker", "migrate"):
        assert f"  {name} " in done.stdout


@pytest.mark.parametrize("name", ["generate", "watch", "up", "api", "worker", "migrate"])
def test_every_command_teaches_by_example(name: str, tmp_path: Path) -> None:
    code, output, _ = run(name, "--help", cwd=tmp_path)
    assert code == 0
    assert "Example" in output


def test_examples_name_the_command_as_it_was_called(tmp_path: Path) -> None:
    for called in ("./run", "safelight"):
        for arguments in (("keys", "create"), ("up",), ()):
            _, output, _ = run(*arguments, "--help", cwd=tmp_path, SAFELIGHT_COMMAND=called)
            other = {"./run": "safelight", "safelight": "./run"}[called]
            assert f"  {called} " in output and f"  {other} " not in output
