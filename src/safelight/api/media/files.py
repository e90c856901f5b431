"""Stored files over HTTP: bytes with ranges, through us or by a redirect, and signed links that need no credentials."""

import re
from collections.abc import AsyncIterator
from typing import Annotated, Any

import structlog
from fastapi import APIRouter, Header, Request
from starlette.responses import Response, StreamingResponse

from safelight.api.deps import World, is_known
from safelight.api.problems import Problem, problem
from safelight.artifacts import BadLink, StoredFile
from safelight.bootstrap import Safelight
from safelight.storage import FileMissing, inline

log = structlog.get_logger()

router = APIRouter(prefix="/api/v1/files", tags=["artifacts"])

# A file is somebody else's work: opened as a page it may show itself, and can neither run anything nor reach us. The
# browser's own viewers of pictures and videos need the inline styles.
SANDBOX = "sandbox; default-src 'none'; img-src 'self'; media-src 'self'; style-src 'unsafe-inline'"
KEPT_FOR_EVER = "private, max-age=31536000, immutable"
_BYTES: dict[str, Any] = {
    "content": {name: {"schema": {"type": "string", "format": "binary"}} for name in ("image/*", "video/*", "audio/*")}
}
FILE: dict[int | str, dict[str, Any]] = {
    200: {"description": "The bytes", **_BYTES},
    304: {"description": "What `If-None-Match` names is still the file"},
}
PART: dict[int | str, dict[str, Any]] = {
    206: {"description": "The part that `Range` asked for", **_BYTES},
    416: {"model": Problem, "description": "There is nothing at this `Range`"},
}
ELSEWHERE: dict[int | str, dict[str, Any]] = {
    307: {
        "description": "With `SAFELIGHT_STORAGE_DELIVERY=presigned` or `public`: fetch it there, without credentials",
        "headers": {
            "Location": {
                "description": "A link signed by the store, which expires, or a public URL",
                "schema": {"type": "string"},
            }
        },
    }
}


@router.get(
    "/{token}",
    operation_id="getFile",
    summary="The bytes behind a signed link",
    response_class=Response,
    responses={**FILE, **PART, 403: {"model": Problem, "description": "The link has expired, or is none of ours"}},
)
async def get_file(
    token: str,
    request: Request,
    world: World,
    range_: Annotated[str | None, Header(alias="Range")] = None,
    if_none_match: Annotated[str | None, Header()] = None,
    if_range: Annotated[str | None, Header()] = None,
) -> Response:
    """For whoever has the link, without credentials, until it expires."""
    try:
        file, seconds = world.links.read(token)
    except BadLink as error:
        return problem(request.state.request_id, 403, error.code, error.detail)
    asked = range_ if if_range is None or if_range == file.etag else None
    cached = f"private, max-age={seconds}, immutable"
    return await serve(request, world, file, asked=asked, if_none_match=if_none_match, cached=cached)


async def deliver(
    request: Request, world: Safelight, file: StoredFile, *, asked: str | None, if_none_match: str | None
) -> Response:
    """A file to somebody who may see it: its bytes, or where to fetch them if `storage_delivery` says so.

    A redirect may be kept for half the time that its link lives. HEAD is answered from the record: a signed URL is
    good for GET alone.
    """
    if world.settings.storage_delivery == "proxy" or request.state.is_head or is_known(if_none_match, file.etag):
        return await serve(request, world, file, asked=asked, if_none_match=if_none_match, cached=KEPT_FOR_EVER)
    lifetime = world.settings.storage_link_seconds
    link = await world.links.make(file, lifetime)
    headers = {"Location": link.url, "Cache-Control": f"private, max-age={lifetime // 2}", "ETag": file.etag}
    return Response(None, 307, headers)


async def serve(
    request: Request,
    world: Safelight,
    file: StoredFile,
    *,
    asked: str | None,
    if_none_match: str | None,
    cached: str,
) -> Response:
    """The bytes through us, or the part of them that was asked for."""
    size = file.size_bytes
    headers = {
        "ETag": file.etag,
        "Cache-Control": cached,
        "Accept-Ranges": "bytes",
        "Content-Disposition": inline(file.name),
        "Content-Security-Policy": SANDBOX,
    }
    if is_known(if_none_match, file.etag):
        return Response(None, 304, headers)
    start, end, status = 0, size, 200
    if asked is not None and (span := _span(asked, size)) is not None:
        start, end = span
        if start >= end:
            return problem(
                request.state.request_id,
                416,
                "range_not_satisfiable",
                f"The file has {size} bytes.",
                headers={"Content-Range": f"bytes */{size}"},
            )
        status = 206
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    headers["Content-Length"] = str(end - start)
    if request.state.is_head:
        if await world.storage.head(file.key) is None:
            raise _missing(file)
        return Response(None, status, headers, file.content_type)
    # The first piece is fetched before the status is sent: a missing file is a problem, not a broken body.
    pieces = world.storage.stream(file.key, start, end)
    try:
        first = await anext(pieces, b"")
    except FileMissing:
        raise _missing(file) from None
    return StreamingResponse(_chain(first, pieces), status, headers, file.content_type)


def _missing(file: StoredFile) -> FileMissing:
    """The log is told which; whoever asks is not: a key is nobody's business."""
    log.warning("file.missing", storage_key=file.key)
    return FileMissing()


async def _chain(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for piece in rest:
        yield piece


def _span(asked: str, size: int) -> tuple[int, int] | None:
    """Half-open span of a single byte range; None for forms we do not serve, which then get everything (RFC 9110)."""
    match = re.fullmatch(r"bytes=(\d{0,15})-(\d{0,15})", asked.strip())
    if match is None or not (match[1] or match[2]):
        return None
    if not match[1]:
        return max(0, size - int(match[2])), size
    start = int(match[1])
    end = min(size, int(match[2]) + 1) if match[2] else size
    return (start, end) if not match[2] or int(match[2]) >= start else None
