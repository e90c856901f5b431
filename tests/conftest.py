"""Fixtures that every slice needs. Servers start when the first test asks for them; each xdist worker has its own."""

import contextlib
import importlib
import itertools
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from servers import Postgres, PostgresServer, ServerMissing, ValkeyServer, descendants, open_postgres

_numbers = itertools.count()

# A shell starts what it puts in the background deaf to Ctrl-C, and what we start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def notes_of_stacks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Stacks of tests are not found by other tests, nor by whoever works here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("runtime")))
        yield


SLOWEST_FIRST = ("benchmarks", "e2e", "faults", "docs")  # or one of two processes is left with them at the end


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        folder = item.path.parent.name
        return SLOWEST_FIRST.index(folder) if folder in SLOWEST_FIRST else len(SLOWEST_FIRST)

    items.sort(key=place)


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """Tests marked `anyio` run on the loop that production uses."""
    return "asyncio", {"use_uvloop": True}


@pytest.fixture(scope="session")
def kept_running() -> set[int]:
    """Processes that modules share, until the session ends."""
    return set()


@pytest.fixture(scope="module", autouse=True)
def nothing_is_left_running(kept_running: set[int]) -> Iterator[None]:
    """A module ends the Safelights that it started, or their deaths fall upon its neighbours: here it fails itself."""
    yield
    kept = {pid for shared in kept_running for pid in (shared, *descendants(shared))}
    running = set(descendants(os.getpid())) - kept
    left = {pid: words for pid in running if "-m safelight" in (words := command_line(pid))}
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert not left, f"left running: {left}"


def command_line(pid: int) -> str:
    """What a process was started with; nothing of one that is gone, or dead and not yet reaped."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def migrate(url: str) -> None:
    """Bring a database to the newest schema. Imported here: most tests need neither Alembic nor its start-up time."""
    importlib.import_module("safelight.migrations").migrate(url)


@pytest.fixture(scope="session")
def shared_valkey() -> Iterator[ValkeyServer]:
    try:
        server = ValkeyServer()
    except ServerMissing as reason:
        pytest.skip(str(reason))
    yield server
    server.close()


@pytest.fixture
def valkey(shared_valkey: ValkeyServer) -> ValkeyServer:
    """An empty Valkey that the session's tests share: leave it running."""
    shared_valkey.flush()
    return shared_valkey


@pytest.fixture
def valkey_server() -> Iterator[Callable[..., ValkeyServer]]:
    """Make servers that the test may break: `valkey_server(tcp=True, aof=True, password="...")`."""
    servers: list[ValkeyServer] = []

    def make(**options: Any) -> ValkeyServer:
        servers.append(ValkeyServer(**options))
        return servers[-1]

    yield make
    for server in servers:
        server.close()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """The session's PostgreSQL, its template migrated: leave it running."""
    try:
        server = open_postgres()
    except ServerMissing as reason:
        pytest.skip(str(reason))
    server.make_template(migrate)
    yield server
    server.close()


@pytest.fixture
def postgres_server() -> Iterator[Callable[[], PostgresServer]]:
    """Make servers that the test may break; their template is empty until `make_template`."""
    servers: list[PostgresServer] = []

    def make() -> PostgresServer:
        servers.append(PostgresServer())
        return servers[-1]

    yield make
    for server in servers:
        server.close()


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sqlite") / "template.db"
    migrate(f"sqlite:///{path}")
    return path


@pytest.fixture
def sqlite_url(sqlite_template: Path, tmp_path: Path) -> str:
    """A migrated SQLite file of the test's own."""
    return f"sqlite:///{shutil.copy(sqlite_template, tmp_path / 'safelight.db')}"


@pytest.fixture
def postgres_url(postgres: Postgres) -> Iterator[str]:
    """A migrated PostgreSQL database of the test's own."""
    name = f"safelight_{os.getpid()}_{next(_numbers)}"
    yield postgres.database(name)
    postgres.drop(name)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """A migrated database of the test's own, once per kind: for contract tests."""
    return request.getfixturevalue("sqlite_url" if request.param == "sqlite" else "postgres_url")
