"""Storage in a folder: whole files or none, and trouble told in words. The contract of every place is in contracts/."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import obstore
import pytest
from obstore.exceptions import GenericError

from safelight.storage import Storage, StorageUnavailable


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageUnavailable, match="cannot be made"):
        Storage.open((tmp_path / "file" / "folder").as_uri())


@pytest.mark.anyio
async def test_a_full_disk_is_told_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def full(*args: Any, **kwargs: Any) -> None:
        raise GenericError("Generic LocalFileSystem error: No space left on device (os error 28)\n\nDebug source: ...")

    monkeypatch.setattr(obstore, "put_async", full)
    with pytest.raises(StorageUnavailable, match="disk that holds the files is full") as caught:
        await Storage.open(tmp_path.as_uri()).put("a", b"x", "text/plain")
    assert caught.value.kind == "unavailable"


@pytest.mark.anyio
async def test_a_put_killed_at_any_moment_leaves_the_old_bytes_or_the_new(tmp_path: Path) -> None:
    program = (
        "import asyncio, sys\n"
        "from safelight.storage import Storage\n"
        "async def main():\n"
        "    storage = Storage.open(sys.argv[1])\n"
        "    print('go', flush=True)\n"
        "    n = 0\n"
        "    while True:\n"
        "        n += 1\n"
        "        await storage.put('jobs/a/1/0.png', bytes([n % 256]) * 8_000_000, 'image/png')\n"
        "asyncio.run(main())\n"
    )
    env = {**os.environ, "PYTHONPATH": "src"}
    for pause in (0.05, 0.123):
        with subprocess.Popen(  # noqa: ASYNC220 - it must be killed
            [sys.executable, "-c", program, tmp_path.as_uri()], env=env, stdout=subprocess.PIPE
        ) as child:
            assert child.stdout is not None
            child.stdout.readline()
            storage = Storage.open(tmp_path.as_uri())
            ends = time.monotonic() + pause
            while time.monotonic() < ends:
                assert await storage.head("jobs/a/1/0.png") in {None, 8_000_000}
            child.kill()
        if await storage.head("jobs/a/1/0.png") is not None:
            data = await storage.get("jobs/a/1/0.png")
            assert len(data) == 8_000_000
            assert data == data[:1] * 8_000_000
    assert [key async for key, _, _ in storage.list("jobs")] == ["jobs/a/1/0.png"]
