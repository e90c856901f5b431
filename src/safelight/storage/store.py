"""Bytes by key, wherever they lie.

Keys are relative paths of plain names (`jobs/0190.../1/0.png`). A `put` is atomic: readers see the old bytes, the new
bytes or none, also when the process dies in the middle.
"""

import asyncio
import atexit
import functools
import os
import re
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Self

import obstore
from obstore.exceptions import GenericError
from obstore.store import AzureStore, GCSStore, LocalStore, S3Store

from safelight.folder import hindrance
from safelight.storage.address import AnyStore, open_store, parse_address
from safelight.storage.disposition import inline
from safelight.storage.trouble import BadKey, FileMissing, StorageUnavailable, told

CHUNK_BYTES = 256 * 1024
PART_BYTES = 8 * 1024 * 1024  # what a stream is stored in, and what of it is in memory, twice
LIST_BATCH = 1000
DELETE_BATCH = 500
IMMUTABLE = "max-age=31536000, immutable"  # a key's bytes never change; who may read them, links decide
SETTLE_SECONDS = 0.1
KEY = re.compile(r"[A-Za-z0-9_=-][A-Za-z0-9._=-]*(?:/[A-Za-z0-9_=-][A-Za-z0-9._=-]*)*")


class Storage:
    """Where finished files lie. Every method raises `StorageUnavailable` when the place itself is in trouble."""

    def __init__(self, store: AnyStore, place: str) -> None:
        self.place = place  # for people; without secrets
        self._store = store
        self._folder = Path(place) if isinstance(store, LocalStore) else None

    @classmethod
    def open(cls, url: str, *, access_key: str = "", secret_key: str = "") -> Self:
        """The storage at a URL: `address.py` says which there are. A bucket is not asked whether it is there."""
        address = parse_address(url)
        _settle_at_exit()
        return cls(open_store(address, access_key, secret_key), str(address))

    async def put(self, key: str, data: bytes, content_type: str) -> None:
        """Store the bytes under the key, over whatever was there. A local folder does not keep the content type."""
        with self._told(_checked(key), writes=True):
            if isinstance(self._store, LocalStore):
                await obstore.put_async(self._store, key, data, use_multipart=False)
            else:
                attributes = _attributes(key, content_type)
                await obstore.put_async(self._store, key, data, attributes=attributes, use_multipart=False)

    async def put_stream(self, key: str, pieces: AsyncIterator[bytes], content_type: str) -> None:
        """Store what comes piece by piece, without ever holding all of it. If `pieces` raises, nothing is stored."""
        head = bytearray()
        async for piece in pieces:
            head += piece
            if len(head) > PART_BYTES:
                break
        else:
            await self.put(key, bytes(head), content_type)  # small: one request instead of three
            return
        with self._told(_checked(key), writes=True):
            attributes = None if isinstance(self._store, LocalStore) else _attributes(key, content_type)
            await obstore.put_async(
                self._store,
                key,
                _parts(head, pieces),
                attributes=attributes,
                use_multipart=True,
                chunk_size=PART_BYTES,
                max_concurrency=2,
            )

    async def flush(self, keys: Iterable[str]) -> None:
        """Make sure that these files outlive a power cut; object stores promise that by themselves."""
        if self._folder is not None:
            with self._told("files"):
                await asyncio.to_thread(_fsync, [self._folder / _checked(key) for key in keys])

    async def sweep(self, older_than_seconds: float) -> int:
        """Delete what puts left that a dying process never finished; returns how many files."""
        if self._folder is None:
            return 0
        with self._told("files"):
            return await asyncio.to_thread(_sweep, self._folder, time.time() - older_than_seconds)

    async def get(self, key: str) -> bytes:
        """All bytes of a file. Raises `FileMissing`."""
        with self._told(_checked(key)):
            result = await obstore.get_async(self._store, key)
            return bytes(await result.bytes_async())

    async def head(self, key: str) -> int | None:
        """The size of a file in bytes, or None if there is none."""
        try:
            with self._told(_checked(key)):
                return (await obstore.head_async(self._store, key))["size"]
        except FileMissing:
            return None

    async def stream(self, key: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """The bytes from `start` up to but not including `end` (None: to the end), in chunks. Raises `FileMissing`."""
        if end is not None and end <= start:
            return
        with self._told(_checked(key)):
            result = await self._get_range(key, start, end)
            if result is not None:
                async for chunk in result.stream(min_chunk_size=CHUNK_BYTES):
                    yield bytes(chunk)
                return
            whole = await obstore.get_async(self._store, key)
            at = 0
            async for chunk in whole.stream(min_chunk_size=CHUNK_BYTES):
                cut = bytes(chunk)[max(0, start - at) : None if end is None else max(0, end - at)]
                at += len(chunk)
                if cut:
                    yield cut
                if end is not None and at >= end:
                    return

    async def _get_range(self, key: str, start: int, end: int | None) -> "obstore.GetResult | None":
        """None from a store that does not know ranges, as its answer shows."""
        if not start and end is None:
            return await obstore.get_async(self._store, key)
        options: obstore.GetOptions = {"range": {"offset": start} if end is None else (start, end)}
        try:
            return await obstore.get_async(self._store, key, options=options)
        except GenericError as error:
            if "non-partial response" not in str(error):
                raise
            return None

    async def link(self, key: str, expires_in_seconds: float) -> str | None:
        """A URL that gives the file to anybody until it expires. None where the place itself cannot make any."""
        _checked(key)
        if not isinstance(self._store, (S3Store, GCSStore, AzureStore)):
            return None
        with self._told(key):
            return await obstore.sign_async(self._store, "GET", key, timedelta(seconds=expires_in_seconds))

    async def delete(self, keys: Iterable[str]) -> None:
        """Delete these files; those that are gone already are no error. Folders left empty go with them."""
        all_keys = [_checked(key) for key in keys]
        if isinstance(self._store, S3Store):
            for begin in range(0, len(all_keys), DELETE_BATCH):
                with self._told("files", writes=True):
                    await obstore.delete_async(self._store, all_keys[begin : begin + DELETE_BATCH])
            return
        for key in all_keys:
            try:
                with self._told(key):
                    await obstore.delete_async(self._store, key)
            except FileMissing:
                continue

    async def list(self, prefix: str = "") -> AsyncIterator[tuple[str, int, datetime]]:
        """Key, size in bytes and time of the last change of every file below a folder, in no order."""
        folder = _checked(prefix.rstrip("/")) if prefix else None
        with self._told(prefix):
            async for batch in obstore.list(self._store, folder, chunk_size=LIST_BATCH):
                for entry in batch:
                    yield entry["path"], entry["size"], entry["last_modified"]

    async def probe(self) -> None:
        """Raise what is wrong with the place, if anything is: a full disk, a bucket that is missing or closed."""
        if self._folder is not None and (why := await asyncio.to_thread(hindrance, self._folder)):
            raise StorageUnavailable(f"The folder of the files cannot be written: {why}.")
        async for _ in self.list("health"):
            return

    def _told(self, key: str, *, writes: bool = False) -> AbstractContextManager[None]:
        is_remote = isinstance(self._store, (S3Store, GCSStore, AzureStore))
        return told(self.place, key, is_local=not is_remote, writes=writes)


@functools.cache
def _settle_at_exit() -> None:
    """obstore's threads let go of Python a moment after they gave an answer: a process that ends in it is aborted."""
    atexit.register(time.sleep, SETTLE_SECONDS)


def _attributes(key: str, content_type: str) -> "obstore.Attributes":
    """What a browser is told by a store that it reads from directly. The name is the key's, for want of a better."""
    name = "-".join(key.split("/")[1:]) or key
    return {
        "Content-Type": content_type,
        "Content-Disposition": inline(name),
        "Cache-Control": IMMUTABLE,
    }


async def _parts(head: bytearray, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield bytes(head)
    head.clear()
    async for piece in rest:
        yield piece


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
