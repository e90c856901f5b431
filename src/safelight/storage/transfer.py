"""Copies every file from one storage to another, and can be run again until nothing is left to copy.

Keys stay the same, so no row has to change: whoever reads them finds the files in whichever storage is configured. A
file is there whole or not at all, so one that has its size is there already, and an interrupted transfer goes on where
it stopped.
"""

import asyncio
import hashlib
import mimetypes
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from safelight.errors import SafelightError
from safelight.storage.store import KEY, Storage
from safelight.storage.trouble import FileMissing, StorageRefused, StorageUnavailable

AT_ONCE = 8
BATCH = 400
TRIES = 3
PAUSE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Known:
    """What was recorded of a file when it was made."""

    content_type: str
    sha256: str | None
    size_bytes: int | None


@dataclass(frozen=True, slots=True)
class Moved:
    """What became of one file. `foreign` ones do not have the name of a file of ours, and stay where they are."""

    key: str
    size_bytes: int
    outcome: Literal["copied", "there", "failed", "foreign"]
    reason: str = ""


class _Damaged(SafelightError):
    """The file is not what was recorded of it."""


Records = Callable[[list[str]], Awaitable[Mapping[str, Known]]]


async def transfer(
    source: Storage, target: Storage, *, records: Records, verify: bool = False
) -> AsyncGenerator[Moved]:
    """Copy what is missing and tell of every file, in no order.

    `records` answers what is known of files; a file that has another SHA-256 or size than was recorded is not copied.
    With `verify`, files that are there already are read again and compared too. Raises `StorageUnavailable` when a
    storage as a whole cannot be used.
    """
    batch: list[tuple[str, int]] = []
    async for key, size, _ in source.list():
        if len(key) > 1000 or KEY.fullmatch(key) is None or key.startswith("health/"):
            yield Moved(key, size, "foreign")
            continue
        batch.append((key, size))
        if len(batch) >= BATCH:
            async for moved in _move(source, target, batch, records, verify):
                yield moved
            batch = []
    async for moved in _move(source, target, batch, records, verify):
        yield moved


async def total(source: Storage) -> tuple[int, int]:
    """How many files there are, and how many bytes in all."""
    files = size_bytes = 0
    async for _, size, _ in source.list():
        files, size_bytes = files + 1, size_bytes + size
    return files, size_bytes


async def _move(
    source: Storage, target: Storage, batch: list[tuple[str, int]], records: Records, verify: bool
) -> AsyncGenerator[Moved]:
    if not batch:
        return
    known = await records([key for key, _ in batch])
    places = asyncio.Semaphore(AT_ONCE)

    async def move(key: str, size: int) -> Moved:
        async with places:
            return await _persist(source, target, key, size, known.get(key), verify)

    tasks = [asyncio.create_task(move(key, size)) for key, size in batch]
    try:
        for done in asyncio.as_completed(tasks):
            yield await done
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _persist(source: Storage, target: Storage, key: str, size: int, known: Known | None, verify: bool) -> Moved:
    """Through a short outage: a transfer of days must not end at the first."""
    for attempt in range(1, TRIES + 1):
        try:
            return await _move_one(source, target, key, size, known, verify)
        except StorageRefused:
            raise
        except StorageUnavailable:
            if attempt == TRIES:
                raise
            await asyncio.sleep(PAUSE_SECONDS * attempt)
        except FileMissing:
            return Moved(key, size, "there", "deleted meanwhile")
        except SafelightError as error:
            return Moved(key, size, "failed", error.detail)
    raise AssertionError


async def _move_one(source: Storage, target: Storage, key: str, size: int, known: Known | None, verify: bool) -> Moved:
    if known is not None and known.size_bytes not in (None, size):
        raise _Damaged(f"{key} has {size} bytes, but {known.size_bytes} were recorded.")
    if await target.head(key) == size and (not verify or await _is_same(source, target, key, known)):
        return Moved(key, size, "there")
    content_type = known.content_type if known else mimetypes.guess_type(key)[0] or "application/octet-stream"
    await target.put_stream(key, _watched(source.stream(key), key, size, known and known.sha256), content_type)
    await target.flush([key])
    stored = await target.head(key)
    if stored != size:
        raise _Damaged(f"{key} arrived with {stored} bytes instead of {size}.")
    return Moved(key, size, "copied")


async def _watched(pieces: AsyncIterator[bytes], key: str, size: int, sha256: str | None) -> AsyncIterator[bytes]:
    """The pieces, unless in the end they are not what they should be: then nothing is stored."""
    digest, seen = hashlib.sha256(), 0
    async for piece in pieces:
        digest.update(piece)
        seen += len(piece)
        yield piece
    if seen != size:
        raise _Damaged(f"{key} was read with {seen} bytes instead of {size}.")
    if sha256 is not None and digest.hexdigest() != sha256:
        raise _Damaged(f"{key} is not what was recorded (SHA-256 differs). It was not copied.")


async def _is_same(source: Storage, target: Storage, key: str, known: Known | None) -> bool:
    expected = known.sha256 if known else None
    return await _digest(target, key) == (expected or await _digest(source, key))


async def _digest(storage: Storage, key: str) -> str:
    digest = hashlib.sha256()
    async for piece in storage.stream(key):
        digest.update(piece)
    return digest.hexdigest()


def owners_of(keys: Iterable[str]) -> tuple[set[str], set[str]]:
    """The ids of the jobs and of the uploads that these files belong to."""
    parts = [key.split("/") for key in keys]
    jobs = {part[1] for part in parts if len(part) == 4 and part[0] == "jobs"}
    return jobs, {part[1] for part in parts if len(part) == 3 and part[0] == "inputs"}
