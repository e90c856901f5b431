"""Which database URLs are read, how, and what is said of the others; and which databases are fit to be used."""

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from patience import PATIENCE_SECONDS
from safelight.db import Database, DatabaseUnsuitable, DatabaseUrlInvalid, parse_url
from safelight.folder import FolderUnusable
from safelight.migrations import migrate
from servers import Postgres, PostgresServer


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("postgresql+asyncpg://me:pw@db/x?ssl=require", ("me", "pw", "x", {"host": "db", "sslmode": "require"})),
        ("postgresql+psycopg2://me@db/x", ("me", None, "x", {"host": "db"})),
        ("postgres://me@db/x", ("me", None, "x", {"host": "db"})),
        ("postgresql://me:p@ss@db/x", ("me", "p@ss", "x", {"host": "db"})),
        ("postgresql://me:p%2Fss%40@db/x%20y", ("me", "p/ss@", "x y", {"host": "db"})),
        ("postgresql://me@one:5433,two/x", ("me", None, "x", {"host": "one,two", "port": "5433,5432"})),
        ("postgresql://me@[::1]:5433,[fe80::1]/x", ("me", None, "x", {"host": "::1,fe80::1", "port": "5433,5432"})),
        ("postgresql://me@%2Fvar%2Frun%2Fpostgresql/x", ("me", None, "x", {"host": "/var/run/postgresql"})),
        ("postgresql:///x?host=/run/postgresql", (None, None, "x", {"host": "/run/postgresql"})),
        ("postgresql://", (None, None, None, {})),
        ("sqlite:////var/lib/a b?.db", (None, None, "/var/lib/a b?.db", {})),
        ("sqlite+aiosqlite:///x.db", (None, None, "x.db", {})),
        (" sqlite:///x.db\n", (None, None, "x.db", {})),
    ],
)  # fmt: skip
def test_urls_as_people_have_them(url: str, parts: tuple[object, ...]) -> None:
    read = parse_url(url)
    assert (read.username, read.password, read.database, dict(read.query)) == parts
    assert read.drivername in ("sqlite", "postgresql+psycopg")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("/var/lib/safelight.db", "has no scheme"),
        ("'sqlite:///x.db'", "quotation mark"),
        ("sqlite://x.db", "third slash"),
        ("sqlite:///", "must name a file"),
        ("sqlite:///:memory:", "must name a file"),
        ("sqlite:///x.db?mode=ro", "takes no options"),
        ("mysql+pymysql://me:secret@db/x", "'mysql+pymysql', which is not supported"),
        ("jdbc:postgresql://db/x", "not supported"),
        ("host=db dbname=x password=secret", "has no scheme"),
        ("postgresql://me:sec/ret@db/x", "percent-encode"),
        ("postgresql://me:sec#ret@db/x", "percent-encode"),
        ("postgresql://me:secret@db:port/x", "host and port"),
        ("postgresql://me:secret@db:99999/x", "host and port"),
        ("postgresql://me:secret@db/x?schema=public", "'schema', which PostgreSQL does not know"),
    ],
)
def test_urls_that_cannot_be_read(url: str, words: str) -> None:
    with pytest.raises(DatabaseUrlInvalid) as refused:
        parse_url(url)
    assert words in refused.value.detail
    assert "sec" not in refused.value.detail.replace("second", "")


@pytest.mark.anyio
async def test_what_the_url_says_of_a_session_holds(
    postgres: Postgres, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    mark = "&" if "?" in postgres_url else "?"
    database = Database(f"{postgres_url}{mark}options=-c%20work_mem%3D5MB&application_name=studio", readers=1)
    names = ("work_mem", "application_name", "statement_timeout")
    shown = f"SELECT {', '.join(f'current_setting({name!r})' for name in names)}, 'é🎬'"
    try:
        row = await database.read(lambda tx: tx._connection.exec_driver_sql(shown).one())
    finally:
        database.close()
    assert tuple(row) == ("5MB", "studio", "10s", "é🎬")


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("encoding", "commands"),
    [
        ("SQL_ASCII", [("migrate",)]),
        pytest.param(
            "SQL_ASCII",
            [("keys", "ls"), ("db", "copy", "URL", "sqlite:////x/y.db"), ("api",), ("worker",)],
            marks=pytest.mark.long,
        ),
        ("LATIN1", []),
        ("EUC_JP", []),
    ],
)
async def test_a_database_that_cannot_hold_every_text_is_refused(
    postgres: Postgres, encoding: str, commands: list[tuple[str, ...]]
) -> None:
    name = f"safelight_{os.getpid()}_{encoding.lower()}"
    with psycopg.connect(postgres.conninfo.format(database="postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} ENCODING '{encoding}' TEMPLATE template0 LOCALE 'C'".encode())
    url = postgres.url(name)
    try:
        with pytest.raises(DatabaseUnsuitable, match=f"encoding {encoding}, which .* CREATE DATABASE {name}_utf8"):
            migrate(url)
        database = Database(url, readers=1)
        with pytest.raises(DatabaseUnsuitable, match="ENCODING 'UTF8'"):
            await database.read(lambda tx: None)
        database.close()
        for arguments in commands:
            typed = [url if each == "URL" else each for each in arguments]
            code, words = safelight(*typed, SAFELIGHT_DATABASE_URL=url, SAFELIGHT_REDIS_URL="redis://127.0.0.1:9")
            assert code not in (0, None) and words.startswith("Error: The database"), words
            assert words.count("\n") == 1 and encoding in words, words
    finally:
        postgres.drop(name)


def safelight(*arguments: str, **environment: str) -> tuple[int, str]:
    """A command to its end: its exit code and what it said."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "safelight", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    return done.returncode, done.stderr


def test_several_hosts_and_a_socket(postgres_server: Callable[[], PostgresServer]) -> None:
    server = postgres_server()
    folder = str(server.directory).replace("/", "%2F")
    for place in (f"%2Fnowhere,{folder}", folder):
        url = f"postgresql+asyncpg://postgres@{place}/postgres"
        assert migrate(url).after is not None


@pytest.mark.anyio
async def test_sqlite_files_are_their_owners_alone(tmp_path: Path) -> None:
    lax = tmp_path / "lax"
    lax.mkdir()
    lax.chmod(0o777)
    before = os.umask(0)
    try:
        migrate(f"sqlite:///{lax / 'safelight.db'}")
        migrate(f"sqlite:///{tmp_path / 'new' / 'safelight.db'}")
        database = Database(f"sqlite:///{lax / 'safelight.db'}", readers=1)
        await database.write(lambda tx: None)
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in lax.iterdir()}
        database.close()
    finally:
        os.umask(before)
    assert {"safelight.db", "safelight.db-wal", "safelight.db-shm"} <= modes.keys()
    assert set(modes.values()) == {0o600}
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700


def test_a_sqlite_file_that_cannot_be_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a letter to nobody")
    (tmp_path / "folder").mkdir()
    for path, words in (
        (tmp_path / "file" / "x.db", "is a file, not a folder"),
        (tmp_path / "folder", "it is a folder, not a file"),
        (tmp_path / "file", "not a file of SQLite's"),
        (Path("/proc/safelight/x.db"), "folder of the database /proc/safelight cannot be used"),
    ):
        with pytest.raises(FolderUnusable, match=words):
            migrate(f"sqlite:///{path}")
