"""The commands that are the service, where a part that they need is missing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from patience import PATIENCE_SECONDS

NO_MODULE, NO_LIBRARY = "no module of this name", "libvips.so.42: cannot open shared object file"


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (["up", "--port", "0"], NO_LIBRARY),
        (["api"], NO_MODULE),
        pytest.param(["worker"], NO_LIBRARY, marks=pytest.mark.long),
        pytest.param(["worker", "--kind", "local"], NO_MODULE, marks=pytest.mark.long),
    ],
)
def test_without_libvips_nothing_starts_and_what_to_do_is_said(tmp_path: Path, command: list[str], reason: str) -> None:
    (tmp_path / "pyvips.py").write_text(f"raise ImportError({reason!r})")
    data_dir = tmp_path / "data"
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(tmp_path),
        "SAFELIGHT_REDIS_URL": "redis://127.0.0.1:1",
    }
    ended = subprocess.run(
        [sys.executable, "-P", "-m", "safelight", *command, "--data-dir", str(data_dir)],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith("Error: Pictures need libvips")
    assert "pyvips-binary" in ended.stderr
    assert reason in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not data_dir.exists()
