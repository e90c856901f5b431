"""The process guard: the small process that outlives a killed supervisor just long enough to clear everything away.

It holds the read end of a pipe whose other end only the supervisor has, and hears over it which process groups exist
(`+123`, `-123`; `.` means that everything was stopped in order). When the pipe ends, the supervisor is gone, however it
went: what is left is asked to end, killed after a few seconds, and the runtime directory is removed. It holds the
stack's lock like everybody else, so no second stack begins before it has finished.

Run as a file by a bare interpreter (`python -I -S guard.py PIPE MARK RUNTIME_DIR`): standard library only.
"""

import os
import signal
import sys
import time
from collections.abc import Collection

MARK_VARIABLE = "SAFELIGHT_STACK"  # in the environment of every process of a stack: finds those that left their group
GRACE_SECONDS = 3.0
ON_LINUX = sys.platform == "linux"


def living(groups: Collection[int], mark: str = "") -> dict[int, int]:
    """Processes (pid to group) that are in one of the groups or bear the mark, and really run.

    Where nobody reaps orphans, as in many containers, the dead stay as zombies that `kill(pid, 0)` still finds.
    """
    if not ON_LINUX:
        return {pid: group for pid, (group, _) in process_table().items() if group in groups}
    found: dict[int, int] = {}
    marked = f"{MARK_VARIABLE}={mark}\0".encode()
    for entry in os.listdir("/proc"):  # noqa: PTH208 - the guard starts without pathlib
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            with open(f"/proc/{entry}/stat", "rb") as file:  # noqa: PTH123
                state, _, group = file.read().rpartition(b")")[2].split()[:3]
            if state in b"ZX":
                continue
            if int(group) in groups:
                found[int(entry)] = int(group)
            elif mark:
                with open(f"/proc/{entry}/environ", "rb") as file:  # noqa: PTH123
                    if marked in file.read():
                        found[int(entry)] = int(group)
        except (OSError, ValueError):  # it ended meanwhile, or belongs to somebody else
            continue
    return found


def is_alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    if not ON_LINUX:
        return pid in process_table()
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123
            return file.read().rpartition(b")")[2].split()[0] not in b"ZX"
    except (OSError, IndexError):
        return False


def process_table() -> dict[int, tuple[int, str]]:
    """Every living process with its group and state, where there is no /proc."""
    import subprocess  # noqa: PLC0415

    answer = subprocess.run(["ps", "-axo", "pid=,pgid=,stat="], capture_output=True, text=True, check=False)
    rows = [line.split() for line in answer.stdout.splitlines()]
    return {int(row[0]): (int(row[1]), row[2]) for row in rows if len(row) == 3 and not row[2].startswith("Z")}


def signal_group(group: int, number: int) -> None:
    """Signal a whole group; one that has gone is no error."""
    try:  # noqa: SIM105 - contextlib would double the guard's start
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        pass


def signal_process(pid: int, number: int) -> None:
    """Signal one process; one that has gone is no error."""
    try:  # noqa: SIM105 - contextlib would double the guard's start
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        pass


def clear_away(groups: Collection[int], mark: str, grace_seconds: float) -> None:
    """End everything of the stack: ask, wait, kill."""
    asked: set[int] = set()
    give_up = time.monotonic() + grace_seconds
    while remaining := living(groups, mark):
        if time.monotonic() >= give_up:
            break
        for pid, group in remaining.items():
            # On Linux the kernel has already told the children of the supervisor, the leaders of the groups. To a
            # worker a second SIGTERM means "at once", and it would not hand its jobs back. Its own children are its
            # business as long as it lives.
            told = ON_LINUX and pid == group and group in groups
            led = pid != group and group in groups and group in remaining
            if pid not in asked and not told and not led:
                signal_process(pid, signal.SIGTERM)
                asked.add(pid)
        time.sleep(0.05)
    give_up = time.monotonic() + 1.0
    while (remaining := living(groups, mark)) and time.monotonic() < give_up:
        for pid in remaining:
            signal_process(pid, signal.SIGKILL)
        time.sleep(0.02)


def listen(pipe: int) -> tuple[set[int], bool]:
    """The groups that exist when the pipe ends, and whether that was in order."""
    groups: set[int] = set()
    is_in_order = False
    rest = b""
    while chunk := os.read(pipe, 4096):
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line == b".":
                is_in_order = True
            else:
                (groups.add if line.startswith(b"+") else groups.discard)(int(line[1:]))
    return groups, is_in_order


def main(pipe: int, mark: str, runtime_dir: str) -> None:
    """Wait for the end of the supervisor and clear away what it left."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    groups, is_in_order = listen(pipe)
    clear_away(groups, mark, 0 if is_in_order else GRACE_SECONDS)
    import shutil  # noqa: PLC0415 - only now: it would triple the guard's start

    shutil.rmtree(runtime_dir, ignore_errors=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
