"""Pictures: what is accepted, and what is made of them."""

import base64
import math
import struct
import zlib
from io import BytesIO

import pytest
from PIL import Image

from safelight.artifacts.picture import BadPicture, inspect, thumbhash, thumbnails, with_png_text
from safelight.providers import darkroom


def encoded(image: Image.Image, name: str = "PNG") -> bytes:
    data = BytesIO()
    image.save(data, name)
    return data.getvalue()


LANDSCAPE = darkroom.draw("a boat at dusk", 1, 600, 400)


@pytest.mark.parametrize("name", ["PNG", "JPEG", "WEBP", "GIF", "AVIF"])
def test_formats_are_known_by_their_content(name: str) -> None:
    picture = inspect(encoded(LANDSCAPE, name))
    assert (picture.width, picture.height, picture.format) == (600, 400, name)
    assert picture.content_type == f"image/{name.lower()}"


@pytest.mark.parametrize("name", ["PNG", "JPEG", "WEBP", "AVIF"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.95])
def test_truncated_pictures_are_refused(name: str, share: float) -> None:
    data = encoded(LANDSCAPE, name)
    with pytest.raises(BadPicture):
        inspect(data[: int(len(data) * share)])


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "empty file"),
        (b"<html>502 Bad Gateway</html>", "no picture"),
        (b"\x89PNG\r\n\x1a\n", "no picture|truncated"),
        (encoded(LANDSCAPE, "BMP"), "no picture"),
    ],
)
def test_other_files_are_refused_with_a_reason(data: bytes, says: str) -> None:
    with pytest.raises(BadPicture, match=says) as caught:
        inspect(data)
    assert caught.value.code == "bad_output"


def test_a_flipped_bit_is_noticed() -> None:
    data = bytearray(encoded(LANDSCAPE))
    data[len(data) // 2] ^= 0x55
    with pytest.raises(BadPicture):
        inspect(bytes(data))


@pytest.mark.parametrize("side", [9_000, 12_000, 20_000])
def test_a_decompression_bomb_is_not_decoded(side: int) -> None:
    body = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    bomb = encoded(Image.new("1", (8, 8)))
    head = b"IHDR" + body
    with pytest.raises(BadPicture, match="64 million pixels"):
        inspect(bomb[:12] + head + struct.pack(">I", zlib.crc32(head)) + bomb[33:])


def test_thumbnails_keep_the_aspect_and_never_grow() -> None:
    made = thumbnails(LANDSCAPE)
    assert {width: (one.width, one.height) for width, one in made.items()} == {256: (256, 171), 512: (512, 341)}
    for one in made.values():
        opened = Image.open(BytesIO(one.data))
        assert (opened.format, opened.size) == ("WEBP", (one.width, one.height))
    small = thumbnails(LANDSCAPE.resize((300, 20)))
    assert (small[512].width, small[512].height) == (300, 20)
    assert small[256].width == 256
    tiny = thumbnails(Image.new("P", (3, 1)))
    assert tiny[256] is tiny[512]


def test_thumbnails_of_every_mode() -> None:
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"):
        assert thumbnails(Image.new(mode, (20, 10)))[256].width == 20
        assert thumbhash(Image.new(mode, (20, 10)))


# --- ThumbHash --------------------------------------------------------------------------------------------------------


def average(text: str) -> tuple[float, float, float]:
    """The published decoder's average colour, 0-1."""
    head = base64.b64decode(text)
    bits = head[0] | head[1] << 8 | head[2] << 16
    light, yellow, red = (bits & 63) / 63, (bits >> 6 & 63) / 31.5 - 1, (bits >> 12 & 63) / 31.5 - 1
    b = light - 2 / 3 * yellow
    r = (3 * light - b + red) / 2
    return r, r - red, b


def aspect(text: str) -> float:
    """The published decoder's approximate aspect."""
    head = base64.b64decode(text)
    has_alpha, landscape = bool(head[2] & 0x80), bool(head[4] & 0x80)
    full = 5 if has_alpha else 7
    across, down = (full, head[3] & 7) if landscape else (head[3] & 7, full)
    return across / down


def decoded(text: str, width: int = 32) -> list[tuple[float, float, float]]:
    """The published decoder for pictures without alpha, as rows of RGB 0-1."""
    data = base64.b64decode(text)
    head, second = data[0] | data[1] << 8 | data[2] << 16, data[3] | data[4] << 8
    landscape = second >> 15
    across, down = max(3, 7 if landscape else second & 7), max(3, second & 7 if landscape else 7)
    scales = (head >> 18 & 31) / 31, (second >> 3 & 63) / 63 * 1.25, (second >> 9 & 63) / 63 * 1.25
    nibbles = iter([part for byte in data[5:] for part in (byte & 15, byte >> 4)])
    waves: list[dict[tuple[int, int], float]] = []
    for (nx, ny), scale in zip(((across, down), (3, 3), (3, 3)), scales, strict=True):
        waves.append(
            {
                (cx, cy): (next(nibbles) / 7.5 - 1) * scale
                for cy in range(ny)
                for cx in range(nx)
                if (cx or cy) and cx * ny < nx * (ny - cy)
            }
        )
    base = (head & 63) / 63, (head >> 6 & 63) / 31.5 - 1, (head >> 12 & 63) / 31.5 - 1
    height = round(width / aspect(text))
    pixels: list[tuple[float, float, float]] = []
    for y in range(height):
        for x in range(width):
            light, yellow, red = (
                dc
                + 2
                * sum(
                    value * math.cos(math.pi / width * (x + 0.5) * cx) * math.cos(math.pi / height * (y + 0.5) * cy)
                    for (cx, cy), value in channel.items()
                )
                for dc, channel in zip(base, waves, strict=True)
            )
            b = light - 2 / 3 * yellow
            r = (3 * light - b + red) / 2
            pixels.append((r, r - red, b))
    return pixels


@pytest.mark.parametrize(
    "color", [(255, 0, 0), (0, 255, 0), (20, 40, 200), (128, 128, 128), (0, 0, 0), (255, 255, 255)]
)
def test_thumbhash_keeps_the_average_colour(color: tuple[int, int, int]) -> None:
    found = average(thumbhash(Image.new("RGB", (80, 60), color)))
    assert [round(part * 255) for part in found] == pytest.approx(list(color), abs=14)


@pytest.mark.parametrize("size", [(1024, 1024), (512, 768), (1280, 720), (300, 100), (64, 64), (5, 5)])
def test_thumbhash_keeps_the_aspect(size: tuple[int, int]) -> None:
    found = thumbhash(darkroom.draw("a valley", 1, *size) if min(size) > 30 else Image.new("RGB", size))
    assert aspect(found) == pytest.approx(size[0] / size[1], rel=0.2)
    assert 16 <= len(base64.b64decode(found)) <= 25


def test_thumbhash_looks_like_the_picture() -> None:
    shown = decoded(thumbhash(LANDSCAPE))
    small = LANDSCAPE.resize((32, len(shown) // 32), Image.Resampling.BOX)
    flat = small.tobytes()
    off = [abs(part * 255 - flat[3 * i + k]) for i, pixel in enumerate(shown) for k, part in enumerate(pixel)]
    assert sum(off) / len(off) < 14


def test_thumbhash_tells_of_transparency() -> None:
    image = Image.new("RGBA", (40, 40), (255, 0, 0, 0))
    image.paste((0, 0, 255, 255), (0, 0, 20, 40))
    found = thumbhash(image)
    assert base64.b64decode(found)[2] & 0x80
    assert average(found)[2] > 0.9  # what cannot be seen has no colour
    assert thumbhash(Image.new("RGBA", (4, 4), (9, 9, 9, 0)))


# --- text in PNG ------------------------------------------------------------------------------------------------------


def test_text_goes_into_a_png_without_touching_a_pixel() -> None:
    data = encoded(LANDSCAPE)
    items = {
        "prompt": "ein Leuchtturm in der Dämmerung 灯台 🗼",
        "seed": "42",
        "parameters": '{"a": 1}\nline',
        "empty": "",
    }
    written = with_png_text(data, items)
    opened = Image.open(BytesIO(written))
    opened.load()
    assert opened.tobytes() == LANDSCAPE.tobytes()
    assert {name: opened.info[name] for name in items} == items
    assert data[33:] in written
    assert inspect(written).format == "PNG"


def test_text_leaves_other_formats_alone() -> None:
    for data in (encoded(LANDSCAPE, "JPEG"), b"", b"\x89PNG\r\n\x1a\n"):
        assert with_png_text(data, {"prompt": "x"}) == data
    with pytest.raises(ValueError, match="keyword"):
        with_png_text(encoded(LANDSCAPE), {"x" * 80: "y"})
