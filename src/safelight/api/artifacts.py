"""Results over HTTP: the record, the bytes with ranges, the thumbnails."""

import re
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Header, Request
from starlette.responses import Response, StreamingResponse

from safelight.api.deps import ItemId, Owner, World, is_known, json_response
from safelight.api.job_view import ArtifactView
from safelight.api.problems import PROBLEMS, problem
from safelight.artifacts import Artifact, get
from safelight.bootstrap import Safelight
from safelight.errors import SafelightError
from safelight.jobs import describe_artifact

router = APIRouter(prefix="/api/v1/artifacts", tags=["artifacts"], responses=PROBLEMS)

EXTENSIONS = {"image/png": "png", "image/jpeg": "jpg", "image/webp": "webp", "image/gif": "gif", "image/avif": "avif"}


class ArtifactNotFound(SafelightError):
    """There is no such artifact."""

    kind = "not_found"
    code = "artifact_not_found"


@router.get("/{id}", response_model=ArtifactView, summary="The record of a result")
async def get_artifact(artifact_id: ItemId, world: World, owner: Owner) -> Response:
    """Size, type, hash, dimensions and URLs."""
    return json_response(describe_artifact(await _find(world, artifact_id, owner)))


@router.head("/{id}/content", include_in_schema=False)
@router.get("/{id}/content", summary="The bytes of a result", response_class=Response)
async def get_content(
    artifact_id: ItemId,
    request: Request,
    world: World,
    owner: Owner,
    range_: Annotated[str | None, Header(alias="Range")] = None,
    if_none_match: Annotated[str | None, Header()] = None,
    if_range: Annotated[str | None, Header()] = None,
) -> Response:
    """Never changes: cached for ever under its hash. One `Range` of bytes is served."""
    artifact = await _find(world, artifact_id, owner)
    return await _serve(
        request,
        world,
        key=artifact.storage_key,
        size=artifact.size_bytes,
        content_type=artifact.content_type,
        etag=f'"{artifact.sha256}"',
        name=f"{artifact.id}.{EXTENSIONS.get(artifact.content_type, 'bin')}",
        asked=range_ if if_range is None or if_range == f'"{artifact.sha256}"' else None,
        if_none_match=if_none_match,
    )


@router.head("/{id}/thumbnails/{width}", include_in_schema=False)
@router.get("/{id}/thumbnails/{width}", summary="A WebP thumbnail", response_class=Response)
async def get_thumbnail(
    artifact_id: ItemId,
    width: int,
    request: Request,
    world: World,
    owner: Owner,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """At one of the widths that the record lists."""
    artifact = await _find(world, artifact_id, owner)
    for thumbnail in artifact.thumbnails:
        if thumbnail["width"] == width:
            return await _serve(
                request,
                world,
                key=thumbnail["storage_key"],
                size=thumbnail["size_bytes"],
                content_type="image/webp",
                etag=f'"{artifact.sha256}-{width}"',
                name=f"{artifact.id}-{width}.webp",
                asked=None,
                if_none_match=if_none_match,
            )
    widths = ", ".join(str(thumbnail["width"]) for thumbnail in artifact.thumbnails)
    raise ArtifactNotFound(f"There is no thumbnail of width {width}; there are: {widths}.")


async def _find(world: Safelight, artifact_id: str, owner: str) -> Artifact:
    artifact = await world.database.read(get, artifact_id)
    if artifact is None or artifact.owner_id != owner:
        raise ArtifactNotFound(f"There is no artifact {artifact_id}.")
    return artifact


async def _serve(
    request: Request,
    world: Safelight,
    *,
    key: str,
    size: int,
    content_type: str,
    etag: str,
    name: str,
    asked: str | None,
    if_none_match: str | None,
) -> Response:
    headers = {
        "ETag": etag,
        "Cache-Control": "private, max-age=31536000, immutable",
        "Accept-Ranges": "bytes",
        "Content-Disposition": f'inline; filename="{name}"',
        "X-Content-Type-Options": "nosniff",
    }
    if is_known(if_none_match, etag):
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
    if request.method == "HEAD":
        return Response(None, status, headers, content_type)
    # The first piece is fetched before the status is sent: a missing file is a problem, not a broken body.
    pieces = world.storage.stream(key, start, end)
    first = await anext(pieces, b"")
    return StreamingResponse(_chain(first, pieces), status, headers, content_type)


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
