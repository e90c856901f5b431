"""Where the words of a stack go: one file per child, and the terminal with the child's name before each line."""

import os
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, TextIO

from safelight.folder import open_private

COLOURS = (36, 35, 34, 33, 32, 96, 95, 94)
ESCAPES = re.compile(rb"\x1b\[[0-9;?]*[ -/]*[@-~]")


class LogFile:
    """A file that is moved aside at a size, with a few older ones kept (`api.log.1` is the newest of them).

    A full or broken disk costs lines, never a child: what cannot be written is dropped.
    """

    def __init__(self, path: Path, *, max_bytes: int = 10_000_000, keep: int = 3) -> None:
        self.path = path
        self._max_bytes = max_bytes
        self._keep = keep
        self._file: BinaryIO | None = None
        self._size = 0

    def write(self, line: bytes) -> None:
        """Append one line (without its end), free of terminal colours."""
        content = ESCAPES.sub(b"", line) + b"\n"
        with suppress(OSError):
            if self._file is not None and self._size + len(content) > self._max_bytes:
                self._rotate()
            if self._file is None:
                self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._file = os.fdopen(open_private(self.path, os.O_WRONLY | os.O_APPEND), "ab", buffering=0)
                self._size = self.path.stat().st_size
            self._size += self._file.write(content)

    def close(self) -> None:
        """Close the file; another write opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _rotate(self) -> None:
        self.close()
        for number in range(self._keep, 0, -1):
            older = self.path if number == 1 else self.path.with_name(f"{self.path.name}.{number - 1}")
            with suppress(FileNotFoundError):
                older.replace(self.path.with_name(f"{self.path.name}.{number}"))


class Terminal:
    """Lines of many speakers on one screen. Says nothing when quiet, and goes on when the screen has gone away."""

    def __init__(self, *, quiet: bool, colour: bool, stream: TextIO | None = None) -> None:
        self._quiet = quiet
        self._colour = colour
        self._stream = stream or sys.stdout
        self._colours: dict[str, int] = {}

    def show(self, name: str, line: str) -> None:
        """One line of a child or of the supervisor itself."""
        label = f"{name:<9} | "
        if self._colour:
            colour = self._colours.setdefault(name, COLOURS[len(self._colours) % len(COLOURS)])
            label = f"\x1b[{colour}m{label}\x1b[0m"
        self.write(label + line)

    def write(self, text: str) -> None:
        """Text as it is."""
        if self._quiet:
            return
        with suppress(OSError, ValueError):  # the terminal was closed
            self._stream.write(text + "\n")
            self._stream.flush()
