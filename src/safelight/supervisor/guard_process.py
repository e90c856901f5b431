"""The supervisor's end of the guard: what it is told, and that there always is one."""

import asyncio
import contextlib
import os
import sys
from pathlib import Path


class GuardProcess:
    """The running guard: it hears of every process group, and of our own end when the pipe closes."""

    def __init__(self, lock_descriptor: int, mark: str, runtime_dir: Path) -> None:
        self._lock_descriptor = lock_descriptor
        self._arguments = (mark, str(runtime_dir))
        self._groups: set[int] = set()
        self._pipe = -1
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start it, and keep one there as long as we live."""
        await self._spawn()
        self._task = asyncio.create_task(self._keep(), name="guard")

    def add(self, group: int) -> None:
        """A process group that must not outlive us."""
        self._groups.add(group)
        self._send(f"+{group}")

    def discard(self, group: int) -> None:
        """A process group that has gone."""
        self._groups.discard(group)
        self._send(f"-{group}")

    async def dismiss(self) -> None:
        """Everything was asked to stop and had its time: let it kill what is left, if anything, and end."""
        if self._task is not None:
            self._task.cancel()
        self._send(".")
        os.close(self._pipe)
        self._pipe = -1
        if self._process is not None:
            await self._process.wait()

    async def _keep(self) -> None:
        while self._process is not None:
            await self._process.wait()
            os.close(self._pipe)
            await self._spawn()

    async def _spawn(self) -> None:
        ear, self._pipe = os.pipe()
        program = Path(__file__).with_name("guard.py")
        try:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", str(program), str(ear), *self._arguments),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
                pass_fds=(ear, self._lock_descriptor),
                start_new_session=True,
            )
        finally:
            os.close(ear)
        for group in self._groups:
            self._send(f"+{group}")

    def _send(self, line: str) -> None:
        with contextlib.suppress(OSError):  # it died: its successor is told everything again
            os.write(self._pipe, f"{line}\n".encode())
