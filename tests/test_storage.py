"""Storage: whole files or none, ranges, and trouble told in words."""

import os
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import obstore
import pytest
from obstore.exceptions import GenericError

from safelight.errors import Invalid
from safelight.storage import BadKey, FileMissing, Storage, StorageUnavailable


@pytest.fixture(params=["file", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    folder = tmp_path / "with space" / "files"
    return Storage.open(folder.as_uri() if request.param == "file" else "memory:///")


async def read(storage: Storage, key: str, start: int = 0, end: int | None = None) -> bytes:
    return b"".join([chunk async for chunk in storage.stream(key, start, end)])


@pytest.mark.anyio
async def test_what_is_put_can_be_read_in_whole_and_in_part(storage: Storage) -> None:
    data = os.urandom(700_000)
    await storage.put("jobs/a/1/0.png", data, "image/png")
    assert await storage.get("jobs/a/1/0.png") == data
    assert await storage.head("jobs/a/1/0.png") == len(data)
    assert await read(storage, "jobs/a/1/0.png") == data
    assert await read(storage, "jobs/a/1/0.png", 10, 20) == data[10:20]
    assert await read(storage, "jobs/a/1/0.png", 699_990) == data[-10:]
    assert await read(storage, "jobs/a/1/0.png", 699_990, 999_999) == data[-10:]
    assert await read(storage, "jobs/a/1/0.png", 5, 5) == b""
    await storage.put("jobs/a/1/0.png", b"", "image/png")
    assert await storage.get("jobs/a/1/0.png") == b""


@pytest.mark.anyio
async def test_what_is_missing_is_said_to_be_missing(storage: Storage) -> None:
    assert await storage.head("no") is None
    with pytest.raises(FileMissing):
        await storage.get("no")
    with pytest.raises(FileMissing):
        await read(storage, "no")
    await storage.delete(["no", "not/this"])


@pytest.mark.anyio
async def test_list_and_delete(storage: Storage) -> None:
    for key in ("jobs/a/1/0.png", "jobs/a/2/0.png", "jobs/ab/1/0.png", "other/x"):
        await storage.put(key, b"12345", "image/png")
    listed = [entry async for entry in storage.list("jobs/a")]
    assert sorted(key for key, _, _ in listed) == ["jobs/a/1/0.png", "jobs/a/2/0.png"]
    assert {size for _, size, _ in listed} == {5}
    assert all(abs((datetime.now(UTC) - changed_at).total_seconds()) < 60 for _, _, changed_at in listed)
    await storage.delete(["jobs/a/1/0.png", "jobs/a/2/0.png"])
    assert sorted([key async for key, _, _ in storage.list("jobs")]) == ["jobs/ab/1/0.png"]
    assert [key async for key, _, _ in storage.list("nothing")] == []


@pytest.mark.anyio
@pytest.mark.parametrize(
    "key", ["", "/etc/passwd", "a/../b", "..", "a//b", "a/", "./a", "a\\b", "a b", "a\0b", "ü", ".x", "a#1"]
)
async def test_keys_stay_inside(storage: Storage, key: str) -> None:
    with pytest.raises(BadKey):
        await storage.put(key, b"x", "text/plain")
    with pytest.raises(BadKey):
        await storage.get(key)


@pytest.mark.parametrize("url", ["", "/tmp/x", "s3://bucket", "file://host/x", "http://x/"])
def test_other_places_are_refused(url: str) -> None:
    with pytest.raises(Invalid, match="storage_url"):
        Storage.open(url)


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
