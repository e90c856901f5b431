"""Colour: what a picture's numbers mean, brought to sRGB."""

from typing import Any

PROFILE = "icc-profile-data"
MANY_BITS = ("rgb16", "grey16")


def needs_srgb(image: Any) -> bool:
    """Whether its numbers mean something else than sRGB: another profile, or inks."""
    if image.interpretation == "cmyk":
        return True
    return bool(image.get_typeof(PROFILE)) and not _is_srgb(image.get(PROFILE))


def without_profile(image: Any) -> Any:
    """The same picture, its profile taken for none."""
    image = image.copy()
    if image.get_typeof(PROFILE):
        image.remove(PROFILE)
    return image


def in_srgb(image: Any) -> Any:
    """The same colours in sRGB, with as many bits as it had. Raises pyvips' `Error` for a profile that is none."""
    if not needs_srgb(image):
        return without_profile(image)
    depth = 16 if image.interpretation in MANY_BITS else 8
    profile = {"input_profile": "cmyk"} if image.interpretation == "cmyk" else {}  # for one that has none
    return without_profile(image.icc_transform("srgb", embedded=True, depth=depth, **profile))


def _is_srgb(profile: bytes) -> bool:
    """By the name it gives itself: its tag `desc`, in ASCII or UTF-16."""
    for number in range(int.from_bytes(profile[128:132], "big") & 0xFF):
        entry = profile[132 + 12 * number : 144 + 12 * number]
        if entry[:4] == b"desc":
            start, size = int.from_bytes(entry[4:8], "big"), int.from_bytes(entry[8:12], "big")
            return b"srgb" in profile[start : start + size].replace(b"\0", b"").lower()
    return False
