"""ThumbHash: a picture in about 25 bytes, to show a blur of it while it loads.

Evan Wallace's: a cosine transform in luminance, yellow-blue, red-green and alpha, of which only the lowest frequencies
are kept at four bits each.
"""

import base64
import math
from functools import cache
from operator import mul
from typing import Any

SIDE = 32  # the hash holds at most 7x7 waves: more pixels change nothing but the time


def thumbhash(image: Any) -> str:
    """Average colour, aspect and a blur (base64) of a small picture, as libvips holds it: sRGB or grey, eight bits."""
    shrink = max(1.0, image.width / SIDE, image.height / SIDE)
    small = image.premultiply() if image.hasalpha() else image
    small = small.shrink(min(shrink, image.width), min(shrink, image.height))
    width, height, bands = small.width, small.height, small.bands
    pixels = memoryview(small.write_to_memory()).cast("f" if image.hasalpha() else "B").tolist()
    channels = [pixels[band::bands] for band in range(bands)]
    alpha = [value / 255 for value in channels.pop()] if image.hasalpha() else []
    has_alpha = sum(alpha) < len(alpha) - 1e-3
    if has_alpha:  # what is transparent takes the average colour
        covered = sum(alpha)
        averages = [sum(channel) / covered if covered else 0.0 for channel in channels]
        channels = [
            [average * (1 - a) + value for a, value in zip(alpha, channel, strict=True)]
            for average, channel in zip(averages, channels, strict=True)
        ]
    red, green, blue = channels * 3 if len(channels) == 1 else channels
    luminance = [(r + g + b) / 765 for r, g, b in zip(red, green, blue, strict=True)]
    yellow = [(r + g) / 510 - b / 255 for r, g, b in zip(red, green, blue, strict=True)]
    reddish = [(r - g) / 255 for r, g in zip(red, green, strict=True)]

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
    rows = [channel[start : start + width] for start in range(0, width * height, width)]
    columns = [_cosines(cy, height) for cy in range(down)]
    found: dict[tuple[int, int], float] = {}
    for cx in range(across):
        cosines = _cosines(cx, width)
        sums = [sum(map(mul, row, cosines)) for row in rows]
        for cy in range(down):
            if cx * down < across * (down - cy):
                found[cy, cx] = sum(map(mul, sums, columns[cy])) / (width * height)
    average = found.pop((0, 0))
    waves = [found[key] for key in sorted(found)]
    scale = max(map(abs, waves), default=0.0)
    return average, [0.5 + 0.5 / scale * wave for wave in waves] if scale > 0 else waves, scale


@cache  # at most 7 waves of at most 32 samples
def _cosines(wave: int, samples: int) -> list[float]:
    return [math.cos(math.pi / samples * wave * (sample + 0.5)) for sample in range(samples)]
