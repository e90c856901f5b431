"""Artifacts: stored files and their records."""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from safelight import artifacts
from safelight.artifacts import Artifact, ArtifactStore, BadPicture
from safelight.db import Database, new_id
from safelight.providers import darkroom
from safelight.storage import Storage

NOW = datetime(2030, 1, 2, 3, 4, 5, 678000, tzinfo=UTC)


def png(width: int = 640, height: int = 320) -> bytes:
    data = BytesIO()
    darkroom.draw("hills", 1, width, height).save(data, "PNG")
    return data.getvalue()


@pytest.fixture
def workers() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage.open((tmp_path / "files").as_uri())


@pytest.fixture
def store(storage: Storage, workers: ThreadPoolExecutor) -> ArtifactStore:
    return ArtifactStore(storage, workers, now=lambda: NOW)


async def stored(store: ArtifactStore, job_id: str, data: bytes, *, attempt: int = 1, position: int = 0) -> Artifact:
    text = {"prompt": "Hügel"}
    return await store.store(
        job_id=job_id, attempt=attempt, position=position, owner_id="me", data=data, text=text, seed=5
    )


def test_the_record_and_the_table_are_the_same_columns() -> None:
    assert [column.name for column in artifacts.artifacts.columns] == [field.name for field in fields(Artifact)]


@pytest.mark.anyio
async def test_a_picture_is_stored_with_its_thumbnails(store: ArtifactStore, storage: Storage) -> None:
    artifact = await stored(store, "job-1", png(), attempt=2)
    assert artifact.storage_key == "jobs/job-1/2/0.png"
    data = await storage.get(artifact.storage_key)
    assert artifact.size_bytes == len(data)
    assert artifact.sha256 == hashlib.sha256(data).hexdigest()
    assert Image.open(BytesIO(data)).info["prompt"] == "Hügel"
    assert (artifact.width, artifact.height, artifact.seed, artifact.created_at) == (640, 320, 5, NOW)
    assert [thumbnail["width"] for thumbnail in artifact.thumbnails] == [256, 512]
    for thumbnail in artifact.thumbnails:
        small = await storage.get(thumbnail["storage_key"])
        assert thumbnail["storage_key"] == f"jobs/job-1/2/0_{thumbnail['width']}.webp"
        assert thumbnail["size_bytes"] == len(small)
        size = (thumbnail["pixel_width"], thumbnail["pixel_height"])
        assert Image.open(BytesIO(small)).size == size == (thumbnail["width"], thumbnail["width"] // 2)


@pytest.mark.anyio
async def test_a_small_picture_has_one_file_for_both_thumbnails(store: ArtifactStore, storage: Storage) -> None:
    artifact = await stored(store, "job-1", png(64, 64))
    assert [thumbnail["width"] for thumbnail in artifact.thumbnails] == [256, 512]
    assert {thumbnail["pixel_width"] for thumbnail in artifact.thumbnails} == {64}
    assert len({thumbnail["storage_key"] for thumbnail in artifact.thumbnails}) == 1
    assert await storage.head(artifact.thumbnails[1]["storage_key"])


@pytest.mark.anyio
async def test_the_name_follows_the_content(store: ArtifactStore) -> None:
    data = BytesIO()
    Image.new("RGB", (64, 64), (200, 0, 0)).save(data, "JPEG")
    artifact = await stored(store, "job-1", data.getvalue())
    assert (artifact.storage_key, artifact.content_type) == ("jobs/job-1/1/0.jpg", "image/jpeg")


@pytest.mark.anyio
@pytest.mark.parametrize("share", [0, 0.5])
async def test_nothing_of_a_bad_picture_is_stored(store: ArtifactStore, storage: Storage, share: float) -> None:
    data = png()
    with pytest.raises(BadPicture):
        await stored(store, "job-1", data[: int(len(data) * share)])
    assert [key async for key, _, _ in storage.list("jobs")] == []


@pytest.mark.anyio
async def test_rows_come_back_as_they_went(store: ArtifactStore, sqlite_url: str) -> None:
    first, second = new_id(), new_id()
    made = [await stored(store, first, png(64, 64), position=position) for position in (1, 0)]
    made.append(replace(await stored(store, second, png(64, 64)), seed=None))
    database = Database(sqlite_url)
    try:
        await database.write(artifacts.insert, made)
        await database.write(artifacts.insert, [])
        assert await database.read(artifacts.get, made[0].id) == made[0]
        assert await database.read(artifacts.get, new_id()) is None
        found = await database.read(artifacts.of_jobs, [first, second, "none"])
        assert found == {first: [made[1], made[0]], second: [made[2]], "none": []}
        assert await database.read(artifacts.of_jobs, []) == {}
        assert await database.read(artifacts.recorded_attempts, [first, "none"]) == {(first, 1)}
    finally:
        database.close()


@pytest.mark.anyio
async def test_old_files_that_nobody_recorded_are_collected(storage: Storage, workers: ThreadPoolExecutor) -> None:
    now = datetime.now(UTC)
    young = ArtifactStore(storage, workers)
    for attempt in (1, 2):
        await stored(young, "job-1", png(), attempt=attempt)
    await stored(young, "job-2", png(64, 64))
    await storage.put("jobs/readme.txt", b"not ours", "text/plain")
    asked: list[list[str]] = []

    async def recorded(job_ids: list[str]) -> set[tuple[str, int]]:
        asked.append(job_ids)
        return {("job-1", 2)}

    assert await young.collect_orphans(recorded) == 0
    assert asked == []
    later = ArtifactStore(storage, workers, now=lambda: now + timedelta(days=1, minutes=1))
    assert await later.collect_orphans(recorded) == 3 + 2
    assert asked == [["job-1", "job-2"]]
    left = sorted([key async for key, _, _ in storage.list("jobs")])
    assert left == ["jobs/job-1/2/0.png", "jobs/job-1/2/0_256.webp", "jobs/job-1/2/0_512.webp", "jobs/readme.txt"]
