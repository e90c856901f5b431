"""Keeps what jobs made and what was uploaded: checks a file, stores it with its thumbnails, and collects what nobody
recorded.
"""

import asyncio
import hashlib
import re
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import IO, Any, TypeVar

from PIL import Image

from safelight.artifacts.artifact import Artifact, Thumbnail
from safelight.artifacts.film import BadFilm, head_of, inspect_film, is_film
from safelight.artifacts.picture import (
    POSTER_WIDTH,
    THUMBNAIL_WIDTHS,
    BadPicture,
    Miniature,
    Picture,
    inspect,
    thumbhash,
    thumbnails,
    with_png_text,
)
from safelight.artifacts.upload import clean
from safelight.db import new_id
from safelight.providers.program import MEMORY_BYTES
from safelight.storage import Storage

ROOT = "jobs"
UPLOADS = "inputs"
ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
ORPHAN_AGE = timedelta(days=1)
ORPHAN_BATCH = 500
MAX_PICTURE_BYTES = 512 * 1024 * 1024
READ_BYTES = 1024 * 1024
FILMS_AT_ONCE = 4  # that ffmpeg looks at, in a process
Attempt = tuple[str, int]  # job id, attempt
T = TypeVar("T")


def utc_now() -> datetime:
    """The clock of this process, aware."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A checked file. A picture has its bytes here, and their SHA-256; a video or sound is where it lies."""

    data: bytes | Path
    content_type: str
    extension: str
    width: int | None
    height: int | None
    thumbhash: str | None
    thumbnails: Mapping[int, Miniature]
    sha256: str = ""
    kind: str = "image"
    duration_seconds: float | None = None
    details: Mapping[str, Any] = field(default_factory=dict[str, Any])


class ArtifactStore:
    """Files of jobs under `jobs/{job_id}/{attempt}/`, uploads under `inputs/{artifact_id}/`.

    Decoding and scaling run in `workers`, never on the loop; films are read by ffmpeg, in `film_memory_bytes`.
    """

    def __init__(
        self,
        storage: Storage,
        workers: Executor,
        now: Callable[[], datetime] = utc_now,
        film_memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        self._storage = storage
        self._workers = workers
        self._now = now
        self._film_memory_bytes = film_memory_bytes
        self._films = asyncio.Semaphore(FILMS_AT_ONCE)

    async def store(
        self,
        *,
        job_id: str,
        attempt: int,
        position: int,
        owner_id: str,
        data: bytes | Path,
        text: Mapping[str, str],
        seed: int | None,
        details: Mapping[str, Any] | None = None,
    ) -> Artifact:
        """Check a result, store it with its thumbnails, and return its record, which is not yet a row.

        What it is, its content says: a picture, a video or a sound. `data` may be the path of a file, which stays where
        it is; a video or sound is never whole in memory then. `text` goes into a PNG as text chunks, `details` into
        the record. Raises `BadPicture` or `BadFilm` before anything is stored, `FfmpegMissing`, `StorageUnavailable`.
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
        if isinstance(data, bytes):
            if not is_film(data):
                return await keep(await self._compute(_prepare, data, dict(text)))
            with tempfile.NamedTemporaryFile(prefix="safelight-", buffering=0) as file:
                await asyncio.to_thread(file.write, data)
                return await keep(await self._prepare_film(Path(file.name)))
        if is_film(await self._compute(_head_of, data)):
            return await keep(await self._prepare_film(data))
        return await keep(await self._compute(_prepare_file, data, dict(text)))

    async def store_upload(self, file: IO[bytes], *, content_type: str, owner_id: str) -> Artifact:
        """Check an uploaded picture, store it without its metadata, and return its record, which is not yet a row.

        Raises `BadUpload` before anything is stored, and `StorageUnavailable`.
        """
        ready = await self._compute(_prepare_upload, file, content_type)
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

    async def _compute(self, function: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._workers, function, *arguments)

    async def _prepare_film(self, path: Path) -> _Prepared:
        async with self._films:
            film = await inspect_film(path, self._film_memory_bytes)
        width = height = blur = None
        small: Mapping[int, Miniature] = {}
        if film.poster is not None:
            width, height = film.poster.size
            blur, small = await self._compute(_shown, film.poster, (*THUMBNAIL_WIDTHS, POSTER_WIDTH))
        return _Prepared(
            path,
            film.content_type,
            film.extension,
            width,
            height,
            blur,
            small,
            kind=film.kind,
            duration_seconds=film.duration_seconds,
            details=film.details,
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
            kind="input" if job_id is None else ready.kind,
            storage_key=key,
            content_type=ready.content_type,
            size_bytes=size_bytes,
            sha256=sha256,
            width=ready.width,
            height=ready.height,
            thumbhash=ready.thumbhash,
            seed=seed,
            thumbnails=small,
            created_at=self._now(),
            duration_seconds=ready.duration_seconds,
            details={**details, **ready.details} or None,
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
    return _prepared(picture, with_png_text(data, text))


def _prepare_file(path: Path, text: Mapping[str, str]) -> _Prepared:
    if path.stat().st_size > MAX_PICTURE_BYTES:
        raise BadPicture(f"The provider's picture has more than {MAX_PICTURE_BYTES >> 20} MB.")
    return _prepare(path.read_bytes(), text)


def _prepare_upload(file: IO[bytes], content_type: str) -> _Prepared:
    return _prepared(*clean(file, content_type))


def _prepared(picture: Picture, data: bytes) -> _Prepared:
    extension = picture.format.lower().replace("jpeg", "jpg")
    sha256 = hashlib.sha256(data).hexdigest()
    blur, small = _shown(picture.image, THUMBNAIL_WIDTHS)
    return _Prepared(data, picture.content_type, extension, picture.width, picture.height, blur, small, sha256)


def _shown(image: Image.Image, widths: Sequence[int]) -> tuple[str, Mapping[int, Miniature]]:
    return thumbhash(image), thumbnails(image, widths)


def _head_of(path: Path) -> bytes:
    try:
        return head_of(path)
    except OSError as error:
        raise BadFilm(f"The provider's file cannot be read: {error.strerror}.") from error


def _attempt_of(key: str) -> Attempt | None:
    """`jobs/{job_id}/{attempt}/...` as (job id, attempt)."""
    parts = key.split("/")
    return (parts[1], int(parts[2])) if len(parts) == 4 and parts[2].isdecimal() else None
