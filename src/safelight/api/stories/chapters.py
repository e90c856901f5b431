"""Chapters over HTTP: their scenes, and the pictures of these. A chapter may also be kept elsewhere, under any id."""

import re
from dataclasses import replace
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Body, Path, Query, Request
from pydantic import StringConstraints
from starlette.responses import Response

from safelight import stories
from safelight.accounts import Identity
from safelight.api.batches.request import check_bulk, checked_jobs
from safelight.api.batches.router import accept_batch
from safelight.api.batches.view import BatchView
from safelight.api.body import JsonRoute, size_of, work
from safelight.api.deps import (
    RETRY_AFTER_SECONDS,
    Asker,
    IdCursor,
    IdempotencyKey,
    ItemId,
    Limit,
    NumberCursor,
    Owner,
    World,
    idempotency_key,
    json_response,
    read_id_cursor,
    read_number_cursor,
)
from safelight.api.events import with_latest
from safelight.api.fields import Text
from safelight.api.job_request import GenerationRequest
from safelight.api.job_view import Estimator
from safelight.api.jobs import accept, job_for
from safelight.api.problems import invalid_fields, refusals
from safelight.api.rate import RATED
from safelight.api.stories import answer
from safelight.api.stories.request import (
    ChapterChanges,
    ChapterImagesRequest,
    SceneImageRequest,
    SceneOrder,
    SceneRequest,
    WithImages,
)
from safelight.api.stories.view import (
    API,
    ChapterView,
    ImageList,
    SceneImageView,
    SceneList,
    SceneView,
    chapter_view,
    scene_image_view,
    scene_status_url,
    scene_view,
)
from safelight.bootstrap import Safelight
from safelight.db import Tx, new_id
from safelight.errors import FieldError, Invalid, SafelightError
from safelight.jobs import Filter, NewBatch, NewJob, Page, Submitted, SubmittedBatch, find

router = APIRouter(prefix=f"{API}/chapters", tags=["stories"], route_class=JsonRoute)
ChapterId = Annotated[
    Text,
    StringConstraints(min_length=1, max_length=200),
    Path(alias="chapter_id", description="Of a chapter kept here, or an id of your own for one kept elsewhere"),
]
SceneNumber = Annotated[int, Path(ge=0, le=stories.MAX_SCENE_NUMBER)]


class SceneImageNotFound(SafelightError):
    """No picture was asked for of this scene."""

    kind = "not_found"
    code = "scene_image_not_found"


class PromptMissing(SafelightError):
    """This chapter is none of Safelight's stories, so the picture needs a prompt."""

    kind = "invalid"
    code = "prompt_missing"


# --- chapters and their scenes ----------------------------------------------------------------------------------------


@router.get("/{id}", operation_id="getChapter", response_model=ChapterView, summary="Look at a chapter")
async def get(chapter_id: ItemId, world: World, owner: Owner) -> Response:
    """Its place, title and script."""
    chapter = await world.database.read(stories.get_chapter, chapter_id, owner)
    if isinstance(chapter, SafelightError):
        raise chapter
    return json_response(chapter_view(chapter))


@router.patch(
    "/{id}",
    operation_id="changeChapter",
    response_model=ChapterView,
    summary="Change or move a chapter",
    dependencies=RATED,
    responses=refusals(429),
)
async def change(chapter_id: ItemId, body: ChapterChanges, world: World, owner: Owner) -> Response:
    """Title, script, and its position among the chapters of its project."""
    chapter = await world.database.write(
        stories.change_chapter, chapter_id, owner, body.given("position"), body.position
    )
    if isinstance(chapter, SafelightError):
        raise chapter
    return json_response(chapter_view(chapter))


@router.delete(
    "/{id}", operation_id="deleteChapter", status_code=204, response_class=Response, summary="Delete a chapter"
)
async def delete(chapter_id: ItemId, world: World, owner: Owner, images: WithImages = "keep") -> Response:
    """With its scenes. Jobs of theirs that have not ended are cancelled.

    Pictures are kept, under the same address as before, or deleted with their jobs, as `images` says.
    """
    return await answer.delete(world, stories.delete_chapter, chapter_id, owner, images)


@router.post(
    "/{id}/scenes",
    operation_id="createScene",
    status_code=201,
    response_model=SceneView,
    summary="Make a scene",
    dependencies=RATED,
    responses=refusals(409, 429),
)
async def create_scene(chapter_id: ItemId, body: SceneRequest, world: World, owner: Owner) -> Response:
    """Under a number that no other scene of the chapter has."""
    new = stories.NewScene(new_id(), owner, chapter_id, body.scene_number, body.description, tuple(body.character_ids))
    scene = await world.database.write(stories.create_scene, new)
    if isinstance(scene, SafelightError):
        raise scene
    return json_response(scene_view(scene), 201, {"Location": f"{API}/scenes/{scene.id}"})


@router.get(
    "/{id}/scenes", operation_id="listScenes", response_model=SceneList, summary="The scenes of a chapter, by number"
)
async def list_scenes(
    chapter_id: ItemId, world: World, owner: Owner, cursor: NumberCursor = None, limit: Limit = 50
) -> Response:
    """A page of them, each with its picture and how its newest job stands."""
    after = read_number_cursor(cursor)
    found = await world.database.read(stories.list_scenes, chapter_id, owner, -1 if after is None else after, limit + 1)
    if isinstance(found, SafelightError):
        raise found
    return await answer.page(found, limit, scene_view, lambda scene: scene.scene_number)


@router.post(
    "/{id}/scenes/order",
    operation_id="orderScenes",
    status_code=204,
    response_class=Response,
    summary="Bring the scenes into an order",
    dependencies=RATED,
    responses=refusals(429),
)
async def order_scenes(chapter_id: ItemId, body: SceneOrder, world: World, owner: Owner) -> Response:
    """Numbers them from 1 as they are named here. Their pictures and their jobs go with them."""
    wrong = await world.database.write(stories.order_scenes, chapter_id, owner, body.scene_ids)
    if wrong is not None:
        raise wrong
    return Response(status_code=204)


# --- pictures ---------------------------------------------------------------------------------------------------------


@router.post(
    "/{chapter_id}/images/scenes/{scene_number}",
    operation_id="drawScene",
    status_code=202,
    response_model=SceneImageView,
    responses=refusals(429),
    summary="Draw a scene",
)
async def draw(
    chapter_id: ChapterId,
    scene_number: SceneNumber,
    request: Request,
    world: World,
    asker: Asker,
    body: Annotated[SceneImageRequest | None, Body(examples=[{}, {"prompt": "a lamp room at dusk", "seed": 7}])] = None,
    key: IdempotencyKey = None,
) -> Response:
    """Accept a job for the scene and answer at once.

    Its prompt is what the scene shows, how its characters look and the style of the project, if none is given. With one
    the chapter may be any id of your own: nothing else need be known of it.
    """
    asked = body or SceneImageRequest.model_validate({})
    drawn = await world.database.read(stories.drawn_scene, chapter_id, scene_number, asker.owner_id)
    if isinstance(drawn, SafelightError):
        raise drawn
    if drawn is None and asked.prompt is None:
        raise PromptMissing(errors=[FieldError("#/prompt", "This field is required here")])
    make = partial(_scene_job, asked, chapter_id, scene_number, drawn, request, world, asker, key=idempotency_key(key))
    new = await work(size_of(request), make)

    async def submit(new: NewJob) -> Submitted | SafelightError:
        return await world.database.write(stories.submit_picture, world.jobs, new)

    accepted = await accept(request, world, asker, new, submit=None if drawn is None else submit)
    if isinstance(accepted, Response):
        return accepted
    estimator: Estimator = request.app.state.estimator
    view = scene_image_view(accepted.job, accepted.artifacts, chapter_id, await estimator.estimate(accepted.job))
    headers = accepted.headers | {"Location": scene_status_url(chapter_id, scene_number)}
    return json_response(view, 202, headers)


@router.get(
    "/{chapter_id}/images/scenes/{scene_number}/status",
    operation_id="getSceneImage",
    response_model=SceneImageView,
    summary="The newest job of a scene",
)
async def status(
    chapter_id: ChapterId, scene_number: SceneNumber, request: Request, world: World, owner: Owner
) -> Response:
    """However it was submitted. Pages that cannot listen to its events ask every three seconds, for five minutes."""
    wanted = Filter(owner, kind=stories.PICTURE, chapter_id=chapter_id, scene_number=scene_number, limit=1)
    page = await world.database.read(find, wanted)
    if not page.jobs:
        raise SceneImageNotFound(f"No picture was asked for of scene {scene_number} of chapter {chapter_id[:80]}.")
    job, _ = await with_latest(world.stream, page.jobs[0])
    estimator: Estimator = request.app.state.estimator
    view = scene_image_view(job, page.artifacts.get(job.id, ()), chapter_id, await estimator.estimate(job))
    headers = {"Cache-Control": "no-cache"} | ({} if job.is_terminal else {"Retry-After": str(RETRY_AFTER_SECONDS)})
    return json_response(view, headers=headers)


@router.get(
    "/{chapter_id}/images",
    operation_id="listChapterImages",
    response_model=ImageList,
    summary="All pictures of a chapter",
)
async def list_images(
    chapter_id: ChapterId,
    world: World,
    owner: Owner,
    scene_number: Annotated[int | None, Query(ge=0, le=stories.MAX_SCENE_NUMBER)] = None,
    cursor: IdCursor = None,
    limit: Limit = 50,
) -> Response:
    """Whatever was made for it, newest first, until it is deleted; of one scene, if a number is given."""
    found = await world.database.read(_images_of, chapter_id, owner, scene_number, read_id_cursor(cursor), limit)
    if isinstance(found, SafelightError):
        raise found
    return await answer.pictures(found)


@router.post(
    "/{chapter_id}/images",
    operation_id="drawChapter",
    status_code=202,
    response_model=BatchView,
    responses=refusals(409, 429),
    summary="Draw every scene without a picture",
)
async def draw_missing(
    chapter_id: ChapterId,
    request: Request,
    world: World,
    asker: Asker,
    body: Annotated[ChapterImagesRequest | None, Body(examples=[{}, {"width": 768, "height": 512}])] = None,
    key: IdempotencyKey = None,
) -> Response:
    """Accept a job for each scene that shows no picture and has no job under way, as one batch: all or none.

    What is given here counts for each of them; with one seed for all they resemble each other.
    """
    if not stories.is_story_id(chapter_id):
        raise stories.ChapterNotFound(f"There is no chapter {chapter_id[:80]}.")
    asked = body or ChapterImagesRequest.model_validate({})
    missing = await world.database.read(stories.undrawn_scenes, chapter_id, asker.owner_id)
    if isinstance(missing, SafelightError):
        raise missing
    key = idempotency_key(key)
    if not missing and key is None:
        raise stories.NothingToDraw
    check_bulk(size_of(request) * len(missing))
    fields = await work(size_of(request), partial(asked.model_dump, mode="json", exclude_unset=True))
    bodies = [fields | _about(drawn, chapter_id, drawn.scene.scene_number) for drawn in missing]
    try:
        jobs = await checked_jobs([(each, None) for each in bodies], request, world, asker)
    except Invalid as error:  # it is wrong with what was sent once for all of them
        pointers = {re.sub(r"^#/jobs/\d+", "#", each.pointer): each.detail for each in error.errors}
        raise invalid_fields([FieldError(pointer, detail) for pointer, detail in pointers.items()]) from None
    new = NewBatch(
        id=new_id(),
        owner_id=asker.owner_id,
        jobs=jobs,
        metadata={"chapter_id": chapter_id},
        idempotency_key=key,
        fingerprint="" if key is None else await work(size_of(request), asked.fingerprint, request.url.path),
    )

    async def submit(new: NewBatch) -> SubmittedBatch | SafelightError:
        return await world.database.write(stories.submit_missing, world.jobs, chapter_id, new)

    return await accept_batch(request, world, asker, new, submit=submit)


def _images_of(
    tx: Tx, chapter_id: str, owner_id: str, scene_number: int | None, before_id: str | None, limit: int
) -> Page | SafelightError:
    chapter = stories.find_chapter(tx, chapter_id, owner_id) if stories.is_story_id(chapter_id) else None
    if isinstance(chapter, SafelightError):
        return chapter
    wanted = Filter(
        owner_id,
        statuses=["completed"],
        kind=stories.PICTURE,
        chapter_id=chapter_id,
        scene_number=scene_number,
        before_id=before_id,
        limit=limit,
    )
    return find(tx, wanted)


# --- from a scene to its job ------------------------------------------------------------------------------------------


def _scene_job(
    asked: SceneImageRequest,
    chapter_id: str,
    scene_number: int,
    drawn: stories.DrawnScene | None,
    request: Request,
    world: Safelight,
    asker: Identity,
    *,
    key: str | None = None,
) -> NewJob:
    """The job that draws a scene. Raises what is wrong with the request or with the scene."""
    about = _about(drawn, chapter_id, scene_number, asked.prompt)
    whole = asked.model_dump(mode="json", exclude_unset=True) | about
    new = job_for(request, world, asker, GenerationRequest.model_validate(whole), key=key)
    # What was sent counts, not what the story made of it: that may have changed since.
    return replace(new, fingerprint=asked.fingerprint(request.url.path)) if key is not None else new


def _about(
    drawn: stories.DrawnScene | None, chapter_id: str, scene_number: int, prompt: str | None = None
) -> dict[str, Any]:
    """The fields of a submit that tell what is drawn."""
    return {
        "prompt": drawn.prompt() if drawn is not None and prompt is None else prompt,
        "chapter_id": chapter_id,
        "scene_number": scene_number,
        "project_id": None if drawn is None else drawn.project.id,
    }
