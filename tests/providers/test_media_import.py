"""Media imports: from real servers, through every trouble, and nothing left behind."""

import asyncio
import base64
import contextlib
import socket
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from importing import LOOPBACK, Make, imported, order, programs_in, refusal

from media import media
from safelight.providers import address
from safelight.providers.address import FetchRefused
from safelight.providers.base import (
    InvalidParameters,
    Parameters,
    ProviderError,
)
from safelight.providers.media_import import Description
from safelight.providers.media_import.error import TooLarge
from safelight.providers.media_import.process import running
from safelight.providers.media_import.proxy import Proxy
from safelight.providers.media_import.rate_floor import RateFloor
from safelight.testing import check_provider
from stand_ins.media_host import MediaHost

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("nothing_left")]
RATE_FLOOR = RateFloor(0, 60)


# --- what works -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content_type"),
    [("lighthouse.mp4", "video/mp4"), ("lighthouse.webm", "video/webm"), ("sea.mp3", "audio/mpeg")],
)
async def test_a_plain_file_comes_byte_for_byte(make: Make, host: MediaHost, name: str, content_type: str) -> None:
    url = f"{host.url}/{name}"
    output, data, told = await imported(make(), url)
    assert (data, output.content_type) == (host.files[f"/{name}"][1], content_type)
    assert output.details == {"source_url": url, "title": name}
    assert told[0].stage == "connecting"
    assert len(host.asked) == 1


async def test_the_media_of_a_page_comes_by_yt_dlp(make: Make, host: MediaHost) -> None:
    output, data, told = await imported(make(), f"{host.url}/page.html")
    assert data == media("mp4")
    assert output.content_type == "video/mp4"
    assert "A lighthouse" in output.details["title"]
    assert output.details["extractor"]
    assert "MB of" in told[-2].message or "kB of" in told[-2].message


async def test_a_video_in_pieces_comes_as_one(make: Make, host: MediaHost) -> None:
    output, data, _ = await imported(make(), f"{host.url}/list.m3u8")
    assert output.content_type == "video/mp4"
    assert len(data) > 1000


@pytest.mark.parametrize(
    ("max_height", "piece"),
    [(None, "/large.ts"), (480, "/piece.ts"), pytest.param(100, "/piece.ts", marks=pytest.mark.long)],
)
async def test_the_form_is_the_largest_that_is_not_too_high(
    make: Make, host: MediaHost, max_height: int | None, piece: str
) -> None:
    """And the lowest there is, if all are higher."""
    await imported(make(), f"{host.url}/choice.m3u8", max_height=max_height)
    assert [path for path, _ in host.asked if path.endswith(".ts")] == [piece]


async def test_a_look_tells_the_forms_on_offer(make: Make, host: MediaHost) -> None:
    assert (await make().probe(f"{host.url}/choice.m3u8")).heights == (720, 360)


async def test_a_list_of_pieces_leads_to_no_private_address(make: Make, host: MediaHost) -> None:
    assert (await refusal(make(), f"{host.url}/inner.m3u8")).code == "address_refused"


async def test_the_sound_of_a_video_alone(make: Make, host: MediaHost) -> None:
    output, data, _ = await imported(make(), f"{host.url}/lighthouse.mp4", audio_only=True)
    assert output.content_type == "audio/mp4"
    assert 0 < len(data) < len(media("mp4"))


async def test_redirects_are_followed(make: Make, host: MediaHost) -> None:
    output, data, _ = await imported(make(), f"{host.url}/redirect?times=4&to=/lighthouse.mp4")
    assert data == media("mp4")
    assert output.details["title"] == "lighthouse.mp4"


async def test_a_transfer_that_breaks_off_goes_on_where_it_broke(make: Make, host: MediaHost) -> None:
    _, data, _ = await imported(make(), f"{host.url}/cut.mp4")
    assert data == media("mp4")
    assert [asked for _, asked in host.asked] == [None, f"bytes={len(media('mp4')) // 2}-"]


async def test_a_slow_source_is_waited_for(make: Make, host: MediaHost) -> None:
    provider = make()
    body = asyncio.create_task(imported(provider, f"{host.url}/slow.mp4"))
    await asyncio.to_thread(host.dripping.wait, 10)
    host.released.set()
    assert (await body)[1] == media("mp4")


async def test_a_look_tells_before_anything_is_fetched(make: Make, host: MediaHost) -> None:
    provider = make()
    assert await provider.probe(f"{host.url}/lighthouse.mp4") == Description(
        title="lighthouse.mp4",
        extractor=None,
        content_type="video/mp4",
        duration_seconds=2.0,
        size_bytes=len(media("mp4")),
        heights=(72,),
    )
    seen = await provider.probe(f"{host.url}/page.html")
    assert seen.title is not None and "A lighthouse" in seen.title


# --- what must not be fetched -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("ftp://example.com/film.mp4", "url_refused"),
        ("file:///etc/passwd", "url_refused"),
        ("http://user:word@example.com/film.mp4", "url_refused"),
        ("http://", "url_refused"),
        ("http://127.0.0.2/film.mp4", "address_refused"),
        ("http://10.1.2.3/film.mp4", "address_refused"),
        ("http://169.254.169.254/latest/meta-data", "address_refused"),
        ("http://[::1]/film.mp4", "address_refused"),
        ("http://[::ffff:10.0.0.1]/film.mp4", "address_refused"),
        ("http://[fe80::1]/film.mp4", "address_refused"),
        ("http://[64:ff9b::a00:1]/film.mp4", "address_refused"),
        ("http://2130706433/film.mp4", "address_refused"),
        ("http://0x7f.1/film.mp4", "address_refused"),
        ("http://127.1/film.mp4", "address_refused"),
        ("http://0/film.mp4", "address_refused"),
    ],
)
async def test_it_is_refused_before_anything_is_asked(make: Make, url: str, code: str) -> None:
    with pytest.raises(InvalidParameters) as caught:
        make().check(order(url).parameters)
    assert caught.value.field == "url"
    assert isinstance(caught.value.__cause__, ProviderError)
    assert caught.value.__cause__.code == code


@pytest.mark.parametrize("way", ["generate", "probe"])
@pytest.mark.parametrize(
    "to", ["http://169.254.169.254/film.mp4", "http://127.0.0.2/film.mp4", "http://[::1]:1/", "http://2130706433/"]
)
async def test_a_redirect_leads_to_no_private_address(make: Make, host: MediaHost, way: str, to: str) -> None:
    url = f"{host.url}/redirect?times=2&to={to}"
    with pytest.raises(ProviderError) as caught:
        await (make().probe(url) if way == "probe" else imported(make(), url))
    assert caught.value.code == "address_refused"


@pytest.mark.parametrize("way", ["generate", pytest.param("probe", marks=pytest.mark.long)])
async def test_a_page_leads_to_no_private_address(make: Make, host: MediaHost, way: str) -> None:
    url = f"{host.url}/inner.html"
    if way == "probe":
        await make().probe(url)  # which fetches nothing, and says so
        return
    assert (await refusal(make(), url)).code == "address_refused"


def named(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> list[str]:
    """Let every name stand for these addresses, one answer after the other; returns who was asked for."""
    asked: list[str] = []

    async def resolve(name: str) -> list[str]:
        asked.append(name)
        return answers[min(len(asked), len(answers)) - 1]

    monkeypatch.setattr(address, "_resolve", resolve)
    return asked


async def test_a_name_that_stands_for_a_private_address(
    make: Make, host: MediaHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    named(monkeypatch, ["127.0.0.2"])
    assert (await refusal(make(), "http://films.example/lighthouse.mp4")).code == "address_refused"
    named(monkeypatch, ["93.184.215.14", "127.0.0.2"])
    assert (await refusal(make(), "http://films.example/lighthouse.mp4")).code == "address_refused"


async def test_a_name_that_stands_for_another_address_on_the_second_look(
    make: Make, host: MediaHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page is asked for by us, then by yt-dlp: between them the name moves into the house."""
    asked = named(monkeypatch, ["127.0.0.1"], ["127.0.0.2"])
    error = await refusal(make(), f"http://films.example:{host.port}/page.html")
    assert error.code == "address_refused"
    assert len(asked) == 2
    assert [path for path, _ in host.asked] == ["/page.html"]


# --- what is no media, or not as it should be -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "code", "is_retryable"),
    [
        ("/words.html", "no_media", False),
        ("/fake.mp4", "not_media", False),
        pytest.param("/fake.html", "not_media", False, marks=pytest.mark.long),
        ("/broken.mp4", "not_media", False),
        ("/empty.mp4", "not_media", False),
        ("/status?code=503", "source_unavailable", True),
        ("/status?code=429", "source_unavailable", True),
        ("/huge.mp4", "media_too_large", False),
        ("/endless.mp4", "media_too_large", False),
        ("/short.mp4", "source_unavailable", True),
        ("/cut-again.mp4", "source_unavailable", True),
        ("/redirect?times=9&to=/lighthouse.mp4", "fetch_refused", False),
        ("/redirect?to=ftp://films.example/lighthouse.mp4", "url_refused", False),
    ],
)
async def test_each_trouble_has_its_code(make: Make, host: MediaHost, path: str, code: str, is_retryable: bool) -> None:
    error = await refusal(make(max_bytes=20_000_000), host.url + path)
    assert (error.code, error.retryable) == (code, is_retryable)


async def test_a_host_that_is_not_there(make: Make) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    assert (await refusal(make(), f"http://127.0.0.1:{port}/film.mp4")).code == "source_unavailable"


async def test_a_source_that_falls_silent(make: Make, host: MediaHost) -> None:
    error = await refusal(make(idle_seconds=0.3), f"{host.url}/slow.mp4")
    assert (error.code, error.retryable) == ("source_unavailable", True)


async def test_too_large_and_too_long(make: Make, host: MediaHost) -> None:
    assert (await refusal(make(max_bytes=1000), f"{host.url}/lighthouse.mp4")).code == "media_too_large"
    assert (await refusal(make(max_bytes=1000), f"{host.url}/page.html")).code == "media_too_large"
    assert (await refusal(make(max_seconds=1), f"{host.url}/lighthouse.mp4")).code == "media_too_long"
    with pytest.raises(ProviderError) as caught:
        await make(max_seconds=1).probe(f"{host.url}/lighthouse.mp4")
    assert caught.value.code == "media_too_long"


async def test_no_room(make: Make, host: MediaHost) -> None:
    assert (await refusal(make(keep_free_bytes=2**60), f"{host.url}/lighthouse.mp4")).code == "no_disk_space"
    assert (await refusal(make(quota_bytes=1000), f"{host.url}/lighthouse.mp4")).code == "no_disk_space"


async def test_a_site_that_is_not_allowed(make: Make, host: MediaHost) -> None:
    provider = make(extractors=["default", "-generic"])
    assert (await refusal(provider, f"{host.url}/page.html")).code == "site_not_allowed"


async def test_the_silent_have_no_sound(make: Make, host: MediaHost) -> None:
    assert (await refusal(make(), f"{host.url}/silent.mp4", audio_only=True)).code == "not_media"


async def test_without_ffmpeg_it_says_so(make: Make, host: MediaHost) -> None:
    assert (await refusal(make(ffmpeg=None), f"{host.url}/lighthouse.mp4")).code == "tool_missing"


# --- stopping ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/slow.mp4", "/slow.html"])
async def test_an_import_that_is_stopped_leaves_nothing(make: Make, host: MediaHost, tmp_path: Path, path: str) -> None:
    body = asyncio.create_task(imported(make(), host.url + path))
    assert await asyncio.to_thread(host.dripping.wait, 20)
    assert list((tmp_path / "imports").iterdir())
    assert len(programs_in(tmp_path)) >= (2 if path.endswith("html") else 0)
    body.cancel()
    await asyncio.wait({body}, timeout=1)
    assert body.cancelled()


async def test_what_a_dead_process_left_is_swept(make: Make, host: MediaHost, tmp_path: Path) -> None:
    left = tmp_path / "imports" / "left"
    left.mkdir(parents=True)
    (left / ".lock").touch()
    (left / "file").write_bytes(b"half")
    await imported(make(), f"{host.url}/lighthouse.mp4")
    assert not left.exists()


# --- its parts --------------------------------------------------------------------------------------------------------


async def test_it_keeps_the_contract(make: Make, host: MediaHost) -> None:
    parameters = Parameters("media.import", "", provider_options={"url": f"{host.url}/lighthouse.mp4"})
    others = [Parameters("media.import", "", provider_options={"url": f"{host.url}/sea.mp3"})]
    await check_provider(make, parameters=parameters, others=others)


async def asked_through(proxy: Proxy, request: bytes, *, secret: str | None = None) -> bytes:
    """What the proxy answers to a request, with its secret or another."""
    given = urlsplit(proxy.environment["http_proxy"])
    credential = base64.b64encode(f"import:{given.password if secret is None else secret}".encode()).decode()
    reader, writer = await asyncio.open_connection("127.0.0.1", given.port)
    line, _, rest = request.partition(b"\r\n")
    writer.write(line + f"\r\nProxy-Authorization: Basic {credential}\r\n".encode() + rest)
    answer = await reader.read()
    writer.close()
    return answer


async def test_the_proxy_is_for_its_own_import(host: MediaHost) -> None:
    request = f"GET {host.url}/words.html HTTP/1.1\r\nHost: films\r\n\r\n".encode()
    async with Proxy([LOOPBACK], 10_000, RATE_FLOOR) as proxy:
        assert b"Only words." in await asked_through(proxy, request)
        assert (await asked_through(proxy, request, secret="another")).startswith(b"HTTP/1.1 407")
    assert len(host.asked) == 1


@pytest.mark.parametrize(
    "request_line",
    [
        "GET http://169.254.169.254/latest/meta-data HTTP/1.1",
        "CONNECT 127.0.0.2:443 HTTP/1.1",
        "CONNECT [::1]:443 HTTP/1.1",
        "CONNECT 2130706433:443 HTTP/1.1",
        "GET http://user:word@127.0.0.1/ HTTP/1.1",
        "GET file:///etc/passwd HTTP/1.1",
        "GET /relative HTTP/1.1",
    ],
)
async def test_the_proxy_refuses(request_line: str) -> None:
    async with Proxy([LOOPBACK], 10_000, RATE_FLOOR) as proxy:
        answer = await asked_through(proxy, f"{request_line}\r\n\r\n".encode())
        assert answer.startswith(b"HTTP/1.1 403")
        assert isinstance(proxy.refused, FetchRefused)


async def test_the_proxy_tunnels_to_the_address_it_looked_at(host: MediaHost, monkeypatch: pytest.MonkeyPatch) -> None:
    named(monkeypatch, ["127.0.0.1"], ["127.0.0.2"])
    inner = b"GET /words.html HTTP/1.1\r\nHost: films\r\nConnection: close\r\n\r\n"
    connect = f"CONNECT films.example:{host.port} HTTP/1.1\r\n\r\n".encode() + inner
    async with Proxy([LOOPBACK], 10_000, RATE_FLOOR) as proxy:
        assert b"Only words." in await asked_through(proxy, connect)
        assert (await asked_through(proxy, connect)).startswith(b"HTTP/1.1 403")


async def test_the_proxy_counts_what_comes(host: MediaHost) -> None:
    async with Proxy([LOOPBACK], 1000, RATE_FLOOR) as proxy:
        with contextlib.suppress(ConnectionResetError):
            await asked_through(proxy, f"GET {host.url}/lighthouse.mp4 HTTP/1.1\r\n\r\n".encode())
        assert isinstance(proxy.refused, TooLarge)


ESCAPES = """
import os, subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
if os.fork() == 0:
    os.setsid()
    time.sleep(60)
print("ready", flush=True)
time.sleep(float(sys.argv[1]))
"""


@pytest.mark.parametrize("seconds", ["0", "60"])
async def test_no_program_leaves_a_child_behind(tmp_path: Path, seconds: str) -> None:
    """Neither one that ends by itself, nor one that is stopped; children that went into sessions of their own too."""
    folder = tmp_path / "work"
    folder.mkdir()
    async with running([sys.executable, "-c", ESCAPES, seconds], folder) as program:
        assert await anext(program.lines()) == "ready"
        if seconds == "0":
            assert await program.end() == 0
    assert not programs_in(folder)


async def test_a_program_is_told_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFELIGHT_SIGNING_KEY", "a secret")
    async with running([sys.executable, "-c", "import os; print(dict(os.environ))"], tmp_path) as program:
        told = await anext(program.lines())
    assert "a secret" not in told and str(tmp_path) in told
