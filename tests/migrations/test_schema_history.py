"""The schema's history on both databases: forward and back with rows in the tables, and the same as the models."""

import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, MetaData, Table, create_engine, func, inspect, select, text

import safelight.bootstrap  # noqa: F401  # pyright: ignore[reportUnusedImport] - every slice with tables
from safelight import migrations
from safelight.db import Database, DatabaseUnavailable, Tx, metadata
from safelight.folder import FolderUnusable
from safelight.migrations import MigrationFailed, alembic_config, current, migrate
from safelight.schema import REVISIONS, SchemaOutdated, SchemaTooNew, admit, judge, require
from servers import PostgresServer

NOW = datetime(2030, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
SOME_ID = "01970000-0000-7000-8000-00000000000{}"


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database without a table."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'empty.db'}"
        return
    server = request.getfixturevalue("postgres")
    yield server.database("safelight_history", is_empty=True)
    server.drop("safelight_history")


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = create_engine(database_url)
    yield engine
    engine.dispose()


# What it is made of


def test_the_files_are_named_as_the_revisions_in_their_order() -> None:
    script = ScriptDirectory.from_config(alembic_config("sqlite://"))
    assert len(script.get_heads()) == 1, "two migrations follow the same one"
    chain = [revision.revision for revision in script.walk_revisions()]
    assert tuple(reversed(chain)) == REVISIONS


def test_the_newest_schema_is_the_models(engine: Engine) -> None:
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, metadata) == []


def test_the_newest_schema_has_the_models_indexes(engine: Engine) -> None:
    """Alembic compares neither the condition of an index nor its order."""
    made = definitions(engine)
    metadata.drop_all(engine)
    metadata.create_all(engine)
    assert definitions(engine) == made


def definitions(engine: Engine) -> dict[str, str]:
    """Every index as the database tells it."""
    if engine.dialect.name == "sqlite":
        query = "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL"
    else:
        query = "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'"
    with engine.connect() as connection:
        return {row[0]: row[1] for row in connection.execute(text(query)) if "alembic_version" not in row[1]}


def columns(engine: Engine) -> dict[str, list[str]]:
    found = inspect(engine)
    return {
        name: sorted(f"{column['name']} {column['type']} {column['nullable']}" for column in found.get_columns(name))
        for name in found.get_table_names()
        if name != "alembic_version"
    }


# With rows in it


def rows_for(table: Table) -> list[dict[str, Any]]:
    """Two rows with a value in every column, by its type: tables of whichever revision."""
    return [{column.name: value_for(column, number) for column in table.columns} for number in (1, 2)]


def value_for(column: Any, number: int) -> Any:
    kind = column.type
    if column.name == "deleted_at":
        return None  # a tombstone is not expected to survive a way back
    if isinstance(kind, sqlalchemy.JSON):
        return {"ü": [number, None]}
    if isinstance(kind, sqlalchemy.Uuid):
        return SOME_ID.format(number)
    if isinstance(kind, sqlalchemy.DateTime):
        return NOW
    if isinstance(kind, sqlalchemy.Boolean):
        return True
    if isinstance(kind, (sqlalchemy.Float, sqlalchemy.Numeric)):
        return 0.5
    if isinstance(kind, sqlalchemy.Integer):
        return number
    if isinstance(kind, sqlalchemy.LargeBinary):
        return b"\0"
    return SOME_ID.format(number)[-(getattr(kind, "length", None) or 36) :]


def tables_of(engine: Engine) -> list[Table]:
    """Those of the revision at which it stands."""
    reflected = MetaData()
    reflected.reflect(engine)
    return [table for table in reflected.sorted_tables if table.name != "alembic_version"]


def fill(engine: Engine, tables: list[Table] | None = None) -> dict[str, list[dict[str, Any]]]:
    tables = tables_of(engine) if tables is None else tables
    with engine.begin() as connection:
        for table in tables:
            connection.execute(table.insert(), rows_for(table))
    return read(engine, tables)


def read(engine: Engine, tables: list[Table] | None = None) -> dict[str, list[dict[str, Any]]]:
    tables = tables_of(engine) if tables is None else tables
    with engine.connect() as connection:
        return {table.name: [dict(row) for row in connection.execute(select(table)).mappings()] for table in tables}


@pytest.mark.parametrize("first", [len(REVISIONS) - 3, pytest.param(0, marks=pytest.mark.long, id="all")])
def test_every_step_back_and_forward_keeps_what_has_a_place(empty_url: str, first: int) -> None:
    """In the short form only the newest ones: older ones do not change."""
    engine = create_engine(empty_url)
    before = REVISIONS[first - 1] if first else None
    if before is not None:
        migrate(empty_url, before)
    earlier, tables_before = (columns(engine), definitions(engine)), tables_of(engine)
    for revision in REVISIONS[first:]:
        migrate(empty_url, revision)
        assert current(empty_url) == revision
        later, tables = (columns(engine), definitions(engine)), tables_of(engine)
        rows = fill(engine, tables)
        migrate(empty_url, before or "base")
        if before is not None:  # down to nothing, Alembic's own table stays
            assert (columns(engine), definitions(engine)) == earlier
        between = read(engine, tables_before)
        assert_kept(rows, between)
        migrate(empty_url, revision)
        assert (columns(engine), definitions(engine)) == later
        assert_kept(between, read(engine, tables))
        empty(engine, tables)
        before, earlier, tables_before = revision, later, tables
    engine.dispose()


def assert_kept(before: dict[str, list[dict[str, Any]]], after: dict[str, list[dict[str, Any]]]) -> None:
    """Every row is there with every value whose column is there."""
    for name in before.keys() & after.keys():
        shared = [] if not (before[name] and after[name]) else before[name][0].keys() & after[name][0].keys()
        kept = [{key: row[key] for key in shared} for row in after[name]]
        for row in before[name]:
            assert {key: row[key] for key in shared} in kept, name


def empty(engine: Engine, tables: list[Table]) -> None:
    with engine.begin() as connection:
        for table in reversed(tables):
            connection.execute(table.delete())


def test_down_to_nothing(database_url: str, engine: Engine) -> None:
    fill(engine)
    step = migrate(database_url, "base")
    assert (step.before, step.after) == (REVISIONS[-1], None)
    assert columns(engine) == {}
    migrate(database_url)
    with engine.connect() as connection:
        assert connection.execute(select(func.count()).select_from(metadata.tables["jobs"])).scalar_one() == 0


def test_tombstones_do_not_come_back_as_empty_jobs(database_url: str, engine: Engine) -> None:
    fill(engine)
    with engine.begin() as connection:
        for table in ("jobs", "artifacts"):
            connection.execute(metadata.tables[table].update().values(deleted_at=NOW))
    migrate(database_url, REVISIONS[REVISIONS.index("0004_deletion") - 1])
    left = read(engine)
    assert (left["jobs"], left["artifacts"]) == ([], [])
    assert len(left["attempts"]) == 2


def test_sounds_survive_the_way_back(database_url: str, engine: Engine) -> None:
    """An older schema has no place for what has no size."""
    fill(engine)
    size = {"width": None, "height": None, "thumbhash": None}
    artifacts = metadata.tables["artifacts"]
    with engine.begin() as connection:
        connection.execute(artifacts.update().values(kind="audio", **size, duration_seconds=2.5))
    sounds = read(engine)["artifacts"]
    migrate(database_url, REVISIONS[REVISIONS.index("0008_films") - 1])
    left = read(engine)["artifacts"]
    assert [(row["width"], row["height"], row["thumbhash"]) for row in left] == [(0, 0, "")] * 2
    migrate(database_url)
    forgotten = dict.fromkeys(("duration_seconds", "details", "thumbnail_error", "content_credentials"))
    assert read(engine)["artifacts"] == [row | forgotten for row in sounds]


def test_what_was_released_is_so_under_the_older_name(database_url: str, engine: Engine) -> None:
    fill(engine)
    released = read(engine)["jobs"]
    migrate(database_url, REVISIONS[REVISIONS.index("0020_released") - 1])
    assert [row["hinted_at"] for row in read(engine)["jobs"]] == [row["released_at"] for row in released]
    migrate(database_url)
    assert read(engine)["jobs"] == released


def test_a_migration_that_fails_leaves_everything_as_it_was(
    database_url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "migrations"
    shutil.copytree(Path(migrations.__file__).parent, folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "versions" / "9999_broken.py").write_text(
        "from alembic import op\n"
        f"revision, down_revision = '9999_broken', {REVISIONS[-1]!r}\n"
        "branch_labels = depends_on = None\n"
        "def upgrade():\n"
        "    op.execute('CREATE TABLE half (id INTEGER)')\n"
        "    op.drop_table('attempts')\n"
        "    op.execute('DROP TABLE nothing')\n"
    )
    before = fill(engine)
    monkeypatch.setattr(migrations, "__file__", str(folder / "__init__.py"))
    monkeypatch.setattr(migrations, "REVISIONS", (*REVISIONS, "9999_broken"))
    with pytest.raises(MigrationFailed, match=r"is as it was: .*nothing"):
        migrate(database_url)
    assert current(database_url) == REVISIONS[-1]
    assert read(engine) == before


# What stands in the way


def test_what_each_revision_means() -> None:
    assert judge(REVISIONS[-1]) is None
    for old in (None, REVISIONS[0]):
        assert isinstance(problem := judge(old), SchemaOutdated) and "run `safelight migrate`" in problem.detail
    assert isinstance(problem := judge("9999_future"), SchemaTooNew) and "too old" in problem.detail


def test_a_newer_database_is_left_alone(database_url: str, engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999_future'"))
    for revision in ("head", "base", REVISIONS[0]):
        with pytest.raises(SchemaTooNew, match="9999_future"):
            migrate(database_url, revision)
    assert current(database_url) == "9999_future"


@pytest.mark.parametrize("name", ["", "0", "9", "nothing"])
def test_an_unknown_revision_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(MigrationFailed, match="There is no schema"):
        migrate(f"sqlite:///{tmp_path / 'a.db'}", name)
    assert not (tmp_path / "a.db").exists()


def test_a_database_that_is_away_is_told_plainly(tmp_path: Path) -> None:
    with pytest.raises(MigrationFailed, match="cannot be used"):
        migrate(f"postgresql+psycopg://nobody@/nothing?host={tmp_path}")
    (tmp_path / "file.db").write_bytes(b"this is no database, whatever its name says" * 100)
    with pytest.raises(FolderUnusable, match="not a file of SQLite's"):
        migrate(f"sqlite:///{tmp_path / 'file.db'}")


def look(tx: Tx) -> int:
    return tx.execute(select(1)).scalar_one()


@pytest.mark.anyio
async def test_a_restart_of_the_server_is_ridden_out(postgres_server: Callable[[], PostgresServer]) -> None:
    server = postgres_server()
    url = server.database("safelight")
    server.kill()
    with pytest.raises(MigrationFailed, match="cannot be used"):
        migrate(url)
    server.start()
    migrate(url)
    database = Database(url, readers=1, admit=admit)
    try:
        await database.read(look)
        server.kill()
        with pytest.raises(DatabaseUnavailable):
            await database.read(look)
        await require(database)  # it is away, not wrong
        server.start()
        for ask in (database.read, database.write, database.write_urgently):
            await ask(look)
    finally:
        database.close()


def test_two_at_once_migrate_once(empty_url: str) -> None:
    code = "import sys; from safelight.migrations import migrate; migrate(sys.argv[1])"
    children = [subprocess.Popen([sys.executable, "-c", code, empty_url], stderr=subprocess.PIPE) for _ in range(2)]
    said = [child.communicate()[1] for child in children]
    assert [child.returncode for child in children] == [0, 0], said
    assert current(empty_url) == REVISIONS[-1]


def test_sqlite_keeps_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.db"
    migrate(f"sqlite:///{path}")
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
