"""What a refusal says of names: which ones may have been meant, and which there are.

What is asked for may come from a stranger, and so may the names it is held against: the cost is bounded by how many
names are looked at and how long they may be, and so is the length of what is said.
"""

from collections.abc import Iterable
from itertools import islice

MAX_NAMES = 2000  # that are looked at
MAX_LETTERS = 100  # of a name that is looked at
LEAST_ALIKE = 60  # of 100: the share of letters that two names have in common, in order
SHOWN = 20


def near_names(given: object, known: Iterable[str], most: int = 1, *, alike: int = LEAST_ALIKE) -> list[str]:
    """The known names that are most like what was given, the nearest first; none if it is too long to be a slip.

    `alike`: how like they must be at least, of 100. At most two milliseconds, whatever is given.
    """
    text = str(given) if isinstance(given, str | int | float) else ""
    if not 1 <= len(text) <= MAX_LETTERS:
        return []
    from rapidfuzz import fuzz, process  # noqa: PLC0415 - most processes never refuse anything

    names = [name for name in islice(known, MAX_NAMES) if len(name) <= MAX_LETTERS]
    return [name for name, _, _ in process.extract(text, names, scorer=fuzz.ratio, limit=most, score_cutoff=alike)]


def did_you_mean(given: object, known: Iterable[str], most: int = 1) -> str:
    """A sentence to add to another, as ` Did you mean mock?`; empty if nothing is near."""
    near = near_names(given, known, most)
    return f" Did you mean {' or '.join(near)}?" if near else ""


def listed(names: Iterable[object], most: int = SHOWN) -> str:
    """The first names in a row, as `mock, comfyui`, each cut to a bound; `...` stands for what is left out."""
    shown = [str(name)[:MAX_LETTERS] for name in islice(names, most + 1)]
    return ", ".join([*shown[:most], "..."] if len(shown) > most else shown)
