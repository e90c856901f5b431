"""Programs that read what strangers made (yt-dlp, ffmpeg): how much memory and disk each may take.

The kernel limits them from their first instruction, because the shell that sets the limits becomes the program; what
it starts has the same, each process for itself. `ulimit -d` (RLIMIT_DATA) counts the memory that a process may write
to. Address space that is only set aside is not counted, as RLIMIT_AS would: engines of JavaScript set aside gigabytes.
Linux keeps both; macOS keeps that of files.
"""

from collections.abc import Sequence

MEMORY_BYTES = 1024**3


def bounded(command: Sequence[str], *, memory_bytes: int, file_bytes: int | None = None) -> tuple[str, ...]:
    """The command that runs `command` with at most `memory_bytes`, and no file of more than `file_bytes`."""
    limits = f"ulimit -c 0; ulimit -d {max(1, memory_bytes // 1024)}"
    if file_bytes is not None:
        limits += f"; ulimit -f {-(-file_bytes // 512)}"
    return ("/bin/sh", "-c", f'{limits}; exec "$@"', "sh", *command)
