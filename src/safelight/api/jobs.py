"""Jobs over HTTP: submit, look, list, cancel, retry."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any

import orjson
import structlog
from fastapi import APIRouter, Body, Header, Query, Request
from pydantic import ValidationError
from starlette.responses import Response

from safelight.accounts import Identity
from safelight.api.body import SMALL_BYTES, JsonRoute, size_of
from safelight.api.deps import (
    KEY_FORM,
    MAX_IDS,
    UNCHANGED,
    Asker,
    IdCursor,
    IdempotencyKey,
    Ids,
    ItemId,
    Limit,
    Owner,
    World,
    idempotency_key,
    json_response,
    list_response,
    parse_id,
    parse_ids,
    polled_response,
    preferred_wait,
    read_id_cursor,
)
from safelight.api.document import SomeFieldsOf
from safelight.api.events import with_latest
from safelight.api.fields import Text
from safelight.api.job_request import GenerationRequest, new_job, verified
from safelight.api.job_view import PREFIX, AttemptList, Estimator, JobList, JobView, attempt_view_of, view_of
from safelight.api.media.files import SANDBOX
from safelight.api.media.import_request import IMPORT, MediaRequest, import_of, new_import, submit_import
from safelight.api.problems import invalid_body, refusals
from safelight.api.rate import take_tokens, tier_of, too_quick
from safelight.api.repetition import changed_request_of
from safelight.api.service.templates import template_of
from safelight.artifacts import Artifact
from safelight.bootstrap import Safelight
from safelight.errors import SafelightError
from safelight.jobs import (
    Filter,
    Job,
    JobDeleted,
    JobNotFound,
    NewJob,
    Status,
    Submitted,
    attempts_of,
    find,
    get,
    with_artifacts,
)
from safelight.stories import MAX_SCENE_NUMBER


class JobNotEnded(SafelightError):
    """Only a failed or cancelled job can be retried."""

    kind = "conflict"
    code = "job_not_ended"


log = structlog.get_logger()


router = APIRouter(prefix=PREFIX, tags=["jobs"], route_class=JsonRoute)


Submitter = Callable[[NewJob], Awaitable[Submitted | SafelightError]]

JobKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        description="Same key, same body: the first job again. Kept for 24 h",
        json_schema_extra=KEY_FORM,
    ),
]


@router.post(
    "",
    operation_id="submitJob",
    status_code=202,
    response_model=JobView,
    responses=refusals(429),
    summary="Submit a job",
)
async def submit(
    body: GenerationRequest,
    request: Request,
    world: World,
    asker: Asker,
    key: JobKey = None,
    prefer: Annotated[str | None, Header(description="`wait=n`: answer at the end, or after n (1-60) seconds")] = None,
) -> Response:
    """Accept a generation and answer at once with the job, whatever workers, broker and provider are doing."""
    wait = preferred_wait(prefer)
    own = await template_of(world, asker.owner_id, body.parameters.template)
    template = None if own is None else own.definition
    new = await checked_job(request, world, asker, body, template=template, key=idempotency_key(key))
    return await answer_accepted(request, world, asker, new, wait=wait)


@router.get("", operation_id="listJobs", response_model=JobList, summary="List jobs, newest first")
async def list_jobs(
    request: Request,
    world: World,
    owner: Owner,
    ids: Ids = None,
    status: Annotated[list[Status] | None, Query(description="May be repeated")] = None,
    kind: Text | None = None,
    provider: Text | None = None,
    batch_id: Annotated[
        str | None, Query(description="The jobs of a batch", json_schema_extra={"format": "uuid"})
    ] = None,
    project_id: Text | None = None,
    chapter_id: Text | None = None,
    scene_number: Annotated[int | None, Query(ge=0, le=MAX_SCENE_NUMBER)] = None,
    character_id: Text | None = None,
    text: Annotated[Text | None, Query(max_length=200, description="Part of the prompt")] = None,
    younger_than_seconds: Annotated[float | None, Query(ge=0, le=1e9, allow_inf_nan=False)] = None,
    older_than_seconds: Annotated[float | None, Query(ge=0, le=1e9, allow_inf_nan=False)] = None,
    cursor: IdCursor = None,
    limit: Limit = 50,
) -> Response:
    """Your jobs that match all filters given. A page of very large ones has fewer than `limit`, and a `next_cursor`."""
    wanted = Filter(
        owner_id=owner,
        ids=None if ids is None else parse_ids(ids),
        statuses=status,
        kind=kind,
        provider=provider,
        batch_id=None if batch_id is None else parse_id(batch_id, "batch_id"),
        project_id=project_id,
        chapter_id=chapter_id,
        scene_number=scene_number,
        character_id=character_id,
        text=text,
        younger_than_seconds=younger_than_seconds,
        older_than_seconds=older_than_seconds,
        before_id=read_id_cursor(cursor),
        limit=MAX_IDS if ids is not None else limit,
    )
    page = await world.database.read(find, wanted)
    estimator: Estimator = request.app.state.estimator
    current = await asyncio.gather(*(with_latest(world.stream, job) for job in page.jobs))
    items = [
        view_of(job, page.artifacts.get(job.id, ()), await estimator.estimate(job))
        | ({"workflow": orjson.Fragment(page.workflows[job.id])} if job.id in page.workflows else {})
        for job, _ in current
    ]
    next_cursor = page.jobs[-1].id if page.more else None
    return await list_response(items, next_cursor=next_cursor)


@router.get(
    "/{id}",
    operation_id="getJob",
    response_model=JobView,
    summary="Look at a job",
    responses={**refusals(410), **UNCHANGED},
)
async def get_job(
    job_id: ItemId,
    request: Request,
    world: World,
    owner: Owner,
    wait: Annotated[int | None, Query(ge=1, le=60, description="Answer at the end, or after n seconds")] = None,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """How the job stands, down to its latest progress. `ETag` and `If-None-Match` make polling cheap."""
    if wait is not None:
        await _wait_for_end(world, job_id, owner, wait)
    job, artifacts = await _look(world, job_id, owner)
    return await _show(request, world, job, artifacts, if_none_match=if_none_match)


@router.delete(
    "/{id}",
    operation_id="deleteJob",
    status_code=204,
    response_class=Response,
    summary="Delete an ended job and its pictures",
    responses=refusals(409),
)
async def delete(job_id: ItemId, world: World, owner: Owner) -> Response:
    """Its request, its errors and its files go for good; that it was there stays known (410). Repeating is harmless.

    A job that has not ended is refused (`job_active`): cancel it first.
    """
    await world.retention.delete_job(job_id, owner)
    return Response(status_code=204)


@router.post(
    "/{id}/cancel",
    operation_id="cancelJob",
    response_model=JobView,
    summary="Cancel a job",
    responses=refusals(409, 410),
)
async def cancel(job_id: ItemId, request: Request, world: World, owner: Owner) -> Response:
    """A pending job is cancelled at once, a processing one as soon as its worker hears of it. Repeating is harmless."""
    outcome = await world.database.write(world.jobs.cancel, job_id, owner)
    if not isinstance(outcome, Job):
        raise outcome
    return await _show(request, world, outcome, ())


@router.post(
    "/{id}/retry",
    operation_id="retryJob",
    status_code=202,
    response_model=JobView,
    responses=refusals(409, 410, 429),
    summary="Run a failed or cancelled job again",
)
async def retry(
    job_id: ItemId,
    request: Request,
    world: World,
    asker: Asker,
    overrides: Annotated[
        Annotated[dict[str, Any], SomeFieldsOf((GenerationRequest, MediaRequest))] | None,
        Body(description="Fields of the submit or import that shall differ", examples=[{"seed": 8}]),
    ] = None,
    key: IdempotencyKey = None,
) -> Response:
    """A new job with the same request, or with some fields changed; it names its origin.

    A template is the one that the first job was submitted with, whatever became of it since.
    """
    job, _ = await _look(world, job_id, asker.owner_id)
    if job.status not in ("failed", "cancelled"):
        raise JobNotEnded(f"Only a failed or cancelled job can be retried; this one is {job.status}.")
    if job.kind == IMPORT:
        return await _import_again(request, world, asker, job, overrides or {}, idempotency_key(key))
    try:
        body = await asyncio.to_thread(GenerationRequest.model_validate, changed_request_of(job, overrides or {}))
    except ValidationError as error:
        raise invalid_body(error, GenerationRequest) from None
    template = job.parameters.template_definition
    if body.parameters.template != job.parameters.template:
        own = await template_of(world, asker.owner_id, body.parameters.template)
        template = None if own is None else own.definition
    new = await checked_job(request, world, asker, body, template=template, key=idempotency_key(key), origin=job)
    return await answer_accepted(request, world, asker, new)


async def _import_again(
    request: Request, world: Safelight, asker: Identity, job: Job, overrides: dict[str, Any], key: str | None
) -> Response:
    try:
        body = MediaRequest.model_validate(import_of(job) | overrides)
    except ValidationError as error:
        raise invalid_body(error, MediaRequest) from None
    new = import_for(request, world, asker, body, key=key, origin=job)
    return await answer_accepted(request, world, asker, new, submit=submit_import(world))


@router.get(
    "/{id}/attempts",
    operation_id="listJobAttempts",
    response_model=AttemptList,
    summary="Every attempt of a job",
    responses=refusals(410),
)
async def list_attempts(job_id: ItemId, world: World, owner: Owner) -> Response:
    """Number, worker, provider, times, outcome and error of each, first to last."""
    await _look(world, job_id, owner)
    found = await world.database.read(attempts_of, job_id)
    return json_response({"items": [attempt_view_of(attempt) for attempt in found]})


@router.get(
    "/{id}/previews/{name}",
    operation_id="getJobPreview",
    summary="A preview of the unfinished picture",
    response_class=Response,
    responses=refusals(410),
)
async def get_preview(job_id: ItemId, name: str, world: World, owner: Owner) -> Response:
    """What a `job.preview` event points to; kept for a few minutes."""
    await _look(world, job_id, owner)
    found = await world.stream.preview(job_id, name)
    if found is None:
        raise PreviewGone
    data, content_type = found
    headers = {"Cache-Control": "private, max-age=300", "Content-Security-Policy": SANDBOX}
    return Response(data, headers=headers, media_type=content_type)


class PreviewGone(SafelightError):
    """There is no such preview, or it has expired."""

    kind = "not_found"
    code = "preview_not_found"


@dataclass(frozen=True, slots=True)
class SubmittedJob:
    """A job that was accepted, or found by its idempotency key; what it made; what the answer's headers tell."""

    job: Job
    artifacts: Sequence[Artifact]
    headers: dict[str, str]


async def accept(
    request: Request,
    world: Safelight,
    asker: Identity,
    new: NewJob,
    *,
    submit: Submitter | None = None,
    wait: int | None = None,
) -> SubmittedJob | Response:
    """Check a new job with its provider's servers and submit it; a response if its owner submits too quickly.

    `submit` does so in a transaction of the caller's. Raises what stands in the way.
    """
    new = await verified(new, world.providers)
    verdict = await take_tokens(world, asker)
    if verdict is not None and not verdict.is_allowed:
        return too_quick(request, verdict)
    new = replace(new, tier=asker.tier, hint=has_room(new, world))
    outcome = await (world.database.write_one(world.jobs.submit, new) if submit is None else submit(new))
    if not isinstance(outcome, Submitted):
        raise outcome
    job, artifacts = outcome.job, ()
    if not outcome.replayed:
        log.info(
            "job.received",
            job_id=job.id,
            task_id=job.celery_task_id,
            kind=job.kind,
            provider=job.provider,
            owner_id=job.owner_id,
            tier=job.tier,
            chapter_id=job.chapter_id,
            scene_number=job.scene_number,
        )
    if wait is not None:
        await _wait_for_end(world, job.id, job.owner_id, wait)
    if wait is not None or outcome.replayed:
        job, artifacts = await _look(world, job.id, job.owner_id)
    headers = {"Location": f"{PREFIX}/{job.id}", **(verdict.headers if verdict is not None else {})}
    if outcome.replayed:
        headers["Idempotency-Replayed"] = "true"
    if wait is not None:
        headers["Preference-Applied"] = f"wait={wait}"
    return SubmittedJob(job, artifacts, headers)


def has_room(new: NewJob, world: Safelight) -> bool:
    """Take a free slot for a job that may start now, so that its submit releases it."""
    values = new.values
    return new.run_at is None and world.dispatcher.take_room(new.queue, values["provider"], values["owner_limit"])


async def answer_accepted(
    request: Request,
    world: Safelight,
    asker: Identity,
    new: NewJob,
    *,
    submit: Submitter | None = None,
    wait: int | None = None,
) -> Response:
    """The answer to a new job: its view, or what `accept` answers."""
    accepted = await accept(request, world, asker, new, submit=submit, wait=wait)
    if isinstance(accepted, Response):
        return accepted
    return await _show(request, world, accepted.job, accepted.artifacts, status=202, headers=accepted.headers)


def job_for(
    request: Request,
    world: Safelight,
    asker: Identity,
    body: GenerationRequest,
    *,
    template: Mapping[str, Any] | None = None,
    key: str | None = None,
    origin: Job | None = None,
) -> NewJob:
    """The job that somebody asks for with a request; `origin` is the one it retries. Raises `Invalid`."""
    return new_job(
        body,
        owner_id=asker.owner_id,
        providers=world.providers,
        settings=world.settings,
        request_id=request.state.request_id,
        tier=tier_of(asker, world),
        template=template,
        idempotency_key=key,
        origin_job_id=None if origin is None else origin.id,
        unavailable=world.dispatcher.unavailable,
    )


async def checked_job(
    request: Request,
    world: Safelight,
    asker: Identity,
    body: GenerationRequest,
    *,
    template: Mapping[str, Any] | None = None,
    key: str | None = None,
    origin: Job | None = None,
) -> NewJob:
    """`job_for`, in a thread where the body or what it names is large."""
    make = partial(job_for, request, world, asker, body, template=template, key=key, origin=origin)
    if template is None and origin is None and size_of(request) <= SMALL_BYTES:
        return make()
    return await asyncio.to_thread(make)


def import_for(
    request: Request,
    world: Safelight,
    asker: Identity,
    body: MediaRequest,
    *,
    key: str | None = None,
    origin: Job | None = None,
) -> NewJob:
    """The same for an import."""
    return new_import(
        body,
        owner_id=asker.owner_id,
        providers=world.providers,
        settings=world.settings,
        request_id=request.state.request_id,
        tier=tier_of(asker, world),
        idempotency_key=key,
        origin_job_id=None if origin is None else origin.id,
    )


async def _look(world: Safelight, job_id: str, owner: str) -> tuple[Job, Sequence[Artifact]]:
    found = await world.database.read_one(with_artifacts, (job_id, owner))
    if found is None:
        raise JobNotFound(f"There is no job {job_id}.")
    job, artifacts = found
    if job.deleted_at is not None:
        raise JobDeleted
    job, _ = await with_latest(world.stream, job)
    return job, artifacts


async def _show(
    request: Request,
    world: Safelight,
    job: Job,
    artifacts: Sequence[Artifact],
    *,
    status: int = 200,
    headers: dict[str, str] | None = None,
    if_none_match: str | None = None,
) -> Response:
    estimator: Estimator = request.app.state.estimator
    view = view_of(job, artifacts, await estimator.estimate(job))
    return polled_response(
        view, f"{job.version}-", is_final=job.is_terminal, status=status, headers=headers, if_none_match=if_none_match
    )


async def _wait_for_end(world: Safelight, job_id: str, owner: str, seconds: int) -> None:
    """Return when the job has ended (or does not exist) or the time is over; the row is read afterwards either way."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    async with world.stream.watch(job_id) as watch:
        job = await world.database.read(get, job_id, owner)
        if job is None or job.is_terminal:
            return
        watch.start(job.version)
        while not watch.ended and (left := deadline - loop.time()) > 0:
            await watch.next(left)
