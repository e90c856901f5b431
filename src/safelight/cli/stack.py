"""The Safelight a command speaks to: one that runs, or one of its own for as long as it is needed."""

import asyncio
import json
import os
import shlex
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from safelight.cli.failure import Exit, Failure
from safelight.cli.main import program
from safelight.stack_note import running_stacks
from safelight_client import Client

if TYPE_CHECKING:
    from safelight.supervisor import Supervisor

DEFAULT_DATA_DIR = Path(".safelight")  # as in config.py, which a client command has no need to load
TELL_SECONDS = 10.0  # between two words on a start that takes long
PATIENCE = 60.0  # seconds a server may be away while we watch; less where we could start one ourselves
LOCAL_PATIENCE = 8.0


class StackAccess:
    """Finds a running Safelight, or starts one and stops it at the end. A context manager, used in the main thread.

    `url` (or `SAFELIGHT_URL`) names the one to use, `data_dir` (or `SAFELIGHT_DATA_DIR`) the folder of it; otherwise it
    is the one of this folder, or the only one that runs. `starts`: whether one is started where none runs, which is for
    commands that have work for it. `say` gets short sentences for the user.
    """

    def __init__(
        self,
        url: str | None,
        data_dir: Path | None,
        say: Callable[[str], None],
        api_key: str | None = None,
        *,
        starts: bool = False,
    ) -> None:
        self._api_key = api_key or os.environ.get("SAFELIGHT_API_KEY") or None
        self._given_url = url or os.environ.get("SAFELIGHT_URL") or None
        named = data_dir or Path(os.environ.get("SAFELIGHT_DATA_DIR") or "")
        self._is_named = named != Path()
        self.data_dir = named if self._is_named else DEFAULT_DATA_DIR
        self._starts = starts
        self._say = say
        self._own: OwnStack | None = None
        self._client: Client | None = None

    @property
    def client(self) -> Client:
        """Speaks to the Safelight that was found or started."""
        if self._client is None:
            raise RuntimeError("StackAccess must be entered first")
        return self._client

    @property
    def is_own(self) -> bool:
        """Whether we started it, so that it ends with us."""
        return self._own is not None

    @property
    def patience(self) -> float:
        """How long a silent server is waited for before `find_again` is worth a try."""
        return PATIENCE if self._given_url else LOCAL_PATIENCE

    def __enter__(self) -> Self:
        self._connect()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._client is not None:
            self._client.close()
        if self._own is not None:
            self._own.stop()

    def find_again(self) -> bool:
        """After the server went away: is there another one on the data directory, or can we be it?

        Two commands may share the stack that one of them started; when that one has its picture, the stack ends.
        """
        if self._given_url or self.is_own:
            return False
        self.client.close()
        self._connect()
        return True

    def _connect(self) -> None:
        if self._given_url:
            self._client = Client(self._given_url, api_key=self._api_key)
            if not self._client.is_live():
                raise Failure(f"No Safelight answers at {self._given_url}.", Exit.UNAVAILABLE)
            return
        self._client = self._find() or self._find_elsewhere()
        if self._client is None and not self._starts:
            where = f" on {self.data_dir}" if self._is_named else ""
            raise Failure(
                f"No Safelight runs{where}. Start one with `{program()} up`, or name one with --url.", Exit.UNAVAILABLE
            )
        self._client = self._client or self._start()

    def _find(self) -> Client | None:
        try:
            url = json.loads((self.data_dir / "stack.json").read_text())["url"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return self._reach(url)

    def _find_elsewhere(self) -> Client | None:
        """The one that was started in another folder, where nothing says which is meant."""
        if self._is_named:
            return None
        found = [(stack, client) for stack in running_stacks() if (client := self._reach(stack.url))]
        if len(found) > 1:
            for _, client in found:
                client.close()
            told = "".join(f"\n  {stack.url}  --data-dir {shlex.quote(str(stack.data_dir))}" for stack, _ in found)
            raise Failure(f"Several Safelights run; say which with --data-dir or --url:{told}", Exit.USAGE)
        for stack, client in found:
            self._say(f"Using the Safelight at {stack.url}, which runs on {stack.data_dir}.")
            return client
        return None

    def _reach(self, url: str) -> Client | None:
        client = Client(url, api_key=self._api_key)
        if client.is_live():
            return client
        client.close()
        return None

    def _start(self) -> Client:
        from safelight.cli.settings import load_settings
        from safelight.errors import SafelightError
        from safelight.supervisor import StackRunning, Supervisor

        settings = load_settings(data_dir=self.data_dir, host="127.0.0.1", port=0)
        self._say("Starting Safelight for this job...")
        begun = told = time.monotonic()  # at a stack of another that is starting or being cleared away
        while True:
            own = OwnStack(Supervisor(settings, io_workers=1, quiet=True))
            try:
                url = own.start(self._say)
            except StackRunning as error:
                if time.monotonic() > begun + settings.start_seconds:
                    raise Failure(error.detail, Exit.UNAVAILABLE) from None
                if time.monotonic() > told + TELL_SECONDS:
                    told = time.monotonic()
                    self._say(f"Still waiting: {error.detail}")
                time.sleep(0.25)
                if found := self._find():
                    return found
            except SafelightError as error:
                logs = self.data_dir / "logs"
                raise Failure(f"{error.detail}\nLogs: {logs}", Exit.UNAVAILABLE) from None
            else:
                self._own = own
                return Client(url, api_key=self._api_key)


class OwnStack:
    """A supervisor in a thread of its own, so that the main thread can watch and hear Ctrl-C.

    The thread lives as long as the stack: the kernel ends children with the thread that started them.
    """

    def __init__(self, supervisor: "Supervisor") -> None:
        self._supervisor = supervisor
        self._started: Future[str] = Future()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._ending = asyncio.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._live()), name="stack")

    def start(self, say: Callable[[str], None]) -> str:
        """Start it and return its address; now and then a word that it takes long."""
        signal.signal(signal.SIGTERM, end_in_order)
        self._thread.start()
        begun = time.monotonic()
        try:
            while True:
                done, _ = wait([self._started], TELL_SECONDS)
                if done:
                    return self._started.result()
                say(f"Safelight is still starting, {time.monotonic() - begun:.0f} s so far.")
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop it in order; Ctrl-C while waiting kills it."""
        while self._thread.is_alive():
            try:
                if self._loop is not None and self._task is not None:
                    self._loop.call_soon_threadsafe(self._end)
                self._thread.join(timeout=0.5 if self._loop is None else None)
            except KeyboardInterrupt:
                if self._loop is not None:
                    self._loop.call_soon_threadsafe(self._supervisor.kill)
            except RuntimeError:  # the loop closed at this moment
                self._thread.join()

    def _end(self) -> None:
        self._ending.set()
        if not self._started.done() and self._task is not None:
            self._task.cancel()

    async def _live(self) -> None:
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        try:
            self._started.set_result(await self._supervisor.start())
            await self._ending.wait()
        except BaseException as error:
            if not self._started.done():
                self._started.set_exception(error)
        await self._supervisor.stop()


def end_in_order(number: int, frame: object) -> None:
    """SIGTERM leaves through the context managers, which stop the stack."""
    raise SystemExit(128 + number)
