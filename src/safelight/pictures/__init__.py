"""Pictures as the world makes them: what they are, how they look in small, and what they say of themselves."""

from safelight.pictures.credentials import Credentials, credentials_of
from safelight.pictures.frame import Frame, read_frame
from safelight.pictures.mark import Mark, Origin, marked
from safelight.pictures.picture import (
    MAX_PIXELS,
    PICTURE_TYPES,
    BadPicture,
    Picture,
    decode,
    head_of,
    read_head,
    type_of,
)
from safelight.pictures.thumbnail import Miniature, Miniatures, look_at, look_at_frame
from safelight.pictures.upload import UPLOAD_TYPES, BadUpload, clean, read_upload
from safelight.pictures.vips import LibvipsMissing, libvips
from safelight.pictures.workers import PicturesBusy, PictureWorkers

__all__ = [
    "MAX_PIXELS",
    "PICTURE_TYPES",
    "UPLOAD_TYPES",
    "BadPicture",
    "BadUpload",
    "Credentials",
    "Frame",
    "LibvipsMissing",
    "Mark",
    "Miniature",
    "Miniatures",
    "Origin",
    "Picture",
    "PictureWorkers",
    "PicturesBusy",
    "clean",
    "credentials_of",
    "decode",
    "head_of",
    "libvips",
    "look_at",
    "look_at_frame",
    "marked",
    "read_frame",
    "read_head",
    "read_upload",
    "type_of",
]
