"""What can be known and made of a picture's bytes: pure functions, to be run in a thread."""

import base64
import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from operator import mul

from PIL import Image, UnidentifiedImageError

from safelight.errors import SafelightError

CONTENT_TYPES = {
    "PNG": "image/png",
    "JPEG": "image/jpeg",
    "WEBP": "image/webp",
    "GIF": "image/gif",
    "AVIF": "image/avif",
}
MAX_PIXELS = 64_000_000
THUMBNAIL_WIDTHS = (256, 512)
POSTER_WIDTH = 1280  # of a video
THUMBHASH_SIDE = 48  # the hash holds at most 7x7 waves: more pixels change nothing but the time
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_HEAD_BYTES = len(PNG_SIGNATURE) + 25  # the signature and IHDR, which is always first


class BadPicture(SafelightError):
    """The provider's file is not a usable picture."""

    code = "bad_output"


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture whose every pixel could be decoded. `image` is its first frame."""

    width: int
    height: int
    content_type: str
    format: str
    image: Image.Image = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Miniature:
    """A WebP thumbnail; its size in pixels, which is less than asked for if the picture is smaller."""

    data: bytes = field(repr=False)
    width: int
    height: int


def inspect(data: bytes) -> Picture:
    """Decode a picture completely, whatever type it claims to be. Raises `BadPicture` with a sentence that says why."""
    if not data:
        raise BadPicture("The provider delivered an empty file.")
    try:
        image = Image.open(BytesIO(data), formats=list(CONTENT_TYPES))
        width, height = image.size
        if width * height <= MAX_PIXELS:
            image.load()
    except UnidentifiedImageError as error:
        raise BadPicture(
            f"The provider's file of {len(data)} bytes is no picture, video or sound in a known format."
        ) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadPicture(f"The provider's picture has more than {MAX_PIXELS // 1_000_000} million pixels.") from error
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error) as error:
        raise BadPicture(f"The provider's picture is truncated or corrupt ({error}).") from error
    if width * height > MAX_PIXELS:
        raise BadPicture(
            f"The provider's picture of {width}x{height} has more than {MAX_PIXELS // 1_000_000} million pixels."
        )
    name = image.format or "PNG"
    return Picture(width, height, CONTENT_TYPES[name], name, image)


def thumbnails(image: Image.Image, widths: Sequence[int] = THUMBNAIL_WIDTHS) -> dict[int, Miniature]:
    """WebP thumbnails by nominal width. A picture is never enlarged, so one may be narrower than its name."""
    made: dict[int, Miniature] = {}
    source = _plain(image)
    for width in sorted(widths, reverse=True):  # each from the one before, which is cheaper and as good
        real = min(width, image.width)
        size = (real, max(1, round(image.height * real / image.width)))
        same = next((one for one in made.values() if (one.width, one.height) == size), None)
        if same is None:
            if size != source.size:
                source = source.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)
            data = BytesIO()
            source.save(data, "WEBP", quality=80, method=2)
            same = Miniature(data.getvalue(), *size)
        made[width] = same
    return dict(sorted(made.items()))


def _plain(image: Image.Image) -> Image.Image:
    """RGB, or RGBA if anything may be transparent."""
    if image.mode in {"RGB", "RGBA"}:
        return image
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


# --- ThumbHash --------------------------------------------------------------------------------------------------------


def thumbhash(image: Image.Image) -> str:
    """The picture in about 25 bytes (base64): average colour, aspect and a blur to show while it loads.

    Evan Wallace's ThumbHash: a cosine transform in luminance, yellow-blue, red-green and alpha, of which only the
    lowest frequencies are kept at four bits each.
    """
    longest = max(image.size)
    shrink = min(1.0, THUMBHASH_SIDE / longest)
    width, height = max(1, round(image.width * shrink)), max(1, round(image.height * shrink))
    small = _plain(image).resize((width, height), Image.Resampling.BOX, reducing_gap=2.0).convert("RGBA")
    count = width * height
    red, green, blue, alpha = ([value / 255 for value in small.getchannel(name).tobytes()] for name in "RGBA")

    covered = sum(alpha)
    has_alpha = covered < count - 1e-6
    if has_alpha:  # what is transparent takes the average colour
        for channel in (red, green, blue):
            average = sum(map(mul, channel, alpha)) / covered if covered else 0.0
            channel[:] = [average * (1 - a) + value * a for value, a in zip(channel, alpha, strict=True)]
    luminance = [(r + g + b) / 3 for r, g, b in zip(red, green, blue, strict=True)]
    yellow = [(r + g) / 2 - b for r, g, b in zip(red, green, blue, strict=True)]
    reddish = [r - g for r, g in zip(red, green, strict=True)]

    limit = 5 if has_alpha else 7  # fewer waves of luminance leave room for alpha
    across = max(1, _round(limit * width / max(width, height)))
    down = max(1, _round(limit * height / max(width, height)))
    l_dc, l_ac, l_scale = _waves(luminance, width, height, max(3, across), max(3, down))
    p_dc, p_ac, p_scale = _waves(yellow, width, height, 3, 3)
    q_dc, q_ac, q_scale = _waves(reddish, width, height, 3, 3)

    landscape = width > height
    first = _round(63 * l_dc) | _round(31.5 + 31.5 * p_dc) << 6 | _round(31.5 + 31.5 * q_dc) << 12
    first |= _round(31 * l_scale) << 18 | has_alpha << 23
    second = (down if landscape else across) | _round(63 * p_scale) << 3 | _round(63 * q_scale) << 9 | landscape << 15
    head = first.to_bytes(3, "little") + second.to_bytes(2, "little")
    waves = [*l_ac, *p_ac, *q_ac]
    if has_alpha:
        a_dc, a_ac, a_scale = _waves(alpha, width, height, 5, 5)
        head += bytes([_round(15 * a_dc) | _round(15 * a_scale) << 4])
        waves += a_ac
    nibbles = [_round(15 * wave) for wave in waves]
    nibbles += [0] * (len(nibbles) % 2)
    tail = bytes(low | high << 4 for low, high in zip(nibbles[::2], nibbles[1::2], strict=True))
    return base64.b64encode(head + tail).decode()


def _round(value: float) -> int:
    """Halves go up, as in the published algorithm."""
    return math.floor(value + 0.5)


def _waves(channel: list[float], width: int, height: int, across: int, down: int) -> tuple[float, list[float], float]:
    """The average of a channel, its waves scaled to 0-1, and that scale."""
    rows = [channel[y * width : (y + 1) * width] for y in range(height)]
    columns = [[math.cos(math.pi / height * cy * (y + 0.5)) for y in range(height)] for cy in range(down)]
    found: dict[tuple[int, int], float] = {}
    for cx in range(across):
        cosines = [math.cos(math.pi / width * cx * (x + 0.5)) for x in range(width)]
        sums = [sum(map(mul, row, cosines)) for row in rows]
        for cy in range(down):
            if cx * down < across * (down - cy):
                found[cy, cx] = sum(map(mul, sums, columns[cy])) / (width * height)
    average = found.pop((0, 0))
    waves = [found[key] for key in sorted(found)]
    scale = max(map(abs, waves), default=0.0)
    return average, [0.5 + 0.5 / scale * wave for wave in waves] if scale > 0 else waves, scale


# --- text in PNG ------------------------------------------------------------------------------------------------------


def with_png_text(data: bytes, items: Mapping[str, str]) -> bytes:
    """The same PNG with text chunks after its head: no pixel is encoded again. Other formats come back unchanged.

    ASCII goes into tEXt, all else into iTXt (UTF-8). Keywords are Latin-1 of 1 to 79 bytes.
    """
    if not data.startswith(PNG_SIGNATURE) or data[12:16] != b"IHDR":
        return data
    chunks = b"".join(_text_chunk(keyword, text.replace("\0", "")) for keyword, text in items.items())
    return data[:PNG_HEAD_BYTES] + chunks + data[PNG_HEAD_BYTES:]


def _text_chunk(keyword: str, text: str) -> bytes:
    name = keyword.encode("latin-1")
    if not 1 <= len(name) <= 79 or b"\0" in name:
        raise ValueError(f"a PNG keyword has 1 to 79 Latin-1 characters, not {keyword!r}")
    if text.isascii():
        kind, body = b"tEXt", name + b"\0" + text.encode("ascii")
    else:
        kind, body = b"iTXt", name + b"\0\0\0\0\0" + text.encode("utf-8", "replace")
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
