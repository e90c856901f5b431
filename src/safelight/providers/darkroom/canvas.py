"""What the drawings are made with: a canvas with smooth shapes, gradients, glow and grain, and the outlines of things.

Made of Pillow's own C operations. Lengths are pixels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random

from PIL import Image, ImageChops, ImageDraw

from safelight.providers.darkroom.palette import Color

Point = tuple[float, float]
Outline = list[Point]

EDGE = 178  # the value of Pillow's radial gradient where its circle touches the side of the square


def ramp(size: tuple[int, int], colors: Sequence[Color], *, across: bool = False) -> Image.Image:
    """A smooth gradient through evenly spaced colours, downwards or across."""
    count = len(colors)
    strip = Image.new("RGB", (count, 1) if across else (1, count))
    for index, color in enumerate(colors):
        strip.putpixel((index, 0) if across else (0, index), color)
    box = (0.5, 0, count - 0.5, 1) if across else (0, 0.5, 1, count - 0.5)
    line = (size[0], 1) if across else (1, size[1])
    smooth = strip.resize(line, Image.Resampling.BILINEAR, box=box)
    return smooth.resize(size, Image.Resampling.NEAREST)


def grained(image: Image.Image, amount: int, rng: Random) -> Image.Image:
    """Media grain of at most `amount` levels either way."""
    width, height = image.size
    noise = Image.frombytes("L", image.size, rng.randbytes(width * height))
    noise = noise.point([round(value * 2 * amount / 255) for value in range(256)])
    return ImageChops.add(image, Image.merge("RGB", (noise, noise, noise)), 1, -amount)


@dataclass(frozen=True, slots=True)
class Ramp:
    """A fill that runs through `colors` over the shape's own extent."""

    colors: tuple[Color, ...]
    across: bool = False


class Canvas:
    """A picture being drawn. Lengths are pixels; `unit` is the shorter side, which things keep their shape by."""

    def __init__(self, width: int, height: int, key: str, fast: bool) -> None:
        self.width, self.height, self.key, self.fast = width, height, key, fast
        self.unit = float(min(width, height))
        self.image = Image.new("RGB", (width, height))
        longest = max(width, height)
        self.scale = 1 if fast or longest > 1400 else 2 if longest > 300 else 3  # of the masks, for smooth edges

    def chance(self, name: str) -> Random:
        """A source of chance for one thing, so that adding another thing moves nothing else."""
        return Random(f"{name}\0{self.key}")

    def mask(self, outlines: Sequence[Sequence[Point]]) -> tuple[Image.Image, tuple[int, int, int, int]] | None:
        """The smooth-edged mask of these outlines and the box where it lies, or None if all is outside."""
        xs = [x for outline in outlines for x, _ in outline]
        ys = [y for outline in outlines for _, y in outline]
        if not xs:
            return None
        left, top = max(0, math.floor(min(xs))), max(0, math.floor(min(ys)))
        right, bottom = min(self.width, math.ceil(max(xs)) + 1), min(self.height, math.ceil(max(ys)) + 1)
        if right <= left or bottom <= top:
            return None
        scale = self.scale
        mask = Image.new("L", ((right - left) * scale, (bottom - top) * scale))
        pen = ImageDraw.Draw(mask)
        for outline in outlines:
            pen.polygon([((x - left) * scale, (y - top) * scale) for x, y in outline], fill=255)
        return (mask.reduce(scale) if scale > 1 else mask), (left, top, right, bottom)

    def shape(self, outlines: Sequence[Sequence[Point]], fill: Color | Ramp, alpha: float = 1.0) -> None:
        """Fill outlines with a colour or a ramp."""
        found = self.mask(outlines)
        if found is None:
            return
        mask, box = found
        if alpha < 1:
            mask = mask.point([round(value * alpha) for value in range(256)])
        if isinstance(fill, Ramp):
            size = (box[2] - box[0], box[3] - box[1])
            self.image.paste(ramp(size, fill.colors, across=fill.across), box, mask)
        else:
            self.image.paste(fill, box, mask)

    def disc(self, x: float, y: float, radius: float, fill: Color | Ramp, alpha: float = 1.0) -> None:
        """A filled circle."""
        self.shape([ellipse(x, y, radius, radius)], fill, alpha)

    def glow(
        self,
        x: float,
        y: float,
        radius: float,
        color: Color,
        strength: float,
        *,
        squash: float = 1.0,
        hard: float = 2.2,
    ) -> None:
        """Add light that fades from a centre; `hard` is how quickly, `squash` flattens it."""
        rx, ry = max(2, round(radius * 1.25)), max(2, round(radius * squash * 1.25))
        falloff = [round(255 * strength * max(0.0, 1 - value / EDGE) ** hard) for value in range(256)]
        soft = Image.radial_gradient("L").point(falloff).resize((2 * rx, 2 * ry), Image.Resampling.BILINEAR)
        left, top = round(x) - rx, round(y) - ry
        box = (max(0, left), max(0, top), min(self.width, left + 2 * rx), min(self.height, top + 2 * ry))
        if box[2] <= box[0] or box[3] <= box[1]:
            return
        soft = soft.crop((box[0] - left, box[1] - top, box[2] - left, box[3] - top))
        light = Image.merge("RGB", [soft.point([value * part // 255 for value in range(256)]) for part in color])
        self.image.paste(ImageChops.screen(self.image.crop(box), light), box)

    def wash(self, color: Color, top: float, bottom: float, alphas: tuple[int, ...]) -> None:
        """A veil of one colour between two heights, its strength running through `alphas` (0-255)."""
        y0, y1 = max(0, round(top)), min(self.height, round(bottom))
        if y1 <= y0:
            return
        veil = ramp((self.width, y1 - y0), [(alpha, alpha, alpha) for alpha in alphas]).getchannel(0)
        self.image.paste(color, (0, y0, self.width, y1), veil)

    def finished(self) -> Image.Image:
        """The picture with its edges darkened a little and fine grain over all."""
        shade = [255 - round(88 * max(0.0, value / 255 - 0.45) ** 1.6) for value in range(256)]
        vignette = Image.radial_gradient("L").point(shade).resize((self.width, self.height), Image.Resampling.BILINEAR)
        image = ImageChops.multiply(self.image, Image.merge("RGB", (vignette, vignette, vignette)))
        return image if self.fast else grained(image, 4, self.chance("grain"))


def ellipse(x: float, y: float, rx: float, ry: float) -> Outline:
    """An ellipse as a closed outline."""
    return [(x + rx * math.cos(a * math.tau / 56), y + ry * math.sin(a * math.tau / 56)) for a in range(56)]


def rectangle(left: float, top: float, right: float, bottom: float) -> Outline:
    """An upright rectangle as a closed outline."""
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def spline(points: Sequence[Point], steps: int = 6) -> Outline:
    """A smooth closed outline through the points (Catmull-Rom)."""
    outline: Outline = []
    count = len(points)
    for i in range(count):
        (ax, ay), (bx, by), (cx, cy), (dx, dy) = (points[(i + k) % count] for k in (-1, 0, 1, 2))
        for step in range(steps):
            t = step / steps
            u, v = t * t, t * t * t
            outline.append(
                (
                    0.5
                    * (2 * bx + (cx - ax) * t + (2 * ax - 5 * bx + 4 * cx - dx) * u + (3 * (bx - cx) + dx - ax) * v),
                    0.5
                    * (2 * by + (cy - ay) * t + (2 * ay - 5 * by + 4 * cy - dy) * u + (3 * (by - cy) + dy - ay) * v),
                )
            )
    return outline


def placed(points: Sequence[Point], x: float, y: float, size: float, *, mirror: bool = False) -> Outline:
    """Points in their own unit put at (x, y)."""
    side = -size if mirror else size
    return [(x + px * side, y + py * size) for px, py in points]


def ridge(canvas: Canvas, rng: Random, roughness: float, *, pixels: float = 3.0) -> list[float]:
    """A ragged line of heights, about -1 to 1, evenly spaced over the width.

    Finer points come later in the same chance, so that a small picture has the large one's outline.
    """
    levels = max(4, min(9, math.ceil(math.log2(canvas.width / pixels))))
    heights = [rng.uniform(-1, 1) for _ in range(4)]
    swing = 0.5
    for _ in range(levels - 1):
        finer: list[float] = []
        for a, b in pairwise(heights):
            finer += (a, (a + b) / 2 + rng.uniform(-swing, swing))
        finer.append(heights[-1])
        heights, swing = finer, swing * roughness
    return heights


def fir(x: float, base: float, height: float, rng: Random) -> Outline:
    """A fir standing on `base`."""
    if height < 9:
        return [(x, base - height), (x + height * 0.22, base), (x - height * 0.22, base)]
    tiers = 5 + int(height > 40) * 3
    spread = height * rng.uniform(0.17, 0.24)
    right: Outline = []
    left: Outline = []
    for tier in range(1, tiers + 1):
        t = tier / tiers
        y = base - height * (1 - t * 0.93)
        right += [
            (x + spread * t * rng.uniform(0.85, 1.15), y + height * 0.02),
            (x + spread * t * 0.5, y - height * 0.015),
        ]
        left += [
            (x - spread * t * rng.uniform(0.85, 1.15), y + height * 0.02),
            (x - spread * t * 0.5, y - height * 0.015),
        ]
    trunk = height * 0.022
    return [(x, base - height), *right, (x + trunk, base - height * 0.06), (x + trunk, base + height * 0.04),
            (x - trunk, base + height * 0.04), (x - trunk, base - height * 0.06), *reversed(left)]  # fmt: skip
