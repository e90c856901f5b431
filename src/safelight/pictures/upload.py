"""Somebody else's picture, made fit to keep: checked by its content and encoded anew without what it tells in secret.

A photograph carries where and when it was taken, by whom and with what; none of that leaves this module. What a viewer
does with metadata is done to the pixels first: they are turned upright and brought to sRGB.
"""

from typing import Any, ClassVar

from safelight.errors import SafelightError
from safelight.pictures.colour import in_srgb, without_profile
from safelight.pictures.picture import (
    JPEG,
    MAX_PIXELS,
    PNG,
    WEBP,
    BadPicture,
    Picture,
    Source,
    TooManyPixels,
    head_of,
    log,
    read_head,
    type_of,
)
from safelight.pictures.vips import libvips

UPLOAD_TYPES = (PNG, JPEG, WEBP)
SAVERS: dict[str, tuple[str, dict[str, Any]]] = {
    PNG: ("pngsave_buffer", {"compression": 6}),
    JPEG: ("jpegsave_buffer", {"Q": 95}),
    WEBP: ("webpsave_buffer", {"Q": 95, "effort": 2}),
}


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


def read_upload(source: Source, content_type: str, max_pixels: int = MAX_PIXELS) -> Picture:
    """The head of an uploaded picture, which must be of the type it is given as. Raises `BadUpload`."""
    found = type_of(head_of(source))
    if found is None:
        raise BadUpload(
            f"The uploaded file is no picture of a known format, although its type is given as {content_type}. "
            "A PNG, JPEG or WebP is taken."
        )
    if found != content_type:
        raise UploadMismatch(f"The uploaded file is a picture of type {found}, although given as {content_type}.")
    try:
        return read_head(source, max_pixels)
    except TooManyPixels as error:
        raise UploadBomb(error.detail) from None
    except BadPicture as error:
        raise BadUpload(error.detail) from None


def clean(picture: Picture) -> bytes:
    """Its first frame, encoded anew. Raises `BadUpload`."""
    try:
        return _encoded(picture, in_srgb)
    except libvips().Error as error:
        log.info("upload.failed", error=str(error).strip())
    try:
        return _encoded(picture, without_profile)  # a profile that no viewer could use either
    except libvips().Error as error:
        log.info("upload.failed", error=str(error).strip())
        raise BadUpload("The picture is truncated or corrupt.") from None


def _encoded(picture: Picture, coloured: Any) -> bytes:
    image = picture.open(whole=picture.orientation != 1)
    if picture.orientation != 1:
        image = image.autorot()
    image = coloured(image)
    if picture.content_type != PNG:
        image = image.colourspace("srgb" if image.bands > 2 else "b-w")
    saver, options = SAVERS[picture.content_type]
    # Its resolution may tell of the camera. What is written in its place says nothing: a pixel a millimetre.
    return getattr(image.copy(xres=1, yres=1), saver)(keep="none", **options)
