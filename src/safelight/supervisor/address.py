"""Where the API listens: only on this machine, and only on a port that is free."""

import contextlib
import errno
import ipaddress
import socket
from typing import ClassVar

from safelight.errors import ErrorKind, Invalid, SafelightError


class PortTaken(SafelightError):
    """The port of the API is not to be had."""

    kind: ClassVar[ErrorKind] = "conflict"
    code: ClassVar[str] = "port_taken"


def require_loopback(host: str, *, has_accounts: bool = False) -> None:
    """Refuse to listen where others could reach us, unless there are accounts: without, whoever can speak to the API
    may use everything."""
    if has_accounts:
        return
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(host).is_loopback:
            return
    if host != "localhost":
        raise Invalid(
            f"Safelight does not listen on {host} until there is authentication: anybody who reaches it could use "
            "it. Use 127.0.0.1, or set SAFELIGHT_AUTH=required and make keys with `safelight keys create`."
        )


def free_port(host: str, port: int) -> int:
    """The port, once it is sure that nobody has it; 0 chooses one."""
    family, kind, protocol, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(target)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise PortTaken(
                    f"Port {port} on {host} is in use by another program. Choose another one: --port {port + 1}"
                ) from None
            raise PortTaken(f"Port {port} on {host} cannot be used: {error.strerror}.") from None
        return int(listener.getsockname()[1])


def address(host: str, port: int) -> str:
    """The URL of the API."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
