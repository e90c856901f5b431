"""One frame of a video, as ffmpeg hands it over: a PPM, upright, its pixels square."""

import re
from dataclasses import dataclass, field
from typing import Any

from safelight.pictures.vips import libvips

HEAD = re.compile(rb"P6\n(\d+) (\d+)\n255\n")
SAMPLE = 64  # pixels a side, to tell the contrast by


@dataclass(frozen=True, slots=True)
class Frame:
    """RGB, eight bits a channel; `contrast` is the deviation of its brightness (0-255)."""

    pixels: bytes = field(repr=False)
    width: int
    height: int
    contrast: float

    def open(self) -> Any:
        """As libvips sees it."""
        return _opened(self.pixels, self.width, self.height)


def read_frame(data: bytes) -> Frame | None:
    """A PPM that is whole; None for anything else."""
    head = HEAD.match(data)
    if head is None:
        return None
    width, height, pixels = int(head[1]), int(head[2]), data[head.end() :]
    if len(pixels) != width * height * 3 or not pixels:
        return None
    small = _opened(pixels, width, height).thumbnail_image(SAMPLE, height=SAMPLE, size="force")
    return Frame(pixels, width, height, small.colourspace("b-w").deviate())


def _opened(pixels: bytes, width: int, height: int) -> Any:
    return libvips().Image.new_from_memory(pixels, width, height, 3, "uchar").copy(interpretation="srgb")
