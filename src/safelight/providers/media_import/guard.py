"""The process guard: runs one program for an import, and ends it with everything that it started.

Its standard input is the read end of a pipe whose other end only the importing process has. When that pipe ends, the
import was stopped or its process is gone, however it went: all that the program started is killed, and the folder it
worked in removed. Orphans of the program become the guard's own children (Linux), so none can slip away.

Run as a file by a bare interpreter (`python -I -S guard.py FOLDER COMMAND...`): standard library only.
"""

import os
import select
import signal
import sys
import time
from collections.abc import Callable

ON_LINUX = sys.platform == "linux"
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
LIFELINE = 0  # standard input


def prctl(option: int, value: int) -> None:
    """Ask the kernel, where there is one that can be asked."""
    if ON_LINUX:
        import ctypes  # noqa: PLC0415 - only where it is used

        ctypes.CDLL(None).prctl(option, value)


def begin(command: list[str]) -> int:
    """Start the program in a session of its own, to be killed with us; returns its process id."""
    guard = os.getpid()
    child = os.fork()  # no threads here
    if child:
        return child
    try:
        os.setsid()
        prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
        os.dup2(os.open(os.devnull, os.O_RDONLY), LIFELINE)
        if os.getppid() == guard:
            os.execvp(command[0], command)  # noqa: S606
    finally:
        os._exit(127)


def wait(child: int) -> int | None:
    """Its exit code (128 + n: killed by signal n), or None if the lifeline ended before."""
    ear, mouth = os.pipe()
    os.set_blocking(mouth, False)
    signal.set_wakeup_fd(mouth)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    while True:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == child:
                code = os.waitstatus_to_exitcode(status)
                return code if code >= 0 else 128 - code
            if pid == 0:
                break
        ready, _, _ = select.select([LIFELINE, ear], [], [])
        if LIFELINE in ready:
            return None
        if any(number != signal.SIGCHLD for number in os.read(ear, 64)):
            return None


def kill_all(group: int) -> None:
    """Kill the program's group, and whatever has become ours, until nobody is left."""
    kill(os.killpg, group)
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            if not ON_LINUX:
                return
            for orphan in children():
                kill(os.kill, orphan)
            time.sleep(0.005)


def kill(send: Callable[[int, int], None], target: int) -> None:
    """One that has gone is no error."""
    try:  # noqa: SIM105 - contextlib would double the guard's start
        send(target, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass


def children() -> list[int]:
    """Our own, by now (Linux)."""
    found: list[int] = []
    for entry in os.listdir("/proc"):  # noqa: PTH208 - the guard starts without pathlib
        try:
            if entry.isdigit():
                with open(f"/proc/{entry}/stat", "rb") as file:  # noqa: PTH123
                    parent = file.read().rpartition(b")")[2].split()[1]
                if int(parent) == os.getpid():
                    found.append(int(entry))
        except (OSError, IndexError):  # it ended meanwhile
            continue
    return found


def main(folder: str, command: list[str]) -> int:
    """Run the program to its end, or to ours."""
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    child = begin(command)
    code = wait(child)
    kill_all(child)
    if code is None:
        import shutil  # noqa: PLC0415 - only now: it would double the guard's start

        shutil.rmtree(folder, ignore_errors=True)
        return 1
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
