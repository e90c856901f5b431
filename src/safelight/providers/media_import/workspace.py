"""Where imports put their unfinished files: a folder for each, swept when its process has died.

A folder is held by a lock of the kernel's, which ends with the process that holds it, however that ends. So whoever can
take the lock of a folder knows that it is rubbish.
"""

import asyncio
import fcntl
import os
import shutil
import uuid
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from safelight.providers.media_import.error import NoRoom

LOCK = ".lock"


class Workspace:
    """The folders of imports below `root`. Of the disk `keep_free_bytes` are left; all unfinished files of this root
    together are at most `quota_bytes`."""

    def __init__(self, root: Path, *, keep_free_bytes: int, quota_bytes: int | None) -> None:
        self._root = root
        self._keep_free_bytes = keep_free_bytes
        self._quota_bytes = quota_bytes

    @asynccontextmanager
    async def folder(self) -> AsyncGenerator[Path]:
        """A new empty folder, removed with all that is in it at the end of the block."""
        await asyncio.to_thread(self.sweep)
        path, lock = await asyncio.to_thread(self._make)
        try:
            yield path
        finally:
            await asyncio.to_thread(shutil.rmtree, path, ignore_errors=True)  # a large file takes its time
            os.close(lock)

    def _make(self) -> tuple[Path, int]:
        while True:
            path = self._root / uuid.uuid4().hex
            path.mkdir(parents=True, mode=0o700)
            lock = os.open(path / LOCK, os.O_CREAT | os.O_RDWR, 0o600)
            with suppress(BlockingIOError):  # a sweeper was quicker
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if (path / LOCK).exists():
                    return path, lock
            os.close(lock)

    def sweep(self) -> int:
        """Remove what processes left that have died; returns how many folders."""
        swept = 0
        for path in self._root.iterdir() if self._root.is_dir() else ():
            try:
                lock = os.open(path / LOCK, os.O_RDWR)
            except OSError:  # just made, or just removed
                continue
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
                swept += 1
            except BlockingIOError:
                pass  # somebody works there
            finally:
                os.close(lock)
        return swept

    def require_room(self, more_bytes: int) -> None:
        """Raise `NoRoom` if a file may not grow by so many bytes."""
        free = shutil.disk_usage(self._root).free - self._keep_free_bytes
        if more_bytes > free:
            raise NoRoom(
                f"The worker's disk has no room for {more_bytes:,} bytes more: {max(0, free):,} are free to be used."
            )
        if self._quota_bytes is not None and (left := self._quota_bytes - self._used_bytes()) < more_bytes:
            raise NoRoom(f"Imports under way may hold {self._quota_bytes:,} bytes; {max(0, left):,} are left.")

    def _used_bytes(self) -> int:
        used = 0
        for folder, _, names in os.walk(self._root):
            for name in names:
                with suppress(OSError):
                    used += os.stat(os.path.join(folder, name)).st_size  # noqa: PTH116, PTH118
        return used
