"""What can be known of a video or a sound, and one frame of it: by ffmpeg, in a process of its own.

The wheel that carries ffmpeg has no ffprobe. What is asked instead is read well by machines: ffmpeg copies the streams,
undecoded, into its `framecrc` format, which is a head of `#name stream: value` lines and a line for each packet. So
the whole file is read once, and one that ends too early is noticed. ffprobe, where there is one, would only be a second
way beside this one.
"""

import asyncio
import contextlib
import importlib
import os
import re
import shutil
import signal
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, cast

from safelight.errors import SafelightError, Unavailable
from safelight.pictures import MAX_PIXELS, Frame, head_of, read_frame
from safelight.providers.base import BadOutput
from safelight.providers.fetch import HEAD_BYTES, content_type_of
from safelight.providers.program import MEMORY_BYTES, bounded

READ_SECONDS = 600.0  # for the whole file, from a slow disk
FRAME_SECONDS = 60.0
HEARD_SECONDS = 5
SAID_BYTES = 4000  # of what ffmpeg says, its last
LINE_BYTES = 64 * 1024
MOMENTS = (0.1, 0.3, 0.6, 0.0)  # of its length, where a frame is looked for
LIVELY = 10.0  # the deviation of the brightness (0-255) from which on a frame is worth showing
SHAPES = (Fraction(1, 4), Fraction(4))  # of a pixel; others are mistakes
CUT_SHORT = re.compile(r"partial file|ended prematurely|moov atom not found")
CORRUPT = 2  # a flag of a packet
ENDLESS = (b"\xff\xff\xff\xff", b"\0\0\0\0")  # the length of a RIFF file that nobody came back to write
T = TypeVar("T")

VIDEO, AUDIO = "video", "audio"
Demuxed = tuple[str, Mapping[str, tuple[str, str]]]  # ffmpeg's name; content type and extension by kind
_MP4: Demuxed = ("mov", {VIDEO: ("video/mp4", "mp4"), AUDIO: ("audio/mp4", "m4a")})
_OGG: Demuxed = ("ogg", {VIDEO: ("video/ogg", "ogv"), AUDIO: ("audio/ogg", "ogg")})
CONTAINERS: Mapping[str, Demuxed] = {
    "video/mp4": _MP4,
    "audio/mp4": _MP4,
    "video/quicktime": ("mov", {VIDEO: ("video/quicktime", "mov"), AUDIO: ("audio/mp4", "m4a")}),
    "video/webm": ("matroska", {VIDEO: ("video/webm", "webm"), AUDIO: ("audio/webm", "webm")}),
    "video/x-matroska": ("matroska", {VIDEO: ("video/x-matroska", "mkv"), AUDIO: ("audio/x-matroska", "mka")}),
    "video/x-msvideo": ("avi", {VIDEO: ("video/x-msvideo", "avi")}),
    "audio/mpeg": ("mp3", {AUDIO: ("audio/mpeg", "mp3")}),
    "audio/flac": ("flac", {AUDIO: ("audio/flac", "flac")}),
    "audio/ogg": _OGG,
    "audio/wav": ("wav", {AUDIO: ("audio/wav", "wav")}),
}


class BadMedia(SafelightError):
    """The provider's file is not a usable video or sound."""

    code = "bad_output"


class FfmpegMissing(Unavailable):
    """Videos and sounds need ffmpeg: install it on the worker's PATH, or Safelight with its extra `video`."""

    kind = "internal"
    code: ClassVar[str] = "ffmpeg_missing"

    def __init__(self) -> None:
        super().__init__(retry_after=None)


@dataclass(frozen=True, slots=True)
class MediaInfo:
    """A video as it is shown (upright, pixels square), or a sound, which has no size and no `poster`.

    `details` are `container`, and as far as there is one `video_codec`, `frame_rate` (of pictures a second),
    `audio_codec` and `sample_rate` (Hz).
    """

    kind: Literal["video", "audio"]
    content_type: str
    extension: str
    duration_seconds: float
    details: Mapping[str, Any]
    poster: Frame | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class _File:
    """What ffmpeg reads: as `container`, its name for the format, and with at most so much memory."""

    path: Path
    container: str
    memory_bytes: int


@dataclass(slots=True)
class _Stream:
    """What the lines of `framecrc` told of one stream so far. Times are in its own unit, the fact `tb`, in seconds."""

    facts: dict[str, str] = field(default_factory=dict[str, str])
    packets: int = 0
    begin: int | None = None
    end: int = 0
    is_cut: bool = False

    @property
    def seconds(self) -> float:
        """What is before the time 0 is not played."""
        return float((self.end - max(0, self.begin or 0)) * Fraction(self.facts["tb"]))

    def take(self, cells: list[str]) -> None:
        """A packet: `stream, dts, pts, duration, size, checksum[, F=flags][, side data]`."""
        pts, duration = max(int(cells[1]), int(cells[2])), int(cells[3])  # one that is unknown is the least integer
        self.packets += 1
        self.begin = pts if self.begin is None else min(self.begin, pts)
        self.end = max(self.end, pts + duration)
        flags = next((int(cell[2:], 16) for cell in cells[6:] if cell.startswith("F=")), 0)
        self.is_cut = bool(flags & CORRUPT)


def find_ffmpeg() -> str:
    """The program on PATH, or else the one that the package imageio-ffmpeg carries. Raises `FfmpegMissing`."""
    if on_path := shutil.which("ffmpeg"):
        return on_path
    try:
        return cast(str, importlib.import_module("imageio_ffmpeg").get_ffmpeg_exe())
    except (ImportError, RuntimeError):
        raise FfmpegMissing from None


def is_media(head: bytes) -> bool:
    """Whether a file that begins with these bytes is a video or a sound, whatever it claims to be."""
    try:
        return content_type_of(head[:HEAD_BYTES]) in CONTAINERS
    except BadOutput:
        return False


async def inspect_media(path: Path, memory_bytes: int = MEMORY_BYTES, max_pixels: int = MAX_PIXELS) -> MediaInfo:
    """Read a video or a sound to its end, and take a picture out of it that says something.

    ffmpeg may take `memory_bytes`. Raises `BadMedia`, which says why it is of no use, and `FfmpegMissing`.
    """
    head = await asyncio.to_thread(head_of, path)
    container, types = CONTAINERS[content_type_of(head)]
    file = _File(path, container, memory_bytes)
    streams = await _streams_of(file)
    video, audio = streams.get(VIDEO), streams.get(AUDIO)
    kind = VIDEO if video is not None and VIDEO in types else AUDIO
    if kind not in types or (kind == AUDIO and audio is None):
        raise BadMedia("The provider's file holds neither a picture nor a sound.")
    is_endless = head[4:8] in ENDLESS  # a WAV that was written into a pipe: any end is one
    if any(stream.is_cut for stream in streams.values()) and not is_endless:
        raise BadMedia("The provider's file is cut short.")
    content_type, extension = types[kind]
    seconds = max(stream.seconds for stream in streams.values())
    details: dict[str, Any] = {"container": extension}
    poster = None
    if kind == VIDEO and video is not None:
        details["video_codec"] = video.facts["codec_id"]
        if video.seconds > 0:
            details["frame_rate"] = round(video.packets / video.seconds, 2)
        poster = await _poster(file, video, seconds, max_pixels)
    else:
        await _hear(file)
    if audio is not None:
        details["audio_codec"] = audio.facts["codec_id"]
        details["sample_rate"] = int(audio.facts["sample_rate"])
    return MediaInfo(kind, content_type, extension, round(seconds, 3), details, poster)


# --- its streams ------------------------------------------------------------------------------------------------------


async def _streams_of(file: _File) -> dict[str, _Stream]:
    """The first video that is no cover picture, and the first sound."""
    wanted = ("-map", "0:V:0?", "-map", "0:a:0?", "-c", "copy", "-f", "framecrc", "-")
    found, code, said = await _ffmpeg(file, wanted, _read_streams, READ_SECONDS)
    if CUT_SHORT.search(said):
        raise BadMedia("The provider's file is cut short.")
    streams = {stream.facts["media_type"]: stream for stream in found.values()}
    if AUDIO in streams and not streams[AUDIO].packets:  # a track that was announced and never recorded
        del streams[AUDIO]
    if code != 0 or not streams or not all(stream.packets for stream in streams.values()):
        raise BadMedia("The provider's file is no video or sound that can be played; it may be corrupt.")
    return streams


async def _hear(file: _File) -> None:
    """Decode the beginning of a sound, for what its head promises."""
    beginning = ("-map", "0:a:0", "-t", f"{HEARD_SECONDS}", "-f", "framecrc", "-")
    heard, _, _ = await _ffmpeg(file, beginning, _read_streams, FRAME_SECONDS)
    if not any(stream.packets for stream in heard.values()):
        raise BadMedia("Nothing of the provider's sound can be played; it may be corrupt.")


async def _read_streams(output: asyncio.StreamReader) -> dict[str, _Stream]:
    streams: dict[str, _Stream] = {}
    while line := (await output.readline()).decode("ascii", "replace").strip():
        if not line.startswith("#"):
            cells = line.replace(" ", "").split(",")
            streams[cells[0]].take(cells)
        elif fact := re.fullmatch(r"#(\w+) (\d+): (.+)", line):
            streams.setdefault(fact[2], _Stream()).facts[fact[1]] = fact[3]
    return streams


# --- one frame --------------------------------------------------------------------------------------------------------


async def _poster(file: _File, video: _Stream, seconds: float, max_pixels: int) -> Frame:
    """The first frame found that is not of one colour, or the one that is it least; as it is shown."""
    width, height = (int(side) for side in video.facts["dimensions"].split("x"))
    if width * height > max_pixels:
        raise BadMedia(f"The provider's video of {width}x{height} has more than {max_pixels:,} pixels.")
    shape = Fraction(video.facts.get("sar", "1/1").replace("0/1", "1/1"))
    best: Frame | None = None
    for moment in MOMENTS:
        frame = await _frame(file, seconds * moment, SHAPES[0] <= shape <= SHAPES[1] and shape != 1)
        if frame is None:
            continue
        if best is None or frame.contrast > best.contrast:
            best = frame
        if frame.contrast >= LIVELY:
            break
    if best is None:
        raise BadMedia("No picture of the provider's video can be shown; it may be corrupt.")
    return best


async def _frame(file: _File, at_seconds: float, squares: bool) -> Frame | None:
    """The frame from which a player would go on there, turned upright and its pixels made square."""
    shown = ("-vf", "scale=iw*sar:ih,setsar=1") if squares else ()
    frame = ("-map", "0:V:0", "-frames:v", "1", *shown, "-pix_fmt", "rgb24", "-c:v", "ppm", "-f", "image2pipe", "-")
    seek = ("-noaccurate_seek", "-ss", f"{at_seconds:.3f}")
    data, _, _ = await _ffmpeg(file, frame, _read_all, FRAME_SECONDS, seek)
    return await asyncio.to_thread(read_frame, data)


async def _read_all(output: asyncio.StreamReader) -> bytes:
    return await output.read()


# --- the process ------------------------------------------------------------------------------------------------------


async def _ffmpeg(
    file: _File,
    wanted: tuple[str, ...],
    read: Callable[[asyncio.StreamReader], Awaitable[T]],
    seconds: float,
    before: tuple[str, ...] = (),
) -> tuple[T, int, str]:
    """What was read of its output, how it ended, and the last of what it said.

    It is of a group of its own, and killed with it if it takes longer or nobody waits any more. The file is opened as
    what its bytes say and nothing else: no playlist leads to other files or to the network.
    """
    command = (
        *(find_ffmpeg(), "-nostdin", "-hide_banner", "-v", "error", "-threads", "2", "-timelimit", f"{seconds:.0f}"),
        *("-protocol_whitelist", "file", "-f", file.container, *before, "-i", f"file:{file.path}", *wanted),
    )
    process = await asyncio.create_subprocess_exec(
        *bounded(command, memory_bytes=file.memory_bytes),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=LINE_BYTES,
        start_new_session=True,
    )
    output, errors = cast(asyncio.StreamReader, process.stdout), cast(asyncio.StreamReader, process.stderr)
    try:
        async with asyncio.timeout(seconds):
            result, said = await asyncio.gather(read(output), _last(errors))
            return result, await process.wait(), said
    except TimeoutError:
        raise BadMedia(f"The provider's file could not be read within {seconds:.0f} s.") from None
    except (ValueError, KeyError, IndexError) as error:  # lines that are none of its format
        raise BadMedia("The provider's file cannot be made sense of.") from error
    finally:
        with contextlib.suppress(ProcessLookupError):
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


async def _last(errors: asyncio.StreamReader) -> str:
    said = b""
    while part := await errors.read(LINE_BYTES):
        said = (said + part)[-SAID_BYTES:]
    return said.decode("utf-8", "replace")
