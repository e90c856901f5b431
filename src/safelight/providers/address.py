"""Where a download may connect to: public addresses, and the networks that an installation names.

A name is resolved here, every address of it is looked at, and the connection is then made to one that was looked at:
what the name stands for a moment later does not matter. What is public stands in `special_networks.csv`, the same for
every version of Python.
"""

import asyncio
import contextlib
import csv
import re
import socket
import ssl
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import httpcore
import httpx

from safelight.providers.base import ProviderError, ProviderUnavailable

MAX_ADDRESSES = 4  # of one name, that are tried
RESOLVE_SECONDS = 10.0
NO_SUCH_NAME = {socket.EAI_NONAME, socket.EAI_NODATA}  # any other failure may be over by the next time
TABLE = Path(__file__).with_name("special_networks.csv")
NAME = re.compile(r"(?=.{1,253}\.?$)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*\.?", re.IGNORECASE)
# `2130706433`, `0x7f.1`, `0177.0.0.1`, `127.1`, `127.0.0.1.`: no name ends in a number, and resolvers disagree.
ODD_NUMBER = re.compile(r"(.*\.)?(\d+|0x[0-9a-f]*)\.?", re.IGNORECASE)

IPAddress = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


class FetchRefused(ProviderError):
    """This file must not be fetched."""

    code = "fetch_refused"


class UrlRefused(FetchRefused):
    """Only http:// and https:// URLs are fetched."""

    code = "url_refused"


class AddressRefused(FetchRefused):
    """This address must not be connected to."""

    code = "address_refused"


class HostUnknown(ProviderUnavailable):
    """There is no host of this name."""


@dataclass(frozen=True, slots=True)
class SpecialNetwork:
    """A line of the table."""

    network: Network
    reach: str
    what: str


@cache
def special_networks() -> tuple[SpecialNetwork, ...]:
    """The table, the smallest networks first."""
    lines = (line for line in TABLE.read_text("utf-8").splitlines() if not line.startswith("#"))
    found = (SpecialNetwork(ip_network(row["network"]), row["reach"], row["what"]) for row in csv.DictReader(lines))
    return tuple(sorted(found, key=lambda special: special.network.prefixlen, reverse=True))


def parsed_url(url: str | httpx.URL) -> httpx.URL:
    """A URL with a scheme, a host and a port that can be asked. Raises `UrlRefused`, and `AddressRefused` for an IPv4
    address in a form that resolvers read differently."""
    try:
        url = httpx.URL(url)
        host = url.raw_host.decode("ascii")
        _ = url.host  # decodes it
    except (httpx.InvalidURL, ValueError):  # UnicodeError and the errors of idna are ValueErrors
        _refuse_odd_number(_rough_host(str(url)))
        raise UrlRefused("This is no URL.") from None
    if url.scheme not in {"http", "https"}:
        raise UrlRefused
    if not host:
        raise UrlRefused("This URL has no host.")
    if url.userinfo:
        raise UrlRefused("A URL with a user or a password in it is not fetched.")
    if url.port is not None and not 1 <= url.port <= 65535:
        raise UrlRefused("The port of a URL is 1 to 65535.")
    if ":" not in host and not _is_ipv4(host):
        _refuse_odd_number(host)
        if NAME.fullmatch(host) is None:
            raise UrlRefused("The host of this URL is no name and no address.")
    return url


def checked_url(url: str | httpx.URL, networks: Collection[Network] = ()) -> httpx.URL:
    """A URL that may be tried, as far as can be told without asking anybody. Raises `FetchRefused`."""
    url = parsed_url(url)
    try:
        is_refused = not is_allowed(url.host, networks)
    except ValueError:  # a name
        return url
    if is_refused:
        raise AddressRefused(f"{shown(url)} is not at a public address.")
    return url


async def addresses_of(host: str, networks: Collection[Network] = ()) -> list[str]:
    """Every address of the host. Raises `AddressRefused` if a single one may not be connected to, `HostUnknown` if
    there is none, `OSError` if nobody can tell."""
    try:
        async with asyncio.timeout(RESOLVE_SECONDS):
            addresses = await _resolve(host)
    except UnicodeError:
        raise _unknown(host) from None
    except socket.gaierror as error:
        if error.errno in NO_SUCH_NAME:
            raise _unknown(host) from None
        raise
    if not addresses or not all(is_allowed(address, networks) for address in addresses):
        raise AddressRefused(f"{host[:200]} is not at a public address.")
    return addresses[:MAX_ADDRESSES]


class CheckedTransport(httpx.AsyncHTTPTransport):
    """Sends requests over connections to addresses that were checked, whatever names their URLs bear. No proxy."""

    def __init__(self, tls: ssl.SSLContext, networks: Collection[Network] = ()) -> None:
        super().__init__(verify=tls, trust_env=False)
        if type(self._pool) is not httpcore.AsyncConnectionPool:
            raise RuntimeError("This httpx keeps its connections elsewhere; they cannot be checked.")
        self._pool = httpcore.AsyncConnectionPool(ssl_context=tls, network_backend=_CheckedBackend(networks))


class _CheckedBackend(httpcore.AsyncNetworkBackend):
    """What makes a connection: the name in `Host` and in TLS is none of its business."""

    def __init__(self, networks: Collection[Network]) -> None:
        self._networks = networks
        self._network = cast(httpcore.AsyncNetworkBackend, httpcore.AnyIOBackend())

    async def connect_tcp(self, host: str, port: int, *arguments: Any, **options: Any) -> httpcore.AsyncNetworkStream:
        try:
            *others, last = await addresses_of(host, self._networks)
        except OSError:  # TimeoutError is one
            raise ProviderUnavailable(f"The host {host[:200]} cannot be looked up at the moment.") from None
        for address in others:
            with contextlib.suppress(httpcore.ConnectError, httpcore.ConnectTimeout):
                return await self._network.connect_tcp(address, port, *arguments, **options)
        return await self._network.connect_tcp(last, port, *arguments, **options)


def is_allowed(text: str, networks: Collection[Network] = ()) -> bool:
    """Whether an address is public, or in one of these networks. Raises `ValueError` for what is no address.

    Where a cloud tells its machines their credentials is allowed by a network of that one address alone.
    """
    address = ip_address(text.strip("[]").partition("%")[0])
    special = _special(address)
    while special.reach == "ipv4":
        address = IPv4Address(int(address) >> (96 - special.network.prefixlen) & 0xFFFFFFFF)
        special = _special(address)
    if special.reach == "metadata":
        return special.network in networks
    is_named = any(address.version == network.version and address in network for network in networks)
    return is_named or special.reach == "public"


def shown(url: httpx.URL) -> str:
    """A URL for people: without its query, which may hold a secret."""
    return str(url.copy_with(query=None, fragment=None))[:200]


def _unknown(host: str) -> HostUnknown:
    return HostUnknown(f"There is no host named {host}.")


def _special(address: IPAddress) -> SpecialNetwork:
    """The smallest network of the table that it is in; one of them holds all."""
    return next(
        special
        for special in special_networks()
        if special.network.version == address.version and address in special.network
    )


async def _resolve(host: str) -> list[str]:
    found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def _is_ipv4(host: str) -> bool:
    try:
        IPv4Address(host)
    except ValueError:
        return False
    return True


def _refuse_odd_number(host: str) -> None:
    if ODD_NUMBER.fullmatch(host):
        raise AddressRefused(f"An IPv4 address is written in four decimal numbers, as in 203.0.113.7; not {host[:80]}.")


def _rough_host(url: str) -> str:
    """The host of what cannot be parsed, if there is anything like one."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
