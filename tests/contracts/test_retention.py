"""Deletion and retention on both databases: what goes, what stays as a tombstone, what a crash in between leaves."""

from dataclasses import fields, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from keeping import age, artifact_row
from pydantic import SecretStr
from sqlalchemy import insert, select, text

from jobs.builders import OWNER, Desk, artifact_of, completed, failed, stop, try_again
from safelight import artifacts as results
from safelight import bootstrap
from safelight.artifacts import Artifact, ArtifactStore
from safelight.config import Settings, Tier
from safelight.db import Database, Tx, db_now, metadata, new_id
from safelight.jobs import (
    ArtifactNotFound,
    Cleaned,
    Completed,
    Filter,
    Job,
    JobActive,
    JobDeleted,
    JobNotFound,
    Jobs,
    KeepFor,
    Retention,
    find,
)
from safelight.jobs import retention as module
from safelight.jobs.idempotency import idempotency_keys
from safelight.providers.parameters import Parameters
from safelight.schema import REVISIONS, SchemaOutdated, SchemaTooNew, admit, require
from safelight.storage import Storage, StorageUnavailable

pytestmark = pytest.mark.anyio


async def made(desk: Desk, storage: Storage, pictures: int = 2, **values: Any) -> tuple[Job, list[Artifact]]:
    """A completed job whose files lie in the storage."""
    job = await desk.running(**values)
    stored = [artifact_of(job, position) for position in range(pictures)]
    for artifact in stored:
        for key in keys_of(artifact):
            await storage.put(key, b"picture", "image/png")
    ended = await desk.settle(job, Completed(stored))
    assert ended is not None
    return ended, stored


def keys_of(artifact: Artifact) -> list[str]:
    return [artifact.storage_key, *(thumbnail["storage_key"] for thumbnail in artifact.thumbnails)]


async def files(storage: Storage) -> list[str]:
    return sorted([entry[0] async for entry in storage.list("jobs")])


async def listed(desk: Desk, **wanted: Any) -> list[str]:
    return [job.id for job in (await desk.database.read(find, Filter(owner_id=OWNER, **wanted))).jobs]


RICH: dict[str, Any] = {
    "negative_prompt": "fog",
    "model": "m1",
    "lora_models": [{"name": "ink"}],
    "width": 640,
    "seed": 7,
    "sampler_params": {"steps": 20},
    "provider_options": {"a": 1},
    "project_id": "p",
    "chapter_id": "c",
    "character_id": "x",
    "metadata": {"user": "42"},
    "request_id": "r-1",
    "route": [stop("other", prompt="a secret")],
    "skips": [{"provider": "first", "code": "x", "reason": "y", "at": "z", "retry_count": 0}],
}


# Deleting a job


@pytest.mark.parametrize("end", ["completed", "failed", "cancelled"])
async def test_a_deleted_job_leaves_a_tombstone(desk: Desk, storage: Storage, retention: Retention, end: str) -> None:
    if end == "completed":
        job, stored = await made(desk, storage, **RICH)
    elif end == "failed":
        running = await desk.running(**RICH)
        job, stored = await desk.settle(running, failed(running)), []
    else:
        waiting = await desk.submit(**RICH)
        job, stored = await desk.cancel(waiting.id), []
    assert isinstance(job, Job)
    await retention.delete_job(job.id, OWNER)
    stone = await desk.job(job.id)
    kept = {"id", "owner_id", "status", "stage", "created_at", "started_at", "finished_at", "version", "attempt"}
    assert all(getattr(stone, name) == getattr(job, name) for name in kept)
    assert stone.deleted_at is not None
    said = {
        field.name
        for field in fields(Job)
        if field.name in RICH or field.name in ("prompt", "message", "error", "provider_job_id", "keep_until")
    }
    assert [name for name in said if getattr(stone, name)] == []
    assert stone.parameters == Parameters("", "")
    assert await desk.attempts(job.id) == []
    assert await desk.artifacts(job.id) == []
    assert await files(storage) == []
    for artifact in stored:
        row = await artifact_row(desk, artifact.id)
        assert row.deleted_at is not None
        assert (row.storage_key, row.thumbnails, row.thumbhash, row.sha256, row.seed) == ("", [], "", "", None)
    assert await listed(desk) == []
    before = await desk.job(job.id)
    await retention.delete_job(job.id, OWNER)  # once more
    assert await desk.job(job.id) == before


async def test_a_job_that_has_not_ended_stays(desk: Desk, retention: Retention) -> None:
    for job in (await desk.submit(), await desk.running()):
        with pytest.raises(JobActive, match="Cancel it first"):
            await retention.delete_job(job.id, OWNER)
        assert await desk.job(job.id) == job


async def test_what_belongs_to_another_is_not_there(desk: Desk, storage: Storage, retention: Retention) -> None:
    job, stored = await made(desk, storage)
    with pytest.raises(JobNotFound):
        await retention.delete_job(job.id, "eve")
    with pytest.raises(ArtifactNotFound):
        await retention.delete_artifact(stored[0].id, "eve")
    with pytest.raises(JobNotFound):
        await retention.delete_job(new_id(), OWNER)
    with pytest.raises(ArtifactNotFound):
        await retention.delete_artifact(new_id(), OWNER)
    assert await desk.job(job.id) == job
    assert len(await files(storage)) == 4


async def test_what_comes_late_meets_the_tombstone(desk: Desk, storage: Storage, retention: Retention) -> None:
    key: dict[str, Any] = {"idempotency_key": "k-1"}
    job, _ = await made(desk, storage, **key)
    await retention.delete_job(job.id, OWNER)
    assert isinstance(await desk.cancel(job.id), JobDeleted)
    assert isinstance(await desk.offer(**key), JobDeleted)
    assert await desk.settle(replace(job, status="processing"), completed(job)) is None
    assert await desk.claim(job.id) is None
    assert await listed(desk) == []


# Deleting an artifact


async def test_a_deleted_artifact_goes_alone(desk: Desk, storage: Storage, retention: Retention) -> None:
    job, (first, second) = await made(desk, storage)
    await retention.delete_artifact(first.id, OWNER)
    assert [artifact.id for artifact in await desk.artifacts(job.id)] == [second.id]
    assert await files(storage) == sorted(keys_of(second))
    assert (await artifact_row(desk, first.id)).deleted_at is not None
    assert await desk.job(job.id) == job
    await retention.delete_artifact(first.id, OWNER)


async def test_files_that_could_not_be_removed_go_in_the_next_round(
    desk: Desk, storage: Storage, store: ArtifactStore, retention: Retention, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, stored = await made(desk, storage)

    async def away(keys: Any) -> None:
        raise StorageUnavailable("The storage is away.")

    with monkeypatch.context() as broken:
        broken.setattr(storage, "delete", away)
        await retention.delete_artifact(stored[0].id, OWNER)
        with pytest.raises(StorageUnavailable):
            await retention.tidy()
    assert len(await files(storage)) == 4
    assert [artifact.id for artifact in await desk.database.read(results.leftovers, 10)] == [stored[0].id]
    await retention.tidy()
    assert await files(storage) == sorted(keys_of(stored[1]))
    assert await desk.database.read(results.leftovers, 10) == []
    assert [artifact.id for artifact in await desk.artifacts(job.id)] == [stored[1].id]


async def test_a_tombstone_records_no_file(desk: Desk, storage: Storage, retention: Retention) -> None:
    """Files that come back from a backup of the storage are orphans."""
    job, stored = await made(desk, storage)
    await retention.delete_job(job.id, OWNER)
    await storage.put(stored[0].storage_key, b"picture", "image/png")
    assert await desk.database.read(results.recorded_attempts, [job.id]) == set()


# How long


async def test_the_end_says_until_when(database: Database) -> None:
    desk = Desk(database)
    days: dict[str, int | None] = {"ada": 30, "bob": None, "cid": 0}
    desk.jobs = Jobs(desk.tape, [KeepFor(lambda tx, owner_id: days[owner_id])])
    for owner, kept in days.items():
        running = await desk.running(owner_id=owner)
        again = await desk.settle(running, try_again(running))
        assert again is not None and (await desk.job(running.id)).keep_until is None
        running = await desk.run(running.id)
        await desk.settle(running, completed(running))
        job = await desk.job(running.id)
        assert job.finished_at is not None
        assert job.keep_until == (None if kept is None else job.finished_at + timedelta(days=kept))
    waiting = await desk.submit()
    cancelled = await desk.cancel(waiting.id)
    assert isinstance(cancelled, Job)
    assert (await desk.job(waiting.id)).keep_until is not None


async def test_a_tier_says_how_long(database: Database, tmp_path: Path) -> None:
    tiers = {"free": Tier.model_validate({"retention_days": 7}), "pro": Tier.model_validate({})}
    given: dict[str, Any] = {"env": "test", "data_dir": tmp_path, "tiers": tiers, "retention_days": 90}
    secret = SecretStr("a secret of the identity provider, long")
    accounts = Settings(**given, auth="required", jwt_secret=secret, jwt_issuer="us", jwt_audience="us")
    for settings, kept in (
        (Settings(**given), {"ada": 90, "bob": 90}),
        (accounts, {"ada": 7, "bob": 90, "cid": 7, "dan": 7}),  # pro leaves it to all, an unknown tier is the default
    ):
        desk = Desk(database)
        desk.jobs = Jobs(desk.tape, [KeepFor(bootstrap._retention_days(settings))])
        for owner, days in kept.items():
            tier = {"ada": "free", "bob": "pro", "dan": "gone"}.get(owner)
            if tier is not None:
                await desk.write(with_tier, owner, tier)
            running = await desk.running(owner_id=owner)
            await desk.settle(running, completed(running))
            job = await desk.job(running.id)
            assert job.keep_until is not None and job.finished_at is not None
            assert job.keep_until - job.finished_at == timedelta(days=days), owner


def with_tier(tx: Tx, owner: str, tier: str) -> None:
    tx.execute(text("DELETE FROM users WHERE id = :id"), {"id": owner})
    row = {"id": owner, "tier": tier, "issuer": None, "subject": None}
    tx.execute(insert(metadata.tables["users"]).values(created_at=db_now(), seen_at=db_now(), **row))


async def test_what_was_kept_long_enough_goes_in_bites(
    desk: Desk, storage: Storage, retention: Retention, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BITE_JOBS", 2)
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0.0)
    due = [(await made(desk, storage, pictures=1))[0] for _ in range(5)]
    for job in due:
        await desk.change(job.id, keep_until=db_now(-1.0))
    later, _ = await made(desk, storage, pictures=1)
    await desk.change(later.id, keep_until=db_now(3600.0))
    for_ever, _ = await made(desk, storage, pictures=1)
    running = await desk.running()
    await desk.change(running.id, keep_until=db_now(-1.0))  # cannot be: it is left alone all the same
    assert await retention.outlook() == Cleaned(5, 5, 35, 0, 0)
    await retention.tidy()
    assert await listed(desk) == [running.id, for_ever.id, later.id]
    assert len(await files(storage)) == 4
    assert await retention.outlook() == Cleaned()


async def test_a_round_in_the_background_ends(
    desk: Desk, storage: Storage, retention: Retention, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BITE_JOBS", 1)
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(module, "ROUND_SECONDS", -1.0)
    for _ in range(3):
        job, _ = await made(desk, storage, pictures=1)
        await desk.change(job.id, keep_until=db_now(-1.0))
    for left in (2, 1, 0):
        await retention.tidy()
        assert len(await listed(desk)) == left


@pytest.mark.parametrize("stretch", [1, 3, 100])
async def test_cleanup_by_age_takes_what_was_promised_to_nobody(
    desk: Desk, storage: Storage, retention: Retention, monkeypatch: pytest.MonkeyPatch, stretch: int
) -> None:
    monkeypatch.setattr(module, "BITE_JOBS", 2)
    monkeypatch.setattr(module, "STRETCH_JOBS", stretch)
    old = [(await made(desk, storage, pictures=1))[0] for _ in range(3)]
    for job in old:
        await desk.change(job.id, finished_at=db_now(-10 * 86400.0))
    await desk.change(old[0].id, keep_until=db_now(86400.0))  # more than so many days old is old, whatever was promised
    young, _ = await made(desk, storage, pictures=1)
    waiting = await desk.submit()
    await desk.write(lambda tx: old_key(tx, young))
    late, _ = await made(desk, storage, pictures=1)
    await desk.change(late.id, finished_at=db_now(-10 * 86400.0), keep_until=db_now(-1.0))
    assert await retention.outlook() == Cleaned(1, 1, 7)
    assert await retention.outlook(9) == Cleaned(4, 4, 28)
    assert await retention.outlook(11) == Cleaned(1, 1, 7)
    steps = [step async for step in retention.cleanup(9)]
    assert [step.jobs for step in steps] == sorted(step.jobs for step in steps)
    assert steps[0].jobs == 1
    assert steps[-1] == Cleaned(4, 4, 28)
    assert await listed(desk) == [waiting.id, young.id]
    assert len(await files(storage)) == 2
    assert await desk.database.read(lambda tx: tx.execute(select(idempotency_keys.c.key)).all()) == []
    assert [step.jobs async for step in retention.cleanup(9)] == [0]


def old_key(tx: Tx, job: Job) -> None:
    key = {"owner_id": OWNER, "key": "k", "fingerprint": "f", "made_id": job.id}
    tx.execute(insert(idempotency_keys).values(created_at=db_now(-2 * 86400.0), **key))


async def test_orphans_are_counted_before_they_go(
    desk: Desk, storage: Storage, store: ArtifactStore, retention: Retention, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, stored = await made(desk, storage, pictures=1)
    await storage.put(f"jobs/{new_id()}/1/0.png", b"stray", "image/png")
    assert await retention.outlook() == Cleaned()  # young: it may still be recorded
    now = store._now
    monkeypatch.setattr(store, "_now", lambda: now() + timedelta(days=1, minutes=1))
    assert await retention.outlook() == Cleaned(orphans=1, orphan_bytes=5)
    assert [step.orphans async for step in retention.cleanup()] == [1]
    assert await files(storage) == sorted(keys_of(stored[0]))


# Tombstones


async def test_tombstones_stay_unless_somebody_says_how_long(
    database: Database, desk: Desk, storage: Storage, store: ArtifactStore, retention: Retention
) -> None:
    job, stored = await made(desk, storage)
    young, _ = await made(desk, storage, pictures=1)
    for gone in (job, young):
        await retention.delete_job(gone.id, OWNER)
    await desk.change(job.id, deleted_at=db_now(-8 * 86400.0))
    for artifact in stored:
        await age(desk, artifact, deleted_at=db_now(-8 * 86400.0))
    await retention.tidy()
    assert await retention.outlook() == Cleaned()
    assert (await desk.job(job.id)).deleted_at is not None

    forgetful = Retention(database, store, tombstone_days=7)
    assert await forgetful.outlook() == Cleaned(tombstones=3)
    assert [step async for step in forgetful.cleanup()][-1] == Cleaned(tombstones=3)
    assert (await desk.job(young.id)).deleted_at is not None
    assert await database.read(results.get, stored[0].id) is None
    with pytest.raises(JobNotFound):
        await retention.delete_job(job.id, OWNER)


async def test_a_tombstone_whose_files_are_there_is_not_forgotten(
    database: Database, desk: Desk, storage: Storage, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    retention = Retention(database, store, tombstone_days=1)
    job, stored = await made(desk, storage, pictures=1)

    async def away(keys: Any) -> None:
        raise StorageUnavailable("The storage is away.")

    with monkeypatch.context() as broken:
        broken.setattr(storage, "delete", away)
        await retention.delete_job(job.id, OWNER)
    await age(desk, stored[0], deleted_at=db_now(-2 * 86400.0))
    assert await retention.outlook() == Cleaned()
    await retention.tidy()  # removes the files first
    assert await files(storage) == []
    assert await database.read(results.get, stored[0].id) is None


# Another schema


@pytest.mark.parametrize(
    ("change", "refusal"),
    [
        ("UPDATE alembic_version SET version_num = '0001_core'", SchemaOutdated),
        ("UPDATE alembic_version SET version_num = '9999_future'", SchemaTooNew),
        ("DELETE FROM alembic_version", SchemaOutdated),
        ("DROP TABLE alembic_version", SchemaOutdated),
    ],
)
async def test_another_schema_is_refused_until_it_is_ours(
    database_url: str, other_database: Database, change: str, refusal: type[Exception]
) -> None:
    await other_database.write(lambda tx: tx.execute(text(change)) and None)
    database = Database(database_url, readers=1, admit=admit)
    try:
        for ask in (database.write, database.write_urgently, database.read):
            with pytest.raises(refusal, match=r"`safelight migrate`|too old"):
                await ask(lambda tx: None)
        with pytest.raises(refusal):
            await require(database)
        if "UPDATE" in change:
            back = text("UPDATE alembic_version SET version_num = :newest").bindparams(newest=REVISIONS[-1])
            await other_database.write(lambda tx: tx.execute(back) and None)
            await require(database)
            for ask in (database.write, database.write_urgently, database.read):
                await ask(lambda tx: None)
    finally:
        database.close()


async def test_a_database_that_is_away_is_no_reason_not_to_start(tmp_path: Path) -> None:
    for url in (f"sqlite:///{tmp_path / 'none.db'}", f"postgresql+psycopg://nobody@/nothing?host={tmp_path}"):
        database = Database(url, readers=1, admit=admit)
        await require(database)
        database.close()
