"""Where a download may connect to: public addresses, and the networks that an installation names.

A name is resolved here, every address of it is looked at, and the connection is then made to one that was looked at:
what the name stands for a moment later does not matter.
"""

import asyncio
import socket
from collections.abc import Collection
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address

import httpx

from safelight.providers.base import ProviderError

MAX_ADDRESSES = 4  # of one name, that are tried
RESOLVE_SECONDS = 10.0
NAT64 = IPv6Network("64:ff9b::/96")

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


def checked_url(url: str | httpx.URL, networks: Collection[Network] = ()) -> httpx.URL:
    """A URL that may be tried, as far as can be told without asking anybody. Raises `FetchRefused`."""
    try:
        url = httpx.URL(url)
    except httpx.InvalidURL:
        raise UrlRefused("This is no URL.") from None
    if (url.port or 0) > 65535:
        raise UrlRefused("This is no URL.")
    if url.scheme not in {"http", "https"} or not url.host:
        raise UrlRefused
    if url.userinfo:
        raise UrlRefused("A URL with a user or a password in it is not fetched.")
    try:
        is_refused = not is_allowed(url.host, networks)
    except ValueError:
        is_refused = _is_odd_number(url.host)
    if is_refused:
        raise AddressRefused(f"{shown(url)} is not at a public address.")
    return url


async def addresses_of(url: httpx.URL, networks: Collection[Network] = ()) -> list[str]:
    """Every address of the host. Raises `AddressRefused` if a single one may not be connected to, `OSError` if there
    is none."""
    try:
        async with asyncio.timeout(RESOLVE_SECONDS):
            addresses = await _resolve(url.raw_host.decode())
    except UnicodeError as error:
        raise OSError(f"{url.host} is no name") from error
    if not addresses or not all(is_allowed(address, networks) for address in addresses):
        raise AddressRefused(f"{shown(url)} is not at a public address.")
    return addresses[:MAX_ADDRESSES]


def is_allowed(text: str, networks: Collection[Network] = ()) -> bool:
    """Whether an address is public, or in one of these networks. Raises `ValueError` for what is no address."""
    address = ip_address(text.strip("[]").partition("%")[0])
    if isinstance(address, IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address in NAT64:
            inner = ip_address(int(address) & 0xFFFFFFFF)
        address = inner or address
    if any(address.version == network.version and address in network for network in networks):
        return True
    return address.is_global and not address.is_multicast and not address.is_reserved


def shown(url: httpx.URL) -> str:
    """A URL for people: without its query, which may hold a secret."""
    return str(url.copy_with(query=None, fragment=None))[:200]


async def _resolve(host: str) -> list[str]:
    found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def _is_odd_number(host: str) -> bool:
    """Whether this is an address as only old resolvers write it: `2130706433`, `0x7f.1`, `127.1`."""
    try:
        socket.inet_aton(host)
    except (OSError, UnicodeError):
        return False
    return True
