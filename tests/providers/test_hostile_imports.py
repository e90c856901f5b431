"""Imports from sources that mean harm, that say no, and that are merely real."""

import sys
import zlib
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from importing import Make, imported, refusal

from media import dash, media
from safelight.providers.base import ProviderError
from safelight.providers.media_import.encoding import Decoder
from safelight.providers.media_import.error import SourceTooSlow
from safelight.providers.media_import.process import running
from safelight.providers.media_import.rate_floor import RateFloor
from safelight.providers.media_import.title import title_of
from stand_ins.media_host import MediaHost

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("nothing_left")]
MEGABYTE = 1_000_000


async def outcome(make: Make, way: str, url: str, **changes: Any) -> ProviderError:
    """How an import, or a look, was refused."""
    provider = make(**changes)
    if way == "generate":
        return await refusal(provider, url)
    with pytest.raises(ProviderError) as caught:
        await provider.probe(url)
    return caught.value


# --- what is larger than it looks -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("way", "name"), [("generate", "gzip"), pytest.param("probe", "deflate", marks=pytest.mark.long)]
)
async def test_a_page_that_is_a_bomb(make: Make, host: MediaHost, tmp_path: Path, way: str, name: str) -> None:
    """What comes out of it is counted: a program that can hold less than 200 MB never sees that much."""
    bounds = {"max_bytes": 30 * MEGABYTE, "memory_bytes": 150 * MEGABYTE}
    error = await outcome(make, way, f"{host.url}/encoded?megabytes=200&as={name}", **bounds)
    assert (error.code, error.retryable) == ("media_too_large", False)
    assert "bytes came" in error.message


async def test_a_video_that_is_a_bomb(make: Make, host: MediaHost) -> None:
    host.files["/bomb.mp4"] = ("video/mp4", media("mp4") + bytes(100 * MEGABYTE))
    error = await refusal(make(max_bytes=20 * MEGABYTE), f"{host.url}/encoded?of=/bomb.mp4&as=gzip")
    assert error.code == "media_too_large"


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("of=/lighthouse.mp4&as=br", "source_refused"),
        ("of=/lighthouse.mp4&as=zstd", "source_refused"),
        ("of=/lighthouse.mp4&as=gzip&times=2", "source_refused"),
        ("of=/lighthouse.mp4&as=gzip&cut=5000", "source_unavailable"),
    ],
)
async def test_an_encoding_that_is_none_of_ours(make: Make, host: MediaHost, query: str, code: str) -> None:
    assert (await refusal(make(), f"{host.url}/encoded?{query}")).code == code


@pytest.mark.parametrize("name", ["gzip", "x-gzip", "deflate"])
async def test_an_encoded_video_comes_decoded(make: Make, host: MediaHost, name: str) -> None:
    output, data, _ = await imported(make(), f"{host.url}/encoded?of=/lighthouse.mp4&as={name}")
    assert (data, output.content_type) == (media("mp4"), "video/mp4")


async def test_a_decoder_gives_bites() -> None:
    for header, wbits in (("gzip", 31), ("deflate", 15), ("deflate", -15)):
        encoder = zlib.compressobj(9, zlib.DEFLATED, wbits)
        small = encoder.compress(bytes(5 * MEGABYTE)) + encoder.flush()
        decoder = Decoder(header)
        pieces = [piece for at in range(0, len(small), 100) for piece in decoder.feed(small[at : at + 100])]
        assert sum(map(len, pieces)) == 5 * MEGABYTE and max(map(len, pieces)) <= 256 * 1024
        assert decoder.is_whole


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("bytearray(900_000_000)", "MemoryError"),
        ("open('large', 'wb').write(bytes(3_000_000))", "File too large"),
        ("import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', 'bytearray(9**9)']))", "MemoryError"),
    ],
)
async def test_a_program_has_its_bounds(tmp_path: Path, program: str, words: str) -> None:
    """It, and what it starts."""
    command = [sys.executable, "-I", "-c", program]
    async with running(command, tmp_path, memory_bytes=300 * MEGABYTE, file_bytes=2 * MEGABYTE) as running_one:
        assert await running_one.end() != 0
    assert words in running_one.said


async def test_what_yt_dlp_cannot_hold_is_too_large(make: Make, host: MediaHost) -> None:
    """Where the proxy cannot see it: with no more memory than the program itself takes."""
    error = await refusal(make(memory_bytes=40 * MEGABYTE), f"{host.url}/page.html")
    assert error.code == "media_too_large"


# --- what is too slow -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["generate", "probe"])
@pytest.mark.parametrize("path", ["/drip", "/drip?type=text/html", "/drip-head"])
async def test_a_source_that_drips_is_given_up(make: Make, host: MediaHost, way: str, path: str) -> None:
    error = await outcome(make, way, host.url + path, min_bytes_per_second=10_000, slow_seconds=1)
    assert (error.code, error.retryable) == ("source_too_slow", False)


async def test_the_media_of_a_page_that_drips(make: Make, host: MediaHost) -> None:
    error = await refusal(make(min_bytes_per_second=10_000, slow_seconds=1), f"{host.url}/drip.html")
    assert error.code == "source_too_slow"


async def test_only_waiting_counts() -> None:
    floor = RateFloor(1000, 60)
    for _ in range(10):
        floor.add(59, 59_000)
        floor.add(1, 1_000)
    floor.add(59, 58_000)
    with pytest.raises(SourceTooSlow):
        floor.add(1, 1)
    RateFloor(0, 1).add(1000, 0)


# --- what says no -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "status", "most"),
    [
        pytest.param("/gone.html", 404, 4, marks=pytest.mark.long),
        ("/nowhere.mp4", 404, 1),
        ("/status?code=410", 410, 1),
        ("/status?code=401", 401, 1),
        ("/status?code=451", 451, 1),
        ("/status?code=403", 403, 2),  # yt-dlp may ask as well
        ("/forbidden.html", 403, 4),
        # Of a piece yt-dlp asks four times, and does not say why it gives up.
        pytest.param("/forbidden.m3u8", None, 9, marks=pytest.mark.long),
        ("/gone.m3u8", None, 9),
    ],
)
async def test_a_no_is_no_outage(make: Make, host: MediaHost, path: str, status: int | None, most: int) -> None:
    error = await refusal(make(), host.url + path)
    assert (error.code, error.retryable, error.details.get("http_status")) == ("source_refused", False, status)
    assert ("There is nothing" in error.message) == (status in (404, 410))
    assert len(host.asked) <= most


@pytest.mark.parametrize(("after", "seconds"), [("7", 7), ("99999", 600), ("soon", None)])
async def test_a_busy_source_says_when(make: Make, host: MediaHost, after: str, seconds: float | None) -> None:
    error = await refusal(make(), f"{host.url}/status?code=429&after={after}")
    assert (error.code, error.retryable, error.retry_after) == ("source_unavailable", True, seconds)


# --- what is merely real ----------------------------------------------------------------------------------------------


async def test_a_dash_manifest_becomes_a_video(make: Make, host: MediaHost) -> None:
    for name, data in dash().items():
        kind = "application/dash+xml" if name.endswith("mpd") else "video/iso.segment"
        host.files[f"/dash/{name}"] = (kind, data)
    output, data, _ = await imported(make(), f"{host.url}/dash/dash.mpd")
    assert output.content_type == "video/mp4" and data[4:8] == b"ftyp"


@pytest.mark.long
async def test_a_video_that_only_yt_dlp_and_ffmpeg_know(make: Make, host: MediaHost) -> None:
    output, data, _ = await imported(make(), f"{host.url}/piece.ts")
    assert output.content_type.startswith("video/") and len(data) > 1000


async def test_a_picture_that_is_not_taken_is_told_what_is(make: Make, host: MediaHost) -> None:
    error = await refusal(make(), f"{host.url}/typed?type=image/tiff")
    assert error.code == "not_media"
    assert "is image/tiff, which is not taken" in error.message and "image/png" in error.message


async def test_a_file_has_the_name_that_its_server_gives(make: Make, host: MediaHost) -> None:
    by = quote("attachment; filename=\"plain.mp4\"; filename*=UTF-8''l%C3%A9ger.mp4")
    output, _, _ = await imported(make(), f"{host.url}/named?by={by}")
    assert output.details["title"] == "l\u00e9ger.mp4"


@pytest.mark.parametrize(
    ("disposition", "title"),
    [
        ("", "a b.mp4"),
        ("inline", "a b.mp4"),
        ('attachment; filename="two words.mp4"', "two words.mp4"),
        ("attachment; filename=one.mp4", "one.mp4"),
        ("attachment; filename*=utf-8''%E6%9C%88.mp4", "\u6708.mp4"),
        ("attachment; filename*=ISO-8859-1'de'%E4.mp4; filename=a.mp4", "\u00e4.mp4"),
        ("attachment; filename*=nonsense''%E4.mp4", "a b.mp4"),
        ('attachment; filename="../../etc/passwd"', "passwd"),
        ('attachment; filename="C:\\\\films\\\\a.mp4"', "a.mp4"),
        ("attachment; filename*=UTF-8''..%2F..%2Fx%00%0A%E2%80%AEy.mp4", "x y.mp4"),
        ('attachment; filename=".."', "a b.mp4"),
        ("attachment; filename=" + "x" * 5000, "x" * 300),
    ],
)
async def test_a_title_is_a_name_and_no_path(disposition: str, title: str) -> None:
    assert title_of(httpx.URL("http://example.com/films/a%20b.mp4?c"), disposition) == title
