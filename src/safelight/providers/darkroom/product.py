"""One object in a studio: bottle, mug or shoe."""

import math

from PIL import Image, ImageChops, ImageDraw, ImageFilter

from safelight.providers.darkroom.canvas import Canvas, Point, Ramp, ellipse, placed, ramp, rectangle, spline
from safelight.providers.darkroom.palette import Color, Palette, mixed

PRODUCTS = ("shoe", "mug", "bottle")
BOTTLE: tuple[Point, ...] = (
    (0.0, -1.0),
    (0.085, -1.0),
    (0.09, -0.98),
    (0.09, -0.72),
    (0.1, -0.66),
    (0.2, -0.56),
    (0.25, -0.48),
    (0.26, -0.4),
    (0.26, -0.04),
    (0.25, -0.01),
    (0.22, 0.0),
    (0.0, 0.0),
)
SHOE: tuple[Point, ...] = (
    (-0.78, -0.1),
    (-0.82, -0.3),
    (-0.76, -0.52),
    (-0.68, -0.6),
    (-0.6, -0.53),
    (-0.42, -0.5),
    (-0.24, -0.56),
    (-0.12, -0.62),
    (0.0, -0.52),
    (0.16, -0.38),
    (0.36, -0.31),
    (0.6, -0.27),
    (0.78, -0.2),
    (0.84, -0.1),
    (0.7, -0.06),
    (0.0, -0.06),
)
SOLE: tuple[Point, ...] = (
    (-0.82, -0.12),
    (-0.4, -0.11),
    (0.1, -0.1),
    (0.5, -0.11),
    (0.86, -0.15),
    (0.9, -0.08),
    (0.82, -0.01),
    (0.4, 0.0),
    (-0.4, 0.0),
    (-0.78, 0.0),
    (-0.86, -0.05),
)


def draw_product(canvas: Canvas, palette: Palette, motifs: set[str]) -> None:
    """One object on a studio sweep, lit from the upper left, with its shadow and reflection."""
    rng, unit = canvas.chance("product"), canvas.unit
    accent = palette.sky[rng.choice((1, 2))]
    wall, floor = mixed(accent, palette.near, 0.25), mixed(accent, palette.sky[-1], 0.45)
    line = canvas.height * 0.7
    size = (canvas.width, canvas.height)
    canvas.image.paste(
        ramp(size, (mixed(wall, palette.near, 0.3), wall, mixed(wall, floor, 0.7), floor, mixed(floor, wall, 0.45))),
        (0, 0),
    )
    x, base = canvas.width * 0.5, canvas.height * 0.83
    canvas.glow(x - unit * 0.12, line - unit * 0.3, unit * 0.75, palette.light, 0.6)
    ring = mixed(floor, palette.light, 0.35)
    canvas.disc(x, base - unit * 0.36, unit * 0.33, Ramp((mixed(ring, wall, 0.2), mixed(ring, wall, 0.75))), 0.55)
    color = mixed(
        palette.near, (palette.sky[0], palette.sky[-2], palette.far)[rng.randrange(3)], rng.uniform(0.35, 0.6)
    )
    soft = Image.new("L", (max(8, canvas.width // 4), max(8, canvas.height // 4)))
    wide = {"shoe": 0.4, "mug": 0.22, "bottle": 0.17}
    thing = next(name for name in PRODUCTS if name in motifs)
    half = unit * wide[thing]
    box = [(x - half * 0.95) / 4, (base - unit * 0.016) / 4, (x + half * 1.12) / 4, (base + unit * 0.028) / 4]
    ImageDraw.Draw(soft).ellipse(box, fill=200)
    soft = soft.filter(ImageFilter.GaussianBlur(unit / 4 * 0.02)).resize(size, Image.Resampling.BICUBIC)
    canvas.image.paste(mixed(wall, (8, 6, 12), 0.75), (0, 0), soft)
    before = canvas.image.copy()
    if thing == "shoe":
        draw_shoe(canvas, palette, x, base, unit * 0.44, color)
    elif thing == "mug":
        draw_mug(canvas, palette, x, base, unit * 0.4, color)
    else:
        draw_bottle(canvas, palette, x, base, unit * 0.68, color)
    # Its mirror image on the floor: only what the object changed is reflected, fading downwards.
    top, deep = round(base), canvas.height - round(base)
    if deep > 2:
        above = (0, top - deep, canvas.width, top)
        changed = ImageChops.difference(canvas.image.crop(above), before.crop(above)).convert("L")
        fade = ramp(changed.size, ((0, 0, 0), (40, 40, 40), (110, 110, 110))).getchannel(0)
        mask = ImageChops.multiply(changed.point([min(255, value * 12) for value in range(256)]), fade)
        mirror = canvas.image.crop(above).transpose(Image.Transpose.FLIP_TOP_BOTTOM)
        canvas.image.paste(mirror, (0, top), mask.transpose(Image.Transpose.FLIP_TOP_BOTTOM))


def _round(color: Color, light: Color) -> Ramp:
    """The shading of a round body lit from the left."""
    dark = mixed(color, (6, 5, 12), 0.6)
    return Ramp(
        (
            dark,
            color,
            mixed(color, light, 0.65),
            mixed(color, light, 0.2),
            color,
            mixed(color, dark, 0.7),
            dark,
            mixed(dark, light, 0.25),
        ),
        across=True,
    )


def draw_bottle(canvas: Canvas, palette: Palette, x: float, base: float, size: float, color: Color) -> None:
    """A tall bottle with a label and a cap."""
    outline = placed([*BOTTLE, *[(-px, py) for px, py in reversed(BOTTLE)]], x, base, size)
    canvas.shape([outline], _round(color, palette.light))
    cap = rectangle(x - size * 0.097, base - size * 1.03, x + size * 0.097, base - size * 0.86)
    canvas.shape([cap], _round(mixed(palette.sky[-2], (170, 120, 60), 0.4), palette.light))
    label = rectangle(x - size * 0.26, base - size * 0.4, x + size * 0.26, base - size * 0.12)
    canvas.shape([label], _round(mixed((240, 232, 216), palette.sky[-1], 0.4), (255, 255, 255)), 0.94)
    ink = mixed(color, palette.near, 0.5)
    canvas.disc(x, base - size * 0.315, size * 0.042, ink)
    canvas.disc(x + size * 0.014, base - size * 0.325, size * 0.036, mixed((240, 232, 216), palette.sky[-1], 0.4))
    lines = [
        rectangle(x - size * w, base - size * y, x + size * w, base - size * (y - 0.009))
        for y, w in ((0.235, 0.12), (0.205, 0.085), (0.18, 0.1))
    ]
    canvas.shape(lines, ink, 0.75)
    shine = spline(
        [
            (x - size * 0.19, base - size * 0.44),
            (x - size * 0.17, base - size * 0.52),
            (x - size * 0.06, base - size * 0.63),
            (x - size * 0.1, base - size * 0.5),
        ]
    )
    canvas.shape([shine], (255, 255, 255), 0.35)


def draw_mug(canvas: Canvas, palette: Palette, x: float, base: float, size: float, color: Color) -> None:
    """A mug with steam."""
    ring = [*ellipse(x + size * 0.42, base - size * 0.42, size * 0.23, size * 0.27)]
    hole = [*ellipse(x + size * 0.41, base - size * 0.42, size * 0.145, size * 0.18)]
    canvas.shape(
        [[*ring, ring[0], hole[0], *reversed(hole)]],
        Ramp((mixed(color, palette.light, 0.35), color, mixed(color, (6, 5, 12), 0.5))),
    )
    body = spline(
        [
            (x - size * 0.42, base - size * 0.8),
            (x - size * 0.41, base - size * 0.3),
            (x - size * 0.36, base - size * 0.04),
            (x - size * 0.2, base),
            (x + size * 0.2, base),
            (x + size * 0.36, base - size * 0.04),
            (x + size * 0.41, base - size * 0.3),
            (x + size * 0.42, base - size * 0.8),
        ]
    )
    canvas.shape([body], _round(color, palette.light))
    canvas.shape([ellipse(x, base - size * 0.8, size * 0.425, size * 0.085)], mixed(color, palette.light, 0.5))
    canvas.shape([ellipse(x, base - size * 0.79, size * 0.39, size * 0.066)], (58, 32, 22))
    for index in range(16):
        t = index / 15
        canvas.glow(
            x + size * 0.09 * math.sin(2.2 + t * 5) * (0.4 + t),
            base - size * (0.86 + 0.65 * t),
            size * (0.07 + 0.1 * t),
            palette.light,
            0.2 * (1 - t),
            hard=1.2,
        )


def draw_shoe(canvas: Canvas, palette: Palette, x: float, base: float, size: float, color: Color) -> None:
    """A running shoe from the side."""
    accent = mixed(palette.sky[-2], (240, 90, 60), 0.5)
    upper = spline(placed(SHOE, x, base, size))
    canvas.shape(
        [upper],
        Ramp((mixed(color, palette.light, 0.5), mixed(color, palette.light, 0.15), mixed(color, (6, 5, 12), 0.4))),
    )
    heel = spline(placed([(-0.79, -0.14), (-0.8, -0.34), (-0.72, -0.5), (-0.6, -0.4), (-0.56, -0.14)], x, base, size))
    canvas.shape([heel], accent, 0.9)
    toe = spline(placed([(0.42, -0.1), (0.46, -0.27), (0.62, -0.255), (0.78, -0.19), (0.82, -0.1)], x, base, size))
    canvas.shape([toe], mixed(color, (6, 5, 12), 0.35), 0.7)
    for k in range(3):
        stripe = [
            (-0.36 + 0.13 * k, -0.12),
            (-0.28 + 0.13 * k, -0.12),
            (-0.1 + 0.1 * k, -0.46 + 0.05 * k),
            (-0.15 + 0.1 * k, -0.47 + 0.05 * k),
        ]
        canvas.shape([placed(stripe, x, base, size)], mixed((250, 246, 240), palette.light, 0.3), 0.95)
    laces = [
        [
            (-0.1 + 0.08 * k, -0.6 + 0.07 * k),
            (-0.078 + 0.08 * k, -0.605 + 0.07 * k),
            (-0.045 + 0.085 * k, -0.47 + 0.05 * k),
            (-0.075 + 0.085 * k, -0.455 + 0.05 * k),
        ]
        for k in range(4)
    ]
    canvas.shape([placed(lace, x, base, size) for lace in laces], (250, 248, 244))
    opening = spline(
        placed([(-0.66, -0.57), (-0.42, -0.49), (-0.2, -0.545), (-0.14, -0.6), (-0.36, -0.54)], x, base, size)
    )
    canvas.shape([opening], mixed(color, (6, 5, 12), 0.75))
    sole = spline(placed(SOLE, x, base, size))
    canvas.shape([sole], Ramp(((252, 249, 244), mixed((225, 220, 216), palette.sky[2], 0.3))))
    canvas.shape([placed([(-0.84, -0.045), (0.84, -0.06), (0.84, -0.045), (-0.84, -0.03)], x, base, size)], accent)
