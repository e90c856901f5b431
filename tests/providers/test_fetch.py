"""Downloads: tried again, whole, judged by content, and only from where they may come."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from hostile_urls import MALFORMED
from safelight.providers import address
from safelight.providers import fetch as fetch_module
from safelight.providers.base import BadOutput, ProviderError, ProviderUnavailable
from safelight.providers.fetch import FetchRefused, content_type_of, fetch, host_of, shared_tls
from stand_ins.serve import Dropped, Half, Served, picture

pytestmark = pytest.mark.anyio
PNG = picture(40, 30)
SECRETS = {"Authorization": "Bearer secret"}
Answer = Callable[[Request], Response]


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


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(verify=shared_tls(), headers=SECRETS, cookies={"session": "secret"}) as client:
        yield client


async def test_the_type_is_what_the_bytes_say(server: FileServer, client: httpx.AsyncClient) -> None:
    fetched = await fetch(client, server.url, trusted_hosts=server.trusted)
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
async def test_what_may_mend_is_tried_again(server: FileServer, client: httpx.AsyncClient, answer: Response) -> None:
    server.answers = [answer, answer]
    fetched = await fetch(client, server.url, trusted_hosts=server.trusted)
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
async def test_there_is_an_end_to_trying(
    server: FileServer, client: httpx.AsyncClient, answer: Response, error: type[ProviderError]
) -> None:
    server.answers = [answer] * 9
    with pytest.raises(error):
        await fetch(client, server.url + "?token=hush", trusted_hosts=server.trusted, tries=3)
    assert len(server.asked) == 3


async def test_a_refusal_is_not_argued_with(server: FileServer, client: httpx.AsyncClient) -> None:
    server.answers = [Response("no", 403)]
    with pytest.raises(BadOutput, match="HTTP 403") as caught:
        await fetch(client, server.url + "?signature=hush", trusted_hosts=server.trusted)
    assert len(server.asked) == 1
    assert "hush" not in caught.value.message


async def test_a_host_that_is_not_there_is_unavailable(client: httpx.AsyncClient) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(ProviderUnavailable, match="ConnectError"):
        await fetch(client, f"http://127.0.0.1:{port}/", trusted_hosts={f"127.0.0.1:{port}"}, tries=1)


# --- size -------------------------------------------------------------------------------------------------------------


async def test_too_large_is_refused_by_its_length_or_on_the_way(server: FileServer, client: httpx.AsyncClient) -> None:
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
            await fetch(client, server.url, trusted_hosts=server.trusted, max_bytes=4000)
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
async def test_nothing_private_and_nothing_strange(server: FileServer, client: httpx.AsyncClient, url: str) -> None:
    with pytest.raises(FetchRefused) as caught:
        await fetch(client, url.format(port=server.served.host.partition(":")[2]))
    assert server.asked == []
    assert "secret" not in caught.value.message


async def test_trust_is_in_a_host_with_its_port(server: FileServer, client: httpx.AsyncClient) -> None:
    with pytest.raises(FetchRefused):
        await fetch(client, server.url, trusted_hosts={"127.0.0.1:1", "127.0.0.1"})
    assert host_of("http://Example.COM/a") == "example.com:80"
    assert host_of("https://example.com/a") == "example.com:443"
    assert host_of(server.url) == server.served.host


async def test_redirects_are_followed_and_each_is_checked(server: FileServer, client: httpx.AsyncClient) -> None:
    server.answers = [RedirectResponse("/b"), RedirectResponse(f"{server.served.url}/c", 302)]
    assert (await fetch(client, server.url, trusted_hosts=server.trusted)).data == PNG
    assert [request.url.path for request in server.asked] == ["/a.png", "/b", "/c"]

    other = Served(Starlette())
    try:
        for target in (f"{other.url}/a.png", "http://169.254.169.254/", "file:///etc/passwd", *MALFORMED):
            location = target.encode().decode("latin-1")  # as bytes of UTF-8
            server.answers = [RedirectResponse(server.url), Response(b"", 302, {"Location": location})]
            with pytest.raises(FetchRefused):
                await fetch(client, server.url, trusted_hosts=server.trusted)
    finally:
        other.close()


async def test_there_is_an_end_to_redirects(server: FileServer, client: httpx.AsyncClient) -> None:
    server.answers = [RedirectResponse("/again")] * 9
    with pytest.raises(FetchRefused, match="more than 5 times"):
        await fetch(client, server.url, trusted_hosts=server.trusted)
    assert len(server.asked) == 6


async def test_secrets_stay_with_the_host_they_are_for(server: FileServer, client: httpx.AsyncClient) -> None:
    other = FileServer()
    try:
        server.answers = [RedirectResponse("/b"), RedirectResponse(other.url)]
        trusted = server.trusted | other.trusted
        await fetch(client, server.url, headers={"X-Key": "hush"}, trusted_hosts=trusted)
    finally:
        other.served.close()
    assert [request.headers.get("x-key") for request in server.asked] == ["hush", "hush"]
    assert [request.headers.get("x-key") for request in other.asked] == [None]
    for request in server.asked + other.asked:  # what the client sends to its own service
        assert "authorization" not in request.headers
        assert "cookie" not in request.headers


def resolving(answers: Iterable[list[str]]) -> Callable[[str], Awaitable[list[str]]]:
    """A resolver that says this, one answer after the other."""
    left = iter(answers)

    async def resolve(host: str) -> list[str]:
        return next(left)

    return resolve


async def test_it_connects_to_the_address_that_was_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that has another address the next time is no way in."""
    answers = iter([["93.184.215.14"], ["127.0.0.1"]])
    sent: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(request)
        return httpx.Response(200, stream=httpx.ByteStream(PNG))

    monkeypatch.setattr(address, "_resolve", resolving(answers))
    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as client:
        await fetch(client, "https://pictures.example/a.png?x=1")
        with pytest.raises(FetchRefused):
            await fetch(client, "https://pictures.example/a.png?x=1")
    assert [str(request.url) for request in sent] == ["https://93.184.215.14/a.png?x=1"]
    assert sent[0].headers["host"] == "pictures.example"
    assert sent[0].headers["connection"] == "close"
    assert sent[0].extensions["sni_hostname"] == "pictures.example"


async def test_one_private_address_among_public_ones_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address, "_resolve", resolving([["93.184.215.14", "10.0.0.1"]]))
    async with httpx.AsyncClient(verify=shared_tls()) as client:
        with pytest.raises(FetchRefused, match="not at a public address"):
            await fetch(client, "https://pictures.example/a.png")


async def test_the_next_address_is_taken_if_one_is_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.host == "93.184.215.14":
            raise httpx.ConnectError("refused")
        return httpx.Response(200, stream=httpx.ByteStream(PNG))

    monkeypatch.setattr(address, "_resolve", resolving([["93.184.215.14", "2606:4700::1"]]))
    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as client:
        assert (await fetch(client, "https://pictures.example/a.png", tries=1)).data == PNG
