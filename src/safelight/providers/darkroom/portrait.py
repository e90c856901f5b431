"""A head in profile, filled with a landscape."""

from PIL import Image, ImageFilter

from safelight.providers.darkroom.canvas import Canvas, Point, Ramp, placed, ramp, spline
from safelight.providers.darkroom.landscape import draw_birds, draw_landscape
from safelight.providers.darkroom.palette import Palette, mixed

PROFILE: tuple[Point, ...] = (
    (-0.05, -0.52), (0.14, -0.50), (0.28, -0.42), (0.355, -0.30), (0.375, -0.20), (0.378, -0.13), (0.362, -0.075),
    (0.385, -0.02), (0.425, 0.05), (0.445, 0.085), (0.425, 0.112), (0.372, 0.122), (0.375, 0.15), (0.402, 0.178),
    (0.392, 0.198), (0.368, 0.208), (0.39, 0.222), (0.392, 0.25), (0.362, 0.275), (0.358, 0.30), (0.378, 0.335),
    (0.37, 0.385), (0.315, 0.415), (0.22, 0.40), (0.13, 0.385), (0.08, 0.43), (0.06, 0.54), (0.085, 0.66),
    (0.2, 0.76), (0.42, 0.86), (0.56, 1.0), (0.62, 1.3), (0.64, 1.9), (-0.85, 1.9), (-0.83, 1.3), (-0.76, 1.0),
    (-0.6, 0.85), (-0.4, 0.76), (-0.29, 0.66), (-0.25, 0.52), (-0.28, 0.38), (-0.38, 0.22), (-0.45, 0.0),
    (-0.44, -0.22), (-0.35, -0.40), (-0.2, -0.50),
)  # fmt: skip
HAIR: dict[str, tuple[tuple[Point, ...], ...]] = {
    "short": (((0.33, -0.35), (0.3, -0.44), (0.17, -0.54), (-0.05, -0.585), (-0.34, -0.49), (-0.49, -0.24),
               (-0.485, 0.03), (-0.4, 0.24), (-0.3, 0.4), (-0.23, 0.3), (-0.13, 0.12), (-0.1, 0.0), (-0.02, 0.03),
               (0.02, -0.1),
               (0.1, -0.22), (0.2, -0.27)),),
    "bun": (((0.33, -0.35), (0.28, -0.44), (0.15, -0.53), (-0.05, -0.56), (-0.33, -0.47), (-0.47, -0.24), (-0.46, 0.02),
             (-0.4, 0.2), (-0.29, 0.36), (-0.22, 0.25), (-0.12, 0.08), (-0.03, 0.04), (0.02, -0.1), (0.12, -0.24)),
            ((-0.4, -0.36), (-0.5, -0.52), (-0.67, -0.5), (-0.75, -0.34), (-0.68, -0.18), (-0.5, -0.12))),
    "long": (((0.33, -0.35), (0.27, -0.46), (0.14, -0.55), (-0.05, -0.58), (-0.34, -0.5), (-0.5, -0.26), (-0.52, 0.05),
              (-0.55, 0.36), (-0.68, 0.66), (-0.66, 0.86), (-0.78, 1.1), (-0.5, 1.22), (-0.34, 1.1), (-0.16, 0.96),
              (-0.2, 0.66), (-0.08, 0.34), (-0.06, 0.1), (0.03, -0.08), (0.14, -0.22)),),
}  # fmt: skip


def draw_portrait(canvas: Canvas, palette: Palette, motifs: set[str]) -> None:
    """A head in profile before a large pale disc, filled with a landscape: a double exposure."""
    rng = canvas.chance("portrait")
    paper = palette.sky[2] if palette.night else mixed(palette.sky[-1], (250, 244, 234), 0.5)
    size = (canvas.width, canvas.height)
    canvas.image.paste(
        ramp(size, (mixed(paper, palette.sky[2], 0.42), paper, mixed(paper, palette.sky[-2], 0.5))), (0, 0)
    )
    mirror = rng.random() < 0.5
    head = min(canvas.height * 0.46, canvas.width * 0.62)
    x, y = canvas.width * (0.53 if mirror else 0.47), canvas.height * 0.42
    disc = (x + head * (-0.12 if mirror else 0.12), y - head * 0.02)
    canvas.glow(*disc, head * 1.25, palette.light, 0.6)
    warm = palette.light if palette.night else mixed(palette.sky[3], (240, 120, 90), 0.3)
    canvas.disc(*disc, head * 0.8, Ramp((mixed(warm, palette.light, 0.35), mixed(warm, paper, 0.6))))
    inner = Canvas(canvas.width, canvas.height, canvas.key, canvas.fast)
    draw_landscape(inner, palette, (motifs - {"portrait", "city"}) | {"forest"})
    hair = "long" if "long_hair" in motifs and rng.random() < 0.6 else "bun" if "long_hair" in motifs else "short"
    outlines = [spline(placed(part, x, y, head, mirror=mirror)) for part in (PROFILE, *HAIR[hair])]
    found = canvas.mask(outlines)
    if found is None:
        return
    mask, box = found
    dark = mixed(palette.near, palette.sky[0], 0.45)
    inside = inner.image.crop(box)
    shade = ramp(inside.size, (mixed(dark, palette.sky[0], 0.3), mixed(dark, palette.sky[1], 0.35), dark))
    inside = Image.blend(inside, shade, 0.3)
    edge = Image.new("L", mask.size)  # a rim of shade along the outline gives the flat shape its volume
    small = mask.resize((max(4, mask.width // 4), max(4, mask.height // 4)), Image.Resampling.BILINEAR)
    soft = small.filter(ImageFilter.GaussianBlur(max(1.0, head / 40))).resize(mask.size, Image.Resampling.BICUBIC)
    edge = soft.point([round(max(0, 255 - value) * 1.5) if value > 0 else 255 for value in range(256)])
    inside.paste(dark, (0, 0), edge)
    canvas.image.paste(inside, box, mask)
    crown = [spline(placed(part, x, y, head, mirror=mirror)) for part in HAIR[hair]]
    canvas.shape(crown, dark, 0.3)
    draw_birds(canvas, palette, canvas.height * 0.5)
