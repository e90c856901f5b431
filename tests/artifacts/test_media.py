"""Videos and sounds: what is known of them, and the frame that stands for them."""

import asyncio
import os
import sys
from pathlib import Path

import pytest

from media import media, piped_media, turned_video
from safelight.artifacts import BadMedia, FfmpegMissing, MediaInfo, find_ffmpeg, inspect_media
from safelight.artifacts import media as inspection
from safelight.artifacts.media import is_media

pytestmark = pytest.mark.anyio


async def inspected(tmp_path: Path, data: bytes) -> MediaInfo:
    path = tmp_path / "a file;with 'odd' characters"
    path.write_bytes(data)
    return await inspect_media(path)


@pytest.mark.parametrize(
    ("name", "content_type", "extension", "codecs"),
    [
        ("mp4", "video/mp4", "mp4", ("h264", "aac")),
        ("fast.mp4", "video/mp4", "mp4", ("h264", "aac")),
        ("mov", "video/quicktime", "mov", ("h264", "aac")),
        ("m4v", "video/mp4", "mp4", ("h264", None)),
        ("mkv", "video/x-matroska", "mkv", ("h264", "aac")),
        ("webm", "video/webm", "webm", ("vp8", "opus")),
        ("avi", "video/x-msvideo", "avi", ("mpeg4", "mp3")),
    ],
)
async def test_a_video(
    tmp_path: Path, name: str, content_type: str, extension: str, codecs: tuple[str, str | None]
) -> None:
    found = await inspected(tmp_path, media(name))
    assert (found.kind, found.content_type, found.extension) == ("video", content_type, extension)
    assert found.duration_seconds == pytest.approx(2, abs=0.11)
    assert (found.details["video_codec"], found.details.get("audio_codec")) == codecs
    assert found.details["container"] == extension
    assert found.details["frame_rate"] == pytest.approx(10, abs=0.6)
    assert found.poster is not None and (found.poster.width, found.poster.height) == (128, 72)


@pytest.mark.parametrize(
    ("name", "content_type", "extension", "codec"),
    [
        ("mp3", "audio/mpeg", "mp3", "mp3"),
        ("cover.mp3", "audio/mpeg", "mp3", "mp3"),
        ("m4a", "audio/mp4", "m4a", "aac"),
        ("ogg", "audio/ogg", "ogg", "vorbis"),
        ("opus", "audio/ogg", "ogg", "opus"),
        ("weba", "audio/webm", "webm", "opus"),
        ("wav", "audio/wav", "wav", "pcm_s16le"),
        ("flac", "audio/flac", "flac", "flac"),
    ],
)
async def test_a_sound(tmp_path: Path, name: str, content_type: str, extension: str, codec: str) -> None:
    found = await inspected(tmp_path, media(name))
    assert (found.kind, found.content_type, found.extension) == ("audio", content_type, extension)
    assert found.duration_seconds == pytest.approx(2, abs=0.1)
    assert found.details == {"container": extension, "audio_codec": codec, "sample_rate": 48000}
    assert found.poster is None


@pytest.mark.parametrize("name", ["wav", "flac", "mp3", "mkv", "webm"])
async def test_one_that_does_not_know_its_length_is_measured(tmp_path: Path, name: str) -> None:
    found = await inspected(tmp_path, piped_media(name))
    assert found.duration_seconds == pytest.approx(2, abs=0.1)


async def test_a_video_is_measured_as_it_is_shown(tmp_path: Path) -> None:
    turned = await inspected(tmp_path, turned_video())
    wide = await inspected(tmp_path, media("wide.mp4"))
    assert turned.poster is not None and (turned.poster.width, turned.poster.height) == (72, 128)
    assert wide.poster is not None and (wide.poster.width, wide.poster.height) == (256, 72)


async def test_the_poster_is_not_black_if_anything_is_not(tmp_path: Path) -> None:
    lit = await inspected(tmp_path, media("dark.mp4"))
    black = await inspected(tmp_path, media("black.mp4"))
    assert lit.poster is not None and lit.poster.contrast > 10
    assert black.poster is not None and max(black.poster.pixels) < 32


@pytest.mark.parametrize("name", ["mp4", "fast.mp4", "mov", "webm", "mkv", "wav", "m4a"])
async def test_half_a_file_is_refused(tmp_path: Path, name: str) -> None:
    data = media(name)
    with pytest.raises(BadMedia, match="cut short"):
        await inspected(tmp_path, data[: len(data) // 2])


@pytest.mark.parametrize("name", ["mp4", "webm", "mp3", "flac", "ogg", "wav", "avi"])
async def test_a_head_alone_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadMedia, match=r"corrupt|cut short|neither"):
        await inspected(tmp_path, media(name)[:40])


@pytest.mark.parametrize("head", [b"ID3", b"fLaC", b"OggS", b"\0\0\0\x20ftypisom", b"\x1aE\xdf\xa3webm"])
async def test_noise_with_the_right_head_is_refused(tmp_path: Path, head: bytes) -> None:
    with pytest.raises(BadMedia, match=r"corrupt|cut short"):
        await inspected(tmp_path, head + os.urandom(20_000))


@pytest.mark.parametrize("name", ["mp4", "m4v", "m4a"])
async def test_what_cannot_be_decoded_is_refused(tmp_path: Path, name: str) -> None:
    data = media(name)
    begin, end = data.index(b"mdat") + 4, data.rindex(b"moov") - 4
    with pytest.raises(BadMedia, match="corrupt"):
        await inspected(tmp_path, data[:begin] + bytes(end - begin) + data[end:])


async def test_a_list_of_other_files_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "secret.wav").write_bytes(media("wav"))
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{tmp_path / 'secret.wav'}\n#EXT-X-ENDLIST\n".encode()
    assert not is_media(playlist)
    with pytest.raises(BadMedia):
        await inspected(tmp_path, b"ID3" + playlist)


def test_pictures_are_no_videos() -> None:
    for head in (b"\x89PNG\r\n\x1a\n", b"GIF89a", b"RIFF\0\0\0\0WEBPVP8X", b"\0\0\0\x20ftypavis", b"<html>", b""):
        assert not is_media(head)
    assert all(is_media(media(name)) for name in ("mp4", "mp3", "wav"))


async def test_ffmpeg_is_killed_when_nobody_waits_any_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its children: a pipe that they hold open ends with the last of them."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    program = tmp_path / "ffmpeg"
    program.write_text(f"#!/bin/sh\nexec 9>{pipe}\nsleep 60 &\necho up >&9\nwait\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert find_ffmpeg() == str(program)
    task = asyncio.create_task(inspected(tmp_path, media("mp4")))
    with await asyncio.to_thread(pipe.open) as told:
        assert await asyncio.to_thread(told.readline) == "up\n"
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(told.read) == ""


async def test_one_that_takes_too_long_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "ffmpeg"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(inspection, "READ_SECONDS", 0.2)
    with pytest.raises(BadMedia, match="could not be read within"):
        await inspected(tmp_path, media("mp4"))


async def test_without_ffmpeg_it_is_said_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = media("mp4")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(FfmpegMissing, match="install it on the worker's PATH"):
        await inspected(tmp_path, data)
