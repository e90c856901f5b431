"""Characters over HTTP: look, change, draw the portrait, give it a picture to be drawn from."""

from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Body, Request
from starlette.responses import Response

from safelight import stories
from safelight.accounts import Identity
from safelight.api.body import JsonRoute, size_of, work
from safelight.api.deps import (
    Asker,
    IdCursor,
    IdempotencyKey,
    ItemId,
    Limit,
    Owner,
    World,
    idempotency_key,
    json_response,
    read_id_cursor,
)
from safelight.api.events import with_latest
from safelight.api.job_request import GenerationRequest
from safelight.api.job_view import Estimator, EtaView
from safelight.api.jobs import accept, job_for
from safelight.api.media.artifacts import UPLOAD_BODY, receive_picture
from safelight.api.problems import Problem, refusals
from safelight.api.rate import RATED
from safelight.api.stories import answer
from safelight.api.stories.request import CharacterChanges, Choice, PortraitRequest, WithImages
from safelight.api.stories.view import (
    API,
    CharacterView,
    ImageList,
    PortraitView,
    character_view,
    portrait_view,
)
from safelight.bootstrap import Safelight
from safelight.db import Tx, new_id
from safelight.errors import Invalid, SafelightError
from safelight.jobs import Filter, Job, NewJob, Page, Submitted, explain, find
from safelight.jobs import get as get_job

router = APIRouter(prefix=f"{API}/characters", tags=["stories"], route_class=JsonRoute)
LOOK_AGAIN_SECONDS = 1


@router.get("/{id}", operation_id="getCharacter", response_model=CharacterView, summary="Look at a character")
async def get(character_id: ItemId, world: World, owner: Owner) -> Response:
    """Name and look, the portrait and how its newest job stands."""
    return _shown(await world.database.read(stories.get_character, character_id, owner))


@router.patch(
    "/{id}",
    operation_id="changeCharacter",
    response_model=CharacterView,
    summary="Change a character",
    dependencies=RATED,
    responses=refusals(429),
)
async def change(character_id: ItemId, body: CharacterChanges, world: World, owner: Owner) -> Response:
    """Name, look, and which of your pictures portraits are drawn from."""
    reference = body.given()
    changes = body.given("reference_artifact_id")

    def both(tx: Tx) -> stories.Character | SafelightError:
        if "reference_artifact_id" in reference:
            outcome = stories.set_reference(tx, character_id, owner, reference["reference_artifact_id"])
            if isinstance(outcome, SafelightError):
                return outcome
        return stories.change_character(tx, character_id, owner, changes)

    return _shown(await world.database.write(both))


@router.delete(
    "/{id}", operation_id="deleteCharacter", status_code=204, response_class=Response, summary="Delete a character"
)
async def delete(character_id: ItemId, world: World, owner: Owner, images: WithImages = "keep") -> Response:
    """It is in no scene any more. Its jobs that have not ended are cancelled.

    Its portraits are kept, in the list of your jobs, or deleted with their jobs, as `images` says. The picture they
    were drawn from stays among your artifacts, for as long as any upload.
    """
    return await answer.delete(world, stories.delete_character, character_id, owner, images)


@router.put(
    "/{id}/reference",
    operation_id="uploadCharacterReference",
    response_model=CharacterView,
    dependencies=RATED,
    responses={**refusals(429), 415: {"model": Problem, "description": "Not a PNG, JPEG or WebP"}},
    openapi_extra=UPLOAD_BODY,
    summary="Upload the picture that portraits are drawn from",
)
async def upload_reference(
    character_id: ItemId,
    request: Request,
    world: World,
    owner: Owner,
) -> Response:
    """The bytes of the picture are the body, checked and limited as those of `POST /api/v1/artifacts`.

    It is given to providers that take pictures; the metadata of a portrait say whether it was. To use a picture that is
    here already, or none any more, `PATCH` the character with a `reference_artifact_id`.
    """
    character = await world.database.read(stories.get_character, character_id, owner)
    if isinstance(character, SafelightError):
        raise character
    artifact = await receive_picture(request, world, owner)
    if isinstance(artifact, Response):
        return artifact
    return _shown(await world.database.write(stories.set_reference, character_id, owner, artifact.id))


@router.put(
    "/{id}/image",
    operation_id="chooseCharacterImage",
    response_model=CharacterView,
    summary="Show another portrait",
    dependencies=RATED,
    responses=refusals(410, 429),
)
async def choose(character_id: ItemId, body: Choice, world: World, owner: Owner) -> Response:
    """One that a job of this character made: `GET /characters/{id}/images` lists them.

    It stays until a portrait is stored that was asked for after this choice.
    """
    return _shown(await world.database.write(stories.choose_portrait, character_id, owner, body.artifact_id, new_id()))


@router.get(
    "/{id}/images", operation_id="listCharacterImages", response_model=ImageList, summary="All portraits of a character"
)
async def list_images(
    character_id: ItemId, world: World, owner: Owner, cursor: IdCursor = None, limit: Limit = 50
) -> Response:
    """Newest first, until they are deleted."""
    found = await world.database.read(_images_of, character_id, owner, read_id_cursor(cursor), limit)
    if isinstance(found, SafelightError):
        raise found
    return await answer.pictures(found)


@router.post(
    "/{id}/image",
    operation_id="drawCharacter",
    status_code=202,
    response_model=PortraitView,
    responses=refusals(429),
    summary="Draw a character",
)
async def draw(
    character_id: ItemId,
    request: Request,
    world: World,
    asker: Asker,
    body: Annotated[PortraitRequest | None, Body(examples=[{}, {"seed": 7}])] = None,
    key: IdempotencyKey = None,
) -> Response:
    """Accept a job for the portrait and answer at once; the one that is shown stays until the new one is stored.

    Of several at once the one that was asked for last is shown in the end, whichever is finished first.
    """
    drawn = await world.database.read(stories.drawn_character, character_id, asker.owner_id)
    if isinstance(drawn, SafelightError):
        raise drawn
    asked = body or PortraitRequest.model_validate({})
    new = await work(size_of(request), _portrait_job, asked, drawn, request, world, asker, idempotency_key(key))

    async def submit(new: NewJob) -> Submitted | SafelightError:
        return await world.database.write(stories.submit_picture, world.jobs, new)

    accepted = await accept(request, world, asker, new, submit=submit)
    if isinstance(accepted, Response):
        return accepted
    view, _ = await _look(request, world, character_id, asker.owner_id, accepted.job.id)
    headers = accepted.headers | {"Location": f"{API}/characters/{character_id}/image/status"}
    return json_response(view, 202, headers)


@router.get(
    "/{id}/image/status",
    operation_id="getCharacterImage",
    response_model=PortraitView,
    summary="The newest portrait of a character",
)
async def status(character_id: ItemId, request: Request, world: World, owner: Owner) -> Response:
    """However it was submitted. Pages that cannot listen to its events ask every second, for two minutes."""
    view, is_open = await _look(request, world, character_id, owner)
    headers = {"Cache-Control": "no-cache"} | ({"Retry-After": str(LOOK_AGAIN_SECONDS)} if is_open else {})
    return json_response(view, headers=headers)


def _shown(character: stories.Character | SafelightError) -> Response:
    if isinstance(character, SafelightError):
        raise character
    return json_response(character_view(character))


def _images_of(tx: Tx, character_id: str, owner_id: str, before_id: str | None, limit: int) -> Page | SafelightError:
    character = stories.get_character(tx, character_id, owner_id)
    if isinstance(character, SafelightError):
        return character
    wanted = Filter(
        owner_id,
        statuses=["completed"],
        kind=stories.PICTURE,
        character_id=character_id,
        before_id=before_id,
        limit=limit,
    )
    return find(tx, wanted)


async def _look(
    request: Request, world: Safelight, character_id: str, owner: str, job_id: str | None = None
) -> tuple[dict[str, Any], bool]:
    """The fields of `PortraitView` with this job or else the newest, and whether that is open."""
    found = await world.database.read(_with_job, character_id, owner, job_id)
    if isinstance(found, SafelightError):
        raise found
    character, job = found
    eta = EtaView(wait_seconds=None, run_seconds=None)
    if job is not None:
        job, _ = await with_latest(world.stream, job)
        estimator: Estimator = request.app.state.estimator
        eta = await estimator.estimate(job)
    return portrait_view(character, job, eta), job is not None and not job.is_terminal


def _with_job(
    tx: Tx, character_id: str, owner_id: str, job_id: str | None
) -> tuple[stories.Character, Job | None] | stories.CharacterNotFound:
    character = stories.get_character(tx, character_id, owner_id)
    if isinstance(character, stories.CharacterNotFound):
        return character
    wanted = job_id or character.image.job_id
    job = None if wanted is None else get_job(tx, wanted, owner_id)
    return character, None if job is None or job.deleted_at is not None else explain(tx, [job])[0]


def _portrait_job(
    asked: PortraitRequest,
    drawn: stories.DrawnCharacter,
    request: Request,
    world: Safelight,
    asker: Identity,
    key: str | None,
) -> NewJob:
    """The job that draws a character: from its reference picture, if a provider takes one and none is given."""
    whole = {"image_type": "portrait"} | asked.model_dump(mode="json", exclude_unset=True)
    whole |= {
        "prompt": asked.prompt or drawn.prompt(),
        "project_id": drawn.project.id,
        "character_id": drawn.character.id,
    }

    def made(**more: Any) -> NewJob:
        return job_for(request, world, asker, GenerationRequest.model_validate(whole | more), key=key)

    reference = drawn.character.reference
    if reference is None or whole.get("input_images"):
        new = made()
    else:
        try:
            new = made(input_images=[reference.id])
        except Invalid as refused:
            if not any(error.pointer.startswith("#/input_images") for error in refused.errors):
                raise
            new = made()
    return new if key is None else replace(new, fingerprint=asked.fingerprint(request.url.path))
