"""Media imports over HTTP: store what a URL leads to, or only look at it."""

from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from safelight.api.body import JsonRoute
from safelight.api.deps import Asker, World, idempotency_key, json_response
from safelight.api.job_view import JobView
from safelight.api.jobs import JobKey, answer_accepted, import_for
from safelight.api.media.import_request import (
    IMPORT,
    PROVIDER,
    MediaRequest,
    ProbeRequest,
    refused,
    submit_import,
)
from safelight.api.problems import problem, refusals
from safelight.api.rate import take_tokens, too_quick
from safelight.bootstrap import Safelight
from safelight.errors import FieldError, Unavailable
from safelight.providers.base import InvalidParameters, Parameters, ProviderError
from safelight.providers.media_import import MediaImport

MAX_PROBES = 4  # at once in a process; each is a process of its own for a second or two

router = APIRouter(prefix="/api/v1/media", tags=["media"], route_class=JsonRoute)


class ProbesBusy(Unavailable):
    """As many URLs as may be are looked at now. Try again."""

    code = "probes_busy"


class ProbeView(BaseModel):
    """What a URL leads to. What its source does not say is null."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "source_url": "https://example.com/watch?v=7",
                    "title": "A lighthouse at dusk",
                    "extractor": "example",
                    "content_type": None,
                    "duration_seconds": 92.4,
                    "size_bytes": 18_400_000,
                    "heights": [1080, 720, 360],
                }
            ]
        }
    )

    source_url: str
    title: str | None
    extractor: str | None = Field(description="Of yt-dlp; null for a plain file")
    content_type: str | None = Field(description="Of a plain file, by its content")
    duration_seconds: float | None
    size_bytes: int | None
    heights: list[int] = Field(description="Pixels of the forms on offer, the highest first: see `max_height`")


class Probes:
    """How many are under way in this process."""

    def __init__(self) -> None:
        self.running = 0


@router.post(
    "/store",
    operation_id="importMedia",
    status_code=202,
    response_model=JobView,
    responses=refusals(429),
    summary="Import media from a URL",
)
async def store(
    body: MediaRequest,
    request: Request,
    world: World,
    asker: Asker,
    key: JobKey = None,
) -> Response:
    """Accept an import and answer at once with its job, which is followed, cancelled and retried like any other.

    Its `source_url` is the URL; its artifact is the file, with a poster, title, duration, size and codecs. A scene that
    is named follows it: `media_status`, `media_job_id`, and in the end `media_url`.
    """
    new = import_for(request, world, asker, body, key=idempotency_key(key))
    return await answer_accepted(request, world, asker, new, submit=submit_import(world))


@router.post(
    "/probe",
    operation_id="probeMedia",
    response_model=ProbeView,
    responses=refusals(429),
    summary="Look what a URL leads to",
)
async def probe(body: ProbeRequest, request: Request, world: World, asker: Asker) -> Response:
    """Title, duration, size and heights, as far as the source tells them, before anything is fetched.

    Takes up to 20 s. What cannot be imported is refused with the code that its job would have failed with.
    """
    verdict = await take_tokens(world, asker)
    if verdict is not None and not verdict.is_allowed:
        return too_quick(request, verdict)
    limits = {} if verdict is None else verdict.headers
    provider = _importer(world)
    try:
        provider.check(Parameters(IMPORT, "", provider_options={"url": body.url}))
    except InvalidParameters as error:
        raise refused(error) from None
    probes: Probes = request.app.state.probes
    if probes.running >= MAX_PROBES:
        raise ProbesBusy
    probes.running += 1
    try:
        found = await provider.probe(body.url)
    except ProviderError as error:
        status = 503 if error.retryable else 422
        errors = [FieldError("#/url", error.message)]
        return problem(request.state.request_id, status, error.code, error.message, errors=errors, headers=limits)
    finally:
        probes.running -= 1
    view: dict[str, Any] = {
        "source_url": body.url,
        "title": found.title,
        "extractor": found.extractor,
        "content_type": found.content_type,
        "duration_seconds": found.duration_seconds,
        "size_bytes": found.size_bytes,
        "heights": list(found.heights),
    }
    return json_response(view, headers={"Cache-Control": "no-store", **limits})


def _importer(world: Safelight) -> MediaImport:
    provider = world.providers.resolve(PROVIDER)[1]
    if not isinstance(provider, MediaImport):
        raise Unavailable(f"The provider {PROVIDER} of this installation cannot look.")
    return provider
