"""The colours of each light, and the words of a prompt that choose one."""

from dataclasses import dataclass

Color = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Palette:
    """The colours of one light: `sky` from zenith to horizon, `far` and `near` of the land, `light` of sun or moon."""

    sky: tuple[Color, ...]
    light: Color
    far: Color
    near: Color
    night: bool = False
    snow: bool = False
    height: float = 0.25  # how far above the horizon sun or moon stands, as a fraction of the sky


def _rgb(text: str) -> Color:
    return int(text[0:2], 16), int(text[2:4], 16), int(text[4:6], 16)


def _palette(
    sky: str, light: str, far: str, near: str, *, night: bool = False, snow: bool = False, height: float = 0.25
) -> Palette:
    return Palette(tuple(map(_rgb, sky.split())), _rgb(light), _rgb(far), _rgb(near), night, snow, height)


PALETTES: dict[str, Palette] = {
    "dusk": _palette("1a1644 4b2870 b0476f f0875f ffc98a", "ffe9bd", "9a5a80", "120d26", height=0.14),
    "night": _palette("040818 0a1837 173257 2f6079 5c8f96", "f6f1d8", "2f5872", "040a14", night=True, height=0.62),
    "dawn": _palette("34528a 7d90c4 d9afc2 ffd0b3 ffeed2", "fff6e0", "b79bb8", "262a4a", height=0.18),
    "day": _palette("1b66ad 4d9dd6 97cdea d9eef0 f3f6e8", "fffdf0", "8fbad0", "12362f", height=0.6),
    "winter": _palette("567aa3 8eaecb c4d8e6 e8eef1 fbf3ea", "fffaf0", "b3c6d8", "22364d", snow=True, height=0.35),
    "autumn": _palette("41607f 8fa3a6 dcc79c f5cf8f ffe3b4", "fff3d0", "cf9a66", "33150f", height=0.3),
    "golden": _palette("28506e 6f9799 d8c394 fbc877 ffe6ac", "fff4cf", "c39a74", "1d1a24", height=0.2),
    "mist": _palette("3f676e 7ba59f b6cdbb e0e4cd f5f1dd", "fffbea", "9bbcb0", "0c2a28", height=0.42),
    "rose": _palette("2b2f66 7a519b d97a9c ffb59f ffe3c9", "fff1dd", "b0719b", "1b1336", height=0.22),
}
CHANCE_PALETTES = ("dusk", "dawn", "golden", "mist", "rose", "day", "night")
PALETTE_WORDS: dict[str, str] = {
    **dict.fromkeys(("dusk", "sunset", "evening", "twilight"), "dusk"),
    **dict.fromkeys(("night", "midnight", "moon", "moonlit", "moonlight", "star", "starry", "dark", "aurora"), "night"),
    **dict.fromkeys(("dawn", "sunrise", "morning"), "dawn"),
    **dict.fromkeys(("day", "noon", "summer", "sunny", "blue"), "day"),
    **dict.fromkeys(("winter", "snow", "snowy", "ice", "frozen", "arctic", "christmas"), "winter"),
    **dict.fromkeys(("autumn", "fall", "october", "harvest"), "autumn"),
    **dict.fromkeys(("golden", "desert", "dune", "warm", "gold"), "golden"),
    **dict.fromkeys(("mist", "misty", "fog", "foggy", "rain", "spring", "green"), "mist"),
    **dict.fromkeys(("rose", "pink", "romantic", "dream", "dreamy", "fantasy"), "rose"),
}


def mixed(a: Color, b: Color, t: float) -> Color:
    """The colour `t` of the way from `a` to `b`."""
    return (
        round(a[0] + (b[0] - a[0]) * t),
        round(a[1] + (b[1] - a[1]) * t),
        round(a[2] + (b[2] - a[2]) * t),
    )
