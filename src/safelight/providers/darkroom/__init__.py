"""Draws the mock provider's pictures: real, attractive, and the same for the same prompt, seed and size.

Everything here is a pure function of its arguments: no clock, no global chance. Layouts are computed in fractions of
the picture, so that a small drawing looks like the large one; the previews rely on that.
"""

from PIL.Image import Image

from safelight.providers.darkroom.drawing import develop, draw

__all__ = ["Image", "develop", "draw"]
