"""A folder of the service's own: made for its owner's eyes alone, and proved before anything relies on it."""

import errno
import os
import tempfile
from pathlib import Path
from typing import ClassVar

from safelight.errors import ErrorKind, SafelightError

PROOF_BYTES = 64 * 1024  # on a full disk a few bytes may still go into a block that is there


class FolderUnusable(SafelightError):
    """A folder that the service needs cannot be used."""

    kind: ClassVar[ErrorKind] = "unavailable"
    code: ClassVar[str] = "folder_unusable"


def open_folder(path: Path, name: str, remedy: str) -> None:
    """Make the folder if need be (mode 0700) and prove that files can be written in it.

    `name` is what it is to people ("data directory"), `remedy` how to name another one. Raises `FolderUnusable`.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path) as file:
            file.write(b"\0" * PROOF_BYTES)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise FolderUnusable(f"The {name} {path} cannot be used: {_why(path, error)}; {remedy}.") from error


def hindrance(path: Path) -> str | None:
    """Why no file can be made in a folder, as far as can be told without making one."""
    why = disk_hindrance(path)
    if why is None and not os.access(path, os.W_OK | os.X_OK):
        why = _why(path, OSError(errno.EACCES, ""))
    return why


def disk_hindrance(path: Path) -> str | None:
    """Why nothing more can be written where a folder is, in files that are open neither."""
    try:
        found = os.statvfs(path)
    except OSError as error:
        return _why(path, error)
    if found.f_flag & os.ST_RDONLY:
        return _why(path, OSError(errno.EROFS, ""))
    if found.f_blocks and found.f_bavail * found.f_frsize < PROOF_BYTES:
        return _why(path, OSError(errno.ENOSPC, ""))
    return None


def open_private(path: Path, flags: int) -> int:
    """A descriptor of a file that is made, if it is not there, for nobody else to read, whatever its folder allows."""
    return os.open(path, flags | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _why(path: Path, error: OSError) -> str:
    blocking = next((each for each in (path, *path.parents) if each.exists() and not each.is_dir()), None)
    if blocking is not None:
        return f"{'it' if blocking == path else blocking} is a file, not a folder"
    match error.errno:
        case errno.EACCES | errno.EPERM:
            there = next((each for each in (path, *path.parents) if each.exists()), path)
            return f"the user with the id {os.geteuid()} may not write in {'it' if there == path else there}"
        case errno.EROFS:
            return "it lies on a file system that is read-only"
        case errno.ENOSPC | errno.EDQUOT:
            return "its disk is full"
        case _:
            return error.strerror or type(error).__name__
