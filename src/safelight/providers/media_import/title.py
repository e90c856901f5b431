"""The title of a file: the name that its server gives it, or else that of its URL, and no path."""

import re
import unicodedata
from email.message import Message
from urllib.parse import unquote

import httpx

MAX_TITLE = 300


def title_of(url: httpx.URL, disposition: str) -> str | None:
    """By its `Content-Disposition` (RFC 6266, `filename*` before `filename`), or the last part of the path."""
    return clean(_named(disposition)) or clean(unquote(url.path.rpartition("/")[2]))


def clean(text: str) -> str | None:
    """In one line: no folders, no control and formatting characters, not too long. None if nothing is left."""
    name = re.split(r"[/\\]", text)[-1]
    return plain(name) if name.strip(". ") else None


def plain(text: str) -> str | None:
    """The same of a title that is no file's name, where a stroke is only a stroke."""
    shown = "".join(" " if unicodedata.category(character)[0] in "CZ" else character for character in text)
    return " ".join(shown.split())[:MAX_TITLE] or None


def _named(disposition: str) -> str:
    message = Message()
    try:
        message["Content-Disposition"] = disposition
        extended = re.search(r"filename\*\s*=\s*([\w-]+)'[^']*'([^;\s]+)", disposition, re.IGNORECASE)
        if extended:
            return unquote(extended[2], extended[1], "replace")
        return message.get_filename("")
    except (LookupError, ValueError):  # a charset that nobody knows
        return ""
