"""Keeps what jobs made and what was uploaded: checks a file, stores it with its thumbnails, and collects what nobody
recorded.
"""

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import IO

from safelight.artifacts.artifact import Artifact, Thumbnail
from safelight.artifacts.picture import Miniature, Picture, inspect, thumbhash, thumbnails, with_png_text
from safelight.artifacts.upload import clean
from safelight.db import new_id
from safelight.storage import Storage

ROOT = "jobs"
UPLOADS = "inputs"
ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
ORPHAN_AGE = timedelta(days=1)
ORPHAN_BATCH = 500
Attempt = tuple[str, int]  # job id, attempt


def utc_now() -> datetime:
    """The clock of this process, aware."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class _Prepared:
    data: bytes
    picture: Picture
    sha256: str
    thumbhash: str
    thumbnails: dict[int, Miniature]


class ArtifactStore:
    """Files of jobs under `jobs/{job_id}/{attempt}/`, uploads under `inputs/{artifact_id}/`.

    Decoding and scaling run in `workers`, never on the loop.
    """

    def __init__(self, storage: Storage, workers: Executor, now: Callable[[], datetime] = utc_now) -> None:
        self._storage = storage
        self._workers = workers
        self._now = now

    async def store(
        self,
        *,
        job_id: str,
        attempt: int,
        position: int,
        owner_id: str,
        data: bytes,
        text: Mapping[str, str],
        seed: int | None,
    ) -> Artifact:
        """Check the picture, store it with its thumbnails, and return its record, which is not yet a row.

        `text` goes into a PNG as text chunks. Raises `BadPicture` before anything is stored, and `StorageUnavailable`.
        """
        loop = asyncio.get_running_loop()
        ready = await loop.run_in_executor(self._workers, _prepare, data, dict(text))
        return await self._keep(
            f"{ROOT}/{job_id}/{attempt}",
            ready,
            id=new_id(),
            job_id=job_id,
            attempt=attempt,
            position=position,
            owner_id=owner_id,
            kind="image",
            seed=seed,
        )

    async def store_upload(self, file: IO[bytes], *, content_type: str, owner_id: str) -> Artifact:
        """Check an uploaded picture, store it without its metadata, and return its record, which is not yet a row.

        Raises `BadUpload` before anything is stored, and `StorageUnavailable`.
        """
        loop = asyncio.get_running_loop()
        ready = await loop.run_in_executor(self._workers, _prepare_upload, file, content_type)
        artifact_id = new_id()
        return await self._keep(
            f"{UPLOADS}/{artifact_id}",
            ready,
            id=artifact_id,
            job_id=None,
            attempt=0,
            position=0,
            owner_id=owner_id,
            kind="input",
            seed=None,
        )

    async def _keep(
        self,
        folder: str,
        ready: _Prepared,
        *,
        id: str,
        job_id: str | None,
        attempt: int,
        position: int,
        owner_id: str,
        kind: str,
        seed: int | None,
    ) -> Artifact:
        picture = ready.picture
        key = f"{folder}/{position}.{picture.format.lower().replace('jpeg', 'jpg')}"
        await self._storage.put(key, ready.data, picture.content_type)
        small: list[Thumbnail] = []
        for width, made in ready.thumbnails.items():
            if small and (made.width, made.height) == (small[-1]["pixel_width"], small[-1]["pixel_height"]):
                small.append({**small[-1], "width": width})  # the picture is so small that both are the same
                continue
            name = f"{folder}/{position}_{width}.webp"
            await self._storage.put(name, made.data, "image/webp")
            small.append(
                Thumbnail(
                    width=width,
                    storage_key=name,
                    size_bytes=len(made.data),
                    pixel_width=made.width,
                    pixel_height=made.height,
                )
            )
        await self._storage.flush({key, *(thumbnail["storage_key"] for thumbnail in small)})
        return Artifact(
            id=id,
            job_id=job_id,
            attempt=attempt,
            position=position,
            owner_id=owner_id,
            kind=kind,
            storage_key=key,
            content_type=picture.content_type,
            size_bytes=len(ready.data),
            sha256=ready.sha256,
            width=picture.width,
            height=picture.height,
            thumbhash=ready.thumbhash,
            seed=seed,
            thumbnails=small,
            created_at=self._now(),
        )

    async def collect_orphans(
        self, recorded: Callable[[list[str]], Awaitable[set[Attempt]]], *, older_than: timedelta = ORPHAN_AGE
    ) -> int:
        """Delete the files that losing attempts left, once they are older than any attempt lives; return how many.

        `recorded` answers which attempts of the given jobs have rows; it is asked once per batch.
        """
        deleted = 0
        async for orphans in self.orphans(recorded, older_than=older_than):
            await self._storage.delete(orphans)
            deleted += len(orphans)
        return deleted + await self._storage.sweep(older_than.total_seconds())

    async def orphans(
        self, recorded: Callable[[list[str]], Awaitable[set[Attempt]]], *, older_than: timedelta = ORPHAN_AGE
    ) -> AsyncIterator[dict[str, int]]:
        """The files that `collect_orphans` would delete, in batches: key and size in bytes."""
        before = self._now() - older_than
        old: dict[Attempt, dict[str, int]] = {}
        async for key, size, changed_at in self._storage.list(ROOT):
            attempt = _attempt_of(key)
            if attempt is None or changed_at >= before:
                continue
            old.setdefault(attempt, {})[key] = size
            if len(old) >= ORPHAN_BATCH:
                yield await _unrecorded(old, recorded)
                old = {}
        if old:
            yield await _unrecorded(old, recorded)

    async def collect_lost_uploads(
        self, recorded: Callable[[list[str]], Awaitable[set[str]]], *, older_than: timedelta = ORPHAN_AGE
    ) -> int:
        """Delete the files of uploads whose row was never written; return how many.

        `recorded` answers which of the given uploads have rows; it is asked once per batch.
        """
        deleted = 0
        async for lost in self.lost_uploads(recorded, older_than=older_than):
            await self._storage.delete(lost)
            deleted += len(lost)
        return deleted

    async def lost_uploads(
        self, recorded: Callable[[list[str]], Awaitable[set[str]]], *, older_than: timedelta = ORPHAN_AGE
    ) -> AsyncIterator[dict[str, int]]:
        """The files that `collect_lost_uploads` would delete, in batches: key and size in bytes."""
        before = self._now() - older_than
        old: dict[str, dict[str, int]] = {}

        async def unrecorded() -> dict[str, int]:
            kept = await recorded(sorted(old))
            lost = [files for upload_id, files in old.items() if upload_id not in kept]
            return {key: size for files in lost for key, size in files.items()}

        async for key, size, changed_at in self._storage.list(UPLOADS):
            parts = key.split("/")
            if len(parts) != 3 or ID.fullmatch(parts[1]) is None or changed_at >= before:
                continue
            old.setdefault(parts[1], {})[key] = size
            if len(old) >= ORPHAN_BATCH:
                yield await unrecorded()
                old = {}
        if old:
            yield await unrecorded()

    async def remove(self, gone: Collection[Artifact]) -> None:
        """Delete the files of these artifacts and their thumbnails; what is gone already is no error."""
        keys = {artifact.storage_key for artifact in gone}
        keys |= {thumbnail["storage_key"] for artifact in gone for thumbnail in artifact.thumbnails}
        await self._storage.delete(sorted(keys - {""}))


async def _unrecorded(
    old: Mapping[Attempt, Mapping[str, int]], recorded: Callable[[list[str]], Awaitable[set[Attempt]]]
) -> dict[str, int]:
    kept = await recorded(sorted({job_id for job_id, _ in old}))
    return {key: size for attempt, files in old.items() if attempt not in kept for key, size in files.items()}


def _prepare(data: bytes, text: Mapping[str, str]) -> _Prepared:
    picture = inspect(data)
    data = with_png_text(data, text)
    return _Prepared(
        data, picture, hashlib.sha256(data).hexdigest(), thumbhash(picture.image), thumbnails(picture.image)
    )


def _prepare_upload(file: IO[bytes], content_type: str) -> _Prepared:
    picture, data = clean(file, content_type)
    return _Prepared(
        data, picture, hashlib.sha256(data).hexdigest(), thumbhash(picture.image), thumbnails(picture.image)
    )


def _attempt_of(key: str) -> Attempt | None:
    """`jobs/{job_id}/{attempt}/...` as (job id, attempt)."""
    parts = key.split("/")
    return (parts[1], int(parts[2])) if len(parts) == 4 and parts[2].isdecimal() else None
