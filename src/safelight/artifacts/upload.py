"""Somebody else's picture, made fit to keep: checked by its content and encoded anew without what it tells in secret.

A photograph carries where and when it was taken, by whom and with what; none of that leaves this module. What a viewer
does with metadata is done to the pixels first: they are turned upright and brought to sRGB.
"""

import struct
import zlib
from io import BytesIO
from typing import IO, Any, ClassVar

from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from safelight.artifacts.picture import CONTENT_TYPES, MAX_PIXELS, Picture
from safelight.errors import SafelightError

UPLOAD_TYPES = {"image/png": "PNG", "image/jpeg": "JPEG", "image/webp": "WEBP"}
SAVE_OPTIONS: dict[str, dict[str, Any]] = {"PNG": {}, "JPEG": {"quality": 95}, "WEBP": {"quality": 95}}
MODES = {
    "PNG": {"1", "L", "LA", "P", "RGB", "RGBA", "I;16"},
    "JPEG": {"L", "RGB"},
    "WEBP": {"RGB", "RGBA"},
}
BROKEN = (OSError, ValueError, SyntaxError, EOFError, TypeError, struct.error, zlib.error)


class BadUpload(SafelightError):
    """The uploaded file is not a picture that can be kept."""

    kind = "invalid"
    code: ClassVar[str] = "upload_unreadable"


class UploadMismatch(BadUpload):
    """The uploaded file is not what its Content-Type says."""

    code = "upload_mismatch"


class UploadBomb(BadUpload):
    """The uploaded picture has too many pixels."""

    code = "upload_too_many_pixels"


def clean(file: IO[bytes], content_type: str) -> tuple[Picture, bytes]:
    """The first frame of the picture, and its bytes encoded anew. Raises `BadUpload`."""
    expected = UPLOAD_TYPES[content_type]
    image = _opened(file, expected, content_type)
    try:
        image.load()
    except BROKEN as error:
        raise BadUpload("The uploaded picture is truncated or corrupt.") from error
    image = _fitting(_in_srgb(_upright(image)), expected)
    transparency = image.info.get("transparency")
    image = image.copy()
    image.info = {} if transparency is None else {"transparency": transparency}
    encoded = BytesIO()
    try:
        image.save(encoded, expected, **SAVE_OPTIONS[expected])
    except BROKEN as error:
        raise BadUpload(f"The uploaded picture cannot be kept as {expected}.") from error
    return Picture(image.width, image.height, content_type, expected, image), encoded.getvalue()


def _opened(file: IO[bytes], expected: str, content_type: str) -> Image.Image:
    """The picture, of which nothing but the head was read."""
    file.seek(0)
    try:
        image = Image.open(file, formats=list(CONTENT_TYPES))
    except UnidentifiedImageError as error:
        raise BadUpload(f"The uploaded file is not a picture, although its type is given as {content_type}.") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UploadBomb(f"The uploaded picture has more than {MAX_PIXELS // 1_000_000} million pixels.") from error
    except BROKEN as error:
        raise BadUpload("The uploaded picture is truncated or corrupt.") from error
    found = "JPEG" if image.format == "MPO" else image.format  # some cameras put a second picture behind the first
    if found != expected:
        raise UploadMismatch(f"The uploaded file is a picture of type {found}, although given as {content_type}.")
    if image.width * image.height > MAX_PIXELS:
        raise UploadBomb(
            f"The uploaded picture of {image.width}x{image.height} has more than {MAX_PIXELS // 1_000_000} million "
            "pixels."
        )
    return image


def _upright(image: Image.Image) -> Image.Image:
    """As the camera was held. A picture whose metadata cannot be read stays as it lies."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # whatever a hostile block of EXIF makes its reader do
        return image


def _in_srgb(image: Image.Image) -> Image.Image:
    profile = image.info.get("icc_profile")
    if not profile or image.mode not in {"L", "RGB", "RGBA", "CMYK"}:
        return image
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        if "srgb" in ImageCms.getProfileDescription(source).lower():
            return image
        target = ImageCms.createProfile("sRGB")
        mode = "RGBA" if image.mode == "RGBA" else "RGB"
        return ImageCms.profileToProfile(image, source, target, outputMode=mode) or image
    except (ImageCms.PyCMSError, *BROKEN):
        return image  # a profile that no viewer could use either


def _fitting(image: Image.Image, expected: str) -> Image.Image:
    """In a mode that the format can hold."""
    if image.mode in MODES[expected]:
        return image
    if expected == "JPEG":
        return image.convert("RGB")
    return image.convert("RGBA" if image.has_transparency_data else "RGB")
