"""Keeps what jobs made: checks a delivered file, stores it with its thumbnails, and collects what nobody recorded."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from safelight.artifacts.artifact import Artifact, Thumbnail
from safelight.artifacts.picture import Miniature, Picture, inspect, thumbhash, thumbnails, with_png_text
from safelight.db import new_id
from safelight.storage import Storage

ROOT = "jobs"
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
    """Files of jobs under `jobs/{job_id}/{attempt}/`. Decoding and scaling run in `workers`, never on the loop."""

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
        picture = ready.picture
        folder = f"{ROOT}/{job_id}/{attempt}/{position}"
        key = f"{folder}.{picture.format.lower().replace('jpeg', 'jpg')}"
        await self._storage.put(key, ready.data, picture.content_type)
        small: list[Thumbnail] = []
        for width, made in ready.thumbnails.items():
            if small and (made.width, made.height) == (small[-1]["pixel_width"], small[-1]["pixel_height"]):
                small.append({**small[-1], "width": width})  # the picture is so small that both are the same
                continue
            name = f"{folder}_{width}.webp"
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
            id=new_id(),
            job_id=job_id,
            attempt=attempt,
            position=position,
            owner_id=owner_id,
            kind="image",
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
        before = self._now() - older_than
        old: dict[Attempt, list[str]] = {}
        deleted = 0
        async for key, _, changed_at in self._storage.list(ROOT):
            attempt = _attempt_of(key)
            if attempt is None or changed_at >= before:
                continue
            old.setdefault(attempt, []).append(key)
            if len(old) >= ORPHAN_BATCH:
                deleted += await self._delete_unrecorded(old, recorded)
                old = {}
        deleted += await self._delete_unrecorded(old, recorded)
        return deleted + await self._storage.sweep(older_than.total_seconds())

    async def _delete_unrecorded(
        self, old: Mapping[Attempt, list[str]], recorded: Callable[[list[str]], Awaitable[set[Attempt]]]
    ) -> int:
        if not old:
            return 0
        kept = await recorded(sorted({job_id for job_id, _ in old}))
        orphans = [key for attempt, keys in old.items() if attempt not in kept for key in keys]
        await self._storage.delete(orphans)
        return len(orphans)


def _prepare(data: bytes, text: Mapping[str, str]) -> _Prepared:
    picture = inspect(data)
    data = with_png_text(data, text)
    return _Prepared(
        data, picture, hashlib.sha256(data).hexdigest(), thumbhash(picture.image), thumbnails(picture.image)
    )


def _attempt_of(key: str) -> Attempt | None:
    """`jobs/{job_id}/{attempt}/...` as (job id, attempt)."""
    parts = key.split("/")
    return (parts[1], int(parts[2])) if len(parts) == 4 and parts[2].isdecimal() else None
