"""Downloads of files that somebody else names: a provider's results, a caller's input pictures.

A link is a request to connect to wherever its author likes, so none is believed: only public addresses are connected
to, and to the very address that was checked. What comes is judged by its content, and it must be whole.
"""

import asyncio
import re
import ssl
from collections.abc import AsyncGenerator, Collection, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from typing import cast

import httpx

from safelight.pictures import PICTURE_TYPES, type_of
from safelight.providers.address import (
    CheckedTransport,
    FetchRefused,
    Network,
    UrlRefused,
    checked_url,
    parsed_url,
    shown,
)
from safelight.providers.base import BadOutput, ProviderError, ProviderUnavailable, ResultMissing

MAX_BYTES = 100 * 1024 * 1024
CHUNK_BYTES = 64 * 1024
HEAD_BYTES = 64  # tell the type of any file
MAX_REDIRECTS = 5
PAUSE_SECONDS = 0.5  # before the second try; doubled for each further
MAX_PAUSE_SECONDS = 10.0
MAX_RETRY_AFTER_SECONDS = 600.0  # nobody may put a job off for years
TIMEOUT = httpx.Timeout(30, connect=10)
AGAIN = {404, 408, 425, 429}  # 404: announced, and not there yet
# What fails before a request is sent: no such host, nobody at the port, no TLS, a proxy that leads nowhere.
NOT_REACHED = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError)
REDIRECTS = {301, 302, 303, 307, 308}
ABSOLUTE = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Fetched:
    """A whole file; its content type is what its bytes say."""

    data: bytes
    content_type: str


class _Again(Exception):
    """A failure that another try may mend."""

    def __init__(self, error: ProviderError) -> None:
        self.error = error


async def fetch(
    url: str,
    *,
    headers: Mapping[str, str] | None = None,
    trusted_hosts: Collection[str] = (),
    max_bytes: int = MAX_BYTES,
    tries: int = 4,
) -> Fetched:
    """Download a picture, video or sound, trying again while that may help.

    `trusted_hosts` (`host:port`, see `host_of`) may be at private addresses: a provider that is configured there.
    `headers` are sent to the host of `url` alone. Nothing bounds the whole but the caller: a single read may take 30 s.

    Raises `FetchRefused` for what must not be fetched, `ProviderUnavailable` if the host does not deliver,
    `ResultMissing` if there is no such file, `BadOutput` if it is not a whole one. No message repeats the query of a
    URL, which may hold a secret.
    """
    pause = PAUSE_SECONDS
    for left in range(tries - 1, -1, -1):
        try:
            async with opened(url, headers=headers or {}, trusted_hosts=trusted_hosts) as (response, found_at):
                return await _read(response, shown(found_at), max_bytes)
        except _Again as again:
            error = again.error
        except ProviderUnavailable as unavailable:
            error = unavailable
        if not left:
            raise error from None
        await asyncio.sleep(min(MAX_PAUSE_SECONDS, max(pause, error.retry_after or 0)))
        pause *= 2
    raise ValueError("tries must be 1 or more")


@cache
def shared_tls() -> ssl.SSLContext:
    """For the clients of providers: the known authorities take 17 ms to read, and need be held once only."""
    return httpx.create_ssl_context()


def host_of(url: str | httpx.URL) -> str:
    """`host:port` of a URL, the port always there."""
    url = httpx.URL(url)
    return f"{url.host.lower()}:{url.port or (443 if url.scheme == 'https' else 80)}"


def retry_after(header: str) -> float | None:
    """The seconds that a `Retry-After` asks for, in either of its forms, at most `MAX_RETRY_AFTER_SECONDS`."""
    try:
        seconds = (
            float(header) if header.isdecimal() else (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds()
        )
    except (ValueError, TypeError, OverflowError):  # a date without a zone
        return None
    return min(max(0.0, seconds), MAX_RETRY_AFTER_SECONDS)


def content_type_of(data: bytes) -> str:
    """The type of a picture, video or sound, by its first bytes. Raises `BadOutput` if it is none."""
    if not data:
        raise BadOutput("The file is empty.")
    head = data[:HEAD_BYTES]
    if picture := type_of(head):
        return picture
    for mark, content_type in MARKS:
        if head.startswith(mark):
            return content_type
    if head[:4] == b"RIFF" and head[8:12] in RIFFS:
        return RIFFS[head[8:12]]
    if head[4:8] == b"ftyp" and head[8:12] not in OTHER_PICTURES:
        return BRANDS.get(head[8:12], "video/mp4")
    if head[:4] == b"\x1aE\xdf\xa3":
        return "video/webm" if b"webm" in head else "video/x-matroska"
    if head[0] == 0xFF and len(head) > 1 and head[1] & 0xE6 == 0xE2:  # MPEG audio layer III, any version
        return "audio/mpeg"
    raise BadOutput("The file is no picture (PNG, JPEG, WebP, GIF, AVIF), video or sound of a known format.")


MARKS = (
    (b"ID3", "audio/mpeg"),
    (b"fLaC", "audio/flac"),
    (b"OggS", "audio/ogg"),
)
RIFFS = {b"WAVE": "audio/wav", b"AVI ": "video/x-msvideo"}
BRANDS = {b"qt  ": "video/quicktime", b"M4A ": "audio/mp4"}
OTHER_PICTURES = {b"mif1", b"msf1", b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"}  # HEIC, and what is no AVIF
KNOWN_TYPES = frozenset(
    PICTURE_TYPES
    | {content_type for _, content_type in MARKS}
    | {*RIFFS.values(), *BRANDS.values(), "video/mp4", "video/webm", "video/x-matroska"}
)


# --- one try ----------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def opened(
    start: str,
    *,
    headers: Mapping[str, str],
    trusted_hosts: Collection[str] = (),
    networks: Collection[Network] = (),
    timeout: httpx.Timeout = TIMEOUT,
) -> AsyncGenerator[tuple[httpx.Response, httpx.URL]]:
    """The answer at the end of the redirects, its body still to be read, and the URL where it was found.

    Hosts in `trusted_hosts` and addresses in `networks` may be private. Raises `FetchRefused` and
    `ProviderUnavailable`, also as its kind `HostUnknown`.
    """
    url = _near(start, trusted_hosts, networks)
    origin = url.scheme, host_of(url)
    for _ in range(MAX_REDIRECTS + 1):
        sent = headers if (url.scheme, host_of(url)) == origin else {}
        transport = _plain() if host_of(url) in trusted_hosts else CheckedTransport(shared_tls(), networks)
        async with transport, _answer(transport, url, sent, timeout) as response:
            if response.status_code not in REDIRECTS:
                yield response, url
                return
            location = response.headers.get("location", "")
        try:
            # Joined, `http://` would be where we are.
            url = _near(location if ABSOLUTE.match(location) else url.join(location), trusted_hosts, networks)
        except (httpx.InvalidURL, ValueError):
            raise UrlRefused(f"{shown(url)} redirects to something that is no URL.") from None
        except FetchRefused as error:
            raise type(error)(f"{shown(url)} redirects to what is not fetched. {error.message}") from None
    raise FetchRefused(f"{shown(httpx.URL(start))} redirects more than {MAX_REDIRECTS} times.")


@asynccontextmanager
async def _answer(
    transport: httpx.AsyncBaseTransport, url: httpx.URL, headers: Mapping[str, str], timeout: httpx.Timeout
) -> AsyncGenerator[httpx.Response]:
    """Its body still to be read. There is no client, which would send what is its own, and read more than this."""
    sent = {"Accept": "*/*", "Accept-Encoding": "identity", **headers}
    request = httpx.Request("GET", url, headers=sent, extensions={"timeout": timeout.as_dict()})
    try:
        response = await transport.handle_async_request(request)
    except httpx.HTTPError as error:
        raise ProviderUnavailable(f"{shown(url)} cannot be fetched ({type(error).__name__}).") from None
    try:
        yield response
    finally:
        await response.aclose()


def _plain() -> httpx.AsyncBaseTransport:
    return httpx.AsyncHTTPTransport(verify=shared_tls(), trust_env=False)


async def _read(response: httpx.Response, place: str, max_bytes: int) -> Fetched:
    status = response.status_code
    if status >= 500 or status == 429:
        message = f"{place} cannot be fetched now (HTTP {status})."
        raise ProviderUnavailable(message, retry_after=retry_after(response.headers.get("retry-after", "")))
    if status != 200:
        error = ResultMissing(f"There is no file at {place} (HTTP {status}).")
        raise _Again(error) if status in AGAIN else error
    too_large = FetchRefused(f"{place} is larger than {max_bytes} bytes.")
    length = response.headers.get("content-length", "")
    if length.isdecimal() and int(length) > max_bytes:
        raise too_large
    data = bytearray()
    try:
        async with aclosing(cast(AsyncGenerator[bytes], response.aiter_raw(CHUNK_BYTES))) as chunks:
            async for chunk in chunks:
                data += chunk
                if len(data) > max_bytes:
                    raise too_large
    except httpx.HTTPError as error:  # one that ends before its Content-Length, too
        message = f"{place} broke off after {len(data)} bytes ({type(error).__name__})."
        raise ProviderUnavailable(message) from None
    try:
        content_type = content_type_of(bytes(data[:HEAD_BYTES]))
    except BadOutput as error:
        raise _Again(BadOutput(f"{place}: {error.message}")) from None
    if not _is_whole(data, content_type):
        raise _Again(BadOutput(f"{place} ends in the middle of the picture, after {len(data)} bytes."))
    return Fetched(bytes(data), content_type)


def _is_whole(data: bytearray, content_type: str) -> bool:
    """Whether a picture has its end; storage that is still being written to delivers beginnings."""
    match content_type:
        case "image/png":
            return data.rfind(b"IEND") > 0
        case "image/jpeg":
            return data.rfind(b"\xff\xd9") > 0
        case "image/webp":
            return len(data) >= 8 + int.from_bytes(data[4:8], "little")
        case _:
            return True


def _near(url: str | httpx.URL, trusted_hosts: Collection[str], networks: Collection[Network]) -> httpx.URL:
    """A URL that may be tried; the address of a trusted host may be written in it, whatever it is."""
    url = parsed_url(url)
    return url if host_of(url) in trusted_hosts else checked_url(url, networks)
