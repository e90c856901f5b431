"""A picture that somebody made: its type and size by its first bytes, and libvips' view of it, still to be decoded.

The loader is chosen here, by the bytes, and it is one of five: no file talks libvips into reading anything else.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from safelight.errors import SafelightError
from safelight.pictures.vips import libvips

PNG, JPEG, WEBP, GIF, AVIF = "image/png", "image/jpeg", "image/webp", "image/gif", "image/avif"
LOADERS = {PNG: "pngload", JPEG: "jpegload", WEBP: "webpload", GIF: "gifload", AVIF: "heifload"}
PICTURE_TYPES = frozenset(LOADERS)
EXTENSIONS = {PNG: "png", JPEG: "jpg", WEBP: "webp", GIF: "gif", AVIF: "avif"}
MARKS = ((b"\x89PNG\r\n\x1a\n", PNG), (b"\xff\xd8\xff", JPEG), (b"GIF87a", GIF), (b"GIF89a", GIF))
AVIF_BRANDS = {b"avif", b"avis"}
HEAD_BYTES = 64
MAX_PIXELS = 64_000_000
SIDEWAYS = 5  # the first of EXIF's orientations that exchange width and height

Source = bytes | Path
log = structlog.get_logger()


class BadPicture(SafelightError):
    """The file is not a usable picture."""

    code = "bad_output"


class TooManyPixels(BadPicture):
    """The picture has too many pixels."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture by its head, not yet decoded. Width and height are as it is shown: turned as its metadata say."""

    source: Source = field(repr=False)
    content_type: str
    width: int
    height: int
    orientation: int  # EXIF's, 1 to 8; 1 is upright

    @property
    def pixels(self) -> int:
        """What it costs to decode."""
        return self.width * self.height

    @property
    def extension(self) -> str:
        return EXTENSIONS[self.content_type]

    def open(self, *, shrink: int = 1, whole: bool = False) -> Any:
        """Its first frame as libvips sees it, decoded as it is read; `whole` for reading it in any order.

        Of a JPEG every `shrink`-th pixel (1, 2, 4, 8) is enough to ask for. Damage raises pyvips' `Error` then.
        """
        options: dict[str, Any] = {"fail_on": "error"}
        if shrink > 1:
            options["shrink"] = shrink
        return _load(self.source, self.content_type, access="random" if whole else "sequential", **options)


def type_of(head: bytes) -> str | None:
    """The content type of a picture by its first 64 bytes; None if it is none that is taken."""
    for mark, content_type in MARKS:
        if head.startswith(mark):
            return content_type
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return WEBP
    if head[4:8] == b"ftyp":
        size = min(int.from_bytes(head[:4], "big"), HEAD_BYTES)
        brands = {head[at : at + 4] for at in (8, *range(16, size, 4))}
        return AVIF if AVIF_BRANDS & brands else None
    return None


def head_of(source: Source) -> bytes:
    """The first bytes of a file, as many as tell its type."""
    if isinstance(source, bytes):
        return source[:HEAD_BYTES]
    with source.open("rb") as file:
        return file.read(HEAD_BYTES)


def read_head(source: Source, max_pixels: int = MAX_PIXELS) -> Picture:
    """What a picture is, before anything of it is decoded. Raises `BadPicture` with a sentence that says why not."""
    head = head_of(source)
    if not head:
        raise BadPicture("The file is empty.")
    content_type = type_of(head)
    if content_type is None:
        raise BadPicture("The file is no picture of a known format: PNG, JPEG, WebP, GIF or AVIF.")
    try:
        image = _load(source, content_type, access="sequential")
        orientation = image.get("orientation") if image.get_typeof("orientation") else 1
        if content_type == AVIF and image.get("heif-compression") != "av1":
            raise BadPicture("The file is no picture of a known format: PNG, JPEG, WebP, GIF or AVIF.")
    except libvips().Error as error:
        raise damaged(error) from None
    width, height = image.width, image.height
    if width * height > max_pixels:
        raise TooManyPixels(f"The picture of {width}x{height} has more than {max_pixels:,} pixels.")
    if not 1 <= orientation <= 8:
        orientation = 1
    if orientation >= SIDEWAYS:
        width, height = height, width
    return Picture(source, content_type, width, height, orientation)


def decode(picture: Picture) -> None:
    """Read every pixel, and keep none. Raises `BadPicture`."""
    try:
        picture.open().avg()
    except libvips().Error as error:
        raise damaged(error) from None


def damaged(error: Exception) -> BadPicture:
    """What to say of a picture that libvips cannot read. Its own words are for the log: they speak of its parts."""
    log.info("picture.unreadable", error=str(error).strip())
    return BadPicture("The picture is truncated or corrupt.")


def _load(source: Source, content_type: str, **options: Any) -> Any:
    loader = LOADERS[content_type]
    image: Any = libvips().Image
    if isinstance(source, bytes):
        return getattr(image, f"{loader}_buffer")(source, **options)
    return getattr(image, loader)(str(source), **options)
