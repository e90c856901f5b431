"""What the page on running the parts one by one tells its reader to type works as it stands, but for ports."""

import contextlib
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Generator
from pathlib import Path

import httpx
import pytest
from shell_blocks import typed
from test_howto_commands import Reader, check_answer

from patience import PATIENCE_SECONDS, await_true
from servers import ValkeyServer, free_port

pytestmark = pytest.mark.skipif(not (shutil.which("bash") and shutil.which("curl")), reason="needs bash and curl")


@contextlib.contextmanager
def left_running(reader: Reader, command: str) -> Generator[None]:
    """A command that the reader puts in the background, until the end of the test."""
    with (reader.folder / "background.log").open("a") as log:
        process = subprocess.Popen(
            ["bash", "-c", f"exec {command}"], cwd=reader.folder, env=reader.environment, stdout=log, stderr=log
        )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.mark.long
def test_the_parts_one_by_one(tmp_path: Path, valkey_server: Callable[..., ValkeyServer]) -> None:
    port = free_port()
    reader = Reader(tmp_path, {"SAFELIGHT_PORT": str(port), "SAFELIGHT_LOCAL_SLOTS": "1"})
    queue, told = valkey_server(tcp=True).url, ""
    with contextlib.ExitStack() as background:
        for one in typed("operations/running.md"):
            command = re.sub(r"\s+#.*", "", one.command).strip()
            command = command.replace("redis://127.0.0.1:6379", queue).replace("localhost:8080", f"localhost:{port}")
            if command.endswith("&"):
                background.enter_context(left_running(reader, command.removesuffix("&")))
                continue
            if command.startswith("curl"):  # which has a minute of patience: a machine at rest needs two seconds
                await_true(lambda: all_served(port), 2 * PATIENCE_SECONDS)
            told = reader.types(command)
            check_answer(one, told)
    assert json.loads(told)["status"] == "completed", told


def all_served(port: int) -> bool:
    try:
        queues = httpx.get(f"http://127.0.0.1:{port}/health/ready", timeout=PATIENCE_SECONDS).json()["queues"]
    except httpx.TransportError:
        return False
    return all(queue["workers"] for queue in queues.values())
