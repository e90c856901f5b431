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


# Folders and modules; or one of two processes is left with them at the end.
SLOWEST_FIRST = (
    "e2e",
    "faults",
    "test_schemathesis",
    "test_media_import",
    "test_hostile_imports",
    "test_schema_history",
    "test_api_media",
    "test_generated_clients",
    "test_supervisor",
    "test_object_stores",
    "test_storage_command",
    "test_generate",
    "test_ugly_bodies",
    "test_state_machine",
    "benchmarks",
    "docs",
    "test_db",
)
# What `--fast` leaves out, beside modules that start processes themselves.
SERVERS = {"shared_valkey", "valkey_server", "api_valkey", "postgres", "postgres_server", "plain", "installation"}
SERVER_NAMES = {"postgresql", "sqlite to postgresql", "postgresql to sqlite", "moto", "rclone"}  # of parameters
NOT_FAST = {
    *("benchmarks", "contracts", "docs", "e2e", "faults", "supervisor", "worker"),
    *("test_comfyui_trouble", "test_media", "test_hostile_imports", "test_media_import", "test_state_machine"),
    "test_write_a_provider",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fast", action="store_true", help="only tests that need no server and start no process")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    places = {name: number for number, name in enumerate(SLOWEST_FIRST)}
    items.sort(key=lambda item: min(places.get(name, len(places)) for name in names_of(item)))
    if config.getoption("--fast"):
        config.hook.pytest_deselected(items=[item for item in items if not is_fast(item)])
        items[:] = [item for item in items if is_fast(item)]


def names_of(item: pytest.Item) -> tuple[str, str]:
    return item.path.parent.name, item.path.stem


def is_fast(item: pytest.Item) -> bool:
    assert isinstance(item, pytest.Function)
    values = item.callspec.params.values() if hasattr(item, "callspec") else ()
    return not (
        SERVERS.intersection(item.fixturenames)
        or SERVER_NAMES.intersection(value for value in values if isinstance(value, str))
        or NOT_FAST.intersection(names_of(item))
        or hasattr(item.module, "subprocess")
    )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Each process takes a module at a time, or a class of one; what shares stacks stays in one process."""
    loadscope = importlib.import_module("xdist.scheduler").LoadScopeScheduling

    class Scheduling(loadscope):
        def _split_scope(self, nodeid: str) -> str:
            scope = nodeid.partition("[")[0].rpartition("::")[0]
            return "e2e" if "/e2e/" in scope else scope

    return Scheduling(config, log)


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
