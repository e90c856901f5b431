"""The things a prompt may put into a landscape: city, lighthouse, boat, cabin."""

import math

from PIL import Image, ImageChops, ImageDraw, ImageFilter

from safelight.providers.darkroom.canvas import EDGE, Canvas, Outline, Point, Ramp, placed, rectangle, spline
from safelight.providers.darkroom.palette import Palette, mixed


def draw_city(canvas: Canvas, palette: Palette, horizon: float) -> None:
    """Three rows of towers with lit windows."""
    rng, unit = canvas.chance("city"), canvas.unit
    dark = palette.night or palette.height < 0.25
    for row in range(3):
        t = row / 2
        body = mixed(mixed(palette.far, palette.sky[-1], 0.3), palette.near, 0.15 + 0.72 * t)
        towers: list[Outline] = []
        windows: list[Outline] = []
        x = -unit * 0.03
        while x < canvas.width:
            wide = unit * rng.uniform(0.045, 0.1)
            center = 1 - abs(x / canvas.width - 0.5) * 1.3
            high = horizon * (0.62 - 0.2 * t) * (0.3 + 0.7 * rng.random() ** 1.4) * (0.45 + 0.55 * center)
            top = horizon - high
            towers.append(rectangle(x, top, x + wide, horizon + 2))
            if rng.random() < 0.4:
                inset = wide * rng.uniform(0.15, 0.3)
                towers.append(rectangle(x + inset, top - high * 0.08, x + wide - inset, top + 1))
                if rng.random() < 0.5:
                    mast, middle = max(0.5, unit * 0.0016), x + wide / 2
                    towers.append(rectangle(middle - mast, top - high * 0.24, middle + mast, top))
            cell = max(3.0, unit * (0.0095 + 0.004 * t))
            columns, rows = int(wide / cell) - 1, int(high / cell / 1.3) - 1
            lit = rng.uniform(0.12, 0.55) if dark else rng.uniform(0.08, 0.25)
            margin = (wide - columns * cell) / 2
            for column in range(columns):
                for line in range(rows):
                    if rng.random() < lit:
                        wx, wy = x + margin + (column + 0.22) * cell, top + (line + 0.8) * cell * 1.3
                        windows.append(rectangle(wx, wy, wx + cell * 0.5, wy + cell * 0.62))
            x += wide * rng.uniform(0.8, 1.08)
        canvas.shape(towers, Ramp((body, mixed(body, palette.sky[-1], 0.28 * (1 - t) + 0.08))))
        glow = (255, 214, 140) if dark else mixed(palette.light, body, 0.2)
        canvas.shape(windows[::2], glow, 0.45 + 0.45 * t)
        canvas.shape(windows[1::2], mixed(glow, (190, 225, 255), 0.35), 0.35 + 0.35 * t)
    canvas.wash(mixed(palette.sky[-1], palette.light, 0.3), horizon * 0.8, horizon + 1, (0, 30, 90))


def draw_lighthouse(canvas: Canvas, palette: Palette, horizon: float, sun: Point) -> Point:
    """A lighthouse on a headland, on the side away from the sun. Returns where its lamp is."""
    rng, unit = canvas.chance("lighthouse"), canvas.unit
    right = sun[0] < canvas.width / 2
    x = canvas.width * (rng.uniform(0.68, 0.76) if right else rng.uniform(0.24, 0.32))
    rock = mixed(palette.near, palette.far, 0.16)
    side = 1 if right else -1
    edge = canvas.width if right else 0
    land: Outline = [(x - side * unit * 0.26, horizon + unit * 0.012)]
    for share, lift in (
        (0.2, 0.012),
        (0.15, 0.04),
        (0.1, 0.052),
        (0.06, 0.085),
        (0.0, 0.09),
        (-0.08, 0.085),
        (-0.16, 0.11),
    ):
        land.append((x - side * unit * share, horizon - unit * (lift + rng.uniform(-0.006, 0.006))))
    land += [(edge + side * 5, horizon - unit * 0.13), (edge + side * 5, horizon + unit * 0.012)]
    canvas.shape([land], Ramp((mixed(rock, palette.light, 0.14), rock)))
    base, high, wide = horizon - unit * 0.085, unit * 0.3, unit * 0.034
    top = base - high
    tower = [(x - wide, base + 3), (x - wide * 0.62, top), (x + wide * 0.62, top), (x + wide, base + 3)]
    lit, dim = mixed((250, 244, 232), palette.light, 0.4), mixed((120, 110, 130), palette.near, 0.55)
    colors = (dim, mixed(dim, lit, 0.5), lit) if not right else (lit, mixed(dim, lit, 0.5), dim)
    canvas.shape([tower], Ramp(colors, across=True))
    red = Ramp(
        tuple(mixed((190, 44, 40), dim, 0.6 - 0.5 * part) for part in ((0, 0.5, 1) if not right else (1, 0.5, 0))),
        across=True,
    )
    bands: list[Outline] = []
    for index in range(3):
        y0, y1 = (base - high * share for share in (0.1 + index * 0.3, 0.25 + index * 0.3))
        w0, w1 = (wide * (1 - 0.38 * (base - y) / high) for y in (y0, y1))
        bands.append([(x - w0, y0), (x - w1, y1), (x + w1, y1), (x + w0, y0)])
    canvas.shape(bands, red)
    lamp = (x, top - unit * 0.024)
    canvas.shape([rectangle(x - wide * 0.9, top - unit * 0.008, x + wide * 0.9, top + unit * 0.002)], palette.near)
    canvas.shape([rectangle(x - wide * 0.48, top - unit * 0.042, x + wide * 0.48, top - unit * 0.007)], (255, 240, 190))
    bars = [
        rectangle(x + wide * k - unit * 0.0012, top - unit * 0.042, x + wide * k + unit * 0.0012, top)
        for k in (-0.46, 0, 0.46)
    ]
    canvas.shape(bars, palette.near)
    roof = spline(
        [
            (x - wide * 0.62, top - unit * 0.04),
            (x, top - unit * 0.075),
            (x + wide * 0.62, top - unit * 0.04),
            (x, top - unit * 0.038),
        ]
    )
    canvas.shape([roof], mixed((150, 34, 34), palette.near, 0.45))
    house = x + side * unit * 0.09
    canvas.shape(
        [rectangle(house - unit * 0.04, base - unit * 0.045, house + unit * 0.04, base + 4)],
        mixed(lit, palette.near, 0.5),
    )
    canvas.shape(
        [
            [
                (house - unit * 0.047, base - unit * 0.043),
                (house, base - unit * 0.078),
                (house + unit * 0.047, base - unit * 0.043),
            ]
        ],
        mixed((120, 40, 36), palette.near, 0.6),
    )
    canvas.shape(
        [rectangle(house - unit * 0.012, base - unit * 0.03, house + unit * 0.008, base - unit * 0.012)],
        (255, 216, 140),
    )
    return lamp


def draw_beam(canvas: Canvas, palette: Palette, lamp: Point, sun: Point) -> None:
    """The lighthouse's light: a bright core and two beams that fade with distance."""
    x, y = lamp
    strength = 0.85 if palette.night else 0.6 if palette.height < 0.25 else 0.3
    size = (max(8, canvas.width // 4), max(8, canvas.height // 4))
    mask = Image.new("L", size)
    pen = ImageDraw.Draw(mask)
    toward = -1 if sun[0] < x else 1
    for side, reach, lift in ((toward, 1.15, -0.1), (-toward, 0.6, 0.04)):
        end, spread = x + side * canvas.width * reach, canvas.unit * 0.16 * reach
        cy = y + canvas.unit * lift * reach
        pen.polygon(
            [(x / 4, y / 4 - 0.6), (end / 4, (cy - spread) / 4), (end / 4, (cy + spread) / 4), (x / 4, y / 4 + 0.6)],
            fill=200,
        )
    mask = mask.filter(ImageFilter.GaussianBlur(max(size) / 160))
    falloff = [round(255 * strength * max(0.0, 1 - value / EDGE) ** 1.2) for value in range(256)]
    reach = round(max(size) * 1.0)
    fade = Image.new("L", size)
    soft = Image.radial_gradient("L").point(falloff).resize((2 * reach, 2 * reach), Image.Resampling.BILINEAR)
    fade.paste(soft, (round(x / 4) - reach, round(y / 4) - reach))
    beam = ImageChops.multiply(mask, fade).resize(canvas.image.size, Image.Resampling.BICUBIC)
    canvas.image.paste((255, 244, 205), (0, 0), beam)
    canvas.glow(x, y, canvas.unit * 0.16, (255, 226, 160), 0.8, hard=2.4)
    canvas.glow(x, y, canvas.unit * 0.035, (255, 250, 225), 1.0, hard=1.3)


def draw_boat(canvas: Canvas, palette: Palette, horizon: float, sun: Point) -> None:
    """A small sailing boat with its reflection."""
    rng, unit = canvas.chance("boat"), canvas.unit
    x = canvas.width * 0.5 + (sun[0] - canvas.width * 0.5) * rng.uniform(0.2, 0.7)
    y = horizon + (canvas.height - horizon) * rng.uniform(0.2, 0.36)
    size, mirror = unit * rng.uniform(0.15, 0.19), rng.random() < 0.5
    hull = [(-0.52, -0.1), (-0.4, 0.02), (0.34, 0.02), (0.6, -0.13), (0.3, -0.085)]
    main = [(0.0, -0.14), (0.0, -1.05), (-0.16, -0.72), (-0.4, -0.17)]
    jib = [(0.04, -0.15), (0.03, -0.95), (0.24, -0.5), (0.46, -0.17)]
    mast = [(-0.012, -1.1), (0.018, -1.1), (0.018, -0.08), (-0.012, -0.08)]
    sail = (
        mixed((250, 242, 226), palette.light, 0.5) if not palette.night else mixed(palette.light, palette.sky[1], 0.55)
    )
    dark = mixed(palette.near, (70, 30, 28), 0.35)
    flipped = [[(px, -py * 0.75) for px, py in part] for part in (hull, main, jib)]
    for part, color, alpha in zip(flipped, (dark, sail, sail), (0.5, 0.22, 0.22), strict=True):
        canvas.shape([placed(part, x, y + unit * 0.004, size, mirror=mirror)], color, alpha)
    canvas.shape([placed(main, x, y, size, mirror=mirror)], Ramp((sail, mixed(sail, palette.sky[2], 0.35))))
    canvas.shape([placed(jib, x, y, size, mirror=mirror)], Ramp((sail, mixed(sail, palette.sky[2], 0.5))))
    canvas.shape([placed(mast, x, y, size, mirror=mirror)], dark)
    canvas.shape([placed(hull, x, y, size, mirror=mirror)], Ramp((mixed(dark, palette.light, 0.2), dark)))
    ripples = [rectangle(x - size * 0.7, y + unit * 0.006, x + size * 0.7, y + unit * 0.009)]
    canvas.shape(ripples, palette.light, 0.3)


def draw_cabin(canvas: Canvas, palette: Palette, line: Outline, left: bool) -> None:
    """A cabin with a lit window and smoke."""
    unit = canvas.unit
    x, y = line[round(len(line) * (0.25 if left else 0.72))]
    y = min(y, canvas.height - unit * 0.05)
    wall = mixed(palette.near, (110, 66, 44), 0.45)
    canvas.shape([rectangle(x - unit * 0.07, y - unit * 0.075, x + unit * 0.07, y + unit * 0.02)], wall)
    canvas.shape([rectangle(x + unit * 0.03, y - unit * 0.155, x + unit * 0.045, y - unit * 0.1)], palette.near)
    roof = [(x - unit * 0.088, y - unit * 0.07), (x, y - unit * 0.145), (x + unit * 0.088, y - unit * 0.07)]
    canvas.shape(
        [roof], mixed((235, 240, 245), palette.far, 0.25) if palette.snow else mixed(palette.near, palette.far, 0.2)
    )
    for offset in (-0.035, 0.02):
        box = rectangle(x + unit * offset, y - unit * 0.05, x + unit * (offset + 0.022), y - unit * 0.024)
        canvas.shape([box], (255, 206, 120))
        canvas.glow(x + unit * (offset + 0.011), y - unit * 0.037, unit * 0.075, (255, 180, 90), 0.6)
    for index in range(7):
        canvas.glow(
            x + unit * (0.037 + 0.012 * math.sin(index)),
            y - unit * (0.165 + 0.03 * index),
            unit * (0.018 + 0.006 * index),
            (220, 220, 230),
            0.22 - 0.025 * index,
            hard=1.2,
        )
