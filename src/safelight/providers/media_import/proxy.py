"""The way out for the programs of one import: a forward proxy on loopback that believes no name and no redirect.

yt-dlp and ffmpeg fetch whatever a page tells them to. They are given this proxy and nothing else: it resolves every
name itself, refuses addresses that are not public, connects to the address it looked at, and counts what comes, decoded
unless it is encrypted. What comes through a tunnel is counted as it is; there the program's own limits end a bomb.
Our own, since it must connect by the table of `address.py` (docs/decisions/0005).
"""

import asyncio
import base64
import contextlib
import hmac
import secrets
from collections.abc import Collection
from types import TracebackType
from typing import Self

import httptools

from safelight.providers.address import FetchRefused, HostUnknown, Network, addresses_of, checked_url
from safelight.providers.base import ProviderError
from safelight.providers.fetch import retry_after
from safelight.providers.media_import.encoding import FORMS, Decoder
from safelight.providers.media_import.error import SourceTooSlow, TooLarge
from safelight.providers.media_import.rate_floor import RateFloor

HEAD_BYTES = 64 * 1024
CHUNK_BYTES = 256 * 1024
CONNECT_SECONDS = 10.0
IDLE_SECONDS = 60.0
DROPPED = ("host", "connection", "proxy-connection", "proxy-authorization", "keep-alive")


class Proxy:
    """Serves one import, and ends with it. `refused` is the first thing that it had to refuse; `retry_after` the
    seconds that a busy source asked for, as far as that could be read."""

    def __init__(self, networks: Collection[Network], max_bytes: int, floor: RateFloor) -> None:
        self.refused: ProviderError | None = None
        self.retry_after: float | None = None
        self.received_bytes = 0
        self._floor = floor
        self._networks = networks
        self._max_bytes = max_bytes
        self._secret = secrets.token_urlsafe(24)
        self._server: asyncio.Server | None = None
        self._port = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._take, "127.0.0.1", 0, limit=HEAD_BYTES)
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    @property
    def environment(self) -> dict[str, str]:
        """What makes programs go this way. Not on a command line, where everybody on the machine could read it."""
        url = f"http://import:{self._secret}@127.0.0.1:{self._port}"
        return {"http_proxy": url, "https_proxy": url, "all_proxy": url, "no_proxy": ""}

    def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._answer(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError):
            pass  # its program reads that as what it is: a broken connection
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(IDLE_SECONDS):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        request, *lines = head[:-4].split("\r\n")
        method, target, _ = request.split(" ", 2)
        headers = [(name.strip(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
        given = next((value for name, value in headers if name.lower() == "proxy-authorization"), "")
        expected = "Basic " + base64.b64encode(f"import:{self._secret}".encode()).decode()
        if not hmac.compare_digest(given.encode(), expected.encode()):
            writer.write(_status("407 Proxy Authentication Required", 'Proxy-Authenticate: Basic realm="import"'))
            return
        if isinstance(self.refused, TooLarge | SourceTooSlow):  # the import is over, and its program has yet to see it
            writer.write(_status("403 Forbidden"))
            return
        is_tunnel = method == "CONNECT"
        try:
            url = checked_url(f"https://{target}" if is_tunnel else target, self._networks)
            addresses = await addresses_of(url.raw_host.decode(), self._networks)
        except FetchRefused as error:
            self._refuse(error)
            writer.write(_status("403 Forbidden"))
            return
        except (HostUnknown, OSError):
            writer.write(_status("502 Bad Gateway"))
            return
        try:
            far_reader, far_writer = await _connected(addresses, url.port or (443 if url.scheme == "https" else 80))
        except OSError:
            writer.write(_status("502 Bad Gateway"))
            return
        try:
            if is_tunnel:
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                kept = [f"{name}: {_known(name, value)}" for name, value in headers if name.lower() not in DROPPED]
                host = f"Host: {url.netloc.decode()}"
                path = url.raw_path.decode()
                sent = "\r\n".join([f"{method} {path} HTTP/1.1", host, "Connection: close", *kept, "", ""])
                far_writer.write(sent.encode("latin-1"))
            await self._relay(reader, writer, far_reader, far_writer, None if is_tunnel else _Reading(self))
        finally:
            far_writer.close()

    async def _relay(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        far_reader: asyncio.StreamReader,
        far_writer: asyncio.StreamWriter,
        reading: "_Reading | None",
    ) -> None:
        """Carry bytes both ways until the far side ends, says nothing for a while, or is refused."""
        clock = asyncio.get_running_loop().time
        waiting_since = clock()

        async def upwards() -> None:
            nonlocal waiting_since
            with contextlib.suppress(OSError):
                while chunk := await reader.read(CHUNK_BYTES):
                    far_writer.write(chunk)
                    waiting_since = clock()  # it owes nothing for the time before it was asked
                    await far_writer.drain()
                far_writer.close()  # nobody waits for an answer any more

        sending = asyncio.create_task(upwards())
        try:
            async with asyncio.timeout(IDLE_SECONDS) as idle:
                while chunk := await far_reader.read(CHUNK_BYTES):
                    try:
                        self._floor.add(clock() - waiting_since, len(chunk))
                        self.count(len(chunk))
                        if reading is not None:
                            reading.take(chunk)
                    except ProviderError as error:
                        self._refuse(error)
                        writer.transport.abort()
                        return
                    writer.write(chunk)
                    await writer.drain()
                    waiting_since = clock()
                    idle.reschedule(waiting_since + IDLE_SECONDS)
        finally:
            sending.cancel()

    def count(self, received: int) -> None:
        """More came. Raises `TooLarge`."""
        self.received_bytes += received
        if self.received_bytes > self._max_bytes:
            raise TooLarge(f"More than {self._max_bytes:,} bytes came, which is the most taken.")

    def _refuse(self, error: ProviderError) -> None:
        self.refused = self.refused or error


class _Reading:
    """Reads along with an answer: counts what it is when it is decoded."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self._parser = httptools.HttpResponseParser(self)
        self._headers: dict[str, str] = {}
        self._decoder = Decoder("")
        self._error: ProviderError | None = None

    def take(self, chunk: bytes) -> None:
        """Raises a `ProviderError` for what must not go on. What is no HTTP its program sees as well."""
        with contextlib.suppress(httptools.HttpParserError):
            self._parser.feed_data(chunk)
        if self._error is not None:
            raise self._error

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status in (429, 503):
            self._proxy.retry_after = retry_after(self._headers.get("retry-after", ""))
        try:
            self._decoder = Decoder(self._headers.get("content-encoding", ""))
        except ProviderError as error:
            self._error = error

    def on_body(self, body: bytes) -> None:
        if not self._decoder.is_needed or self._error is not None:
            return
        try:
            for piece in self._decoder.feed(body):
                self._proxy.count(len(piece))
        except ProviderError as error:
            self._error = error


def _known(name: str, value: str) -> str:
    """A header to send: no encoding is asked for that we could not count."""
    if name.lower() != "accept-encoding":
        return value
    names = (part.strip() for part in value.split(","))
    return ", ".join(name for name in names if name.partition(";")[0].lower() in FORMS) or "identity"


async def _connected(addresses: list[str], port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    for place, address in enumerate(addresses):
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                return await asyncio.open_connection(address, port, limit=CHUNK_BYTES)
        except OSError:
            if place == len(addresses) - 1:
                raise
    raise OSError("there is no address")


def _status(line: str, *headers: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {line}", *headers, "Content-Length: 0", "Connection: close", "", ""]).encode()
