"""Media of pages: yt-dlp as a program of its own, behind our proxy, and what it says in words of ours."""

import importlib.util
import re
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import orjson

from safelight.providers.base import ProviderError
from safelight.providers.media_import.error import (
    NoMedia,
    SiteNotAllowed,
    SourceRefuses,
    SourceUnavailable,
    TooLarge,
    ToolMissing,
)
from safelight.providers.media_import.process import running
from safelight.providers.media_import.proxy import Proxy
from safelight.providers.media_import.title import plain

FIELDS = "id,title,duration,filesize,filesize_approx,extractor,webpage_url,is_live,width,height"
FORMATS = "formats.:.{height,vcodec,acodec}"
TRANSFER = "progress.{status,downloaded_bytes,total_bytes,total_bytes_estimate,speed,eta}"
# What yt-dlp fetches itself, through the proxy. Others (rtsp, mms, ...) would go by programs that know no proxy.
PROTOCOLS = "[protocol~='^(https?|m3u8|m3u8_native|http_dash_segments)(\\+|$)']"
KEPT = ("mp4", "webm", "mkv", "mov", "avi", "mp3", "m4a", "ogg", "opus", "flac", "wav")
CONTAINERS = "/".join([*(f"{name}>{name}" for name in KEPT), "mkv"])  # every other one becomes the last
LOOK_BYTES = 16 * 1024 * 1024  # of any file that is written while only looking

FAILURES: Sequence[tuple[str, type[ProviderError], str]] = (
    (r"Unsupported URL|No video formats found|no media|no video", NoMedia, "There is no media at this URL."),
    (r"No suitable extractor", SiteNotAllowed, "This installation imports nothing from this site."),
    (r"Requested format is not available", NoMedia, "The media comes in no form that can be fetched here."),
    (
        r"MemoryError|Cannot allocate memory",
        TooLarge,
        "What the source sent takes more memory than there is for it.",
    ),
    (r"File too large", TooLarge, "The media is larger than this installation takes."),
    (r"HTTP Error (404|410)", SourceRefuses, "There is nothing at this URL."),
    (r"HTTP Error (401|403|407|451)", SourceRefuses, ""),
    (
        r"HTTP Error (429|5\d\d)|timed out|[Cc]onnection|Unable to download|[Pp]roxy|reset by peer",
        SourceUnavailable,
        "",
    ),
    (r"HTTP Error 4\d\d|[Ss]ign in|[Ll]og ?in|[Pp]rivate|DRM|geo|not available", SourceRefuses, ""),
)


@dataclass(frozen=True, slots=True)
class Found:
    """What a page says of its media; what it does not say is None."""

    title: str | None
    extractor: str
    duration_seconds: float | None
    size_bytes: int | None
    is_live: bool
    heights: tuple[int, ...] = ()

    @classmethod
    def of(cls, info: dict[str, Any], forms: Any = None) -> "Found":
        """From the fields that yt-dlp printed, of it and of the forms in which it can be had."""
        duration, size = info.get("duration"), info.get("filesize") or info.get("filesize_approx")
        known = cast(list[dict[str, Any]], forms) if isinstance(forms, list) else []
        return cls(
            title=plain(str(info.get("title") or "")),
            extractor=str(info.get("extractor") or "generic")[:80],
            duration_seconds=float(duration) if isinstance(duration, int | float) else None,
            size_bytes=int(size) if isinstance(size, int | float) else None,
            is_live=bool(info.get("is_live")),
            heights=tuple(sorted({int(form["height"]) for form in known if form.get("height")}, reverse=True)),
        )


@dataclass(frozen=True, slots=True)
class Transfer:
    """How far a download is."""

    done_bytes: int
    total_bytes: int | None
    bytes_per_second: float | None = None


@dataclass(frozen=True, slots=True)
class Wish:
    """What is wanted of several forms of the same media."""

    max_height: int | None
    audio_only: bool


class YtDlp:
    """Runs yt-dlp. `extractors` are the names that `--use-extractors` takes."""

    def __init__(self, *, extractors: Sequence[str], ffmpeg: str | None, memory_bytes: int) -> None:
        self._extractors = ",".join(extractors)
        self._ffmpeg = ffmpeg
        self._memory_bytes = memory_bytes

    @property
    def is_installed(self) -> bool:
        return importlib.util.find_spec("yt_dlp") is not None

    async def look(self, url: str, folder: Path, proxy: Proxy) -> Found:
        """What is there, without fetching it. Raises a `ProviderError`."""
        options = ["--print", f"%(.{{{FIELDS}}})j", "--print", f"%({FORMATS})j"]
        bounds = {"memory_bytes": self._memory_bytes, "file_bytes": LOOK_BYTES}
        async with running(self._command(url, options), folder, proxy.environment, **bounds) as program:
            lines = [_json(line) async for line in program.lines()]
            code = await program.end()
            if code != 0 or not lines:
                raise proxy.refused or _why(program.said, proxy.retry_after)
        return Found.of(lines[0], lines[1] if len(lines) > 1 else None)

    async def fetch(
        self, url: str, folder: Path, proxy: Proxy, wish: Wish, max_bytes: int
    ) -> AsyncGenerator[Found | Transfer | Path]:
        """Download: first what it is, then how far it is, in the end the file. Raises a `ProviderError`."""
        file: Path | None = None
        parts = _Parts()
        options = [
            *("--no-simulate", "--progress", "--newline", "--progress-delta", "0.2"),
            *("--print", f"before_dl:FOUND %(.{{{FIELDS}}})j"),
            *("--print", "before_dl:PARTS %(requested_formats.:.{filesize,filesize_approx})j"),
            *("--progress-template", f"download:TRANSFER %({TRANSFER})j"),
            *("--print", "after_move:FILE %(filepath)j"),
            *("--format", _format(wish), "--max-filesize", str(max_bytes)),
            *(("--format-sort", f"res:{wish.max_height}") if wish.max_height else ()),
            *("--output", str(folder / "media.%(ext)s"), "--no-mtime"),
            *(("--remux-video", CONTAINERS) if self._ffmpeg else ()),
            *("--retries", "3", "--fragment-retries", "3", "--abort-on-unavailable-fragments"),
            *("--downloader-args", "ffmpeg_i:-protocol_whitelist http,https,httpproxy,tcp,tls,crypto"),
        ]
        bounds = {"memory_bytes": self._memory_bytes, "file_bytes": max_bytes}
        async with running(self._command(url, options), folder, proxy.environment, **bounds) as program:
            async with aclosing(program.lines()) as lines:
                async for line in lines:
                    word, _, rest = line.partition(" ")
                    match word:
                        case "FOUND":
                            yield Found.of(_json(rest))
                        case "PARTS":
                            parts.expect(_json(rest))
                        case "TRANSFER":
                            yield parts.take(_json(rest))
                        case "FILE":
                            file = Path(_json(rest))
                        case _:
                            pass
            code = await program.end()
            if proxy.refused is not None and (code != 0 or file is None):
                raise proxy.refused
            if code != 0:
                raise _why(program.said, proxy.retry_after)
            if file is None or not file.is_file() or folder not in file.parents:
                raise TooLarge(f"The media is larger than {max_bytes:,} bytes, which is the most taken.")
        yield file

    def _command(self, url: str, options: Sequence[str]) -> list[str]:
        if not self.is_installed:
            raise ToolMissing("Media of pages needs yt-dlp: install Safelight with its extra `video`.")
        return [
            *(sys.executable, "-I", "-m", "yt_dlp"),
            *("--ignore-config", "--no-plugin-dirs", "--no-cache-dir", "--no-remote-components"),
            *("--quiet", "--no-warnings", "--color", "never"),
            *("--no-playlist", "--playlist-items", "1", "--use-extractors", self._extractors),
            *("--socket-timeout", "20", "--extractor-retries", "1"),
            *(("--ffmpeg-location", self._ffmpeg) if self._ffmpeg else ()),
            *options,
            *("--", url),
        ]


def _format(wish: Wish) -> str:
    if wish.audio_only:
        return f"ba{PROTOCOLS}/b{PROTOCOLS}"
    return f"bv*{PROTOCOLS}+ba{PROTOCOLS}/b{PROTOCOLS}"


def _json(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return {}


class _Parts:
    """The files that make one: picture and sound often come apart, one after the other."""

    def __init__(self) -> None:
        self._sizes: list[int | None] = []
        self._before = 0  # bytes of the parts that are done
        self._done = 0  # of this one

    def expect(self, told: Any) -> None:
        """What yt-dlp says of them; nothing if it is one."""
        if isinstance(told, list):
            parts = cast(list[dict[str, Any]], told)
            self._sizes = [part.get("filesize") or part.get("filesize_approx") for part in parts]

    def take(self, told: dict[str, Any]) -> Transfer:
        """How far all of it is. The whole is known if every part's size is, or if there is one part."""
        done = int(told.get("downloaded_bytes") or 0)
        if done < self._done:
            self._before += self._done
        self._done = done
        total = told.get("total_bytes") or told.get("total_bytes_estimate")
        if self._sizes:
            total = sum(size or 0 for size in self._sizes) if all(self._sizes) else None
        return Transfer(self._before + done, int(total) if total else None, told.get("speed"))


def _why(said: str, retry_after: float | None) -> ProviderError:
    """The failure that yt-dlp's words mean. A source that is busy says when to come again."""
    words = next((line for line in reversed(said.splitlines()) if line.startswith("ERROR:")), said[-300:])
    words = words.removeprefix("ERROR: ").partition("; please report")[0].partition(" (caused by")[0][:300].strip()
    details: dict[str, Any] = {"tool": words}
    if status := re.search(r"HTTP Error (\d{3})", words):
        details["http_status"] = int(status[1])
    for pattern, kind, sentence in FAILURES:
        if re.search(pattern, words):
            return kind(
                sentence or f"{kind.__doc__} yt-dlp says: {words}",
                details=details,
                retry_after=retry_after if kind.retryable else None,
            )
    return SourceRefuses(f"yt-dlp cannot import this: {words or 'it says nothing'}", details=details)
