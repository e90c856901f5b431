"""The path that a request came below, as in `/safelight`, put before every path that its answer tells.

Paths of ours are of the type `ApiPath` wherever an answer is put together; here they get the prefix as the answer is
encoded. Events come as ready bytes, the same for all watchers: theirs are known by their place.
"""

import re
from contextvars import ContextVar
from typing import Any, cast

import orjson

from safelight.artifacts import ApiPath

_prefix: ContextVar[str] = ContextVar("prefix", default="")
_OURS = b'"/api/'
_DATA = re.compile(rb"^data: (.*)$", re.MULTILINE)


def set_prefix(prefix: str) -> None:
    """Say below which path the request came that this task answers."""
    _prefix.set(prefix)


def current_prefix() -> str:
    """Of the request that is answered; empty as a rule."""
    return _prefix.get()


def encode(content: Any) -> bytes:
    """JSON from plain values and datetimes (RFC 3339, UTC), our paths as the client reaches them."""
    if not _prefix.get():
        return orjson.dumps(content, option=orjson.OPT_UTC_Z)
    return orjson.dumps(content, _plain, orjson.OPT_UTC_Z | orjson.OPT_PASSTHROUGH_SUBCLASS)


def _plain(value: Any) -> Any:
    if isinstance(value, ApiPath):
        return _prefix.get() + value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, dict):
        return dict(cast(dict[Any, Any], value))
    raise TypeError(f"{type(value)} has no place in an answer")


def frames_below(prefix: str, frames: bytes) -> bytes:
    """Whole SSE frames with the prefix before the paths that their events tell."""
    if not prefix or _OURS not in frames:
        return frames
    return _DATA.sub(lambda match: b"data: " + _event_below(prefix, match[1]), frames)


def _event_below(prefix: str, data: bytes) -> bytes:
    event: dict[str, Any] = orjson.loads(data)
    if event.get("preview_url"):
        event["preview_url"] = prefix + event["preview_url"]
    for artifact in event.get("artifacts") or ():
        for told in (artifact, *artifact["thumbnails"]):
            told["url"] = prefix + told["url"]
        if artifact["poster"]:
            artifact["poster"] = prefix + artifact["poster"]
    return orjson.dumps(event)
