"""What the proxies before us say of a request: who sent it, over what, to which name, and below which path.

Anybody can send such headers. They are believed from trusted addresses alone; from elsewhere they mean nothing.
"""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import NamedTuple

from starlette.types import Scope

from safelight.config import PREFIX_PATTERN
from safelight.errors import SafelightError

FOR, PROTO, HOST, PREFIX = b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"x-forwarded-prefix"
FORWARDED = frozenset({FOR, PROTO, HOST, PREFIX})
SCHEMES = {"http": "http", "https": "https", "ws": "http", "wss": "https"}
OWN_PATHS = ("/api/v1", "/health/", "/webhooks/")  # no prefix stands before these


class ForwardedInvalid(SafelightError):
    """A proxy has sent a header that cannot be right."""

    kind = "malformed"
    code = "invalid_forwarded_header"


class Forwarded(NamedTuple):
    """What was found out: the name that the client asked for, if a proxy has told it, and the path we stand below."""

    host: bytes | None
    prefix: str


class Proxies:
    """The addresses whose word is taken, and the path that the installation stands below, if that is set."""

    def __init__(self, trusted: Sequence[IPv4Network | IPv6Network], root_path: str) -> None:
        self._trusted = tuple(trusted)
        self._nothing = Forwarded(None, root_path)
        self._root_path = root_path
        self._trusts = lru_cache(maxsize=1024)(self._is_trusted)

    def read(self, scope: Scope, headers: Mapping[bytes, bytes]) -> Forwarded:
        """Set the scope's `client`, `scheme` and `path` to what they were for the client. Raises `ForwardedInvalid`."""
        found = self._nothing
        if not FORWARDED.isdisjoint(headers):
            client = scope["client"]
            if client is not None and self._trusts(client[0]):
                found = self._believe(scope, headers)
        if found.prefix:
            scope["path"] = without_prefix(scope["path"], found.prefix)
        return found

    def _believe(self, scope: Scope, headers: Mapping[bytes, bytes]) -> Forwarded:
        if FOR in headers:
            lines = [value.decode("latin-1") for name, value in scope["headers"] if name == FOR]
            scope["client"] = (self._client(scope["client"][0], ",".join(lines)), 0)
        if PROTO in headers:
            said = _first(headers[PROTO]).lower()
            if said not in SCHEMES:
                raise ForwardedInvalid(f"X-Forwarded-Proto must be http or https, not {said[:40]!r}.")
            scope["scheme"] = SCHEMES[said]
        host = _first(headers[HOST]).encode("latin-1") if HOST in headers else None
        prefix = self._root_path
        if PREFIX in headers and not prefix:
            prefix = headers[PREFIX].decode("latin-1").strip().rstrip("/")
            if prefix and not re.fullmatch(PREFIX_PATTERN, prefix):
                raise ForwardedInvalid(f"X-Forwarded-Prefix must be a path such as /safelight, not {prefix[:80]!r}.")
        return Forwarded(host, prefix)

    def _client(self, nearest: str, chain: str) -> str:
        """The last address in the chain that is not one of a proxy of ours: what stands before it may be invented."""
        client = nearest
        for part in reversed(chain.split(",")):
            address = _address(part)
            if address is None:
                return client
            client = str(address)
            if not self._trusts(client):
                return client
        return client

    def _is_trusted(self, text: str) -> bool:
        address = _address(text)
        return address is not None and any(address in network for network in self._trusted)


def without_prefix(path: str, prefix: str) -> str:
    """The path as our routes know it, whether or not the proxy has taken the prefix off."""
    if path.startswith(OWN_PATHS) or not (path == prefix or path.startswith(f"{prefix}/")):
        return path
    return path[len(prefix) :] or "/"


def _first(value: bytes) -> str:
    return value.decode("latin-1").partition(",")[0].strip()


def _address(text: str) -> IPv4Address | IPv6Address | None:
    """An address as it stands in `X-Forwarded-For`, with or without a port."""
    text = text.strip()
    if match := re.fullmatch(r"\[(.+)\](?::\d+)?|(\d+(?:\.\d+){3}):\d+", text):
        text = match[1] or match[2]
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address
