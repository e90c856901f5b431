"""ThumbHash: a picture in about 25 bytes, to show a blur of it while it loads.

Evan Wallace's: a cosine transform in luminance, yellow-blue, red-green and alpha, of which only the lowest frequencies
are kept at four bits each.
"""

import base64
import math
from operator import mul
from typing import Any

SIDE = 32  # the hash holds at most 7x7 waves: more pixels change nothing but the time


def thumbhash(image: Any) -> str:
    """Average colour, aspect and a blur (base64) of a small picture, as libvips holds it: sRGB or grey, eight bits."""
    shrink = min(1.0, SIDE / max(image.width, image.height))
    width, height = max(1, round(image.width * shrink)), max(1, round(image.height * shrink))
    small = image.thumbnail_image(width, height=height, size="force", no_rotate=True).colourspace("srgb")
    count = width * height
    pixels = bytes((small if small.hasalpha() else small.addalpha()).write_to_memory())
    red, green, blue, alpha = ([value / 255 for value in pixels[channel::4]] for channel in range(4))

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
