"""Becomes another program, after asking the kernel to end it with the supervisor (Linux).

Run as a file by a bare interpreter: `python -I -S become.py SUPERVISOR_PID COMMAND...`. A process of its own and not
`preexec_fn`, which runs Python between fork and exec and may deadlock where there are threads.
"""

import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(parent: int, command: list[str]) -> None:
    """Replace this process with the command, unless the supervisor has gone already."""
    if sys.platform == "linux":
        import ctypes  # noqa: PLC0415 - only where it is used

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))
        if os.getppid() != parent:
            sys.exit("The supervisor is gone.")
    try:
        os.execvp(command[0], command)  # noqa: S606
    except OSError as error:
        sys.exit(f"{command[0]} cannot be started: {error.strerror}")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
