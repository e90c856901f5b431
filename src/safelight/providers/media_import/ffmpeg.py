"""What ffmpeg says of a video or a sound before it is kept: how long it is, and whether there is picture and sound."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safelight.providers.media_import.error import NotMedia, ToolMissing
from safelight.providers.media_import.process import running
from safelight.providers.media_import.proxy import Proxy

NEAR = "file"
FAR = "http,https,httpproxy,tcp,tls"
SILENT_MICROSECONDS = 15_000_000
DEMUXERS = {  # so that what was looked at as media is not read as a list that leads elsewhere
    "video/mp4": "mov",
    "audio/mp4": "mov",
    "video/quicktime": "mov",
    "video/webm": "matroska",
    "video/x-matroska": "matroska",
    "video/x-msvideo": "avi",
    "audio/mpeg": "mp3",
    "audio/flac": "flac",
    "audio/ogg": "ogg",
    "audio/wav": "wav",
}
STREAM = re.compile(r"Stream #0:\d+[^:]*: (Video|Audio): (\w+)(.*)")
SIZE = re.compile(r"\b(\d{2,5})x(\d{2,5})\b")
SOUNDS = {"aac": "m4a", "alac": "m4a", "mp3": "mp3", "opus": "ogg", "vorbis": "ogg", "flac": "flac"}


@dataclass(frozen=True, slots=True)
class Ffmpeg:
    """The program, or None where there is none, and the memory that it may take."""

    path: str | None
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Sketch:
    """A video or a sound as its head describes it. `audio_codec` is None without a sound."""

    duration_seconds: float | None
    height: int | None
    has_picture: bool
    audio_codec: str | None


async def sketch(
    ffmpeg: Ffmpeg, source: Path | str, content_type: str, folder: Path, proxy: Proxy | None = None
) -> Sketch:
    """Describe media in a file, or at a URL (through `proxy`). Raises `NotMedia`, `ToolMissing`."""
    protocols = NEAR if proxy is None else FAR
    place = f"file:{source}" if proxy is None else str(source)
    silence = () if proxy is None else ("-rw_timeout", str(SILENT_MICROSECONDS))
    options = ("-protocol_whitelist", protocols, *silence, "-f", DEMUXERS[content_type], "-i", place)
    _, said = await _ffmpeg(ffmpeg, options, folder, {} if proxy is None else proxy.environment)
    if proxy is not None and proxy.refused is not None:
        raise proxy.refused
    if "Input #0" not in said:
        raise NotMedia("The file is no video or sound that can be played; it may be corrupt.")
    length = re.search(r"Duration: (\d+):(\d\d):(\d\d(?:\.\d+)?)", said)
    seconds = None if length is None else int(length[1]) * 3600 + int(length[2]) * 60 + float(length[3])
    height, audio_codec, has_picture = None, None, False
    for kind, codec, rest in STREAM.findall(said):
        if kind == "Audio":
            audio_codec = audio_codec or codec
        elif "(attached pic)" not in rest:
            has_picture = True
            size = SIZE.search(rest)
            height = height or (int(size[2]) if size else None)
    return Sketch(seconds, height, has_picture, audio_codec)


async def sound_of(ffmpeg: Ffmpeg, media: Path, audio_codec: str, folder: Path) -> Path:
    """The sound of a video in a file of its own, as it is. Raises `NotMedia`, `ToolMissing`."""
    target = folder / f"sound.{SOUNDS.get(audio_codec, 'mka')}"
    options = (
        "-protocol_whitelist",
        NEAR,
        "-i",
        f"file:{media}",
        "-map",
        "0:a:0",
        "-c",
        "copy",
        "-y",
        f"file:{target}",
    )
    code, said = await _ffmpeg(ffmpeg, options, folder, {})
    if code != 0:
        raise NotMedia("The sound of this video cannot be read; it may be corrupt.", details={"tool": said[-300:]})
    return target


async def _ffmpeg(ffmpeg: Ffmpeg, options: Sequence[str], folder: Path, environment: dict[str, str]) -> tuple[int, str]:
    if ffmpeg.path is None:
        raise ToolMissing("Videos and sounds need ffmpeg: install it, or Safelight with its extra `video`.")
    command = [ffmpeg.path, "-nostdin", "-hide_banner", "-threads", "2", *options]
    async with running(command, folder, environment, memory_bytes=ffmpeg.memory_bytes) as program:
        return await program.end(), program.said
