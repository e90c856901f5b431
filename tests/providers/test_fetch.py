"""Downloads: tried again, whole, judged by content, and only from where they may come."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Self

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from hostile_urls import MALFORMED
from safelight.providers import address
from safelight.providers import fetch as fetch_module
from safelight.providers.base import BadOutput, ProviderError, ProviderUnavailable
from safelight.providers.fetch import FetchRefused, content_type_of, fetch, host_of, opened
from stand_ins.serve import Dropped, Half, Served, picture
from tls import certificate, server_context

pytestmark = pytest.mark.anyio
PNG = picture(40, 30)
Answer = Callable[[Request], Response]


class TlsServer:
    """Shows a certificate for localhost, keeps what it is asked, and answers with the picture."""

    def __init__(self, folder: Path) -> None:
        self.pem = certificate(folder)
        self.context = server_context(self.pem)
        self.heads: list[bytes] = []
        self.port = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._answer, "127.0.0.1", 0, ssl=self.context)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            self.heads.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(PNG) + PNG)
            await writer.drain()
        writer.close()


class FileServer:
    """`answers` come first, once each; then the picture."""

    def __init__(self) -> None:
        self.answers: list[Response | Answer] = []
        self.asked: list[Request] = []
        self.served = Served(Starlette(routes=[Route("/{path:path}", self._answer)]))
        self.url = f"{self.served.url}/a.png"
        self.trusted = {self.served.host}

    async def _answer(self, request: Request) -> Response:
        self.asked.append(request)
        answer = self.answers.pop(0) if self.answers else Response(PNG, media_type="text/plain")
        return answer if isinstance(answer, Response) else answer(request)


@pytest.fixture(scope="module")
def shared_server() -> Iterator[FileServer]:
    server = FileServer()
    yield server
    server.served.close()


@pytest.fixture
def server(shared_server: FileServer, monkeypatch: pytest.MonkeyPatch) -> FileServer:
    monkeypatch.setattr(fetch_module, "PAUSE_SECONDS", 0.01)
    shared_server.answers.clear()
    shared_server.asked.clear()
    return shared_server


async def test_the_type_is_what_the_bytes_say(server: FileServer) -> None:
    fetched = await fetch(server.url, trusted_hosts=server.trusted)
    assert (fetched.data, fetched.content_type) == (PNG, "image/png")


@pytest.mark.parametrize(
    ("data", "content_type"),
    [
        (picture(8, 8, format="JPEG"), "image/jpeg"),
        (picture(8, 8, format="WEBP"), "image/webp"),
        (picture(8, 8, format="GIF"), "image/gif"),
        (picture(8, 8, format="AVIF"), "image/avif"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf", "image/avif"),
        (b"\0\0\0\x1cftypmsf1\0\0\0\0msf1avisiso8", "image/avif"),
        (b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41", "video/mp4"),
        (b"\0\0\0\x14ftypqt  \0\0\2\0qt  ", "video/quicktime"),
        (b"\x1aE\xdf\xa3\x9fB\x86\x81\x01B\xf7\x81\x01B\xf2\x81\x04B\xf3\x81\x08B\x82\x84webm", "video/webm"),
        (b"ID3\x04\0\0\0\0\0\0", "audio/mpeg"),
        (b"\xff\xfb\x90\x64\0\0", "audio/mpeg"),
        (b"RIFF\x24\0\0\0WAVEfmt ", "audio/wav"),
        (b"OggS\0\2", "audio/ogg"),
    ],
)
async def test_types_are_known_by_their_marks(data: bytes, content_type: str) -> None:
    assert content_type_of(data) == content_type


UNTAKEN = (
    picture(8, 8, format="TIFF"),
    picture(8, 8, format="BMP"),
    b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic",  # HEIC
    b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
)


@pytest.mark.parametrize("data", UNTAKEN)
async def test_other_pictures_are_told_what_is_taken(data: bytes) -> None:
    with pytest.raises(BadOutput, match="PNG, JPEG, WebP, GIF, AVIF"):
        content_type_of(data)


@pytest.mark.parametrize("data", [b"", b"<html>not yet</html>", b"PK\x03\x04", b"\xff", b"GIF", *UNTAKEN])
async def test_anything_else_is_no_output(data: bytes) -> None:
    with pytest.raises(BadOutput):
        content_type_of(data)


# --- trying again -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        Response("not yet", 404),
        Response("upstream", 502),
        Response("slow down", 429, {"Retry-After": "0"}),
        Dropped(),
        Half(PNG),
        Response(PNG[: len(PNG) // 2]),
        Response("<html>preparing</html>"),
        Response(b""),
    ],
    ids=["404", "502", "429", "dropped", "half", "half and no word of it", "a page", "empty"],
)
async def test_what_may_mend_is_tried_again(server: FileServer, answer: Response) -> None:
    server.answers = [answer, answer]
    fetched = await fetch(server.url, trusted_hosts=server.trusted)
    assert fetched.data == PNG
    assert len(server.asked) == 3


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (Response("gone", 404), BadOutput),
        (Response("oops", 500), ProviderUnavailable),
        (Half(PNG), ProviderUnavailable),
        (Response(PNG[:-20]), BadOutput),
    ],
)
async def test_there_is_an_end_to_trying(server: FileServer, answer: Response, error: type[ProviderError]) -> None:
    server.answers = [answer] * 9
    with pytest.raises(error):
        await fetch(server.url + "?token=hush", trusted_hosts=server.trusted, tries=3)
    assert len(server.asked) == 3


async def test_a_refusal_is_not_argued_with(server: FileServer) -> None:
    server.answers = [Response("no", 403)]
    with pytest.raises(BadOutput, match="HTTP 403") as caught:
        await fetch(server.url + "?signature=hush", trusted_hosts=server.trusted)
    assert len(server.asked) == 1
    assert "hush" not in caught.value.message


async def test_a_host_that_is_not_there_is_unavailable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(ProviderUnavailable, match="ConnectError"):
        await fetch(f"http://127.0.0.1:{port}/", trusted_hosts={f"127.0.0.1:{port}"}, tries=1)


# --- size -------------------------------------------------------------------------------------------------------------


async def test_too_large_is_refused_by_its_length_or_on_the_way(server: FileServer) -> None:
    def endless(request: Request) -> Response:
        async def chunks() -> AsyncIterator[bytes]:
            yield PNG
            while True:
                yield b"\0" * 4096
                await asyncio.sleep(0.001)

        return StreamingResponse(chunks())

    server.answers = [Response(PNG + b"\0" * 5000), endless]
    for _ in range(2):
        with pytest.raises(FetchRefused, match="larger than 4000 bytes"):
            await fetch(server.url, trusted_hosts=server.trusted, max_bytes=4000)
    assert len(server.asked) == 2


# --- where it may come from -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:{port}/a.png",
        "http://localhost:{port}/a.png",
        "http://2130706433:{port}/a.png",
        "http://0.0.0.0:{port}/a.png",
        "http://[::1]:{port}/a.png",
        "http://[::ffff:127.0.0.1]:{port}/a.png",
        "http://[64:ff9b::7f00:1]:{port}/a.png",
        "http://[2002:7f00:1::]:{port}/a.png",
        "http://169.254.169.254/latest/meta-data/",
        "http://10.0.0.7/a.png",
        "http://100.64.0.1/a.png",
        "http://224.0.0.1/a.png",
        "http://[fe80::1]/a.png",
        "http://[fd00::1]/a.png",
        "ftp://example.com/a.png",
        "file:///etc/passwd",
        "data:image/png;base64,AAAA",
        "//example.com/a.png",
        "http://",
        "http://user:secret@example.com/a.png",
        "http://example.com:99999999/",
        "no URL",
        "",
    ],
)
async def test_nothing_private_and_nothing_strange(server: FileServer, url: str) -> None:
    with pytest.raises(FetchRefused) as caught:
        await fetch(url.format(port=server.served.host.partition(":")[2]))
    assert server.asked == []
    assert "secret" not in caught.value.message


async def test_trust_is_in_a_host_with_its_port(server: FileServer) -> None:
    with pytest.raises(FetchRefused):
        await fetch(server.url, trusted_hosts={"127.0.0.1:1", "127.0.0.1"})
    assert host_of("http://Example.COM/a") == "example.com:80"
    assert host_of("https://example.com/a") == "example.com:443"
    assert host_of(server.url) == server.served.host


async def test_redirects_are_followed_and_each_is_checked(server: FileServer) -> None:
    server.answers = [RedirectResponse("/b"), RedirectResponse(f"{server.served.url}/c", 302)]
    assert (await fetch(server.url, trusted_hosts=server.trusted)).data == PNG
    assert [request.url.path for request in server.asked] == ["/a.png", "/b", "/c"]

    other = Served(Starlette())
    try:
        for target in (f"{other.url}/a.png", "http://169.254.169.254/", "file:///etc/passwd", *MALFORMED):
            location = target.encode().decode("latin-1")  # as bytes of UTF-8
            server.answers = [RedirectResponse(server.url), Response(b"", 302, {"Location": location})]
            with pytest.raises(FetchRefused):
                await fetch(server.url, trusted_hosts=server.trusted)
    finally:
        other.close()


async def test_there_is_an_end_to_redirects(server: FileServer) -> None:
    server.answers = [RedirectResponse("/again")] * 9
    with pytest.raises(FetchRefused, match="more than 5 times"):
        await fetch(server.url, trusted_hosts=server.trusted)
    assert len(server.asked) == 6


async def test_secrets_stay_with_the_host_they_are_for(server: FileServer) -> None:
    other = FileServer()
    try:
        server.answers = [RedirectResponse("/b"), RedirectResponse(other.url)]
        trusted = server.trusted | other.trusted
        await fetch(server.url, headers={"X-Key": "hush"}, trusted_hosts=trusted)
    finally:
        other.served.close()
    assert [request.headers.get("x-key") for request in server.asked] == ["hush", "hush"]
    assert [request.headers.get("x-key") for request in other.asked] == [None]


def resolving(answers: Iterable[list[str]]) -> Callable[[str], Awaitable[list[str]]]:
    """A resolver that says this, one answer after the other."""
    left = iter(answers)

    async def resolve(host: str) -> list[str]:
        return next(left)

    return resolve


async def test_it_connects_to_the_address_that_was_checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A name that has another address the next time is no way in; TLS and `Host` bear the name all the same."""
    server, names = TlsServer(tmp_path), list[str | None]()
    server.context.set_servername_callback(lambda _, name, __: names.append(name))
    monkeypatch.setattr(fetch_module, "shared_tls", lambda: ssl.create_default_context(cafile=str(server.pem)))
    monkeypatch.setattr(address, "_resolve", resolving([["127.0.0.1"], ["127.0.0.2"]]))
    async with server:
        url = f"https://localhost:{server.port}/a.png?x=1"
        async with opened(url, headers={}, networks=[ip_network("127.0.0.1/32")]) as (response, found_at):
            assert await response.aread() == PNG
            assert str(found_at) == url
        with pytest.raises(FetchRefused, match="localhost is not at a public address"):
            async with opened(url, headers={}, networks=[ip_network("127.0.0.1/32")]):
                pass
    assert names == ["localhost"]
    assert server.heads[0].startswith(b"GET /a.png?x=1 HTTP/1.1\r\n")
    assert f"\r\nhost: localhost:{server.port}\r\n".encode() in server.heads[0].lower()
    assert len(server.heads) == 1


async def test_another_name_in_the_certificate_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    server = TlsServer(tmp_path)
    monkeypatch.setattr(fetch_module, "shared_tls", lambda: ssl.create_default_context(cafile=str(server.pem)))
    monkeypatch.setattr(address, "_resolve", resolving([["127.0.0.1"]]))
    async with server:
        with pytest.raises(ProviderUnavailable, match="ConnectError"):
            async with opened(
                f"https://pictures.example:{server.port}/", headers={}, networks=[ip_network("127.0.0.0/8")]
            ):
                pass
    assert server.heads == []


async def test_one_private_address_among_public_ones_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address, "_resolve", resolving([["93.184.215.14", "10.0.0.1"]]))
    with pytest.raises(FetchRefused, match="not at a public address"):
        await fetch("https://pictures.example/a.png")


async def test_the_next_address_is_taken_if_one_is_dead(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address, "_resolve", resolving([["127.0.0.2", "127.0.0.1"]]))  # nobody listens at the first
    url = f"http://pictures.example:{server.served.host.partition(':')[2]}/a.png"
    async with opened(url, headers={}, networks=[ip_network("127.0.0.0/8")]) as (response, _):
        assert await response.aread() == PNG


async def test_proxies_of_the_environment_are_not_asked(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """They would look the name up again."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setattr(address, "_resolve", resolving([["127.0.0.1"]]))
    url = f"http://pictures.example:{server.served.host.partition(':')[2]}/a.png"
    async with opened(url, headers={}, networks=[ip_network("127.0.0.0/8")]) as (response, _):
        assert response.status_code == 200
