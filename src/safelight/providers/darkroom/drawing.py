"""From a prompt and a seed to a picture, and to what it looks like while it develops."""

import re
from random import Random

from PIL import Image, ImageFilter

from safelight.providers.darkroom.canvas import Canvas, grained
from safelight.providers.darkroom.landscape import draw_landscape
from safelight.providers.darkroom.palette import CHANCE_PALETTES, PALETTE_WORDS, PALETTES
from safelight.providers.darkroom.portrait import draw_portrait
from safelight.providers.darkroom.product import PRODUCTS, draw_product

MOTIF_WORDS: dict[str, str] = {
    **dict.fromkeys(("lighthouse", "beacon"), "lighthouse"),
    **dict.fromkeys(("forest", "tree", "fir", "pine", "wood", "woodland", "taiga"), "forest"),
    **dict.fromkeys(("city", "skyline", "town", "street", "skyscraper", "cyberpunk", "downtown"), "city"),
    **dict.fromkeys(("boat", "ship", "sail", "sailing", "sailboat"), "boat"),
    **dict.fromkeys(("sea", "ocean", "lake", "river", "harbour", "harbor", "beach", "coast", "water"), "water"),
    **dict.fromkeys(("desert", "dune", "sahara"), "desert"),
    **dict.fromkeys(("mountain", "alp", "peak", "valley", "summit"), "mountain"),
    **dict.fromkeys(("cabin", "house", "hut", "cottage", "home"), "cabin"),
    **dict.fromkeys(("aurora", "northern"), "aurora"),
    **dict.fromkeys(
        ("portrait", "character", "woman", "man", "face", "girl", "boy", "person", "hero", "wizard", "queen", "king"),
        "portrait",
    ),
    **dict.fromkeys(("woman", "girl", "queen", "princess", "lady"), "long_hair"),
    **dict.fromkeys(("product", "bottle", "perfume", "wine", "packshot"), "bottle"),
    **dict.fromkeys(("shoe", "sneaker", "trainer", "boot"), "shoe"),
    **dict.fromkeys(("mug", "cup", "coffee", "tea", "teacup"), "mug"),
}


def words_of(prompt: str) -> set[str]:
    """The lower-case words of a prompt, with and without a plural s."""
    words = re.findall(r"[a-z]+", prompt.lower())
    return {form for word in words for form in (word, word.removesuffix("s"))}


def draw(prompt: str, seed: int, width: int, height: int, *, fast: bool = False) -> Image.Image:
    """Draw the picture of this prompt and seed as RGB. `fast` leaves out the fine detail and the smoothed edges."""
    words = words_of(prompt)
    motifs = {motif for word, motif in MOTIF_WORDS.items() if word in words}
    named = next((name for word, name in PALETTE_WORDS.items() if word in words), None)
    palette = PALETTES[named or Random(f"palette {prompt}").choice(CHANCE_PALETTES)]
    canvas = Canvas(width, height, f"{prompt}\0{seed}", fast)
    if motifs & {"portrait", "long_hair"}:
        draw_portrait(canvas, palette, motifs)
    elif any(product in motifs for product in PRODUCTS):
        draw_product(canvas, palette, motifs)
    else:
        draw_landscape(canvas, palette, motifs)
    return canvas.finished()


def develop(picture: Image.Image, fraction: float) -> Image.Image:
    """What a small drawing looks like in the tray after this fraction (0-1) of the time: faint and soft first."""
    fraction = min(max(fraction, 0.0), 1.0)
    blur = (1 - fraction) ** 1.5 * max(picture.size) / 14
    soft = picture.filter(ImageFilter.GaussianBlur(blur)) if blur > 0.3 else picture
    paper = Image.new("RGB", picture.size, (226, 200, 190))
    faint = Image.blend(paper, soft, 0.35 + 0.65 * fraction)
    amount = round(22 * (1 - fraction))
    return grained(faint, amount, Random(f"tray {fraction:.3f}")) if amount else faint
