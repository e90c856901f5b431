"""Pictures made by the tests: red at the left (or top) and blue at the other side, in every form the world has."""

from io import BytesIO
from typing import Any

from PIL import ExifTags, Image

MODES = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "JPEG": ("L", "RGB", "CMYK"),
    "WEBP": ("RGB", "RGBA"),
    "GIF": ("L", "P"),
    "AVIF": ("RGB", "RGBA"),
}
# Where the red half is, after a picture of 40x20 was turned by each orientation of EXIF.
RED_AT = {1: (2, 10), 2: (37, 10), 3: (37, 10), 4: (2, 10), 5: (10, 2), 6: (10, 2), 7: (10, 37), 8: (10, 37)}


def encoded(image: Image.Image, name: str = "PNG", **options: Any) -> bytes:
    data = BytesIO()
    image.save(data, name, **options)
    return data.getvalue()


def halves(mode: str = "RGB", size: tuple[int, int] = (40, 20)) -> Image.Image:
    image = Image.new("RGB", size, (255, 0, 0))
    image.paste((0, 0, 255), (size[0] // 2, 0, *size))
    if mode == "I;16":
        grey = image.convert("L").tobytes()
        return Image.frombytes("I;16", size, b"".join((value * 257).to_bytes(2, "little") for value in grey))
    if mode == "1":
        return image.convert("L").point([0] * 50 + [255] * 206).convert("1")
    return image.convert(mode)


def turned(name: str, mode: str, orientation: int) -> bytes:
    """A photograph that was taken with the camera held like this."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return encoded(halves(mode), name, **({} if name == "GIF" else {"exif": exif}))


def opened(data: bytes) -> Image.Image:
    image = Image.open(BytesIO(data))
    image.load()
    return image
