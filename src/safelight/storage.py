"""Bytes by key, on obstore: a local folder now, memory for tests.

Keys are relative paths of plain names (`jobs/0190.../1/0.png`). A `put` is atomic: readers see the old bytes, the new
bytes or none, also when the process dies in the middle.
"""

import re
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

    def __init__(self, store: LocalStore | MemoryStore) -> None:
        self._store = store

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
        return cls(LocalStore(folder, automatic_cleanup=True))

    async def put(self, key: str, data: bytes, content_type: str) -> None:
        """Store the bytes under the key, over whatever was there. A local folder does not keep the content type."""
        with _told(_checked(key)):
            if isinstance(self._store, LocalStore):
                await obstore.put_async(self._store, key, data, use_multipart=False)
            else:
                attributes: obstore.Attributes = {"Content-Type": content_type}
                await obstore.put_async(self._store, key, data, attributes=attributes, use_multipart=False)

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
