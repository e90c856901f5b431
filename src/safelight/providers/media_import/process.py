"""A program that an import runs: it ends with the block that runs it, and with this process, with all it started."""

import asyncio
import os
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

from safelight.providers.program import MEMORY_BYTES, bounded

GUARD = Path(__file__).with_name("guard.py")
LINE_BYTES = 4 * 1024 * 1024
SAID_BYTES = 8000
PASSED_ON = ("PATH", "SSL_CERT_FILE", "SSL_CERT_DIR", "SAFELIGHT_STACK")  # nothing else: our environment holds secrets


class Program:
    """A running program: its lines, what it says on standard error, and how it ended."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._said = b""
        self._output = cast(asyncio.StreamReader, process.stdout)
        self._listener = asyncio.create_task(self._listen(cast(asyncio.StreamReader, process.stderr)))

    async def lines(self) -> AsyncGenerator[str]:
        """Its standard output, line by line, to the end."""
        while line := await self._output.readline():
            yield line.decode("utf-8", "replace").rstrip("\n")

    async def end(self) -> int:
        """Its exit code."""
        await self._listener
        return await self._process.wait()

    def leave(self) -> None:
        """Listen no more."""
        self._listener.cancel()

    @property
    def said(self) -> str:
        """The last of what it said on standard error."""
        return self._said.decode("utf-8", "replace")

    async def _listen(self, errors: asyncio.StreamReader) -> None:
        while part := await errors.read(65536):
            self._said = (self._said + part)[-SAID_BYTES:]


@asynccontextmanager
async def running(
    command: Sequence[str],
    folder: Path,
    environment: dict[str, str] | None = None,
    *,
    memory_bytes: int = MEMORY_BYTES,
    file_bytes: int | None = None,
) -> AsyncGenerator[Program]:
    """Run a program in `folder`, which is its home too, within these limits (`bounded`). The lifeline is closed at the
    end of the block, or by the kernel with this process."""
    reading, writing = os.pipe()
    process: asyncio.subprocess.Process | None = None
    program: Program | None = None
    try:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", str(GUARD), str(folder)),
            *bounded(command, memory_bytes=memory_bytes, file_bytes=file_bytes),
            stdin=reading,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=folder,
            env={
                **{name: os.environ[name] for name in PASSED_ON if name in os.environ},
                "HOME": str(folder),
                "TMPDIR": str(folder),
                "LC_ALL": "C.UTF-8",
                **(environment or {}),
            },
            limit=LINE_BYTES,
            start_new_session=True,
        )
        program = Program(process)
        yield program
    finally:
        os.close(reading)
        os.close(writing)
        if program is not None:
            program.leave()
        if process is not None:
            await process.wait()
