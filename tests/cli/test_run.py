"""The starter script: what it teaches, when it has nothing to do, and that what it installs from names no address."""

import importlib.util
import json
import os
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


def test_a_half_installed_package_is_found(starter: Any) -> None:
    packages = starter.VENV / "lib" / "python3.11" / "site-packages"
    for name, has_record, has_file in (("whole", True, True), ("torn", True, False), ("bare", False, True)):
        record = packages / f"{name}-1.0.dist-info"
        record.mkdir(parents=True)
        if has_record:
            (record / "RECORD").write_text(f"{name}.py,sha256=x,3\n{name}-1.0.dist-info/RECORD,,\n")
        if has_file:
            (packages / f"{name}.py").write_text("")
    assert starter.half_installed() == ["bare", "torn"]


def test_an_environment_in_use_is_never_taken_away(
    starter: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Interrupted while a stack runs from it: it is finished. Made of another Python: refused, and left alone."""
    user = subprocess.Popen([str(starter.PYTHON), "-c", "import time; time.sleep(600)"])
    try:
        assert starter.user_of_environment() == str(user.pid)
        uv = starter.VENV / "bin" / "uv"
        uv.write_text("#!/bin/sh\nexit 0\n")
        uv.chmod(0o755)
        pip = starter.VENV / "bin" / "pip-says"
        starter.PYTHON.unlink()
        starter.PYTHON.write_text(f'#!/bin/sh\necho "$@" >> {pip}\n')
        starter.PYTHON.chmod(0o755)
        starter.STAMP.unlink()
        starter.UNFINISHED.touch()
        with (tmp_path / "lock").open("w") as lock:
            starter.install("run", lock.fileno())
        assert starter.is_current("run") and uv.exists()
        assert "Finishing the environment" in capsys.readouterr().err
        assert "requirements/boot.txt" in pip.read_text()

        starter.STAMP.write_text(json.dumps({**starter.read_stamp(), "home": {"root": "/elsewhere", "python": "x"}}))
        with pytest.raises(SystemExit, match=f"process {user.pid} still runs from it"):
            starter.install("run", 0)
        assert uv.exists()
    finally:
        user.kill()
        user.wait()


def test_a_failed_way_is_one_calm_line_and_both_are_told_when_none_works(
    starter: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("uv", "python"):
        tool = starter.VENV / "bin" / name
        tool.unlink(missing_ok=True)
        tool.write_text(f'#!/bin/sh\ncase "$*" in *run.txt*) echo "{name}: no index" >&2; exit $FAILS_{name};; esac\n')
        tool.chmod(0o755)
    starter.STAMP.write_text(json.dumps({**starter.read_stamp(), "home": starter.home()}))
    with (tmp_path / "lock").open("w") as lock, pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAILS_uv", "2")
        patch.setenv("FAILS_python", "0")
        (tmp_path / "pyproject.toml").write_text("changed")
        starter.install("run", lock.fileno())
        said = capsys.readouterr().err
        assert "pip fetches them" in said and "no index" not in said
        patch.setenv("FAILS_python", "1")
        with pytest.raises(SystemExit, match=r"(?s)uv: no index.*python: no index.*could not be installed"):
            starter.install("run", lock.fileno())


def test_modules_are_compiled_once_even_where_writing_bytecode_is_forbidden(
    starter: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a_module.py").write_text("")
    monkeypatch.setattr(os, "environ", {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(tmp_path)})
    starter.keep_bytecode()
    subprocess.run([sys.executable, "-c", "import a_module"], env=os.environ, check=True)
    assert not (tmp_path / "__pycache__").exists()
    assert len(list((starter.VENV / "bytecode").rglob("a_module.*.pyc"))) == 1


@pytest.mark.parametrize("command", ["test", "lock", "faults", "bench"])
def test_help_of_a_tool_installs_nothing(command: str, tmp_path: Path) -> None:
    alone = tmp_path / "run"  # where there is nothing to install from
    alone.write_bytes((ROOT / "run").read_bytes())
    told = subprocess.run([sys.executable, str(alone), command, "--help"], capture_output=True, text=True, check=True)
    assert told.stdout.startswith(f"./run {command}") and told.stderr == ""
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


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


def test_locks_of_npm_name_no_address() -> None:
    locks = [path for top in ("src", "client", "tests", "docs") for path in (ROOT / top).rglob("package-lock.json")]
    assert locks
    for lock in locks:
        text = lock.read_text()
        assert not re.search(r"\w+://|file:|\"resolved\"", text), lock
        assert text.count('"integrity": "sha512-') > 1, lock
