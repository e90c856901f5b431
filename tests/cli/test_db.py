"""`migrate`, `db copy` and `cleanup` as they are called, and what a start on another schema says."""

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from click.testing import CliRunner, Result
from sqlalchemy import create_engine, delete, select, update
from sqlalchemy.exc import OperationalError

from jobs.builders import WORKER, Desk, completed, try_again
from safelight import template
from safelight.cli.main import group
from safelight.db import Database, db_now, metadata
from safelight.jobs import register_worker, unregister_worker
from safelight.jobs.job import leases
from safelight.migrations import transfer
from safelight.schema import REVISIONS

NEWEST = REVISIONS[-1]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("SAFELIGHT_DATABASE_URL", "SAFELIGHT_STORAGE_URL", "SAFELIGHT_RETENTION_DAYS", "APP_ENV"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SAFELIGHT_DATA_DIR", str(tmp_path / "data"))


def call(*arguments: str) -> Result:
    return CliRunner().invoke(group, list(arguments))


def set_revision(url: str, revision: str) -> None:
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("UPDATE alembic_version SET version_num = :r"), {"r": revision})
    engine.dispose()


# migrate


def test_migrate_says_from_where_to_where(tmp_path: Path) -> None:
    done = call("migrate")
    assert (done.exit_code, done.output) == (0, f"The database's schema: nothing -> {NEWEST}.\n")
    assert (tmp_path / "data" / "safelight.db").exists()
    assert "Nothing to do" in call("migrate").output
    assert f"{NEWEST} -> {REVISIONS[0]}" in call("migrate", "0001").output
    assert f"{REVISIONS[0]} -> nothing" in call("migrate", "base").output
    assert f"nothing -> {REVISIONS[0]}" in call("migrate", REVISIONS[0]).output
    assert f"{REVISIONS[0]} -> {NEWEST}" in call("migrate", "head").output


def test_migrate_check_changes_nothing(tmp_path: Path) -> None:
    missing = call("migrate", "--check")
    assert missing.exit_code == 1 and "no tables yet: run `safelight migrate`" in missing.output
    assert not (tmp_path / "data").exists()
    call("migrate", "0001")
    old = call("migrate", "--check")
    assert old.exit_code == 1 and f"needs {NEWEST}: run `safelight migrate`" in old.output
    call("migrate")
    assert (call("migrate", "--check").exit_code, NEWEST in call("migrate", "--check").output) == (0, True)


def test_migrate_tells_what_stands_in_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call("migrate")
    assert "There is no schema 'later'" in call("migrate", "later").output
    set_revision(f"sqlite:///{tmp_path / 'data' / 'safelight.db'}", "9999_future")
    for arguments in (("migrate",), ("migrate", "--check"), ("migrate", "base")):
        done = call(*arguments)
        assert done.exit_code == 1 and "too old for it" in done.output
    monkeypatch.setenv("SAFELIGHT_DATABASE_URL", f"postgresql://nobody:secret@/x?host={tmp_path}")
    for arguments in (("migrate",), ("migrate", "--check")):
        done = call(*arguments)
        assert done.exit_code == 1 and "cannot be used" in done.output and "secret" not in done.output


@pytest.mark.parametrize("command", ["api", "worker"])
@pytest.mark.parametrize(
    ("revision", "sentence"), [("0001_core", "run `safelight migrate`"), ("9999_future", "is too old for it")]
)
def test_no_start_on_another_schema(command: str, revision: str, sentence: str, database_url: str) -> None:
    set_revision(database_url, revision)
    done = CliRunner(env={"SAFELIGHT_DATABASE_URL": database_url}).invoke(group, [command])
    assert done.exit_code == 1
    assert done.output.startswith("Error: The database has the schema") and sentence in done.output


@pytest.mark.parametrize("command", ["api", "worker"])
@pytest.mark.parametrize(
    ("url", "sentence"), [("", "`safelight up` starts a queue of its own"), ("http://x", "must begin with redis://")]
)
def test_no_start_without_a_queue(command: str, url: str, sentence: str, sqlite_url: str) -> None:
    done = CliRunner(env={"SAFELIGHT_DATABASE_URL": sqlite_url, "SAFELIGHT_REDIS_URL": url}).invoke(group, [command])
    assert done.exit_code == 2
    assert "SAFELIGHT_REDIS_URL" in done.output and sentence in done.output


# db copy


async def fill(url: str) -> dict[str, str]:
    """Jobs in every state, as an installation has them; ids by what they are."""
    database = Database(url, readers=1)
    try:
        desk = Desk(database)
        done = await desk.running(prompt="Häuser ✨", seed=2**53 + 1, metadata={"ü": "ß"}, idempotency_key="k")
        assert await desk.settle(done, completed(done, 2))
        again = await desk.running()
        assert await desk.settle(again, try_again(again, 3600.0))
        gone = await desk.submit()
        await desk.cancel(gone.id)
        await desk.change(gone.id, deleted_at=db_now(), keep_until=db_now(86400.0))
        running = await desk.running()
        await database.write(template.add, "ada", "swatch", {"name": "swatch", "title": "Ein Muster ✨"})
        await database.write(unregister_worker, WORKER)  # else it would be in use
        waiting = await desk.submit(run_at=datetime(2031, 2, 3, 4, 5, 6, 789123, tzinfo=UTC))
        return {
            "done": done.id,
            "again": again.id,
            "gone": gone.id,
            "running": running.id,
            "waiting": waiting.id,
        }
    finally:
        database.close()


def rows(url: str) -> dict[str, list[dict[str, Any]]]:
    engine = create_engine(url)
    with engine.connect() as connection:
        found = {
            table.name: [dict(row) for row in connection.execute(select(table)).mappings()]
            for table in transfer.tables()
        }
    engine.dispose()
    return {name: sorted(table, key=lambda row: str(sorted(row.items(), key=str))) for name, table in found.items()}


@pytest.fixture(params=["sqlite to postgresql", "postgresql to sqlite"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[str, str]]:
    sqlite_url, postgres_url = (request.getfixturevalue(name) for name in ("sqlite_url", "postgres_url"))
    yield (sqlite_url, postgres_url) if request.param.startswith("sqlite") else (postgres_url, sqlite_url)


def test_a_copy_is_everything(pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "BATCH_ROWS", 2)
    source, target = pair
    ids = asyncio.run(fill(source))
    done = call("db", "copy", source, target)
    assert done.exit_code == 0, done.output
    assert "jobs: 5/5" in done.output
    assert "artifacts: 2/2" in done.output
    assert rows(target) == rows(source)
    asyncio.run(go_on(target, ids))


async def go_on(url: str, ids: dict[str, str]) -> None:
    """On the target, time goes on where it stood: histories are told, the running job is recovered and run again."""
    database = Database(url, readers=1)
    try:
        desk = Desk(database)
        assert [event.version for event in await desk.history(ids["done"])] == [1, 2, 3]
        assert (await desk.job(ids["running"])).status == "processing"
        await desk.lose(ids["running"])
        job = await desk.run(ids["running"])
        assert (job.attempt, job.version) == (2, 4)
        assert await desk.settle(job, completed(job))
    finally:
        database.close()


def test_there_and_back_again(sqlite_url: str, postgres_url: str, tmp_path: Path) -> None:
    asyncio.run(fill(sqlite_url))
    assert call("db", "copy", sqlite_url, postgres_url).exit_code == 0
    back = f"sqlite:///{tmp_path / 'back.db'}"
    refused = call("db", "copy", postgres_url, back)
    assert refused.exit_code == 1 and "The target: The database has no tables yet" in refused.output
    assert CliRunner(env={"SAFELIGHT_DATABASE_URL": back}).invoke(group, ["migrate"]).exit_code == 0
    assert call("db", "copy", postgres_url, back).exit_code == 0
    assert rows(back) == rows(sqlite_url)


def test_a_copy_that_broke_off_goes_on(pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = pair
    asyncio.run(fill(source))
    monkeypatch.setattr(transfer, "BATCH_ROWS", 2)
    put, calls = transfer._put, []

    def breaking(*arguments: Any, **options: Any) -> None:
        calls.append(1)
        if len(calls) == 4:
            raise OperationalError("INSERT", {}, Exception("the cable was pulled"))
        put(*arguments, **options)

    with monkeypatch.context() as broken:
        broken.setattr(transfer, "_put", breaking)
        failed = call("db", "copy", source, target)
    assert failed.exit_code == 1 and "the cable was pulled" in failed.output and "--resume" in failed.output
    assert 0 < sum(map(len, rows(target).values())) < sum(map(len, rows(source).values()))
    again = call("db", "copy", source, target)
    assert again.exit_code == 1 and "The target is not empty" in again.output and "--resume" in again.output
    assert call("db", "copy", source, target, "--resume").exit_code == 0
    assert rows(target) == rows(source)
    assert call("db", "copy", source, target, "--resume").exit_code == 0


def test_a_target_with_rows_of_its_own_is_not_believed(sqlite_url: str, postgres_url: str) -> None:
    asyncio.run(fill(sqlite_url))
    asyncio.run(fill(postgres_url))
    failed = call("db", "copy", sqlite_url, postgres_url, "--resume")
    assert failed.exit_code == 1 and "jobs: 10 instead of 5" in failed.output


def test_what_the_migrations_put_there_makes_room(pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """As a table of a later migration may have it: rows that the source has too, changed since."""
    source, target = pair
    monkeypatch.setattr(transfer, "MOMENTARY", ())
    for url, holder in ((source, 1), (target, 2)):
        engine = create_engine(url)
        with engine.begin() as connection:
            connection.execute(update(leases).values(holder=f"01970000-0000-7000-8000-00000000000{holder}"))
        engine.dispose()
    assert call("db", "copy", source, target).exit_code == 0
    assert rows(target) == rows(source)


def test_a_source_in_use_is_refused(pair: tuple[str, str]) -> None:
    source, target = pair
    asyncio.run(fill(source))

    async def work() -> None:
        database = Database(source, readers=1)
        await database.write(
            register_worker, "01970000-0000-7000-8000-000000000001", "io-7", ["image_generation"], 1, 30.0
        )
        database.close()

    asyncio.run(work())
    refused = call("db", "copy", source, target)
    assert refused.exit_code == 1 and "workers (io-7)" in refused.output
    assert rows(target)["jobs"] == []
    engine = create_engine(source)
    with engine.begin() as connection:
        connection.execute(delete(metadata.tables["workers"]))
        connection.execute(update(leases).values(until=db_now(3.0)))
    assert "an API or a worker" in call("db", "copy", source, target).output
    assert call("db", "copy", source, target, "--force").exit_code == 0
    assert rows(target) == rows(source)
    engine.dispose()


def test_databases_that_do_not_fit_are_refused(sqlite_url: str, postgres_url: str) -> None:
    assert "are the same" in call("db", "copy", sqlite_url, sqlite_url).output
    set_revision(sqlite_url, "9999_future")
    assert "The source: The database has the schema 9999_future" in call("db", "copy", sqlite_url, postgres_url).output
    for one, words in (
        ("nothing", "has no scheme"),
        ("mysql://me:secret@a/b", "'mysql', which is not supported"),
        ("postgresql://localhost:port/x", "check its host and port"),
    ):
        refused = call("db", "copy", one, postgres_url)
        assert refused.exit_code == 2 and words in refused.output and "secret" not in refused.output


# cleanup


def old_jobs(url: str, count: int) -> None:
    async def make() -> None:
        database = Database(url, readers=1)
        desk = Desk(database)
        for _ in range(count):
            job = await desk.running()
            await desk.settle(job, completed(job))
            await desk.change(job.id, finished_at=db_now(-10 * 86400.0))
        database.close()

    asyncio.run(make())


def test_cleanup_says_what_would_go_and_does_it(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFELIGHT_DATABASE_URL", database_url)
    old_jobs(database_url, 3)
    assert "Would go: 0 jobs" in call("cleanup", "--dry-run").output
    told = call("cleanup", "--dry-run", "--older-than", "9")
    assert told.exit_code == 0 and "Would go: 3 jobs, 3 pictures (21 bytes" in told.output
    assert call("cleanup", "--dry-run", "--older-than", "9").output == told.output
    done = call("cleanup", "--older-than", "9")
    assert done.exit_code == 0 and "Deleted: 3 jobs, 3 pictures" in done.output
    assert "Would go: 0 jobs" in call("cleanup", "--dry-run", "--older-than", "9").output


def test_cleanup_without_a_database_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = call("cleanup", "--dry-run")
    assert done.exit_code == 1 and "cannot be found" in done.output
    call("migrate", "0001")
    assert "run `safelight migrate`" in call("cleanup").output
