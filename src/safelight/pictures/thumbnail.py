"""Thumbnails: WebP, upright, in sRGB, eight bits a channel, and no larger than the picture."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from safelight.pictures.colour import needs_srgb, without_profile
from safelight.pictures.frame import Frame
from safelight.pictures.mark import Mark, marked
from safelight.pictures.picture import JPEG, Picture, decode, log
from safelight.pictures.thumbhash import thumbhash
from safelight.pictures.vips import libvips

THUMBNAIL_WIDTHS = (256, 512)
POSTER_WIDTH = 1280  # of a video
WEBP_SIDE = 16_383  # the format ends there
WEBP_OPTIONS: dict[str, Any] = {"Q": 80, "effort": 2, "keep": "none"}
NONE_MADE = "No thumbnail can be made of this picture."


@dataclass(frozen=True, slots=True)
class Miniature:
    """A WebP thumbnail and its size in pixels."""

    data: bytes = field(repr=False)
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Miniatures:
    """How a picture looks in small: thumbnails by nominal width, and the ThumbHash; or the `problem` with them."""

    thumbnails: dict[int, Miniature] = field(default_factory=dict[int, Miniature])
    thumbhash: str | None = None
    problem: str | None = None

    def marked(self, mark: Mark | None) -> "Miniatures":
        """The same, its thumbnails saying this of themselves."""
        if mark is None:
            return self
        done = {one.data: replace(one, data=marked(one.data, mark)) for one in self.thumbnails.values()}
        return replace(self, thumbnails={width: done[one.data] for width, one in self.thumbnails.items()})


def look_at(picture: Picture) -> Miniatures:
    """Decode a picture completely, and make its thumbnails on the way.

    Raises `BadPicture` if it cannot be decoded. One that can, and of which no thumbnail can be made, has a problem.
    """
    for is_managed in (True, False):
        try:
            image = picture.open(shrink=_shrink(picture))
            image = image if is_managed else without_profile(image)
            return _look(image, picture.width, picture.height, THUMBNAIL_WIDTHS)
        except libvips().Error as error:
            log.info("thumbnail.failed", error=str(error).strip())
            decode(picture)  # the picture is to blame, or else its profile, or we
    return Miniatures(problem=NONE_MADE)


def look_at_frame(frame: Frame) -> Miniatures:
    """The same of a frame of a video."""
    try:
        return _look(frame.open(), frame.width, frame.height, (*THUMBNAIL_WIDTHS, POSTER_WIDTH))
    except libvips().Error as error:
        log.info("thumbnail.failed", error=str(error).strip())
        return Miniatures(problem=NONE_MADE)


def size_within(width: int, height: int, widest: int) -> tuple[int, int]:
    """The size of a thumbnail: at most so wide, at most as high as a WebP can be, and never enlarged."""
    scale = min(1.0, widest / width, WEBP_SIDE / height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _shrink(picture: Picture) -> int:
    """How much of a JPEG can be left out while it is decoded: what is left is twice as large as the thumbnail."""
    if picture.content_type != JPEG:
        return 1
    width, height = size_within(picture.width, picture.height, max(THUMBNAIL_WIDTHS))
    spare = min(picture.width / width, picture.height / height) / 2
    return next((shrink for shrink in (8, 4, 2) if shrink <= spare), 1)


def _look(image: Any, width: int, height: int, widths: Sequence[int]) -> Miniatures:
    """Each from the one before, which is cheaper and as good."""
    made: dict[int, Miniature] = {}
    source, options = image, {"output_profile": "srgb"} if needs_srgb(image) else {}
    size = (0, 0)
    for widest in sorted(widths, reverse=True):
        wanted = size_within(width, height, widest)
        if wanted != size:
            size = wanted
            source = source.thumbnail_image(size[0], height=size[1], size="force", **options).copy_memory()
            options = {"no_rotate": True}
        made[widest] = next(
            (one for one in made.values() if (one.width, one.height) == size),
            None,
        ) or Miniature(source.webpsave_buffer(**WEBP_OPTIONS), *size)
    return Miniatures(dict(sorted(made.items())), thumbhash(source))
