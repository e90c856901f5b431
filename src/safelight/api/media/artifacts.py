"""Results and inputs over HTTP: upload, the record, the bytes with ranges, the thumbnails, links."""

import re
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import structlog
from fastapi import APIRouter, Header, Query, Request
from pydantic import BaseModel, Field
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from safelight.api.deps import ItemId, Owner, World, json_response
from safelight.api.job_view import ArtifactView
from safelight.api.media.files import ELSEWHERE, FILE, PART, deliver
from safelight.api.problems import Problem, problem, refusals
from safelight.api.rate import RATED
from safelight.artifacts import Artifact, StoredFile, get
from safelight.bootstrap import Safelight
from safelight.errors import SafelightError
from safelight.jobs import ArtifactDeleted, ArtifactNotFound, describe_artifact
from safelight.pictures import UPLOAD_TYPES

PREFIX = "/api/v1/artifacts"
router = APIRouter(prefix=PREFIX, tags=["artifacts"])

REFERENCE = re.compile(r"/api/v1/characters/[^/]+/reference")

LINK_SECONDS = (60, 7 * 24 * 3600)  # no store signs for longer than a week
ANY_TYPE = "application/octet-stream"  # what generated clients send: the picture itself tells
SIGNATURES = ((b"\x89PNG", "image/png"), (b"\xff\xd8\xff", "image/jpeg"), (b"RIFF", "image/webp"))
UPLOAD_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {name: {"schema": {"type": "string", "format": "binary"}} for name in (*UPLOAD_TYPES, ANY_TYPE)},
    }
}

log = structlog.get_logger()


class UploadTooLarge(SafelightError):
    """The uploaded file is too large."""

    kind = "too_large"
    code = "upload_too_large"


class LinkView(BaseModel):
    """A URL, or a path on this host, that needs no credentials."""

    url: str = Field(examples=["/api/v1/files/eyJrZXkiOiJ.c2lnbmF0dXJl"])
    expires_at: datetime | None = Field(description="Null if it never expires, as with a public bucket")


@router.post(
    "",
    operation_id="uploadArtifact",
    status_code=201,
    response_model=ArtifactView,
    dependencies=RATED,
    responses={**refusals(429), 415: {"model": Problem, "description": "Not a PNG, JPEG or WebP"}},
    openapi_extra=UPLOAD_BODY,
    summary="Upload an input picture",
)
async def upload_artifact(
    request: Request,
    world: World,
    owner: Owner,
) -> Response:
    """The bytes of the picture are the body; PNG, JPEG or WebP, as `Content-Type` says, or
    `application/octet-stream`.

    What it shows is checked and encoded anew, upright and in sRGB, without EXIF, GPS position or any other metadata; of
    an animation the first frame is kept. It is called by its id: no name is taken.
    """
    artifact = await receive_picture(request, world, owner)
    if isinstance(artifact, Response):
        return artifact
    return json_response(describe_artifact(artifact), 201, {"Location": f"{PREFIX}/{artifact.id}"})


def takes_file(path: str) -> bool:
    """Whether what is sent there may be a file: it is read here then, and has a limit of its own."""
    return path == PREFIX or REFERENCE.fullmatch(path) is not None


async def receive_picture(request: Request, world: Safelight, owner: str) -> Artifact | Response:
    """Store and record the picture that is the body of a request; or what to answer if it is none."""
    content_type = request.headers.get("content-type", "")
    declared = content_type.partition(";")[0].strip().lower().replace("image/jpg", "image/jpeg")
    if declared not in (*UPLOAD_TYPES, ANY_TYPE):
        accepted = ", ".join(UPLOAD_TYPES)
        detail = f"Send the picture itself as the body, with its type as Content-Type: one of {accepted}."
        headers = {"Accept": accepted, "Connection": "close"}
        return problem(request.state.request_id, 415, "unsupported_media_type", detail, headers=headers)
    limit = world.settings.max_upload_bytes
    too_large = UploadTooLarge(f"An uploaded file may have at most {limit} bytes.")
    content_length = request.headers.get("content-length", "")
    if content_length.isdecimal() and int(content_length) > limit:
        raise too_large
    with tempfile.NamedTemporaryFile(prefix="safelight-") as file:
        size = 0
        try:
            async for part in request.stream():
                size += len(part)
                if size > limit:
                    raise too_large
                file.write(part)
        except ClientDisconnect:
            return Response(None, 400)  # nobody is there to read it
        file.flush()
        if declared == ANY_TYPE:
            file.seek(0)
            head = file.read(4)
            declared = next((name for start, name in SIGNATURES if head.startswith(start)), "image/png")
        artifact = await world.artifacts.store_upload(Path(file.name), content_type=declared, owner_id=owner)
    await world.retention.record_upload(artifact)
    log.info("artifact.uploaded", artifact_id=artifact.id, content_type=declared, size_bytes=artifact.size_bytes)
    return artifact


@router.get(
    "/{id}",
    operation_id="getArtifact",
    response_model=ArtifactView,
    summary="The record of a result",
    responses=refusals(410),
)
async def get_artifact(artifact_id: ItemId, world: World, owner: Owner) -> Response:
    """Kind, size, type, hash, dimensions, duration and URLs."""
    return json_response(describe_artifact(await _find(world, artifact_id, owner)))


@router.delete(
    "/{id}", operation_id="deleteArtifact", status_code=204, response_class=Response, summary="Delete a result"
)
async def delete_artifact(artifact_id: ItemId, world: World, owner: Owner) -> Response:
    """Its bytes and thumbnails go for good; that it was there stays known (410). Repeating is harmless."""
    await world.retention.delete_artifact(artifact_id, owner)
    return Response(status_code=204)


@router.get(
    "/{id}/content",
    operation_id="getArtifactContent",
    summary="The bytes of a result",
    response_class=Response,
    responses={**refusals(410), **FILE, **PART, **ELSEWHERE},
)
async def get_content(
    artifact_id: ItemId,
    request: Request,
    world: World,
    owner: Owner,
    range_: Annotated[str | None, Header(alias="Range")] = None,
    if_none_match: Annotated[str | None, Header()] = None,
    if_range: Annotated[str | None, Header()] = None,
) -> Response:
    """Never changes: cached for ever under its hash. One `Range` of bytes is served.

    Where files are delivered by the store itself, the answer is a redirect (307) to it.
    """
    artifact = await _find(world, artifact_id, owner)
    file = _file_of(artifact)
    asked = range_ if if_range is None or if_range == file.etag else None
    return await deliver(request, world, file, asked=asked, if_none_match=if_none_match)


@router.get(
    "/{id}/thumbnails/{width}",
    operation_id="getArtifactThumbnail",
    summary="A WebP thumbnail",
    response_class=Response,
    responses={**refusals(410), **FILE, **ELSEWHERE},
)
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
            file = StoredFile(
                thumbnail["storage_key"],
                "image/webp",
                f"{artifact.id}-{width}.webp",
                thumbnail["size_bytes"],
                f'"{artifact.sha256}-{width}"',
            )
            return await deliver(request, world, file, asked=None, if_none_match=if_none_match)
    widths = ", ".join(str(thumbnail["width"]) for thumbnail in artifact.thumbnails)
    raise ArtifactNotFound(f"There is no thumbnail of width {width}; there are: {widths}.")


@router.post(
    "/{id}/link",
    operation_id="createArtifactLink",
    response_model=LinkView,
    summary="A link to the bytes that needs no credentials",
    responses=refusals(410),
)
async def make_link(
    artifact_id: ItemId,
    world: World,
    owner: Owner,
    expires_in: Annotated[int, Query(ge=LINK_SECONDS[0], le=LINK_SECONDS[1], description="Seconds")] = 3600,
) -> Response:
    """For an `<img>`, or for a provider that fetches the picture. Whoever has it can read the file until it expires."""
    artifact = await _find(world, artifact_id, owner)
    link = await world.links.make(_file_of(artifact), expires_in)
    return json_response({"url": link.url, "expires_at": link.expires_at}, headers={"Cache-Control": "no-store"})


def _file_of(artifact: Artifact) -> StoredFile:
    return StoredFile(
        artifact.storage_key,
        artifact.content_type,
        f"{artifact.id}.{artifact.storage_key.rpartition('.')[2]}",
        artifact.size_bytes,
        f'"{artifact.sha256}"',
    )


async def _find(world: Safelight, artifact_id: str, owner: str) -> Artifact:
    artifact = await world.database.read(get, artifact_id)
    if artifact is None or artifact.owner_id != owner:
        raise ArtifactNotFound(f"There is no artifact {artifact_id}.")
    if artifact.deleted_at is not None:
        raise ArtifactDeleted
    return artifact
