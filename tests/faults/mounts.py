"""A disk small enough to fill: a tmpfs, in a mount namespace of our own, so that it is gone when we are."""

import contextlib
import ctypes
import os
import subprocess
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Self

SIZE_MB = 192
CLONE_NEWNS = 0x00020000


class SmallDisk:
    """Holds the database file and the pictures; `fill` leaves no room, `free` gives it back."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ballast = path / "ballast"

    @classmethod
    @contextlib.contextmanager
    def mounted(cls) -> Generator[Self | None]:
        """A fresh one; None where mounting is not permitted."""
        if not can_mount():
            yield None
            return
        with tempfile.TemporaryDirectory(prefix="safelight-disk-") as folder:
            mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_MB}m", "none", folder]
            if subprocess.run(mount, capture_output=True, check=False).returncode:
                yield None
                return
            try:
                yield cls(Path(folder))
            finally:
                subprocess.run(["umount", "--lazy", folder], capture_output=True, check=False)

    def fill(self, *, leave_bytes: int = 0) -> None:
        """Take all room but `leave_bytes`."""
        with self._ballast.open("ab", buffering=0) as file:
            for size in (1 << 20, 1 << 12):
                with contextlib.suppress(OSError):
                    while True:
                        if self._room() - size < leave_bytes:
                            break
                        file.write(b"\0" * size)

    def free(self) -> None:
        self._ballast.unlink(missing_ok=True)

    def freeze(self) -> None:
        """Make it read-only, which takes that no file in it is open for writing."""
        subprocess.run(["mount", "-o", "remount,ro", str(self.path)], check=True)

    def thaw(self) -> None:
        subprocess.run(["mount", "-o", "remount,rw", str(self.path)], check=True)

    def _room(self) -> int:
        found = os.statvfs(self.path)
        return found.f_bavail * found.f_frsize


def can_mount() -> bool:
    return sys.platform == "linux" and os.geteuid() == 0


def leave_mount_namespace() -> None:
    """Mount unseen by others from here on. Call it before any thread is started: it is for the calling thread."""
    if can_mount() and ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS) == 0:
        subprocess.run(["mount", "--make-rprivate", "/"], capture_output=True, check=False)
