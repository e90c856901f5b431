"""The ThumbHash, read back by the published decoder."""

import base64
import math

import pytest
from PIL import Image

from made_pictures import encoded
from safelight.pictures import look_at, read_head
from safelight.providers import darkroom

LANDSCAPE = darkroom.draw("a boat at dusk", 1, 600, 400)


def thumbhash(image: Image.Image) -> str:
    found = look_at(read_head(encoded(image))).thumbhash
    assert found is not None
    return found


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
