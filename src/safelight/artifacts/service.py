"""Keeps what jobs made and what was uploaded: checks a file, stores it with its thumbnails, and collects what nobody
recorded.
"""

import asyncio
import hashlib
import re
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import IO, Any

from safelight.artifacts.artifact import Artifact, Thumbnail
from safelight.artifacts.media import BadMedia, inspect_media, is_media
from safelight.db import new_id
from safelight.pictures import (
    BadPicture,
    Credentials,
    Mark,
    Miniatures,
    Picture,
    PictureWorkers,
    clean,
    credentials_of,
    head_of,
    look_at,
    look_at_frame,
    marked,
    read_head,
    read_upload,
    type_of,
)
from safelight.providers.program import MEMORY_BYTES
from safelight.storage import Storage

ROOT = "jobs"
UPLOADS = "inputs"
ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
ORPHAN_AGE = timedelta(days=1)
ORPHAN_BATCH = 500
MAX_PICTURE_BYTES = 512 * 1024 * 1024
READ_BYTES = 1024 * 1024
MAX_WAITING_UPLOADS = 16
MEDIA_AT_ONCE = 4  # that ffmpeg looks at, in a process
AttemptKey = tuple[str, int]  # job id, attempt


def utc_now() -> datetime:
    """The clock of this process, aware."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A checked file: its bytes and their SHA-256, or where it lies."""

    data: bytes | Path
    content_type: str
    extension: str
    width: int | None
    height: int | None
    miniatures: Miniatures
    credentials: Credentials
    sha256: str = ""
    kind: str = "image"
    duration_seconds: float | None = None
    details: Mapping[str, Any] = field(default_factory=dict[str, Any])


class ArtifactStore:
    """Files of jobs under `jobs/{job_id}/{attempt}/`, uploads under `inputs/{artifact_id}/`.

    Decoding and scaling are done by `pictures`, never on the loop; media are read by ffmpeg, in `media_memory_bytes`.
    """

    def __init__(
        self,
        storage: Storage,
        pictures: PictureWorkers,
        now: Callable[[], datetime] = utc_now,
        media_memory_bytes: int = MEMORY_BYTES,
        max_waiting_uploads: int = MAX_WAITING_UPLOADS,
    ) -> None:
        self._storage = storage
        self._pictures = pictures
        self._now = now
        self._media_memory_bytes = media_memory_bytes
        self._max_waiting_uploads = max_waiting_uploads
        self._media = asyncio.Semaphore(MEDIA_AT_ONCE)

    async def store(
        self,
        *,
        job_id: str,
        attempt: int,
        position: int,
        owner_id: str,
        data: bytes | Path,
        mark: Mark | None,
        seed: int | None,
        details: Mapping[str, Any] | None = None,
    ) -> Artifact:
        """Check a result, store it with its thumbnails, and return its record, which is not yet a row.

        What it is, its content says: a picture, a video or a sound. `data` may be the path of a file, which stays where
        it is; a video or sound is never whole in memory then. A picture is given its `mark`, unless it carries content
        credentials, which that would break; without one it is kept as it is, and a file is not whole in memory either.
        `details` go into the record. Raises `BadPicture` or `BadMedia` before anything is stored, `FfmpegMissing`,
        `StorageUnavailable`.
        """
        keep = partial(
            self._keep,
            f"{ROOT}/{job_id}/{attempt}",
            id=new_id(),
            job_id=job_id,
            attempt=attempt,
            position=position,
            owner_id=owner_id,
            seed=seed,
            details=details or {},
        )
        head = await self._pictures.run(_head_of, data)
        if type_of(head) is not None or not is_media(head):
            picture = await self._pictures.run(_read_result, data, self._pictures.max_pixels)
            return await keep(await self._pictures.run(_prepare, picture, mark, pixels=picture.pixels))
        if isinstance(data, Path):
            return await keep(await self._prepare_media(data, mark))
        with tempfile.NamedTemporaryFile(prefix="safelight-", buffering=0) as file:
            await asyncio.to_thread(file.write, data)
            return await keep(await self._prepare_media(Path(file.name), mark))

    async def store_upload(self, file: bytes | Path, *, content_type: str, owner_id: str) -> Artifact:
        """Check an uploaded picture, store it without its metadata, and return its record, which is not yet a row.

        Raises `BadUpload`, or `PicturesBusy` if too many others of its size wait to be decoded, before anything is
        stored; and `StorageUnavailable`.
        """
        picture = await self._pictures.run(read_upload, file, content_type, self._pictures.max_pixels)
        ready = await self._pictures.run(
            _prepare_upload, picture, pixels=picture.pixels, max_waiting=self._max_waiting_uploads
        )
        artifact_id = new_id()
        return await self._keep(
            f"{UPLOADS}/{artifact_id}",
            ready,
            id=artifact_id,
            job_id=None,
            attempt=0,
            position=0,
            owner_id=owner_id,
            seed=None,
            details={},
        )

    async def _prepare_media(self, path: Path, mark: Mark | None) -> _Prepared:
        async with self._media:
            media = await inspect_media(path, self._media_memory_bytes, self._pictures.max_pixels)
        width = height = None
        miniatures = Miniatures()
        if media.poster is not None:
            width, height = media.poster.width, media.poster.height
            miniatures = await self._pictures.run(look_at_frame, media.poster, pixels=width * height)
        credentials = await self._pictures.run(credentials_of, path)
        return _Prepared(
            path,
            media.content_type,
            media.extension,
            width,
            height,
            miniatures.marked(mark and Mark(origin=mark.origin)),
            credentials,
            kind=media.kind,
            duration_seconds=media.duration_seconds,
            details=media.details,
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
        seed: int | None,
        details: Mapping[str, Any],
    ) -> Artifact:
        key = f"{folder}/{position}.{ready.extension}"
        if isinstance(ready.data, bytes):
            size_bytes, sha256 = len(ready.data), ready.sha256
            await self._storage.put(key, ready.data, ready.content_type)
        else:
            size_bytes, sha256 = await self._put_file(key, ready.data, ready.content_type)
        small: list[Thumbnail] = []
        for width, made in ready.miniatures.thumbnails.items():
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
            kind="input" if job_id is None else ready.kind,
            storage_key=key,
            content_type=ready.content_type,
            size_bytes=size_bytes,
            sha256=sha256,
            width=ready.width,
            height=ready.height,
            thumbhash=ready.miniatures.thumbhash,
            seed=seed,
            thumbnails=small,
            created_at=self._now(),
            duration_seconds=ready.duration_seconds,
            details={**details, **ready.details} or None,
            content_credentials=ready.credentials,
            thumbnail_error=ready.miniatures.problem,
        )

    async def _put_file(self, key: str, path: Path, content_type: str) -> tuple[int, str]:
        """Stream a file into the storage; its size in bytes and SHA-256, of what was stored."""
        digest, size_bytes = hashlib.sha256(), 0

        def read(file: IO[bytes]) -> bytes:
            piece = file.read(READ_BYTES)
            digest.update(piece)
            return piece

        async def pieces() -> AsyncIterator[bytes]:
            nonlocal size_bytes
            with await asyncio.to_thread(path.open, "rb") as file:
                while piece := await asyncio.to_thread(read, file):
                    size_bytes += len(piece)
                    yield piece

        await self._storage.put_stream(key, pieces(), content_type)
        return size_bytes, digest.hexdigest()

    async def collect_orphans(
        self, recorded: Callable[[list[str]], Awaitable[set[AttemptKey]]], *, older_than: timedelta = ORPHAN_AGE
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
        self, recorded: Callable[[list[str]], Awaitable[set[AttemptKey]]], *, older_than: timedelta = ORPHAN_AGE
    ) -> AsyncIterator[dict[str, int]]:
        """The files that `collect_orphans` would delete, in batches: key and size in bytes."""
        before = self._now() - older_than
        old: dict[AttemptKey, dict[str, int]] = {}
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
    old: Mapping[AttemptKey, Mapping[str, int]], recorded: Callable[[list[str]], Awaitable[set[AttemptKey]]]
) -> dict[str, int]:
    kept = await recorded(sorted({job_id for job_id, _ in old}))
    return {key: size for attempt, files in old.items() if attempt not in kept for key, size in files.items()}


def _read_result(data: bytes | Path, max_pixels: int) -> Picture:
    if isinstance(data, Path) and data.stat().st_size > MAX_PICTURE_BYTES:
        raise BadPicture(f"The provider's picture has more than {MAX_PICTURE_BYTES >> 20} MB.")
    return read_head(data, max_pixels)


def _prepare(picture: Picture, mark: Mark | None) -> _Prepared:
    miniatures, data = look_at(picture), picture.source
    credentials = credentials_of(data)
    if mark is not None:
        if credentials == "none":
            data = marked(data if isinstance(data, bytes) else data.read_bytes(), mark)
            mark = Mark(origin=mark.origin)  # the recipe of a signed picture is told by its thumbnails
        miniatures = miniatures.marked(mark)
    return _prepared(picture, data, miniatures, credentials)


def _prepare_upload(given: Picture) -> _Prepared:
    had_credentials = credentials_of(given.source) == "present"
    picture = read_head(clean(given), given.pixels)
    details = {"had_content_credentials": True} if had_credentials else {}
    return _prepared(picture, picture.source, look_at(picture), "none", details)


def _prepared(
    picture: Picture,
    data: bytes | Path,
    miniatures: Miniatures,
    credentials: Credentials,
    details: Mapping[str, Any] | None = None,
) -> _Prepared:
    return _Prepared(
        data,
        picture.content_type,
        picture.extension,
        picture.width,
        picture.height,
        miniatures,
        credentials,
        hashlib.sha256(data).hexdigest() if isinstance(data, bytes) else "",
        details=details or {},
    )


def _head_of(data: bytes | Path) -> bytes:
    try:
        return head_of(data)
    except OSError as error:
        raise BadMedia(f"The provider's file cannot be read: {error.strerror}.") from error


def _attempt_of(key: str) -> AttemptKey | None:
    """`jobs/{job_id}/{attempt}/...` as (job id, attempt)."""
    parts = key.split("/")
    return (parts[1], int(parts[2])) if len(parts) == 4 and parts[2].isdecimal() else None
