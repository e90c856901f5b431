"""The starter script: what it teaches, when it has nothing to do, and that what it installs from names no address."""

import importlib.util
import json
import re
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

import pytest

from safelight.cli.main import COMMANDS

ROOT = Path(__file__).parents[2]


@pytest.fixture
def starter(tmp_path: Path) -> Any:
    """The script as a module, over a clone in `tmp_path` whose environment is complete."""
    loader = SourceFileLoader("starter", str(ROOT / "run"))
    spec = importlib.util.spec_from_loader("starter", loader)
    assert spec is not None
    module: Any = importlib.util.module_from_spec(spec)
    sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
    loader.exec_module(module)
    sys.dont_write_bytecode = before

    for name in (
        "requirements/boot.txt",
        "requirements/run.txt",
        "requirements/dev.txt",
        "requirements/bench.txt",
        "client/pyproject.toml",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "pyproject.toml").write_text("")
    module.ROOT = tmp_path
    module.VENV = tmp_path / ".venv"
    module.PYTHON = module.VENV / "bin" / "python"
    module.STAMP = module.VENV / "stamp.json"
    module.UNFINISHED = module.VENV / "unfinished"
    module.PYTHON.parent.mkdir(parents=True)
    module.PYTHON.symlink_to(sys.executable)
    module.STAMP.write_text(json.dumps({"home": module.home(), **module.fingerprints()}))
    return module


def test_an_unchanged_environment_is_left_alone(starter: Any) -> None:
    assert starter.is_current("run")
    assert starter.is_current("dev")


def test_changed_requirements_are_noticed(starter: Any, tmp_path: Path) -> None:
    (tmp_path / "requirements" / "dev.txt").write_text("other")
    assert starter.is_current("run")
    assert not starter.is_current("dev")
    (tmp_path / "pyproject.toml").write_text("other")
    assert not starter.is_current("run")


def test_an_interrupted_update_is_noticed(starter: Any) -> None:
    starter.UNFINISHED.touch()
    assert not starter.is_current("run")


def test_a_moved_clone_is_noticed(starter: Any, tmp_path: Path) -> None:
    starter.ROOT = tmp_path / "elsewhere"
    assert starter.read_stamp()["home"] != starter.home()


def test_an_old_python_is_told_so(starter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 2, "final", 0))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SystemExit, match=r"needs Python 3\.11 or newer\. This is 3\.9\.2"):
        starter.require_python()


def test_a_python_without_venv_is_told_so(starter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ensurepip" else object())
    with pytest.raises(SystemExit, match="apt install python3-venv"):
        starter.require_python()


def test_alone_it_teaches_every_command() -> None:
    done = subprocess.run([sys.executable, str(ROOT / "run")], capture_output=True, text=True, check=True)
    for commands in COMMANDS.values():
        for name in commands:
            assert f"./run {name} " in done.stdout
    for name in ("test", "lock"):
        assert f"./run {name} " in done.stdout


@pytest.mark.parametrize("name", ["boot", "run", "dev", "bench"])
def test_requirements_are_hashed_and_name_no_address(name: str) -> None:
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    assert not re.search(r"\w+://|file:|@ |--(index|extra-index|find-links)", text)
    pinned = re.findall(r"^[\w.\[\],-]+==\S+", text, re.MULTILINE)
    assert pinned
    for block in re.split(r"\n(?=[a-zA-Z])", text):
        assert "--hash=sha256:" in block or block.startswith("#")
