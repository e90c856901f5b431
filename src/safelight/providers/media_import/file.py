"""Media files that stand at a plain URL: streamed to disk by ourselves."""

import asyncio
import time
from collections.abc import AsyncGenerator, Collection
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import httpx

from safelight.providers.address import HostUnknown, Network, shown
from safelight.providers.base import BadOutput, ProviderError, ProviderUnavailable
from safelight.providers.fetch import HEAD_BYTES, KNOWN_TYPES, content_type_of, opened, retry_after
from safelight.providers.media_import.encoding import Decoder
from safelight.providers.media_import.error import NoSuchHost, NotMedia, SourceRefuses, SourceUnavailable, TooLarge
from safelight.providers.media_import.page import Transfer
from safelight.providers.media_import.rate_floor import RateFloor
from safelight.providers.media_import.title import title_of

WRITE_BYTES = 1024 * 1024
TELL_SECONDS = 0.2
RESUMES = 4  # in a row that brought nothing
RESUME_SECONDS = 0.2  # before the first; doubled for each further
REFUSALS = (401, 407, 451)  # 403 may be said to us alone: yt-dlp knows some sites
LISTS = (b"#EXTM3U", b"<?xml", b"<MPD")  # of pieces, which go by the name of media too


@dataclass(frozen=True, slots=True)
class Resource:
    """What a plain request was answered with. `content_type` is what its bytes say; None if they are no media."""

    url: httpx.URL
    content_type: str | None
    total_bytes: int | None
    title: str | None = None


class Files:
    """Fetches plain files. A source that says nothing for `idle_seconds` has broken off; `bytes_per_second` on average
    over `slow_seconds` are the least that is waited for."""

    def __init__(
        self,
        *,
        networks: Collection[Network],
        max_bytes: int,
        idle_seconds: float,
        bytes_per_second: float,
        slow_seconds: float,
    ) -> None:
        self._networks = networks
        self._max_bytes = max_bytes
        self._timeout = httpx.Timeout(idle_seconds, connect=10)
        self._bytes_per_second = bytes_per_second
        self._slow_seconds = slow_seconds

    async def look(self, url: str, floor: RateFloor) -> Resource:
        """What is there, by its first bytes. Raises a `ProviderError`."""
        try:
            async with (
                self._opened(url, floor) as (response, found_at, decoder),
                aclosing(_chunks(response, decoder, floor)) as chunks,
            ):
                return self._judge(response, found_at, await _head(chunks), decoder)
        except (httpx.HTTPError, ProviderUnavailable) as error:
            raise _down(url, error) from None

    async def fetch(self, url: str, target: Path) -> AsyncGenerator[Resource | Transfer]:
        """Download: first what it is; if that is media, how far it is, until `target` is whole.

        A transfer that breaks off goes on where it broke, if the server can do that. Raises a `ProviderError`.
        """
        floor = RateFloor(self._bytes_per_second, self._slow_seconds)
        with target.open("wb", buffering=0) as file:
            try:
                async with (
                    self._opened(url, floor) as (response, found_at, decoder),
                    aclosing(_chunks(response, decoder, floor)) as chunks,
                ):
                    head = await _head(chunks)
                    answer = self._judge(response, found_at, head, decoder)
                    yield answer
                    if answer.content_type is None:
                        return
                    sink = _Sink(file, self._max_bytes, answer)
                    await sink.take(head)
                    yield sink.transfer
                    version = None if decoder.is_needed else _version(response)
                    async with aclosing(sink.fill(chunks)) as transfers:
                        async for transfer in transfers:
                            yield transfer
            except (httpx.HTTPError, ProviderUnavailable) as error:
                raise _down(url, error) from None
            failures = 0
            while not sink.is_whole:
                if version is None or failures > RESUMES:
                    raise SourceUnavailable(f"{shown(found_at)} broke off after {sink.done:,} bytes.")
                await asyncio.sleep(RESUME_SECONDS * 2**failures)
                before = sink.done
                asked = {"Range": f"bytes={sink.done}-", "If-Range": version}
                try:
                    async with (
                        self._opened(url, floor, asked) as (response, _, decoder),
                        aclosing(_chunks(response, decoder, floor)) as chunks,
                    ):
                        if decoder.is_needed or not _goes_on(response, sink.done):
                            raise SourceUnavailable(f"{shown(found_at)} broke off after {sink.done:,} bytes.")
                        async with aclosing(sink.fill(chunks)) as transfers:
                            async for transfer in transfers:
                                yield transfer
                except (httpx.HTTPError, ProviderUnavailable):
                    pass
                failures = 0 if sink.done > before else failures + 1
            yield sink.transfer

    @asynccontextmanager
    async def _opened(
        self, url: str, floor: RateFloor, headers: dict[str, str] | None = None
    ) -> AsyncGenerator[tuple[httpx.Response, httpx.URL, Decoder]]:
        async with AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(floor.seconds):  # each line of its head may come slowly, too
                    response, found_at = await stack.enter_async_context(
                        opened(url, headers=headers or {}, networks=self._networks, timeout=self._timeout)
                    )
            except TimeoutError:
                raise floor.too_slow(f"it has not answered within {floor.seconds:g} s") from None
            is_whole = response.status_code in (200, 206)
            yield response, found_at, Decoder(response.headers.get("content-encoding", "") if is_whole else "")

    def _judge(self, response: httpx.Response, found_at: httpx.URL, head: bytes, decoder: Decoder) -> Resource:
        status, place = response.status_code, shown(found_at)
        details = {"http_status": status}
        if status in (404, 410):
            raise SourceRefuses(f"There is nothing at {place} (HTTP {status}).", details=details)
        if status in REFUSALS:
            raise SourceRefuses(f"{place} does not give this to us (HTTP {status}).", details=details)
        if status >= 500 or status == 429:
            raise SourceUnavailable(
                f"{place} cannot be fetched now (HTTP {status}).",
                retry_after=retry_after(response.headers.get("retry-after", "")),
                details=details,
            )
        if status != 200:
            return Resource(found_at, None, None)  # yt-dlp may know how to ask
        length = "" if decoder.is_needed else response.headers.get("content-length", "")
        total = int(length) if length.isdecimal() else None
        claimed = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        try:
            content_type = content_type_of(head)
        except BadOutput as error:
            if claimed in KNOWN_TYPES and not head.lstrip().startswith(LISTS):
                raise NotMedia(f"{place} says that it is {claimed}, and is not. {error.message}") from None
            if claimed.startswith("image/"):
                pictures = ", ".join(sorted(name for name in KNOWN_TYPES if name.startswith("image/")))
                raise NotMedia(f"{place} is {claimed[:80]}, which is not taken. Pictures may be {pictures}.") from None
            return Resource(found_at, None, total)  # yt-dlp and ffmpeg may make media of a type that we do not know
        if total is not None and total > self._max_bytes:
            raise _too_large(place, self._max_bytes, f" has {total:,} bytes")
        title = title_of(found_at, response.headers.get("content-disposition", ""))
        return Resource(found_at, content_type, total, title)


class _Sink:
    """A file on its way to disk. Writing is done in a thread, in pieces worth one."""

    def __init__(self, file: BinaryIO, max_bytes: int, resource: Resource) -> None:
        self.done = 0
        self.is_whole = False
        self._file = file
        self._max_bytes = max_bytes
        self._resource = resource
        self._buffer = bytearray()
        self._began = self._told_at = time.monotonic()

    @property
    def transfer(self) -> Transfer:
        """How far it is."""
        seconds = max(0.001, time.monotonic() - self._began)
        return Transfer(self.done, self.done if self.is_whole else self._resource.total_bytes, self.done / seconds)

    async def take(self, data: bytes) -> None:
        """More of it. Raises `TooLarge`."""
        self.done += len(data)
        if self.done > self._max_bytes:
            raise _too_large(shown(self._resource.url), self._max_bytes, " goes on after that")
        self._buffer += data
        if len(self._buffer) >= WRITE_BYTES:
            await self._flush()

    async def fill(self, chunks: AsyncGenerator[bytes]) -> AsyncGenerator[Transfer]:
        """The rest of an answer, told now and then. One that breaks off leaves what came, and `is_whole` unset."""
        try:
            async for chunk in chunks:
                await self.take(chunk)
                if time.monotonic() - self._told_at >= TELL_SECONDS:
                    self._told_at = time.monotonic()
                    yield self.transfer
            self.is_whole = True
        except httpx.HTTPError:
            pass
        await self._flush()

    async def _flush(self) -> None:
        data, self._buffer = self._buffer, bytearray()
        await asyncio.to_thread(self._file.write, data)


async def _chunks(response: httpx.Response, decoder: Decoder, floor: RateFloor) -> AsyncGenerator[bytes]:
    """As they come, decoded: a chunk of our own size that was not yet full would be lost with the connection."""
    async with aclosing(cast(AsyncGenerator[bytes], response.aiter_raw())) as chunks:
        began = time.monotonic()
        async for chunk in chunks:
            floor.add(time.monotonic() - began, len(chunk))
            for piece in decoder.feed(chunk):
                yield piece
            began = time.monotonic()
    if not decoder.is_whole and response.status_code == 200:
        raise httpx.ReadError("the encoded content has no end")


async def _head(chunks: AsyncGenerator[bytes]) -> bytes:
    """The first bytes, enough to tell the type."""
    head = b""
    while len(head) < HEAD_BYTES and (chunk := await anext(chunks, b"")):
        head += chunk
    return head


def _version(response: httpx.Response) -> str | None:
    """By what the rest of the very same file can be asked for; None where that is not possible."""
    if response.headers.get("accept-ranges", "").lower() != "bytes":
        return None
    tag = response.headers.get("etag", "")
    return (tag if not tag.startswith("W/") else "") or response.headers.get("last-modified")


def _goes_on(response: httpx.Response, done: int) -> bool:
    return response.status_code == 206 and response.headers.get("content-range", "").startswith(f"bytes {done}-")


def _down(url: str, error: Exception) -> ProviderError:
    if isinstance(error, HostUnknown):
        return NoSuchHost(error.message)
    if isinstance(error, ProviderUnavailable):
        return SourceUnavailable(error.message)
    return SourceUnavailable(f"{shown(httpx.URL(url))} broke off ({type(error).__name__}).")


def _too_large(place: str, max_bytes: int, what: str) -> TooLarge:
    return TooLarge(f"At most {max_bytes:,} bytes are taken; {place}{what}.")
