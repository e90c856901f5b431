"""Uploads on both databases: they stay while a job needs them, and go when nobody does."""

import asyncio
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from keeping import age, artifact_row

from jobs.builders import OWNER, Desk, failed
from patience import PATIENCE_SECONDS
from safelight import artifacts as results
from safelight.artifacts import Artifact, ArtifactStore
from safelight.db import Database, Tx, db_now, new_id
from safelight.jobs import (
    Cleaned,
    Job,
    Retention,
)
from safelight.jobs import retention as module
from safelight.storage import Storage

pytestmark = pytest.mark.anyio


async def uploaded(retention: Retention, storage: Storage, **changes: Any) -> Artifact:
    artifact_id = new_id()
    record = Artifact(
        id=artifact_id,
        job_id=None,
        attempt=0,
        position=0,
        owner_id=OWNER,
        kind="input",
        storage_key=f"inputs/{artifact_id}/0.png",
        content_type="image/png",
        size_bytes=7,
        sha256="0" * 64,
        width=4,
        height=4,
        thumbhash="x",
        seed=None,
        thumbnails=[],
        created_at=datetime.now(UTC),
    )
    record = replace(record, **changes)
    await storage.put(record.storage_key, b"picture", "image/png")
    await retention.record_upload(record)
    return record


async def give(desk: Desk, job: Job, *uploads: Artifact) -> set[str]:
    return await desk.write(results.give_inputs, job.id, OWNER, [upload.id for upload in uploads])


async def is_there(desk: Desk, artifact: Artifact) -> bool:
    return (await artifact_row(desk, artifact.id)).deleted_at is None


async def test_an_upload_says_until_when(
    database: Database, store: ArtifactStore, desk: Desk, storage: Storage
) -> None:
    days: dict[str, int | None] = {"ada": 30, "bob": None, "cid": 0}
    retention = Retention(database, store, retention_days_of=lambda tx, owner_id: days[owner_id])
    for owner, kept in {"ada": 30, "bob": None, "cid": 1}.items():  # a day at least, to make a job from it
        upload = await uploaded(retention, storage, owner_id=owner)
        row = await artifact_row(desk, upload.id)
        assert row.keep_until == (None if kept is None else row.created_at + timedelta(days=kept))


async def test_an_upload_goes_when_no_job_needs_it_any_more(
    desk: Desk, storage: Storage, retention: Retention, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BITE_JOBS", 2)
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0.0)
    used, for_ever, later = [await uploaded(retention, storage) for _ in range(3)]
    unused = [await uploaded(retention, storage) for _ in range(5)]
    job = await desk.running()
    assert await give(desk, job, used) == set()
    for upload in (used, *unused):
        await age(desk, upload, keep_until=db_now(-1.0))
    await age(desk, later, keep_until=db_now(3600.0))
    assert await retention.outlook() == Cleaned(uploads=5, upload_bytes=35)
    await retention.tidy()
    assert [await is_there(desk, upload) for upload in (used, for_ever, later, *unused)] == [True] * 3 + [False] * 5
    left = sorted([entry[0] async for entry in storage.list("inputs")])
    assert left == sorted(upload.storage_key for upload in (used, for_ever, later))
    assert await retention.outlook() == Cleaned()
    ended = await desk.settle(job, failed(job))
    assert ended is not None
    await retention.tidy()
    assert await is_there(desk, used)  # the job can be retried, and shows what it was made from
    await retention.delete_job(job.id, OWNER)
    await retention.tidy()
    assert not await is_there(desk, used)


async def test_cleanup_by_age_takes_unused_uploads_too(desk: Desk, storage: Storage, retention: Retention) -> None:
    young, old, used = [await uploaded(retention, storage) for _ in range(3)]
    job = await desk.submit()
    await give(desk, job, used)
    for upload in (old, used):
        await age(desk, upload, created_at=db_now(-10 * 86400.0))
    assert await retention.outlook(9) == Cleaned(uploads=1, upload_bytes=7)
    assert [step async for step in retention.cleanup(9)][-1] == Cleaned(uploads=1, upload_bytes=7)
    assert [await is_there(desk, upload) for upload in (young, old, used)] == [True, False, True]


async def test_a_job_is_given_what_is_there_and_its_owners(desk: Desk, storage: Storage, retention: Retention) -> None:
    mine, deleted = [await uploaded(retention, storage) for _ in range(2)]
    others = await uploaded(retention, storage, owner_id="eve")
    await retention.delete_artifact(deleted.id, OWNER)
    job = await desk.submit()
    nothing = replace(mine, id=new_id())
    assert await give(desk, job, mine, deleted, others, nothing) == {deleted.id, others.id, nothing.id}
    assert await give(desk, await desk.submit(), mine) == set()  # another job may have the same
    assert await give(desk, job) == set()


async def test_a_job_that_is_being_given_an_upload_keeps_it(
    postgres_url: str, store: ArtifactStore, storage: Storage
) -> None:
    """The two at once, where rows are locked: whoever is first decides, and the other sees it."""
    database, other = Database(postgres_url), Database(postgres_url)
    try:
        desk, retention = Desk(database), Retention(other, store)
        upload = await uploaded(retention, storage)
        await age(desk, upload, keep_until=db_now(-1.0))
        job = await desk.submit()
        has_it, may_commit = threading.Event(), threading.Event()

        def giving(tx: Tx) -> None:
            results.give_inputs(tx, job.id, OWNER, [upload.id])
            has_it.set()
            assert may_commit.wait(PATIENCE_SECONDS)

        given = asyncio.create_task(database.write(giving))
        await asyncio.to_thread(has_it.wait, 10)
        await retention.tidy()  # skips what is locked, and does not wait for it
        may_commit.set()
        await given
        await retention.tidy()
        assert await is_there(desk, upload)
    finally:
        database.close()
        other.close()
