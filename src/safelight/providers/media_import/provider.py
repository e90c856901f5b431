"""Media imports: what a URL leads to is downloaded, looked at, and handed over as an output.

A plain media file is fetched by our own client; of any other page yt-dlp is asked. Neither believes a name, an address
or a redirect, and nothing of what they start outlives them.
"""

import asyncio
from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import structlog

from safelight.providers.address import FetchRefused, Network, checked_url, shown
from safelight.providers.base import (
    BadOutput,
    Capabilities,
    Generation,
    InvalidParameters,
    Limits,
    Output,
    Parameters,
    Progress,
    Provider,
    Update,
)
from safelight.providers.fetch import HEAD_BYTES, content_type_of
from safelight.providers.media_import.error import (
    NoMedia,
    NotMedia,
    SourceRefuses,
    SourceUnavailable,
    TooLarge,
    TooLong,
)
from safelight.providers.media_import.ffmpeg import Ffmpeg, sketch, sound_of
from safelight.providers.media_import.file import Files, Resource
from safelight.providers.media_import.page import Found, Transfer, Wish, YtDlp
from safelight.providers.media_import.proxy import Proxy
from safelight.providers.media_import.rate_floor import RateFloor
from safelight.providers.media_import.workspace import Workspace
from safelight.providers.program import MEMORY_BYTES

KIND = "media.import"
MAX_URL = 2000
MAX_HEIGHT = 8192
OVERHEAD = 1.2  # of what comes over the wire beside the file: pages, lists of pieces, what was sent twice
OVERHEAD_BYTES = 32 * 1024 * 1024
PROBE_BYTES = 32 * 1024 * 1024
CHECK_BYTES = 16 * 1024 * 1024  # how much may come before the disk is looked at again
OPTIONS = {"url", "max_height", "audio_only"}
EXTRACTORS = ("default", "-commonmistakes", "-commonprotocols", "-blobmagnet.*", "-search.*")


@dataclass(frozen=True, slots=True)
class Description:
    """What a URL leads to, before anything of it is fetched; what the source does not say is None."""

    title: str | None
    extractor: str | None  # None: a plain file
    content_type: str | None
    duration_seconds: float | None
    size_bytes: int | None
    heights: tuple[int, ...]


log = structlog.get_logger()


class MediaImport(Provider):
    """Imports from anywhere that is public, and from `networks`.

    At most `max_bytes` of at most `max_seconds` are taken, from a source that brings `min_bytes_per_second` on average
    over `slow_seconds`. `ffmpeg` is the program; None where there is none. It and yt-dlp may take `memory_bytes` each,
    and a look `probe_seconds`. `extractors` are the names that yt-dlp's `--use-extractors` takes.
    """

    def __init__(
        self,
        *,
        workspace: Workspace,
        ffmpeg: str | None,
        limits: Limits,
        networks: Collection[Network] = (),
        max_bytes: int = 4 * 1024**3,
        max_seconds: float = 4 * 3600,
        idle_seconds: float = 30,
        min_bytes_per_second: float = 1000,
        slow_seconds: float = 60,
        memory_bytes: int = MEMORY_BYTES,
        probe_seconds: float = 20,
        extractors: Sequence[str] = EXTRACTORS,
    ) -> None:
        self._workspace = workspace
        self._ffmpeg = Ffmpeg(ffmpeg, memory_bytes)
        self._limits = limits
        self._networks = tuple(networks)
        self._max_bytes = max_bytes
        self._max_seconds = max_seconds
        self._min_bytes_per_second = min_bytes_per_second
        self._slow_seconds = slow_seconds
        self._probe_seconds = probe_seconds
        self._files = Files(
            networks=self._networks,
            max_bytes=max_bytes,
            idle_seconds=idle_seconds,
            bytes_per_second=min_bytes_per_second,
            slow_seconds=slow_seconds,
        )
        self._pages = YtDlp(extractors=extractors, ffmpeg=ffmpeg, memory_bytes=memory_bytes)

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            kinds=frozenset({KIND}),
            models=(),
            max_width=MAX_HEIGHT,
            max_height=MAX_HEIGHT,
            max_batch=1,
            cancel=True,
            progress=True,
            previews=False,
            limits=self._limits,
            seeds=False,
            negative_prompt=False,
        )

    def check(self, parameters: Parameters) -> Parameters:
        """The order stands in the options: `url`, and perhaps `max_height` and `audio_only`."""
        if parameters.kind != KIND:
            raise InvalidParameters("Media is imported by POST /api/v1/media/store.", field="provider")
        for name in parameters.others(("provider_options", "inputs")):
            raise InvalidParameters(f"An import takes no {name}.", field=name)
        if parameters.batch_size != 1:
            raise InvalidParameters("An import brings one file.", field="batch_size")
        options = dict(parameters.provider_options)
        for name in options.keys() - OPTIONS:
            raise InvalidParameters(f"An import has no option {name[:80]!r}.", field=name[:80])
        url, height = options.get("url"), options.get("max_height")
        if not isinstance(url, str) or not 1 <= len(url) <= MAX_URL:
            raise InvalidParameters(f"The url must be a text of 1 to {MAX_URL} characters.", field="url")
        if height is not None and not (isinstance(height, int) and 1 <= height <= MAX_HEIGHT):
            raise InvalidParameters(f"max_height must be 1 to {MAX_HEIGHT} pixels.", field="max_height")
        try:
            checked_url(url, self._networks)
        except FetchRefused as error:
            raise InvalidParameters(error.message, field="url") from error
        options = {"url": url, "max_height": height, "audio_only": bool(options.get("audio_only", False))}
        return replace(parameters, provider_options=options)

    async def generate(self, generation: Generation) -> AsyncGenerator[Update]:
        """Download, look, hand over. Stopped at any point it leaves nothing behind."""
        options = self.check(generation.parameters).provider_options
        url, wish = str(options["url"]), Wish(options["max_height"], options["audio_only"])
        yield Progress(0, "connecting", "Looking what is there")
        async with self._workspace.folder() as folder:
            source = _Source(url)
            async with aclosing(self._fetched(url, folder, wish, source)) as steps:
                async for step in steps:
                    yield step
            if source.file is None:
                raise NoMedia
            yield Progress(99, "checking", "Looking at what came")
            yield await self._inspected(source, source.file, folder, wish)

    async def probe(self, url: str) -> Description:
        """What is there, within `probe_seconds`, without fetching it. Raises a `ProviderError`."""
        checked_url(url, self._networks)
        floor = RateFloor(self._min_bytes_per_second, min(self._slow_seconds, self._probe_seconds / 2))
        try:
            async with asyncio.timeout(self._probe_seconds):
                async with self._workspace.folder() as folder, Proxy(self._networks, PROBE_BYTES, floor) as proxy:
                    return await self._described(url, folder, proxy, floor)
        except TimeoutError:
            raise SourceUnavailable(f"The source did not say within {self._probe_seconds:g} s what it has.") from None

    async def health(self) -> str | None:
        if self._ffmpeg.path is None:
            return "There is no ffmpeg: only pictures can be imported. Install it, or the extra `video`."
        if not self._pages.is_installed:
            return "There is no yt-dlp: only plain files can be imported. Install the extra `video`."
        return None

    # --- the ways to it -----------------------------------------------------------------------------------------------

    async def _fetched(self, url: str, folder: Path, wish: Wish, source: "_Source") -> AsyncGenerator[Update]:
        """Fill `source.file`, by our own client if the URL is one of a media file."""
        file = folder / "file"
        async with aclosing(self._files.fetch(url, file)) as steps:
            async for step in steps:
                if isinstance(step, Resource):
                    source.take_resource(step)
                    log.info("import.answered", at=shown(step.url), size_bytes=step.total_bytes, type=step.content_type)
                    self._workspace.require_room(step.total_bytes or 0 if step.content_type else 0)
                else:
                    self._guard(source, step)
                    yield _progress(step)
        if source.content_type is not None:
            source.file = file
            return
        await asyncio.to_thread(file.unlink)
        yield Progress(0, "extracting", "Looking for media on the page")
        async with (
            self._proxy() as proxy,
            aclosing(self._pages.fetch(url, folder, proxy, wish, self._max_bytes)) as steps,
        ):
            async for step in steps:
                match step:
                    case Found():
                        source.take_found(step)
                        log.info("import.found", extractor=step.extractor, title=step.title, size_bytes=step.size_bytes)
                        self._judge(step)
                        self._workspace.require_room(step.size_bytes or 0)
                    case Transfer():
                        self._guard(source, step)
                        yield _progress(step)
                    case Path():
                        source.file = step

    def _proxy(self) -> Proxy:
        max_bytes = int(self._max_bytes * OVERHEAD) + OVERHEAD_BYTES
        return Proxy(self._networks, max_bytes, RateFloor(self._min_bytes_per_second, self._slow_seconds))

    def _judge(self, found: Found) -> None:
        if found.is_live:
            raise SourceRefuses("This is a live broadcast, which has no end.")
        self._check_length(found.duration_seconds)
        if (found.size_bytes or 0) > self._max_bytes:
            raise TooLarge(f"At most {self._max_bytes:,} bytes are taken; this has {found.size_bytes:,}.")

    def _guard(self, source: "_Source", transfer: Transfer) -> None:
        if transfer.done_bytes - source.looked_at_bytes >= CHECK_BYTES:
            source.looked_at_bytes = transfer.done_bytes
            total = transfer.total_bytes
            self._workspace.require_room(CHECK_BYTES if total is None else max(0, total - transfer.done_bytes))

    def _check_length(self, seconds: float | None) -> None:
        if seconds is not None and seconds > self._max_seconds:
            raise TooLong(f"At most {self._max_seconds:g} s are taken; this has {seconds:.0f}.")

    async def _inspected(self, source: "_Source", file: Path, folder: Path, wish: Wish) -> Output:
        content_type = await asyncio.to_thread(_type_of, file)
        details: dict[str, Any] = {"source_url": source.url, "title": source.title, "extractor": source.extractor}
        details = {name: value for name, value in details.items() if value is not None}
        if content_type.startswith("image/"):
            if wish.audio_only:
                raise NotMedia("This is a picture, which has no sound.")
            return Output(file, content_type, details=details)
        found = await sketch(self._ffmpeg, file, content_type, folder)
        self._check_length(found.duration_seconds)
        if wish.audio_only and found.has_picture:
            if found.audio_codec is None:
                raise NotMedia("This video has no sound.")
            file = await sound_of(self._ffmpeg, file, found.audio_codec, folder)
            content_type = await asyncio.to_thread(_type_of, file)
        return Output(file, content_type, details=details)

    async def _described(self, url: str, folder: Path, proxy: Proxy, floor: RateFloor) -> Description:
        resource = await self._files.look(url, floor)
        if resource.content_type is None:
            found = await self._pages.look(url, folder, proxy)
            self._judge(found)
            return Description(
                found.title, found.extractor, None, found.duration_seconds, found.size_bytes, found.heights
            )
        seconds, heights = None, ()
        if not resource.content_type.startswith("image/"):
            seen = await sketch(self._ffmpeg, url, resource.content_type, folder, proxy)
            seconds, heights = seen.duration_seconds, (seen.height,) if seen.height else ()
            self._check_length(seconds)
        return Description(resource.title, None, resource.content_type, seconds, resource.total_bytes, heights)


class _Source:
    """What is known of an import while it comes."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.title: str | None = None
        self.extractor: str | None = None
        self.content_type: str | None = None
        self.file: Path | None = None
        self.looked_at_bytes = 0

    def take_resource(self, resource: Resource) -> None:
        self.content_type = resource.content_type
        self.title = resource.title if resource.content_type else None

    def take_found(self, found: Found) -> None:
        self.title, self.extractor = found.title, found.extractor


def _type_of(file: Path) -> str:
    """Raises `NotMedia`."""
    with file.open("rb") as opened:
        try:
            return content_type_of(opened.read(HEAD_BYTES))
        except BadOutput as error:
            raise NotMedia(error.message) from None


def _progress(transfer: Transfer) -> Progress:
    done, total, speed = transfer.done_bytes, transfer.total_bytes, transfer.bytes_per_second
    words = _size(done) if total is None else f"{_size(done)} of {_size(total)}"
    if speed:
        words += f", {_size(speed)}/s"
        if total is not None and total > done:
            words += f", {(total - done) / speed:.0f} s left"
    percent = None if not total else min(99, 100 * done // total)
    return Progress(percent, "downloading", f"Downloading: {words}")


def _size(count: float) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"
