"""Artifacts: stored files and their records."""

import hashlib
import tracemalloc
import wave
from collections.abc import Iterator
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from content_credentials import faults_of, signed
from made_pictures import encoded, halves, turned
from media import media
from safelight import artifacts
from safelight.artifacts import Artifact, ArtifactStore, BadMedia
from safelight.db import Database, new_id
from safelight.pictures import BadPicture, Mark, PictureWorkers
from safelight.providers import darkroom
from safelight.storage import Storage

NOW = datetime(2030, 1, 2, 3, 4, 5, 678000, tzinfo=UTC)


def png(width: int = 640, height: int = 320) -> bytes:
    data = BytesIO()
    darkroom.draw("hills", 1, width, height).save(data, "PNG")
    return data.getvalue()


@pytest.fixture
def workers() -> Iterator[PictureWorkers]:
    with PictureWorkers() as pool:
        yield pool


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage.open((tmp_path / "files").as_uri())


@pytest.fixture
def store(storage: Storage, workers: PictureWorkers) -> ArtifactStore:
    return ArtifactStore(storage, workers, now=lambda: NOW)


async def stored(
    store: ArtifactStore,
    job_id: str,
    data: bytes | Path,
    *,
    attempt: int = 1,
    position: int = 0,
    details: dict[str, Any] | None = None,
) -> Artifact:
    return await store.store(
        job_id=job_id,
        attempt=attempt,
        position=position,
        owner_id="me",
        data=data,
        mark=Mark({"prompt": "Hügel"}),
        seed=5,
        details=details,
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
@pytest.mark.parametrize(
    ("content_type", "name"), [("image/png", "PNG"), ("image/jpeg", "JPEG"), ("image/webp", "WEBP")]
)
async def test_signed_pictures_stay_valid_and_others_are_marked(
    store: ArtifactStore, storage: Storage, content_type: str, name: str
) -> None:
    plain = encoded(halves(), name)
    with_credentials = signed(plain, content_type)
    artifact = await stored(store, "job-1", with_credentials)
    kept = await storage.get(artifact.storage_key)
    assert (artifact.content_credentials, kept) == ("present", with_credentials)
    assert faults_of(kept, content_type) == set()
    small = await storage.get(artifact.thumbnails[0]["storage_key"])
    assert "Hügel</recipe:prompt>".encode() in small
    artifact = await stored(store, "job-2", plain)
    assert artifact.content_credentials == "none"
    assert b"digitalsourcetype/trainedAlgorithmicMedia" in await storage.get(artifact.storage_key)
    upload = await store.store_upload(with_credentials, content_type=content_type, owner_id="me")
    assert (upload.content_credentials, upload.details) == ("none", {"had_content_credentials": True})
    assert b"DigitalSourceType" not in await storage.get(upload.storage_key)


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["PNG", "JPEG", "WEBP", "AVIF"])
async def test_what_was_made_elsewhere_is_left_as_it_is_and_shown_upright(
    store: ArtifactStore, storage: Storage, tmp_path: Path, name: str
) -> None:
    file = tmp_path / "import"
    file.write_bytes(turned(name, "RGB", 6))
    artifact = await store.store(job_id="job-1", attempt=1, position=0, owner_id="me", data=file, mark=None, seed=None)
    assert await storage.get(artifact.storage_key) == file.read_bytes()
    assert (artifact.sha256, artifact.size_bytes) == (
        hashlib.sha256(file.read_bytes()).hexdigest(),
        file.stat().st_size,
    )
    assert (artifact.width, artifact.height, artifact.thumbnail_error) == (20, 40, None)
    small = await storage.get(artifact.thumbnails[0]["storage_key"])
    assert Image.open(BytesIO(small)).size == (20, 40)
    assert b"DigitalSourceType" not in small


@pytest.mark.anyio
async def test_a_picture_without_a_thumbnail_is_stored_and_says_why(
    store: ArtifactStore, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("safelight.pictures.thumbnail.WEBP_OPTIONS", {"no_such_option": 1})
    artifact = await stored(store, "job-1", png())
    assert (artifact.thumbnails, artifact.thumbhash) == ([], None)
    assert artifact.thumbnail_error == "No thumbnail can be made of this picture."
    assert await storage.head(artifact.storage_key)


@pytest.mark.anyio
@pytest.mark.parametrize("share", [0, 0.5])
async def test_nothing_of_a_bad_picture_is_stored(store: ArtifactStore, storage: Storage, share: float) -> None:
    data = png()
    with pytest.raises(BadPicture):
        await stored(store, "job-1", data[: int(len(data) * share)])
    assert [key async for key, _, _ in storage.list("jobs")] == []


@pytest.mark.anyio
@pytest.mark.parametrize("as_file", [True, False])
async def test_a_video_is_stored_with_its_poster(
    store: ArtifactStore, storage: Storage, tmp_path: Path, as_file: bool
) -> None:
    data = media("mp4")
    given: bytes | Path = data
    if as_file:
        given = tmp_path / "video.tmp"
        given.write_bytes(data)
    artifact = await stored(store, "job-1", given, details={"title": "Küste", "video_codec": "as they say"})
    assert (artifact.kind, artifact.content_type, artifact.storage_key) == ("video", "video/mp4", "jobs/job-1/1/0.mp4")
    assert await storage.get(artifact.storage_key) == data
    assert (artifact.size_bytes, artifact.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert (artifact.width, artifact.height, artifact.duration_seconds) == (128, 72, pytest.approx(2, abs=0.1))
    assert artifact.details is not None
    assert (artifact.details["title"], artifact.details["video_codec"]) == ("Küste", "h264")
    assert artifact.thumbhash
    assert [thumbnail["width"] for thumbnail in artifact.thumbnails] == [256, 512, 1280]
    poster = Image.open(BytesIO(await storage.get(artifact.thumbnails[-1]["storage_key"])))
    assert (poster.format, poster.size) == ("WEBP", (128, 72))
    if isinstance(given, Path):
        assert given.exists()  # it is its owner's to remove


@pytest.mark.anyio
async def test_a_sound_has_no_size_and_no_thumbnails(store: ArtifactStore, storage: Storage) -> None:
    artifact = await stored(store, "job-1", media("flac"))
    assert (artifact.kind, artifact.content_type, artifact.storage_key) == (
        "audio",
        "audio/flac",
        "jobs/job-1/1/0.flac",
    )
    assert (artifact.width, artifact.height, artifact.thumbhash, artifact.thumbnails) == (None, None, None, [])
    assert await storage.get(artifact.storage_key) == media("flac")


@pytest.mark.anyio
async def test_a_picture_may_come_as_a_file(store: ArtifactStore, storage: Storage, tmp_path: Path) -> None:
    file = tmp_path / "0.tmp"
    file.write_bytes(png())
    from_file, from_bytes = await stored(store, "job-1", file), await stored(store, "job-2", png())
    assert (from_file.kind, from_file.sha256, from_file.details) == ("image", from_bytes.sha256, None)
    assert Image.open(BytesIO(await storage.get(from_file.storage_key))).info["prompt"] == "Hügel"


@pytest.mark.anyio
async def test_a_large_file_is_never_whole_in_memory(
    store: ArtifactStore, storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sound of 48 MB: what is traced of it, and what obstore is given at a time, stays far below."""
    file = tmp_path / "long.wav"
    size = 48 * 2**20
    with wave.open(str(file), "wb") as sound:
        sound.setparams((1, 2, 48_000, 0, "NONE", ""))
        sound.writeframes(bytes(size))
    tracemalloc.start()
    artifact = await stored(store, "job-1", file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (artifact.kind, artifact.size_bytes) == ("audio", 44 + size)
    assert artifact.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert peak < size / 2, f"{peak >> 20} MB"


@pytest.mark.anyio
@pytest.mark.parametrize(("name", "share"), [("mp4", 0.5), ("webm", 0.5), ("flac", 0.01)])
async def test_nothing_of_a_bad_video_is_stored(
    store: ArtifactStore, storage: Storage, tmp_path: Path, name: str, share: float
) -> None:
    file = tmp_path / "half"
    file.write_bytes(media(name)[: int(len(media(name)) * share)])
    for given in (file, file.read_bytes()):
        with pytest.raises(BadMedia):
            await stored(store, "job-1", given)
    with pytest.raises(BadMedia, match="cannot be read: No such file"):
        await stored(store, "job-1", tmp_path / "gone")
    assert [key async for key, _, _ in storage.list("jobs")] == []


@pytest.mark.anyio
async def test_rows_come_back_as_they_went(store: ArtifactStore, sqlite_url: str) -> None:
    first, second = new_id(), new_id()
    made = [await stored(store, first, png(64, 64), position=position) for position in (1, 0)]
    made.append(replace(await stored(store, second, media("mp4")), seed=None))
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
async def test_old_files_that_nobody_recorded_are_collected(storage: Storage, workers: PictureWorkers) -> None:
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
