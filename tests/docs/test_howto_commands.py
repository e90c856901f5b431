"""What how-to pages tell their reader to type works as it stands there, but for hosts, buckets and keys."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from shell_blocks import ROOT, Typed, blocks, names_in, typed

from accounts.identity_provider import AUDIENCE, SECRET, shared_token
from e2e.running_stack import Stack
from object_stores import ACCESS_KEY, SECRET_KEY, Rclone, server
from patience import PATIENCE_SECONDS
from safelight.config import Settings

pytestmark = pytest.mark.skipif(not (shutil.which("bash") and shutil.which("curl")), reason="needs bash and curl")


class Reader:
    """Somebody at a shell, whose variables stay from one command to the next."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        for path in (folder / "bin" / "safelight", folder / "run"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(f'#!/bin/sh\nexec {sys.executable} -P -m safelight "$@"\n')
            path.chmod(0o755)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SAFELIGHT_", "AWS_"))}
        self.environment = kept | {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}"} | environment

    def types(self, command: str) -> str:
        """Standard output. The command must succeed; what it exports or sets is there for the next one."""
        script = f"set -a\n{command}\nstatus=$?\nenv -0 > .environment\nexit $status\n"
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        found = (self.folder / ".environment").read_text().split("\0")
        self.environment = {name: value for name, _, value in (one.partition("=") for one in found) if name}
        return done.stdout + done.stderr if "curl" not in command else done.stdout


@contextlib.contextmanager
def running(reader: Reader) -> Generator[Stack]:
    """`safelight up` with what the reader has exported."""
    stack = Stack(reader.folder / ".safelight", reader.environment)
    try:
        yield stack
    finally:
        stack.close()


def check_answer(one: Typed, answer: str) -> None:
    """It has what the page shows: the same names in JSON, the first words of other lines."""
    for line in one.answer.strip().splitlines():
        if line.lstrip().startswith(("{", '"')):
            assert names_in(line) <= names_in(answer), (one.command, answer)
        elif not line.startswith("sl_"):
            assert line in answer, (one.command, answer)


@pytest.mark.long
def test_put_it_on_a_network(tmp_path: Path) -> None:
    commands = typed("how-to/put-it-on-a-network.md")
    reader = Reader(
        tmp_path, {"SAFELIGHT_JWT_SECRET": SECRET, "SAFELIGHT_JWT_AUDIENCE": AUDIENCE, "TOKEN": shared_token()}
    )
    told = ""
    ran = 0
    with contextlib.ExitStack() as stack:
        running_one: Stack | None = None
        for one in commands:
            command = one.command
            if command.startswith("SAFELIGHT_"):
                continue  # settings: see below
            if command.startswith("./run up"):
                assert command == "./run up --host 0.0.0.0"
                reader.environment["SAFELIGHT_HOST"] = "0.0.0.0"  # noqa: S104 - what the page is about
                running_one = stack.enter_context(running(reader))
                continue
            if command.startswith("KEY="):
                command = "KEY=" + re.findall(r"sl_\S+", told)[-1]
            if running_one is not None:
                command = command.replace("https://pictures.example.com", running_one.url)
            answer = reader.types(command)
            check_answer(one, answer)
            told += answer
            ran += 1
    assert ran >= 9
    assert running_one is not None and (tmp_path / "jar").exists()


def test_the_settings_of_the_network_page() -> None:
    """Every assignment is a setting that exists; the tiers are read as they stand."""
    fields = set(Settings.model_fields)
    seen: set[str] = set()
    for _, text in blocks("how-to/put-it-on-a-network.md", "sh"):
        for name, value in re.findall(r"^SAFELIGHT_(\w+)=('[^']*'|\S*)", text, re.MULTILINE):
            assert name.lower() in fields, name
            seen.add(name)
            if name == "TIERS":
                tiers = json.loads(value.strip("'"))
                given: dict[str, Any] = {"tiers": tiers}
                assert Settings(**given).tiers["free"].jobs_at_once == 2
    assert seen >= {"JWT_JWKS_URL", "JWT_ISSUER", "JWT_AUDIENCE", "JWT_SECRET", "TIERS", "DEFAULT_TIER"}


@pytest.mark.long
def test_store_files_elsewhere(tmp_path: Path) -> None:
    store = server(Rclone)
    Image.open(ROOT / "docs" / "images" / "lighthouse.webp").convert("RGB").save(tmp_path / "photo.jpg")
    reader = Reader(tmp_path, {})
    told: list[str] = []
    with running(reader) as stack:
        upload = f"curl -sf --data-binary @photo.jpg -H 'Content-Type: image/jpeg' {stack.url}/api/v1/artifacts"
        artifact_id: str = json.loads(reader.types(upload))["id"]
        for one in typed("how-to/store-files-elsewhere.md"):
            command = one.command.replace("http://127.0.0.1:9100", store.endpoint).replace("localhost:8080", stack.url)
            command = command.replace("_ACCESS_KEY=...", f"_ACCESS_KEY={ACCESS_KEY}")
            command = command.replace("_SECRET_KEY=...", f"_SECRET_KEY={SECRET_KEY}")
            command = command.replace("/ID/", f"/{artifact_id}/").replace("curl ", "curl -sf ")
            told.append(reader.types(command))
    assert "does all that Safelight needs" in told[1]
    assert "Everything is there" in told[2] and " 0 copied" not in told[2]
    assert [names_in(answer) >= {"url"} for answer in told[3:]] == [True, True]


@pytest.mark.skipif(not shutil.which("jq"), reason="needs jq")
@pytest.mark.long
def test_batches(tmp_path: Path) -> None:
    reader = Reader(tmp_path, {})
    with running(reader) as stack:
        for one in typed("how-to/batches.md"):
            answer = reader.types(one.command.replace("localhost:8080", stack.url))
            check_answer(one, answer)
            numbers = re.findall(r'"\w+": \d+', one.answer)
            assert all(number in answer for number in numbers), (one.command, answer)
        [example] = [text for _, text in blocks("how-to/batches.md", "python")]
        (tmp_path / "example.py").write_text(example.replace("Client()", f"Client({stack.url!r})"))
        told = reader.types(f"{sys.executable} example.py")
    assert told.count("/api/v1/artifacts/") == 20 and told.splitlines()[-1].startswith("100 {")


@pytest.mark.skipif(not shutil.which("jq"), reason="needs jq")
@pytest.mark.long
@pytest.mark.parametrize("page", ["storyboard", "portraits"])
def test_stories(tmp_path: Path, page: str) -> None:
    Image.open(ROOT / "docs" / "images" / "lighthouse.webp").convert("RGB").save(tmp_path / "face.png")
    reader = Reader(tmp_path, {})
    told: list[str] = []
    with running(reader) as stack:
        for one in typed(f"how-to/{page}.md"):
            answer = reader.types(one.command.replace("localhost:8080", stack.url).replace("curl -s", "curl -sf"))
            check_answer(one, answer)
            told.append(answer)
    assert len(told) >= 10
    everything = "".join(told)
    if page == "storyboard":
        assert everything.count('"image_status": "completed"') >= 3
        assert "batch.completed" in everything
    else:
        assert '"reference_used": true' in everything
