"""Uploads as rows: artifacts without a job, from the schema that knows none, and back to it."""

import importlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from io import BytesIO
from typing import Any

import pytest
from alembic import command
from PIL import Image
from sqlalchemy import select

from safelight import artifacts
from safelight.artifacts import Artifact, ArtifactStore, Thumbnail
from safelight.db import Database, new_id
from safelight.pictures import PictureWorkers
from safelight.storage import Storage

SMALL: Thumbnail = {"width": 256, "storage_key": "t", "size_bytes": 5, "pixel_width": 4, "pixel_height": 4}


def record(**changes: Any) -> Artifact:
    made = Artifact(
        id=new_id(),
        job_id=new_id(),
        attempt=1,
        position=0,
        owner_id="me",
        kind="image",
        storage_key="k",
        content_type="image/png",
        size_bytes=7,
        sha256="0" * 64,
        width=4,
        height=4,
        thumbhash="x",
        seed=None,
        thumbnails=[],
        created_at=datetime(2030, 1, 2, tzinfo=UTC),
    )
    return replace(made, **changes)


@pytest.mark.anyio
async def test_uploads_have_no_job(database: Database) -> None:
    result, upload = record(storage_key="a"), record(job_id=None, kind="input", storage_key="b", thumbnails=[SMALL])
    await database.write(artifacts.insert, [result, upload])
    assert await database.read(artifacts.get, upload.id) == upload
    assert await database.read(artifacts.recorded_uploads, [upload.id, result.id, new_id()]) == {upload.id}
    known = await database.read(artifacts.known_files, [str(result.job_id)], [upload.id, new_id()])
    assert known == {
        "a": ("image/png", "0" * 64, 7),
        "b": ("image/png", "0" * 64, 7),
        "t": ("image/webp", None, 5),
    }
    assert await database.read(artifacts.known_files, [], []) == {}


@pytest.mark.anyio
async def test_the_schema_goes_back_and_forth_with_rows_in_it(database_url: str) -> None:
    migrations: Any = importlib.import_module("safelight.migrations")
    result, upload = record(), record(job_id=None, kind="input")
    database = Database(database_url, readers=1)
    await database.write(artifacts.insert, [result, upload])
    database.close()
    command.downgrade(migrations.alembic_config(database_url), "0001_core")
    database = Database(database_url, readers=1)
    ids = select(artifacts.artifacts.c.id)  # an older schema lacks columns of today's records
    assert await database.read(lambda tx: list(tx.execute(ids).scalars())) == [result.id]
    database.close()
    migrations.migrate(database_url)
    database = Database(database_url, readers=1)
    await database.write(artifacts.insert, [upload])
    assert await database.read(artifacts.get, upload.id) == upload
    assert await database.read(artifacts.get, result.id) == result
    database.close()


@pytest.mark.anyio
async def test_files_of_uploads_that_were_never_recorded_are_collected(database: Database) -> None:
    storage, data = Storage.open("memory:///"), BytesIO()
    Image.new("RGB", (8, 8)).save(data, "PNG")
    picture = data.getvalue()
    with PictureWorkers() as workers:
        young = ArtifactStore(storage, workers)
        kept, lost = [await young.store_upload(picture, content_type="image/png", owner_id="me") for _ in range(2)]
        await storage.put("inputs/somebody/0.png", b"not ours", "image/png")
        await database.write(artifacts.insert, [kept])

        async def recorded(ids: list[str]) -> set[str]:
            return await database.read(artifacts.recorded_uploads, ids)

        assert await young.collect_lost_uploads(recorded) == 0
        later = ArtifactStore(storage, workers, now=lambda: datetime.now(UTC) + timedelta(days=2))
        assert await later.collect_lost_uploads(recorded) == 2
    left = {key async for key, _, _ in storage.list()}
    assert left == {"inputs/somebody/0.png", kept.storage_key, kept.thumbnails[0]["storage_key"]}
    assert lost.storage_key not in left
