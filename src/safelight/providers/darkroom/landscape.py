"""The landscape: sky, light, ranges fading into the air, water and a near shore, with what the prompt named."""

import math

from PIL import Image, ImageChops, ImageFilter

from safelight.providers.darkroom.canvas import Canvas, Outline, Point, Ramp, fir, placed, ramp, ridge
from safelight.providers.darkroom.motif import draw_beam, draw_boat, draw_cabin, draw_city, draw_lighthouse
from safelight.providers.darkroom.palette import Palette, mixed


def draw_landscape(canvas: Canvas, palette: Palette, motifs: set[str]) -> None:
    """Sky, light, ranges fading into the air, water, and what the prompt named."""
    rng = canvas.chance("layout")
    wet = bool(motifs & {"water", "boat", "lighthouse"}) or ("desert" not in motifs and rng.random() < 0.6)
    if "forest" in motifs and not motifs & {"water", "boat", "lighthouse"}:
        wet = rng.random() < 0.35
    horizon = canvas.height * (rng.uniform(0.6, 0.66) if wet else rng.uniform(0.68, 0.74))
    sun = (canvas.width * rng.choice((rng.uniform(0.2, 0.42), rng.uniform(0.58, 0.8))), 0.0)
    sun = (sun[0], horizon * (1 - palette.height * rng.uniform(0.75, 1.25)))
    draw_sky(canvas, palette, horizon, sun, aurora="aurora" in motifs)
    if "desert" in motifs:
        draw_dunes(canvas, palette, horizon, sun)
        draw_birds(canvas, palette, horizon)
        return
    draw_ranges(
        canvas, palette, horizon, low=bool(motifs & {"city", "lighthouse", "boat"}) and "mountain" not in motifs
    )
    if "city" in motifs:
        draw_city(canvas, palette, horizon)
    lamp = draw_lighthouse(canvas, palette, horizon, sun) if "lighthouse" in motifs else None
    if wet or "city" in motifs:
        draw_water(canvas, palette, horizon, sun)
        if "boat" in motifs:
            draw_boat(canvas, palette, horizon, sun)
    draw_foreground(canvas, palette, horizon, wet=wet or "city" in motifs, motifs=motifs)
    if lamp is not None:
        draw_beam(canvas, palette, lamp, sun)
    if not palette.night:
        draw_birds(canvas, palette, horizon)


def draw_sky(canvas: Canvas, palette: Palette, horizon: float, sun: Point, *, aurora: bool = False) -> None:
    """The sky with its stars, clouds and the sun or moon."""
    rng, unit = canvas.chance("sky"), canvas.unit
    below = canvas.height - round(horizon)
    canvas.image.paste(ramp((canvas.width, round(horizon)), palette.sky), (0, 0))
    canvas.image.paste(ramp((canvas.width, below), (palette.sky[-1], palette.near)), (0, round(horizon)))
    if palette.night:
        stars: list[Outline] = []
        for _ in range(230 if canvas.width > 200 else 60):
            x, y = rng.random() * canvas.width, rng.random() ** 1.5 * horizon * 0.95
            size = max(0.45, unit * rng.choice((0.0006, 0.0008, 0.0011, 0.0018)))
            stars.append([(x - size, y), (x, y - size), (x + size, y), (x, y + size)])
        for part, alpha in ((0, 0.9), (1, 0.6), (2, 0.4)):
            canvas.shape(stars[part::3], (240, 244, 255), alpha)
    if aurora:
        draw_aurora(canvas, horizon)
    canvas.glow(*sun, unit * 0.95, palette.light, 0.26 if palette.night else 0.3, hard=2.6)
    canvas.glow(*sun, unit * 0.26, palette.light, 0.4 if palette.night else 0.5, hard=2.4)
    radius = unit * rng.uniform(0.042, 0.062) * (0.8 if palette.night else 1)
    canvas.disc(*sun, radius, palette.light)
    if palette.night:
        for _ in range(5):
            angle, far = rng.random() * math.tau, rng.random() * 0.6 * radius
            spot = (sun[0] + far * math.cos(angle), sun[1] + far * math.sin(angle))
            canvas.disc(*spot, radius * rng.uniform(0.1, 0.28), mixed(palette.light, palette.sky[2], 0.3), 0.28)
    draw_clouds(canvas, palette, horizon)


def draw_clouds(canvas: Canvas, palette: Palette, horizon: float) -> None:
    """Soft drawn-out clouds: a few sheets of noise, stretched, added and cut off below a level."""
    rng = canvas.chance("clouds")
    width, height = max(8, canvas.width // 3), max(8, round(horizon) // 3)
    total = Image.new("L", (width, height), 0)
    for cells, weight in ((3, 0.5), (6, 0.27), (13, 0.14), (27, 0.09)):
        rows = max(4, round(cells * 3 * horizon / canvas.width))
        sheet = Image.frombytes("L", (cells, rows), rng.randbytes(cells * rows))
        sheet = sheet.resize((width, height), Image.Resampling.BICUBIC)
        total = ImageChops.add(total, sheet.point([round(value * weight) for value in range(256)]))
    level = rng.randint(122, 142)
    amount = 0.34 if palette.night else 0.72
    cut = [round(255 * amount * min(1.0, max(0.0, (value - level) / 70))) for value in range(256)]
    fade = ramp((width, height), [(level, level, level) for level in (60, 200, 255, 150, 20)]).getchannel(0)
    size = (canvas.width, round(horizon))
    mask = ImageChops.multiply(total.point(cut), fade).resize(size, Image.Resampling.BICUBIC)
    lit = [mixed(palette.sky[min(i + 2, len(palette.sky) - 1)], palette.light, 0.45) for i in range(4)]
    canvas.image.paste(ramp(size, lit), (0, 0), mask)


def draw_aurora(canvas: Canvas, horizon: float) -> None:
    """Curtains of green light."""
    rng = canvas.chance("aurora")
    width, height = max(16, canvas.width // 4), max(16, round(horizon) // 4)
    veil = Image.new("RGB", (width, height))
    for color in ((70, 240, 150), (60, 200, 190), (140, 90, 220)):
        phase, base = rng.random() * 7, rng.uniform(0.5, 0.75)
        for x in range(width):
            t = x / width
            bottom = height * (base + 0.13 * math.sin(phase + t * 5) + 0.05 * math.sin(phase + t * 17))
            power = (
                0.25 + 0.5 * (0.5 + 0.5 * math.sin(phase * 3 + t * 23)) * (0.5 + 0.5 * math.sin(t * 7 - phase))
            ) * 0.9
            size = (1, max(2, round(height * 0.5)))
            streak = ramp(
                size, ((0, 0, 0), mixed((0, 0, 0), color, power * 0.5), mixed((0, 0, 0), color, power), (0, 0, 0))
            )
            spot = (x, round(bottom) - size[1])
            area = (*spot, x + 1, spot[1] + size[1])
            veil.paste(ImageChops.add(veil.crop(area), streak), spot)
    light = veil.filter(ImageFilter.GaussianBlur(width / 90)).resize(
        (canvas.width, round(horizon)), Image.Resampling.BICUBIC
    )
    sky = canvas.image.crop((0, 0, canvas.width, round(horizon)))
    canvas.image.paste(ImageChops.screen(sky, light), (0, 0))


def draw_ranges(canvas: Canvas, palette: Palette, horizon: float, *, low: bool) -> None:
    """Mountains one behind the other, the farther the paler, with mist at their feet."""
    rng = canvas.chance("ranges")
    count = 3 if canvas.fast or low else 4
    haze = mixed(palette.sky[-1], palette.far, 0.25)
    tall = (0.13 if low else 0.34) * horizon
    for index in range(count):
        t = index / count
        heights = ridge(canvas, rng, 0.5 - 0.04 * index)
        base = horizon - tall * (0.72 - 0.66 * t)
        swing = tall * (0.5 - 0.28 * t)
        step = canvas.width / (len(heights) - 1)
        line = [(i * step, base - value * swing) for i, value in enumerate(heights)]
        body = mixed(mixed(palette.far, palette.sky[-1], 0.35), mixed(palette.far, palette.near, 0.72), t**1.1)
        foot = mixed(body, haze, 0.75 - 0.35 * t)
        canvas.shape(
            [[*line, (canvas.width, horizon + 2), (0, horizon + 2)]], Ramp((body, mixed(body, foot, 0.4), foot))
        )
        if index < 2 and not low and (palette.snow or not palette.night):
            white = mixed(palette.light, body, 0.22 if palette.snow else 0.5)
            teeth = ridge(canvas, rng, 0.85)
            level = base - swing * (0.05 if palette.snow else 0.42)
            lower = [(x, max(y, level + tooth * swing * 0.2)) for (x, y), tooth in zip(line, teeth, strict=True)]
            canvas.shape([[*line, *reversed(lower)]], white, 0.85 if palette.snow else 0.5)
    canvas.wash(haze, horizon - tall * 0.3, horizon + 1, (0, 60, 130))


def draw_dunes(canvas: Canvas, palette: Palette, horizon: float, sun: Point) -> None:
    """Dunes with a lit and a shaded flank."""
    rng = canvas.chance("dunes")
    sand, shade = mixed(palette.far, (232, 170, 96), 0.6), mixed(palette.near, (96, 44, 38), 0.7)
    depth = canvas.height - horizon
    for index in range(5):
        t = index / 4
        a, b, phase = rng.uniform(0.5, 0.9), rng.uniform(1.3, 2.2), rng.random() * 6
        top, swing = horizon - depth * 0.18 + depth * 0.9 * t**1.25, depth * (0.08 + 0.17 * t)
        xs = [canvas.width * i / 80 for i in range(81)]
        line = [
            (x, top + swing * (math.sin(phase + a * math.tau * x / canvas.width)
             + 0.3 * math.sin(phase * 2 + b * math.tau * x / canvas.width)))
            for x in xs
        ]  # fmt: skip
        body = mixed(mixed(palette.sky[-1], sand, 0.35 + 0.5 * t), shade, 0.25 * t)
        bottom = [(canvas.width, canvas.height + 2), (0, canvas.height + 2)]
        canvas.shape([[*line, *bottom]], Ramp((body, mixed(body, shade, 0.4 + 0.25 * t))))
        # The flank away from the sun: from the peak along the crest to the trough, back up a winding edge.
        peak = min(range(8, 73), key=lambda i: line[i][1])
        away = -1 if sun[0] > line[peak][0] else 1
        trough = peak
        while 0 < trough < 80 and line[trough + away][1] >= line[trough][1]:
            trough += away
        if abs(trough - peak) < 6:
            continue
        (px, py), (ex, ey) = line[peak], line[trough]
        foot = ey + depth * 0.35
        edge = [
            (px + (ex - px) * (0.28 * math.sin(k * 0.32) + 0.02 * k), py + (foot - py) * (k / 20) ** 0.9)
            for k in range(21)
        ]
        shaded = line[peak : trough + 1] if away > 0 else line[trough : peak + 1][::-1]
        canvas.shape(
            [[*shaded, (ex, foot), *reversed(edge)]], Ramp((mixed(body, shade, 0.55), mixed(body, shade, 0.2), body))
        )


def draw_water(canvas: Canvas, palette: Palette, horizon: float, sun: Point) -> None:
    """Water that mirrors what stands above it, broken by ripples, with the light's glitter on it."""
    rng = canvas.chance("water")
    top = round(horizon)
    depth, width = canvas.height - top, canvas.width
    if depth < 2:
        return
    above = canvas.image.crop((0, max(0, top - depth), width, top)).transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    pad = max(2, round(width * 0.03))
    mirror = above.resize((width + 2 * pad, depth), Image.Resampling.BILINEAR)
    deep = mixed(palette.sky[1], palette.near, 0.45)
    tint = ramp(mirror.size, (mixed(palette.sky[-1], deep, 0.35), deep, mixed(deep, palette.near, 0.35)))
    mirror = Image.blend(mirror, tint, 0.42)
    y, phase = 0, rng.random() * 6
    while y < depth:
        t = y / depth
        band = max(1, round(depth * 0.012 * t))
        phase += rng.uniform(0.3, 0.9)
        shift = round(pad * 0.6 * (0.08 + t) * math.sin(phase))
        canvas.image.paste(mirror.crop((pad + shift, y, pad + shift + width, min(depth, y + band))), (0, top + y))
        y += band
    bright: list[Outline] = []
    dim: list[Outline] = []
    for _ in range(150 if width > 200 else 40):
        t = rng.random() ** 1.3
        y0 = top + t * depth
        spread = canvas.unit * (0.028 + 0.11 * t)
        x = sun[0] + rng.gauss(0, 1) * spread
        half = canvas.unit * (0.006 + 0.03 * t * rng.random())
        thick = max(0.4, canvas.unit * (0.0008 + 0.002 * t))
        bright.append([(x - half, y0), (x, y0 - thick), (x + half, y0), (x, y0 + thick)])
        x, half = rng.random() * width, canvas.unit * (0.01 + 0.09 * t)
        dim.append([(x - half, y0), (x, y0 - thick), (x + half, y0), (x, y0 + thick)])
    canvas.shape(dim[::2], mixed(palette.sky[-1], palette.light, 0.3), 0.16)
    canvas.shape(dim[1::2], palette.near, 0.14)
    canvas.shape(bright, palette.light, 0.4 if palette.night else 0.62)
    canvas.glow(sun[0], top, canvas.unit * 0.3, palette.light, 0.3, squash=0.25)
    canvas.wash(mixed(palette.sky[-1], palette.light, 0.3), horizon - 1, horizon + depth * 0.05, (120, 0))


def draw_foreground(canvas: Canvas, palette: Palette, horizon: float, *, wet: bool, motifs: set[str]) -> None:
    """The near shore or hill with its trees."""
    rng, unit = canvas.chance("foreground"), canvas.unit
    depth = canvas.height - horizon
    forest = "forest" in motifs
    open_view = bool(motifs & {"city", "lighthouse", "boat"}) and not forest
    layers = (0.0, 0.45, 1.0) if not wet else ((0.75, 1.0) if forest else (1.0,))
    for t in layers:
        body = mixed(palette.near, mixed(palette.far, palette.sky[-1], 0.3), (1 - t) * 0.5)
        heights = ridge(canvas, rng, 0.42)
        left = rng.random() < 0.5
        step = canvas.width / (len(heights) - 1)
        line: Outline = []
        for i, value in enumerate(heights):
            x = i * step
            side = (1 - x / canvas.width) if left else x / canvas.width
            if wet:  # a shore that rises to one side and leaves the view open
                y = canvas.height + depth * (0.12 - (0.55 if forest else 0.4) * side**1.7) - value * depth * 0.05
            else:
                y = horizon + depth * (0.02 + 0.62 * t**1.3) - value * depth * (0.14 + 0.08 * t) - side * depth * 0.1
            line.append((x, y))
        closing = [(canvas.width + 2, canvas.height + 2), (-2, canvas.height + 2)]
        trees: list[Outline] = []
        if not open_view:
            count = round((70 if forest else 26) * canvas.width / canvas.height * (1.25 - 0.6 * t))
            count = min(count, 120) if canvas.width > 200 else min(count, 26)
            for _ in range(count):
                place = rng.random() if forest else rng.betavariate(0.45, 0.45)
                x, y = line[min(len(line) - 1, int(place * len(line)))]
                high = unit * (0.05 + 0.15 * t) * rng.uniform(0.55, 1.25) * (1.2 if forest else 0.85)
                if y < canvas.height + high * 0.4:
                    trees.append(fir(x, y + high * 0.11, high, rng))
        rim = mixed(body, palette.light, 0.1)
        canvas.shape([[*line, *closing], *trees], Ramp((rim, body, mixed(body, palette.near, 0.6))))
        if t == layers[-1] and "cabin" in motifs:
            draw_cabin(canvas, palette, line, left)
        if not wet and t < 1:
            canvas.wash(
                mixed(palette.sky[-1], palette.light, 0.2),
                horizon + depth * 0.3 * t,
                horizon + depth * (0.45 + 0.4 * t),
                (0, 55, 0),
            )


def draw_birds(canvas: Canvas, palette: Palette, horizon: float) -> None:
    """A few birds in a loose group."""
    rng, unit = canvas.chance("birds"), canvas.unit
    if canvas.width < 160 or rng.random() < 0.3:
        return
    cx, cy = canvas.width * rng.uniform(0.25, 0.75), horizon * rng.uniform(0.25, 0.5)
    birds: list[Outline] = []
    for _ in range(rng.randint(3, 8)):
        x, y = cx + rng.gauss(0, 0.07) * unit, cy + rng.gauss(0, 0.03) * unit
        span, lift = unit * rng.uniform(0.009, 0.016), rng.uniform(0.35, 0.6)
        wing = [
            (-1, -lift),
            (-0.5, -lift * 0.95),
            (0, 0),
            (0.5, -lift * 0.95),
            (1, -lift),
            (0.5, -lift * 0.62),
            (0, 0.28),
            (-0.5, -lift * 0.62),
        ]
        birds.append(placed(wing, x, y, span))
    canvas.shape(birds, mixed(palette.near, palette.sky[1], 0.25), 0.8)
