"""The claim of one stack on a data directory, and what others may know about it.

The lock is a file lock whose descriptor every process of the stack inherits: it is free again only when the last of
them has ended, however the first one ended. Beside it stand two small files: `children.json` (who belongs to it, for
people) and `stack.json` (the address and the queue, once it is ready, for the command line).
"""

import fcntl
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, Self

from safelight.config import DATA_DIR_REMEDY
from safelight.errors import ErrorKind, SafelightError
from safelight.folder import open_folder, open_private
from safelight.stack_note import RunningStack, leave_note, take_note_away
from safelight.supervisor.guard import is_alive


class StackRunning(SafelightError):
    """A Safelight already runs on this data directory."""

    kind: ClassVar[ErrorKind] = "conflict"
    code: ClassVar[str] = "stack_running"


class StackEnding(StackRunning):
    """What is left of an earlier Safelight still runs on this data directory."""

    code: ClassVar[str] = "stack_ending"


class StackLock:
    """Held by the stack that owns the data directory. Take it with `StackLock.take`."""

    def __init__(self, data_dir: Path, descriptor: int, mark: str) -> None:
        self.descriptor = descriptor
        self._stack_file = data_dir / "stack.json"
        self._children_file = data_dir / "children.json"
        self._mark = mark
        self._children: dict[str, int] = {}

    @classmethod
    def take(cls, data_dir: Path, mark: str) -> Self:
        """Claim the directory, which is made if need be. Raises `StackRunning` or `StackEnding` when it is taken, and
        `FolderUnusable`."""
        open_folder(data_dir, "data directory", DATA_DIR_REMEDY)
        descriptor = os.open(data_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise refusal(data_dir) from None
        lock = cls(data_dir, descriptor, mark)
        lock.withdraw()
        lock._note_children()
        return lock

    def publish(self, url: str, own_redis_url: str | None = None, *, everywhere: bool = False) -> None:
        """Let the command line find the stack, now that it is ready, and the queue if the stack started one.

        By its data directory; `everywhere`: from any folder.
        """
        queue = {} if own_redis_url is None else {"redis_url": own_redis_url}
        write_json(self._stack_file, {"url": url, "pid": os.getpid(), **queue})
        if everywhere:
            leave_note(RunningStack(url, self._stack_file.parent, os.getpid()))

    def withdraw(self) -> None:
        """The stack is not ready (any more)."""
        take_note_away(self._stack_file.parent)
        self._stack_file.unlink(missing_ok=True)

    def group_started(self, name: str, pid: int) -> None:
        """A child began to live."""
        self._children[name] = pid
        self._note_children()

    def group_ended(self, name: str, pid: int) -> None:
        """A child is gone."""
        if self._children.get(name) == pid:
            del self._children[name]
            self._note_children()

    def release(self) -> None:
        """Give the directory back. Without effect as long as a child lives, who holds the lock too."""
        self.withdraw()
        self._children_file.unlink(missing_ok=True)
        os.close(self.descriptor)

    def _note_children(self) -> None:
        content = {"supervisor": os.getpid(), "mark": self._mark, "children": self._children}
        with suppress(OSError):  # a full disk: the list is a courtesy
            write_json(self._children_file, content)


def refusal(data_dir: Path) -> StackRunning:
    """Who holds the directory, said so that a person knows what to do."""
    children = read_json(data_dir / "children.json")
    pid = children.get("supervisor")
    if isinstance(pid, int) and not is_alive(pid):
        left = [f"{name} (process {child})" for name, child in children.get("children", {}).items() if is_alive(child)]
        names = ", ".join(left) or "its last processes"
        return StackEnding(
            f"An earlier Safelight on {data_dir} was killed and is still being cleared away: {names}. "
            "That takes a few seconds; then try again."
        )
    url = read_json(data_dir / "stack.json").get("url")
    where = f"at {url}" if url else "and is starting or stopping"
    return StackRunning(
        f"Safelight already runs on {data_dir} {where} (process {pid or 'unknown'}). "
        "Stop it first (Ctrl-C there), or choose another --data-dir."
    )


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file, or an empty one."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Replace a file as a whole: a reader sees the old content or the new."""
    fresh = path.with_name(f".{path.name}.new")
    with os.fdopen(open_private(fresh, os.O_WRONLY | os.O_TRUNC), "w") as file:
        file.write(json.dumps(value) + "\n")
    fresh.replace(path)
