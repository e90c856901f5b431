"""The stack: an embedded Valkey, the API and the workers as children of one process, started and stopped in order.

`Supervisor` says "ready" only after a real job has gone through the queue. However it ends, nothing stays behind: the
children die with it (Linux), the guard clears away what does not, and the lock on the data directory is free again
only when the last process has gone. Our own, since honcho restarts nothing and knows no order, and circus and
supervisord have a control socket and files of their own.
"""

import asyncio
import contextlib
import json
import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import AliasChoices, BaseModel, SecretStr
from pydantic_settings import NoDecode

from safelight.config import Settings
from safelight.errors import SafelightError, Unavailable
from safelight.supervisor import valkey
from safelight.supervisor.address import address, free_port, require_loopback
from safelight.supervisor.child import Child, ChildHost, ChildSpec
from safelight.supervisor.guard import MARK_VARIABLE
from safelight.supervisor.guard_process import GuardProcess
from safelight.supervisor.key import passing_key
from safelight.supervisor.lock import StackLock
from safelight.supervisor.output import LogFile, Terminal
from safelight.supervisor.probe import API, is_live, send_job
from safelight.valkey import require_redis

# Stopping takes at most 5 s in all, and graces nest: a worker drains for less than it is given.
DRAIN_SECONDS = 1.5
WORKER_GRACE, API_GRACE, VALKEY_GRACE = 2.5, 1.5, 0.7
TELL_SECONDS = 10.0  # between two words on what is waited for; on an idle machine all of it needs 3
REFUSAL = "Error: "  # how a command begins the sentence with which it refuses
PAUSE = 0.03  # between two looks at a part that starts
REDIS_PAUSE = 5.0  # between two looks at a Redis that is away
LINE_WIDTH = 240  # of a child's last words inside a message; its file has them whole


class StartFailed(SafelightError):
    """The stack could not be started."""

    code: ClassVar[str] = "start_failed"


class Supervisor:
    """One stack on one data directory: `start`, then `run_until_stopped` or `stop`. Not to be used twice.

    `quiet` keeps every word out of the terminal; the files in `<data-dir>/logs` get them all the same. Such a stack
    belongs to the command that started it, and is found by its data directory only.
    """

    def __init__(self, settings: Settings, *, io_workers: int, quiet: bool) -> None:
        self.url = ""
        self._is_ready = False
        self._settings = settings
        self._io_workers = io_workers
        self._data_dir = settings.data_dir.resolve()
        self._quiet = quiet
        on_terminal = sys.stdout.isatty() and not quiet
        self._terminal = Terminal(quiet=quiet, colour=on_terminal and "NO_COLOR" not in os.environ)
        self._log = LogFile(self._data_dir / "logs" / "safelight.log")
        self._log_format = "console" if on_terminal and settings.log_format == "auto" else settings.log_format
        self._mark = uuid.uuid4().hex
        self._lock: StackLock | None = None
        self._runtime_dir: Path | None = None
        self._guard: GuardProcess | None = None
        self._valkey: Child | None = None
        self._api: Child | None = None
        self._workers: list[Child] = []
        self._children: list[Child] = []  # every one that was ever started
        self._lost: Child | None = None
        self._over = asyncio.Event()  # somebody asked to stop, or a child cannot be kept alive
        self._stop_task: asyncio.Task[None] | None = None

    # --- start ----------------------------------------------------------------------------------------------------

    async def start(self) -> str:
        """Start everything and return the address once a probe job has come back. A failure leaves nothing running."""
        try:
            return await self._start()
        except BaseException:
            await self.stop()
            raise

    async def _start(self) -> str:
        begun = time.monotonic()
        require_loopback(self._settings.host, has_accounts=self._settings.has_accounts)
        self._lock = StackLock.take(self._data_dir, self._mark)
        port = free_port(self._settings.host, self._settings.port)
        self._runtime_dir = make_runtime_dir()
        self._guard = GuardProcess(self._lock.descriptor, self._mark, self._runtime_dir)
        await self._guard.start()

        self._say(f"Starting on {self._data_dir}")
        redis_url = self._settings.redis_url.get_secret_value()
        if redis_url:
            await self._await_redis(redis_url)
        socket_path = self._runtime_dir / "valkey.sock"
        embedded_url = f"unix://{socket_path}?db={self._settings.redis_database}"
        host = self._host_of_children(self._lock, port, redis_url or embedded_url)
        migration = asyncio.create_task(self._migrate(host))
        try:
            if not redis_url:
                await self._start_valkey(host, socket_path)
            await migration
        finally:
            migration.cancel()

        self.url = address(self._settings.host, port)
        self._api = self._child(host, "api", python("api"))
        io_names = [f"io-{number}" for number in range(1, self._io_workers + 1)]
        self._workers = [
            *(self._child(host, name, python("worker", "--kind", "io", "--name", name)) for name in io_names),
            *(
                self._child(host, kind, python("worker", "--kind", kind, "--name", kind))
                for kind in ("local", "imports")
            ),
        ]
        for child in (self._api, *self._workers):
            child.start()
        await self._unless_lost(self._until("the API", lambda: is_live(self.url)), self._api)
        await self._unless_lost(self._probe(), self._api)
        self._lock.publish(self.url, None if redis_url else embedded_url, everywhere=not self._quiet)
        self._is_ready = True
        self._say(f"Ready in {time.monotonic() - begun:.1f} s at {self.url}")
        return self.url

    def _host_of_children(self, lock: StackLock, port: int, redis_url: str) -> ChildHost:
        own = {
            "SAFELIGHT_DATA_DIR": str(self._data_dir),
            "SAFELIGHT_PORT": str(port),
            "SAFELIGHT_REDIS_URL": redis_url,
            "SAFELIGHT_LOG_FORMAT": self._log_format,
            "SAFELIGHT_DRAIN_SECONDS": str(min(DRAIN_SECONDS, self._settings.drain_seconds)),
            MARK_VARIABLE: self._mark,
            "PYTHONUNBUFFERED": "1",
        }
        return ChildHost(
            environment={**os.environ, **settings_environment(self._settings), **own},
            inherited_fds=(lock.descriptor,),
            log_dir=self._data_dir / "logs",
            show=self._terminal.show,
            say=self._say,
            group_started=self._group_started,
            group_ended=self._group_ended,
            gave_up=self._gave_up,
        )

    def _child(self, host: ChildHost, name: str, command: tuple[str, ...], **options: Any) -> Child:
        child = Child(ChildSpec(name, command, **options), host)
        self._children.append(child)
        return child

    async def _migrate(self, host: ChildHost) -> None:
        child = self._child(host, "migrate", python("migrate"), shows=lambda line: not line.startswith(REFUSAL))
        async with self._telling("the database to be brought up to date"):
            code = await child.run_once()
        if code:
            if child.tail and child.tail[-1].startswith(REFUSAL):  # which says what is wrong and what to do
                raise StartFailed(child.tail[-1].removeprefix(REFUSAL))
            raise StartFailed(f"The database could not be migrated.{last_lines(child)}")

    async def _await_redis(self, url: str) -> None:
        """What can never work is refused at once; a server that is away may start beside us."""
        give_up = time.monotonic() + self._settings.start_seconds
        while True:
            try:
                await require_redis(url, database=self._settings.redis_database)
                return
            except Unavailable as error:
                if time.monotonic() > give_up:
                    raise
                self._say(f"{error.detail} Waiting for it.")
            await asyncio.sleep(REDIS_PAUSE)

    async def _start_valkey(self, host: ChildHost, socket_path: Path) -> None:
        binary = valkey.server_binary()
        if binary is None:
            raise StartFailed(
                "No Redis-compatible server was found: there is none in PATH, and no packaged one for this platform. "
                "Install valkey or redis, or set SAFELIGHT_REDIS_URL to a server that runs."
            )
        data_dir = self._data_dir / "valkey"
        command = valkey.server_command(binary, data_dir=data_dir, socket=socket_path)
        for is_second_try in (False, True):
            data_dir.mkdir(mode=0o700, exist_ok=True)
            self._valkey = self._child(host, "valkey", command, shows=valkey.is_worth_showing)
            self._valkey.start()
            try:
                waiting = self._until("Valkey", lambda: valkey.answers(socket_path))
                await self._unless_lost(waiting, self._valkey)
                return
            except StartFailed:
                if is_second_try or not any(data_dir.iterdir()):
                    raise
                # A damaged file, or one of a newer server. Nothing in it is needed: the jobs are in the database.
                await self._valkey.stop(VALKEY_GRACE)
                aside = data_dir.with_name(f"valkey-unreadable-{int(time.time())}")
                data_dir.rename(aside)
                self._say(f"Valkey could not start on its files; beginning with new ones. The old: {aside}")

    async def _probe(self) -> None:
        async with passing_key(self._settings) as api_key, self._telling("the first job to come back"):
            problem = await send_job(self.url, self._settings.start_seconds, api_key)
        if problem:
            told = "".join(f"\n  {worker.name} said:{last_lines(worker)}" for worker in self._workers[:1])
            raise StartFailed(f"The probe job did not get through: {problem}.{told}")

    async def _until(self, what: str, answers: Callable[[], Awaitable[bool]]) -> None:
        """Wait until it answers, and fail with a sentence instead of waiting for ever."""
        async with self._telling(f"{what} to answer"):
            give_up = time.monotonic() + self._settings.start_seconds
            while not await answers():
                if time.monotonic() > give_up:
                    raise StartFailed(
                        f"{what[0].upper()}{what[1:]} did not answer within {self._settings.start_seconds:g} s. "
                        "SAFELIGHT_START_SECONDS lets a slow machine take longer."
                    )
                await asyncio.sleep(PAUSE)

    @contextlib.asynccontextmanager
    async def _telling(self, what: str) -> AsyncGenerator[None]:
        """Say now and then what is waited for: silence looks like a hang."""

        async def tell() -> None:
            begun = time.monotonic()
            while True:
                await asyncio.sleep(TELL_SECONDS)
                self._say(f"Waiting for {what}, {time.monotonic() - begun:.0f} s so far.")

        telling = asyncio.create_task(tell())
        try:
            yield
        finally:
            telling.cancel()

    async def _unless_lost(self, waiting: Coroutine[Any, Any, None], child: Child) -> None:
        """Wait, but not for something that cannot come any more: this child died, or another was given up."""
        task = asyncio.create_task(waiting)
        died, over = asyncio.create_task(child.died.wait()), asyncio.create_task(self._over.wait())
        try:
            await asyncio.wait({task, died, over}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                lost = self._lost or child
                raise StartFailed(f"{lost.name} {lost.how_it_ended()}.{last_lines(lost)}")
            await task
        finally:
            for each in (task, died, over):
                each.cancel()

    # --- while it runs --------------------------------------------------------------------------------------------

    async def run_until_stopped(self) -> int:
        """Start if need be, run until a signal comes or a child is given up, stop; returns the exit code.

        Ctrl-C (and SIGTERM, and the end of the terminal) stops in order; a second one kills at once.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._interrupted)
        try:
            if not self._is_ready:
                starting = asyncio.create_task(self.start())
                over = asyncio.create_task(self._over.wait())
                await asyncio.wait({starting, over}, return_when=asyncio.FIRST_COMPLETED)
                over.cancel()
                if not starting.done() and not self._lost:
                    starting.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await starting
            if self._is_ready and not self._over.is_set():
                self._terminal.write(welcome(self.url, self._settings.played, self._key_command()))
            await self._over.wait()
            await self.stop()
        finally:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                loop.remove_signal_handler(number)
        if self._lost is not None:
            self._say(f"{self._lost.name} cannot be kept alive. Its last words:{last_lines(self._lost)}")
            return 1
        return 0

    def _key_command(self) -> str | None:
        """Where there are accounts: the command that makes a key for this stack."""
        if not self._settings.has_accounts:
            return None
        command = os.environ.get("SAFELIGHT_COMMAND") or "safelight"
        return f"{command} keys create laptop --owner me --data-dir {shlex.quote(str(self._data_dir))}"

    def _interrupted(self) -> None:
        if self._over.is_set():
            self.kill()
        else:
            self._say("Stopping. Once more kills at once.")
            self._over.set()

    def _gave_up(self, child: Child) -> None:
        self._lost = child
        self._over.set()

    def _group_started(self, name: str, pid: int) -> None:
        if self._lock is not None and self._guard is not None:
            self._guard.add(pid)
            self._lock.group_started(name, pid)

    def _group_ended(self, name: str, pid: int) -> None:
        if self._lock is not None and self._guard is not None:
            self._guard.discard(pid)
            self._lock.group_ended(name, pid)

    def _say(self, text: str) -> None:
        self._log.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {text}".encode())
        self._terminal.show("safelight", text)

    # --- stop -----------------------------------------------------------------------------------------------------

    async def stop(self) -> None:
        """Stop in order, within 5 s: workers drain, the API closes its streams, Valkey writes its file. Idempotent."""
        if self._stop_task is None:
            self._stop_task = asyncio.create_task(self._stop())
        await asyncio.shield(self._stop_task)

    def kill(self) -> None:
        """End every child now, mid-word. Accepted jobs are safe in the database."""
        for child in self._children:
            child.kill()

    async def _stop(self) -> None:
        begun = time.monotonic()
        if self._lock is None:
            return
        self._lock.withdraw()
        named = {self._api, self._valkey, *self._workers}
        others = [child for child in self._children if child not in named]
        await asyncio.gather(*(child.stop(WORKER_GRACE) for child in [*self._workers, *others]))
        if self._api is not None:
            await self._api.stop(API_GRACE)
        if self._valkey is not None:
            await self._valkey.stop(VALKEY_GRACE)
        if self._guard is not None:
            await self._guard.dismiss()
        if self._runtime_dir is not None:
            shutil.rmtree(self._runtime_dir, ignore_errors=True)
        if self._children:
            self._say(f"Stopped in {time.monotonic() - begun:.1f} s. Unfinished jobs go on at the next start.")
        self._lock.release()
        self._lock = None
        self._log.close()


def python(*arguments: str) -> tuple[str, ...]:
    """The command of a child that is Safelight itself."""
    return (sys.executable, "-P", "-m", "safelight", *arguments)


def settings_environment(settings: Settings) -> dict[str, str]:
    """The variables that give a child process these settings, as far as they were set at all."""
    variables: dict[str, str] = {}
    for name in settings.model_fields_set:
        value: Any = getattr(settings, name)
        field = type(settings).model_fields[name]
        alias = field.validation_alias
        variable = str(alias.choices[0]) if isinstance(alias, AliasChoices) else f"SAFELIGHT_{name.upper()}"
        if isinstance(value, SecretStr):
            value = value.get_secret_value()
        if value is not None:
            if NoDecode in field.metadata:  # written with commas
                variables[variable] = ",".join(map(str, value))
            elif isinstance(value, (bool, dict, list)):
                variables[variable] = json.dumps(value, default=_plain)
            else:
                variables[variable] = str(value)
    return variables


def _plain(value: BaseModel | SecretStr) -> Any:
    return value.get_secret_value() if isinstance(value, SecretStr) else value.model_dump()


def make_runtime_dir() -> Path:
    """A private directory for the socket, short enough for the path of one."""
    made = Path(tempfile.mkdtemp(prefix="safelight-"))
    if len(os.fsencode(made / "valkey.sock")) < valkey.SOCKET_PATH_LIMIT:
        return made
    made.rmdir()
    return Path(tempfile.mkdtemp(prefix="safelight-", dir="/tmp"))


def last_lines(child: Child) -> str:
    """The last words of a child, indented, for the end of a message."""
    return "".join(f"\n    {line[:LINE_WIDTH]}" for line in child.tail)


def welcome(url: str, played: Sequence[str], key_command: str | None = None) -> str:
    """What to do now, ready to be pasted.

    `played` are the providers that are configured, and played by the mock all the same; `key_command` makes the key
    that a request needs where there are accounts.
    """
    key, header = "", ""
    if key_command:
        key = f"    export SAFELIGHT_API_KEY=$({key_command})\n"
        header = '         -H "Authorization: Bearer $SAFELIGHT_API_KEY" \\\n'
    warning = (
        f"\n  The mock draws in place of {' and '.join(played)}: AI_MOCK_MODE=false lets them work themselves.\n"
        if played
        else ""
    )
    return f"""
  Safelight is ready:  {url}        (Ctrl-C stops it)

{key}    curl -s {url}{API}/generation-jobs -H 'Content-Type: application/json' \\
{header}         -H 'Prefer: wait=30' -d '{{"prompt": "a lighthouse at dusk"}}'
{warning}"""
