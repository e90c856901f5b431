"""Bytes by key, on obstore: a local folder now, memory for tests.

Keys are relative paths of plain names (`jobs/0190.../1/0.png`). A `put` is atomic: readers see the old bytes, the new
bytes or none, also when the process dies in the middle.
"""

import asyncio
import os
import re
import time
from collections.abc import AsyncIterator, Generator, Iterable
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Self
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, MemoryStore

from safelight.errors import Invalid, SafelightError, Unavailable

CHUNK_BYTES = 256 * 1024
LIST_BATCH = 1000
KEY = re.compile(r"[A-Za-z0-9_=-][A-Za-z0-9._=-]*(?:/[A-Za-z0-9_=-][A-Za-z0-9._=-]*)*")


class StorageUnavailable(Unavailable):
    """The file storage cannot be used at the moment."""

    code = "storage_unavailable"


class FileMissing(SafelightError):
    """There is no such file in the storage."""

    kind = "not_found"
    code = "file_missing"


class BadKey(Invalid):
    """A storage key must be a relative path of plain names."""

    code = "bad_storage_key"


class Storage:
    """Where finished files lie. Every method raises `StorageUnavailable` when the place itself is in trouble."""

    def __init__(self, store: LocalStore | MemoryStore, folder: Path | None = None) -> None:
        self._store = store
        self._folder = folder

    @classmethod
    def open(cls, url: str) -> Self:
        """The storage at `file:///a/folder`, which is made if missing, or a new one in memory at `memory:///`."""
        parts = urlsplit(url)
        if parts.scheme == "memory":
            return cls(MemoryStore())
        if parts.scheme != "file" or parts.netloc not in {"", "localhost"} or not parts.path.startswith("/"):
            raise Invalid(f"storage_url must be file:///a/folder or memory:///, not {url!r}.")
        folder = Path(unquote(parts.path))
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageUnavailable(f"The storage folder {folder} cannot be made: {error.strerror}.") from error
        return cls(LocalStore(folder, automatic_cleanup=True), folder)

    async def put(self, key: str, data: bytes, content_type: str) -> None:
        """Store the bytes under the key, over whatever was there. A local folder does not keep the content type."""
        with _told(_checked(key)):
            if isinstance(self._store, LocalStore):
                await obstore.put_async(self._store, key, data, use_multipart=False)
            else:
                attributes: obstore.Attributes = {"Content-Type": content_type}
                await obstore.put_async(self._store, key, data, attributes=attributes, use_multipart=False)

    async def flush(self, keys: Iterable[str]) -> None:
        """Make sure that these files outlive a power cut; object stores promise that by themselves."""
        if self._folder is not None:
            with _told("files"):
                await asyncio.to_thread(_fsync, [self._folder / _checked(key) for key in keys])

    async def sweep(self, older_than_seconds: float) -> int:
        """Delete what puts left that a dying process never finished; returns how many files."""
        if self._folder is None:
            return 0
        with _told("files"):
            return await asyncio.to_thread(_sweep, self._folder, time.time() - older_than_seconds)

    async def get(self, key: str) -> bytes:
        """All bytes of a file. Raises `FileMissing`."""
        with _told(_checked(key)):
            result = await obstore.get_async(self._store, key)
            return bytes(await result.bytes_async())

    async def head(self, key: str) -> int | None:
        """The size of a file in bytes, or None if there is none."""
        try:
            with _told(_checked(key)):
                return (await obstore.head_async(self._store, key))["size"]
        except FileMissing:
            return None

    async def stream(self, key: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """The bytes from `start` up to but not including `end` (None: to the end), in chunks. Raises `FileMissing`."""
        if end is not None and end <= start:
            return
        options: obstore.GetOptions = {"range": {"offset": start} if end is None else (start, end)}
        with _told(_checked(key)):
            result = await obstore.get_async(self._store, key, options=options if start or end is not None else None)
            async for chunk in result.stream(min_chunk_size=CHUNK_BYTES):
                yield bytes(chunk)

    async def delete(self, keys: Iterable[str]) -> None:
        """Delete these files; those that are gone already are no error. Folders left empty go with them."""
        for key in keys:
            try:
                with _told(_checked(key)):
                    await obstore.delete_async(self._store, key)
            except FileMissing:
                continue

    async def list(self, prefix: str) -> AsyncIterator[tuple[str, int, datetime]]:
        """Key, size in bytes and time of the last change of every file below a folder, in no order."""
        with _told(prefix):
            async for batch in obstore.list(self._store, _checked(prefix.rstrip("/")), chunk_size=LIST_BATCH):
                for entry in batch:
                    yield entry["path"], entry["size"], entry["last_modified"]


def _fsync(paths: list[Path]) -> None:
    for path in [*paths, *{path.parent for path in paths}]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _sweep(folder: Path, before: float) -> int:
    """obstore writes `name#1` and renames it."""
    left = [path for path in folder.rglob("*#*") if path.is_file() and path.stat().st_mtime < before]
    for path in left:
        path.unlink(missing_ok=True)
    return len(left)


def _checked(key: str) -> str:
    if len(key) > 1000 or KEY.fullmatch(key) is None:
        raise BadKey(f"{key[:100]!r} is not a storage key: it must be a relative path of plain names.")
    return key


@contextmanager
def _told(key: str) -> Generator[None]:
    """Turn what obstore raises into errors of our own with words for people."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileMissing(f"There is no file {key} in the storage.") from error
    except (BaseError, OSError, NotImplementedError) as error:
        first = (str(error).splitlines() or [""])[0]
        text = str(error).lower()
        if "no space left" in text or "storagefull" in text or "quota" in text:
            reason = "The disk that holds the files is full."
        elif "permission denied" in text or "read-only file system" in text:
            reason = "The storage folder may not be written or read by this process."
        else:
            reason = f"The file storage cannot be used: {first}"
        raise StorageUnavailable(reason) from error
