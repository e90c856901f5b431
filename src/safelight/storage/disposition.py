"""The name that a browser saves a file under."""

import re
import unicodedata
from urllib.parse import quote

MAX_CHARACTERS = 150  # longer names are cut by file systems at 255 bytes


def inline(name: str) -> str:
    """A `Content-Disposition` of the form `inline` for any name at all (RFC 6266, RFC 8187).

    Control characters, and what file systems or browsers would take for a path, do not reach the client; a name beyond
    ASCII is told in both forms.
    """
    clean = "".join("-" if character in '/\\:*?"<>|' else character for character in name if _is_shown(character))
    clean = _shortened(clean.strip(" .")) or "file"
    plain = unicodedata.normalize("NFKD", clean).encode("ascii", "ignore").decode().strip(" .") or "file"
    plain = re.sub(r"[%;,=]", "-", plain)  # some browsers take them for syntax, quoted or not
    if plain == clean:
        return f'inline; filename="{plain}"'
    return f"inline; filename=\"{plain}\"; filename*=UTF-8''{quote(clean, safe='!#$&+-.^_`|~')}"


def _is_shown(character: str) -> bool:
    """No control or format character (which turn the direction of writing), no half of a surrogate pair."""
    return unicodedata.category(character)[0] != "C"


def _shortened(name: str) -> str:
    """With its ending, if that is one."""
    stem, dot, ending = name.rpartition(".")
    if len(name) <= MAX_CHARACTERS or not dot or len(ending) > 10:
        return name[:MAX_CHARACTERS]
    return stem[: MAX_CHARACTERS - len(ending) - 1] + dot + ending
