"""Which stacks run on this machine: a note of each, so that a client command finds one from any folder.

`safelight up` leaves a note when it is ready and takes it away at its end; a note whose process has gone is no stack.
Only the standard library: every client command reads them.
"""

import contextlib
import hashlib
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class RunningStack:
    """A stack as its note tells of it."""

    url: str
    data_dir: Path
    pid: int


def notes_folder() -> Path:
    """Where this user's notes are: gone with the session where the system has such a place, else below the home."""
    for variable in ("XDG_RUNTIME_DIR", "XDG_STATE_HOME"):
        if (folder := Path(os.environ.get(variable, ""))).is_absolute():
            return folder / "safelight"
    with contextlib.suppress(RuntimeError):  # a user without a home
        return Path.home() / ".local" / "state" / "safelight"
    return Path(tempfile.gettempdir()) / f"safelight-{os.getuid()}"


def note_of(data_dir: Path) -> Path:
    """The note of the stack on a data directory."""
    name = hashlib.sha256(os.fsencode(data_dir.resolve())).hexdigest()[:16]
    return notes_folder() / f"stack-{name}.json"


def leave_note(stack: RunningStack) -> None:
    """Let client commands of this user find the stack. A courtesy: where it cannot be written, nothing is lost."""
    note = note_of(stack.data_dir)
    with contextlib.suppress(OSError):
        note.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, draft = tempfile.mkstemp(dir=note.parent)  # made with mode 0600
        with os.fdopen(descriptor, "w") as file:
            json.dump({"url": stack.url, "data_dir": str(stack.data_dir.resolve()), "pid": stack.pid}, file)
        Path(draft).replace(note)


def take_note_away(data_dir: Path) -> None:
    """The stack on this data directory ends."""
    with contextlib.suppress(OSError):
        note_of(data_dir).unlink(missing_ok=True)


def running_stacks() -> list[RunningStack]:
    """Those whose process lives; what others left behind is taken away."""
    found: list[RunningStack] = []
    with contextlib.suppress(OSError):
        for note in sorted(notes_folder().glob("stack-*.json")):
            try:
                told = json.loads(note.read_text())
                stack = RunningStack(str(told["url"]), Path(told["data_dir"]), int(told["pid"]))
            except (OSError, ValueError, KeyError, TypeError):
                continue
            if lives(stack.pid):
                found.append(stack)
            else:
                note.unlink(missing_ok=True)
    return found


def lives(pid: int) -> bool:
    """Whether there is such a process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
