"""The ground all systems stand on: one Valkey, databases on a real disk, the same settings for everybody."""

import contextlib
import shutil
import socket
import sqlite3
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self, cast

import sqlalchemy
from sqlalchemy.exc import DBAPIError

import servers
from benchmarks.process import Child
from benchmarks.systems import work
from safelight.migrations import migrate
from servers import PostgresServer, ValkeyServer

Backend = Literal["sqlite", "postgresql"]
BACKENDS: tuple[Backend, ...] = ("sqlite", "postgresql")


class DiskPostgres(PostgresServer):
    """PostgreSQL that is safe on power loss, with its data on disk: the tests' server has neither."""

    def command_line(self) -> Sequence[str]:
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(self.directory),
            "fsync": "on",
            "synchronous_commit": "on",
            "shared_buffers": "256MB",
            "max_wal_size": "2GB",
            "timezone": "UTC",
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return [str(self.binaries / "postgres"), "-D", str(self.data), *options]


class Ground:
    """Servers and folder of one invocation."""

    def __init__(self, backends: Sequence[Backend], *, patience: float = 10.0) -> None:
        self._patience = patience  # seconds until a process that was asked to end is ended
        self.folder = Path(tempfile.mkdtemp(prefix="safelight-bench-"))
        self.backends = tuple(backends)
        # The servers of the tests live in memory if they can; a benchmark must pay for its disk.
        setattr(servers, "_memory_folder", lambda: None)  # noqa: B010 - private, but there is no other way
        self.valkey = ValkeyServer(tcp=True)
        self.postgres: DiskPostgres | None = None
        self._count = 0
        if "sqlite" in self.backends:
            self._sqlite_template = self.folder / "template.db"
            _make_schema(f"sqlite:///{self._sqlite_template}")
        if "postgresql" in self.backends:
            self.postgres = DiskPostgres()
            self.postgres.make_template(_make_schema)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.valkey.close()
        if self.postgres is not None:
            self.postgres.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def redis_url(self) -> str:
        return f"{self.valkey.url}/0"

    @property
    def server_pids(self) -> list[int]:
        return [self.valkey.pid, *([self.postgres.pid] if self.postgres is not None else [])]

    def database(self, backend: Backend) -> str:
        """A fresh database with both Safelight's schema and the peers' table."""
        self._count += 1
        if backend == "sqlite":
            return f"sqlite:///{shutil.copy(self._sqlite_template, self.folder / f'{self._count}.db')}"
        assert self.postgres is not None
        return self.postgres.database(f"bench_{self._count}")

    def drop(self, database_url: str) -> None:
        if database_url.startswith("sqlite"):
            path = Path(database_url.removeprefix("sqlite:///"))
            for suffix in ("", "-wal", "-shm", ".lock"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)
        else:
            assert self.postgres is not None
            self.postgres.drop(database_url.rpartition("/")[2].partition("?")[0])

    def environment(self, database_url: str, **more: str) -> dict[str, str]:
        """What every process is told. Safelight at `warning`, as the peers; leases as shipped."""
        return {
            "BENCH_DATABASE_URL": database_url,
            "BENCH_REDIS_URL": self.redis_url,
            "APP_ENV": "test",
            "AI_MOCK_MODE": "true",
            "SAFELIGHT_DATA_DIR": str(self.folder / "data"),
            "SAFELIGHT_DATABASE_URL": database_url,
            "SAFELIGHT_REDIS_URL": self.redis_url,
            "SAFELIGHT_LOG_LEVEL": "warning",
            "SAFELIGHT_LOG_FORMAT": "json",
            "SAFELIGHT_DRAIN_SECONDS": "1",
            **more,
        }

    def start(self, module: str, *arguments: str, environment: dict[str, str], speaks: bool = False) -> Child:
        log = self.folder / f"{module.rpartition('.')[2]}.log"
        return Child(
            module, module, *arguments, environment=environment, log=log, speaks=speaks, patience=self._patience
        )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def versions(ground: Ground) -> dict[str, str]:
    """What answered, for the result document."""
    found = {"sqlite": sqlite3.sqlite_version}
    info = cast(bytes, ground.valkey.command("INFO", "server")).decode()
    for line in info.splitlines():
        name, _, value = line.partition(":")
        if name in ("valkey_version", "redis_version"):
            found[name.removesuffix("_version")] = value
    if ground.postgres is not None:
        engine = sqlalchemy.create_engine(ground.postgres.url("postgres"))
        with engine.connect() as connection, contextlib.suppress(DBAPIError):
            found["postgresql"] = str(cast(Any, connection.exec_driver_sql("SHOW server_version")).scalar())
        engine.dispose()
    return found


def _make_schema(url: str) -> None:
    migrate(url)
    engine = sqlalchemy.create_engine(url)
    work.metadata.create_all(engine)
    with engine.begin() as connection:
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    engine.dispose()
