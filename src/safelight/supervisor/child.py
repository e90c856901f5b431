"""A supervised child process: started, heard, restarted with back-off, stopped with everything it started."""

import asyncio
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from safelight.supervisor.guard import signal_group
from safelight.supervisor.output import LogFile

BECOME = Path(__file__).with_name("become.py")
LINE_LIMIT = 64 * 1024
TAIL_LINES = 20


@dataclass(frozen=True, slots=True)
class Restarts:
    """When a dead child is started again, and when that is pointless."""

    first_delay: float = 0.5
    longest_delay: float = 30.0
    steady_seconds: float = 60.0  # a life this long forgives the deaths before it
    quick_seconds: float = 5.0  # a life shorter than this was no life
    quick_limit: int = 5  # as many of those in a row: it will not work


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """What a child is: a name for people and a command. `shows` chooses the lines worth showing on the terminal."""

    name: str
    command: tuple[str, ...]
    shows: Callable[[str], bool] = lambda line: True


@dataclass(frozen=True, slots=True)
class ChildHost:
    """What the supervisor lends its children, and what it wants to hear of them."""

    environment: Mapping[str, str]
    inherited_fds: tuple[int, ...]
    log_dir: Path
    show: Callable[[str, str], None]
    say: Callable[[str], None]
    group_started: Callable[[str, int], None]
    group_ended: Callable[[str, int], None]
    gave_up: Callable[["Child"], None]
    restarts: Restarts = Restarts()


class Child:
    """One child of the stack over all its lives. Each life leads a session and a process group of its own."""

    def __init__(self, spec: ChildSpec, host: ChildHost) -> None:
        self.name = spec.name
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self.died = asyncio.Event()  # at least once
        self.return_code: int | None = None  # of its latest life
        self._spec = spec
        self._host = host
        self._log = LogFile(host.log_dir / f"{spec.name}.log")
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """The process id while it lives."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Begin its first life, and supervise it from now on."""
        self._task = asyncio.create_task(self._supervise(), name=f"child {self.name}")

    async def run_once(self) -> int:
        """Live a single life and return its exit code (negative: the signal that ended it)."""
        task = self._task = asyncio.create_task(self._live(), name=f"child {self.name}")
        await asyncio.shield(task)
        return self.return_code if self.return_code is not None else 1

    async def stop(self, grace_seconds: float) -> None:
        """Ask it to end, and kill it with everything in its group when the grace is over."""
        if self._task is None:
            return
        self._stopping.set()
        self._terminate()
        await asyncio.wait({self._task}, timeout=grace_seconds)
        if not self._task.done():
            self._host.say(f"{self.name} did not stop within {grace_seconds:g} s; killing it.")
            self.kill()
            await asyncio.wait({self._task}, timeout=2)

    def kill(self) -> None:
        """End it now, with everything in its group, for good."""
        self._stopping.set()
        if self._process is not None:
            signal_group(self._process.pid, signal.SIGKILL)

    async def _supervise(self) -> None:
        restarts = self._host.restarts
        delay, quick_deaths = restarts.first_delay, 0
        while True:
            begun = time.monotonic()
            await self._live()
            lived = time.monotonic() - begun
            if self._stopping.is_set():
                return
            if lived >= restarts.steady_seconds:
                delay = restarts.first_delay
            quick_deaths = quick_deaths + 1 if lived < restarts.quick_seconds else 0
            if quick_deaths >= restarts.quick_limit:
                self._host.say(f"{self.name} {self.how_it_ended()}, the {quick_deaths}th time in a row. Giving up.")
                self._host.gave_up(self)
                return
            self._host.say(f"{self.name} {self.how_it_ended()} after {lived:.0f} s; starting it again in {delay:g} s.")
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), delay)
                return
            delay = min(delay * 2, restarts.longest_delay)

    async def _live(self) -> None:
        """From start to end of one process, including whatever it left in its group."""
        output, input_ = os.pipe()
        try:
            process = await self._spawn(input_)
        except OSError as error:
            os.close(output)
            self._hear(f"{self._spec.command[0]} cannot be started: {error}".encode())
            self.return_code = 127
            self.died.set()
            return
        finally:
            os.close(input_)
        self._process = process
        self._host.group_started(self.name, process.pid)
        if self._stopping.is_set():
            self._terminate()
        listener = asyncio.create_task(self._listen(output))
        self.return_code = await process.wait()
        self._process = None
        signal_group(process.pid, signal.SIGKILL)
        # A process that left the group may still hold the pipe; its words are not worth waiting for.
        await asyncio.wait({listener}, timeout=1)
        listener.cancel()
        self._host.group_ended(self.name, process.pid)
        self._log.close()
        self.died.set()

    async def _spawn(self, output: int) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", str(BECOME), str(os.getpid()), *self._spec.command),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=self._host.environment,
            pass_fds=self._host.inherited_fds,
            start_new_session=True,
        )

    def _terminate(self) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.terminate()

    async def _listen(self, output: int) -> None:
        reader = asyncio.StreamReader()
        # A pipe of our own: asyncio's process waits for the end of its pipes, which a grandchild can hold open.
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(output, "rb", buffering=0)
        )
        rest = b""
        try:
            while chunk := await reader.read(LINE_LIMIT):
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    self._hear(line)
                if len(rest) > LINE_LIMIT:
                    self._hear(rest)
                    rest = b""
        finally:
            if rest:
                self._hear(rest)
            transport.close()

    def _hear(self, raw: bytes) -> None:
        raw = raw.removesuffix(b"\r")
        line = raw.decode("utf-8", "replace")
        self._log.write(raw)
        self.tail.append(line)
        if self._spec.shows(line):
            self._host.show(self.name, line)

    def how_it_ended(self) -> str:
        """The end of its latest life in words."""
        code = self.return_code
        if code is not None and code < 0:
            with suppress(ValueError):
                return f"was killed by {signal.Signals(-code).name}"
        return f"ended with code {code}"
