"""Small real videos and sounds, made by ffmpeg when a test first asks for one."""

import subprocess
import tempfile
from functools import cache
from pathlib import Path

import pytest

from patience import PATIENCE_SECONDS
from safelight.artifacts import FfmpegMissing, find_ffmpeg

SECONDS = 2
PICTURES = ("-f", "lavfi", "-i", f"testsrc=size=128x72:rate=10:duration={SECONDS}")
TONE = ("-f", "lavfi", "-i", f"sine=frequency=440:sample_rate=48000:duration={SECONDS}")
H264 = ("-c:v", "libx264", "-pix_fmt", "yuv420p", "-preset", "ultrafast")
SILENT = (*PICTURES, *H264)
WITH_SOUND = (*PICTURES, *TONE, *H264, "-c:a", "aac")
DARK = "color=black:size=128x72:rate=10:duration=1[dark];[dark][0:v]concat"
RECIPES: dict[str, tuple[str, ...]] = {
    "mp4": WITH_SOUND,
    "mov": WITH_SOUND,
    "m4v": ("-f", "lavfi", "-i", f"testsrc=size=128x72:rate=10:duration={SECONDS}", *H264, "-f", "mp4"),
    "mkv": WITH_SOUND,
    "ts": (*WITH_SOUND, "-f", "mpegts"),
    "webm": (*PICTURES, *TONE, "-c:v", "libvpx", "-c:a", "libopus"),
    "avi": (*PICTURES, *TONE, "-c:v", "mpeg4", "-c:a", "libmp3lame"),
    "mp3": TONE,
    "m4a": (*TONE, "-c:a", "aac"),
    "ogg": (*TONE, "-c:a", "libvorbis"),
    "opus": (*TONE, "-c:a", "libopus", "-f", "ogg"),
    "weba": (*TONE, "-c:a", "libopus", "-f", "webm"),
    "wav": TONE,
    "flac": TONE,
    "fast.mp4": (*WITH_SOUND, "-movflags", "+faststart"),
    "wide.mp4": (*SILENT, "-aspect", "32:9"),
    "dark.mp4": (*PICTURES, "-filter_complex", DARK, *H264, "-g", "5"),
    "black.mp4": ("-f", "lavfi", "-i", "color=black:size=128x72:rate=10:duration=1", *H264),
    "cover.mp3": (*TONE, "-f", "lavfi", "-i", "testsrc=rate=1:duration=1", "-map", "0", "-map", "1", "-c:v", "png"),
}


@cache
def media(name: str) -> bytes:
    """A video of two seconds, 128x72 at 10 pictures a second, and a tone. Skips the test without ffmpeg."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"made.{name.rpartition('.')[2]}"
        _run(*RECIPES[name], str(path))
        return path.read_bytes()


@cache
def dash() -> dict[str, bytes]:
    """A silent video in the pieces of DASH: its manifest is `dash.mpd`."""
    with tempfile.TemporaryDirectory() as folder:
        _run(*SILENT, "-f", "dash", str(Path(folder) / "dash.mpd"))
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


@cache
def piped_media(name: str) -> bytes:
    """The same, written by somebody who could not go back to note its length."""
    return _run(*RECIPES[name], "-f", {"mkv": "matroska"}.get(name, name), "pipe:1")


@cache
def turned_video() -> bytes:
    """The same as a telephone held upright records it: lying, with a note to turn it."""
    with tempfile.TemporaryDirectory() as folder:
        lying, turned = Path(folder) / "lying.mp4", Path(folder) / "turned.mp4"
        lying.write_bytes(media("mp4"))
        _run("-display_rotation", "90", "-i", str(lying), "-c", "copy", str(turned))
        return turned.read_bytes()


def _run(*arguments: str) -> bytes:
    try:
        ffmpeg = find_ffmpeg()
    except FfmpegMissing as reason:
        pytest.skip(reason.detail)
    command = [ffmpeg, "-v", "error", "-nostdin", "-y", *arguments]
    return subprocess.run(command, check=True, timeout=PATIENCE_SECONDS, stdout=subprocess.PIPE).stdout
