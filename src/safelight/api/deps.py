"""What routes are given: the world, the owner, and small parsers of headers."""

import asyncio
import re
import uuid
import zlib
from collections.abc import AsyncGenerator, Iterable
from typing import Annotated, Any

from fastapi import Depends, Header, Path, Query, Request
from starlette.responses import Response, StreamingResponse

from safelight.accounts import Identity, Unauthenticated
from safelight.api.prefix import encode
from safelight.bootstrap import Safelight
from safelight.bounds import UUID
from safelight.errors import FieldError, SafelightError

MAX_WAIT_SECONDS = 60
MAX_IDS = 100
NUMBER = "[0-9]{1,9}"
KEY = '([!#-~][!-~]{0,254})|"([!-~]{1,255})"'  # bare, or in the quotes of a structured field
RETRY_AFTER_SECONDS = 2
PIECE_BYTES = 256 * 1024  # of a list that is encoded at once


class HeaderInvalid(SafelightError):
    """A header of the request cannot be read: which one, and what it takes."""

    kind = "malformed"
    code = "invalid_header"

    def __init__(self, name: str, takes: str) -> None:
        super().__init__(f"{name} {takes}.", errors=[FieldError(name, takes)])


class IdInvalid(SafelightError):
    """This is not an id; ids are UUIDs."""

    kind = "malformed"
    code = "invalid_id"


class CursorInvalid(SafelightError):
    """This cursor does not come from such a list; give the `next_cursor` of the page before."""

    kind = "malformed"
    code = "invalid_cursor"

    def __init__(self) -> None:
        super().__init__(errors=[FieldError("cursor", "Give the `next_cursor` of the page before, as it is")])


async def world_of(request: Request) -> Safelight:
    return request.app.state.safelight


async def asker_of(request: Request) -> Identity:
    """Who asks, as `authentication` found it. Raises `Unauthenticated` where it let somebody through unseen."""
    identity: Identity | None = getattr(request.state, "identity", None)
    if identity is None:
        raise Unauthenticated
    return identity


async def _owner(request: Request) -> str:
    return (await asker_of(request)).owner_id


def parse_id(value: str, field: str = "id") -> str:
    """A UUID in its canonical spelling. Raises `IdInvalid`, which names the field."""
    try:
        return str(uuid.UUID(value))
    except ValueError:
        detail = f"{value[:80]!r} is not an id; ids are UUIDs, as in the field `id` of a job, a story or a file."
        raise IdInvalid(detail, errors=[FieldError(field, "This must be a UUID")]) from None


def parse_ids(value: str) -> list[str]:
    """Ids with commas between them. Raises `IdInvalid`."""
    ids = [parse_id(part.strip(), "ids") for part in value.split(",")] if value.strip() else []
    if len(ids) > MAX_IDS:
        raise IdInvalid(f"ids takes at most {MAX_IDS} ids at a time.")
    return ids


def read_id_cursor(cursor: str | None) -> str | None:
    """The last id of the page before, if there was one. Raises `CursorInvalid`."""
    if cursor is None:
        return None
    try:
        return parse_id(cursor)
    except IdInvalid:
        raise CursorInvalid from None


def read_number_cursor(cursor: str | None) -> int | None:
    """The last number of the page before, if there was one. Raises `CursorInvalid`."""
    if cursor is None:
        return None
    if not re.fullmatch(NUMBER, cursor):
        raise CursorInvalid
    return int(cursor)


UUID_FORMAT = {"format": "uuid"}


async def _row_id(
    item_id: Annotated[str, Path(alias="id", description="A UUID", json_schema_extra=UUID_FORMAT)],
) -> str:
    return parse_id(item_id)


World = Annotated[Safelight, Depends(world_of)]
Asker = Annotated[Identity, Depends(asker_of)]
Owner = Annotated[str, Depends(_owner)]
ItemId = Annotated[str, Depends(_row_id)]
Ids = Annotated[
    str | None,
    Query(
        description=f"Up to {MAX_IDS} ids, comma-separated, for batched polling",
        json_schema_extra={"pattern": f"^ *({UUID}( *, *{UUID}){{0,{MAX_IDS - 1}}} *)?$"},
    ),
]
CURSOR = "`next_cursor` of the page before"
IdCursor = Annotated[str | None, Query(description=CURSOR, json_schema_extra=UUID_FORMAT)]
NumberCursor = Annotated[str | None, Query(description=CURSOR, json_schema_extra={"pattern": f"^{NUMBER}$"})]
Limit = Annotated[int, Query(ge=1, le=100)]
UNCHANGED: dict[int | str, dict[str, Any]] = {304: {"description": "Nothing differs from what `If-None-Match` names"}}
KEY_FORM = {"pattern": f"^({KEY})$"}
IdempotencyKey = Annotated[str | None, Header(alias="Idempotency-Key", json_schema_extra=KEY_FORM)]


def json_response(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """JSON from plain values and datetimes (RFC 3339, UTC)."""
    return Response(encode(content), status, headers, "application/json")


async def list_response(items: Iterable[Any], **beside: Any) -> Response:
    """A list as JSON, and what stands beside its `items`. Between the pieces of a long one others have their turn."""
    pieces: list[bytes] = []
    parts: list[bytes] = [b'{"items":[']
    size = 0
    for number, item in enumerate(items):
        encoded = encode(item)
        parts += (b",", encoded) if number else (encoded,)
        size += len(encoded)
        if size > PIECE_BYTES:
            pieces.append(b"".join(parts))
            parts, size = [], 0
            await asyncio.sleep(0)
    parts += (b"],", encode(beside)[1:]) if beside else (b"]}",)
    pieces.append(b"".join(parts))
    if len(pieces) == 1:
        return Response(pieces[0], media_type="application/json")
    length = str(sum(map(len, pieces)))
    return StreamingResponse(_each(pieces), headers={"Content-Length": length}, media_type="application/json")


async def _each(pieces: Iterable[bytes]) -> AsyncGenerator[bytes]:
    for piece in pieces:
        yield piece


def polled_response(
    content: Any,
    mark: str = "",
    *,
    is_final: bool,
    status: int = 200,
    headers: dict[str, str] | None = None,
    if_none_match: str | None = None,
) -> Response:
    """JSON that is asked for until it is final: its entity tag, which begins with `mark`, and when to ask again."""
    body = encode(content)
    etag = f'W/"{mark}{zlib.crc32(body):08x}"'
    headers = {"ETag": etag, "Cache-Control": "no-cache", **(headers or {})}
    if not is_final:
        headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
    if is_known(if_none_match, etag):
        return Response(None, 304, headers)
    return Response(body, status, headers, "application/json")


def idempotency_key(value: str | None) -> str | None:
    """The key of an `Idempotency-Key` header, with or without the quotes of a structured field."""
    if value is None:
        return None
    found = re.fullmatch(KEY, value)
    if found is None:
        raise HeaderInvalid("Idempotency-Key", "must be 1 to 255 visible ASCII characters, for example a UUID")
    return found[1] or found[2]


def is_known(if_none_match: str | None, etag: str) -> bool:
    """Whether an `If-None-Match` header names this entity tag, by weak comparison (RFC 9110)."""
    tags = [tag.strip().removeprefix("W/") for tag in (if_none_match or "").split(",")]
    return "*" in tags or etag.removeprefix("W/") in tags


def preferred_wait(value: str | None) -> int | None:
    """Seconds of `Prefer: wait=n`, at most 60; preferences we do not know are ignored (RFC 7240)."""
    for preference in (value or "").split(","):
        name, _, seconds = preference.strip().partition("=")
        if name.strip().lower() != "wait":
            continue
        if not seconds:
            return MAX_WAIT_SECONDS
        if not re.fullmatch(r"\s*\d{1,6}\s*", seconds) or int(seconds) < 1:
            raise HeaderInvalid("Prefer", "takes whole seconds from 1 to 60 as wait=n")
        return min(int(seconds), MAX_WAIT_SECONDS)
    return None
