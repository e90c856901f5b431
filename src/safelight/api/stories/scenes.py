"""Scenes over HTTP: look, change, choose the picture, delete."""

from fastapi import APIRouter
from starlette.responses import Response

from safelight import stories
from safelight.api.body import JsonRoute
from safelight.api.deps import ItemId, Owner, World, json_response
from safelight.api.problems import refusals
from safelight.api.rate import RATED
from safelight.api.stories import answer
from safelight.api.stories.request import Choice, SceneChanges, WithImages
from safelight.api.stories.view import API, SceneView, scene_view
from safelight.db import new_id
from safelight.errors import SafelightError

router = APIRouter(prefix=f"{API}/scenes", tags=["stories"], route_class=JsonRoute)


@router.get("/{id}", operation_id="getScene", response_model=SceneView, summary="Look at a scene")
async def get(scene_id: ItemId, world: World, owner: Owner) -> Response:
    """What it shows, who is in it, its picture and how its newest job stands."""
    scene = await world.database.read(stories.get_scene, scene_id, owner)
    if isinstance(scene, SafelightError):
        raise scene
    return json_response(scene_view(scene))


@router.patch(
    "/{id}",
    operation_id="changeScene",
    response_model=SceneView,
    summary="Change a scene",
    dependencies=RATED,
    responses=refusals(409, 429),
)
async def change(scene_id: ItemId, body: SceneChanges, world: World, owner: Owner) -> Response:
    """Its pictures go with it to a new number, which must be free: `POST /chapters/{id}/scenes/order` moves several."""
    changes = body.given("character_ids")
    scene = await world.database.write(stories.change_scene, scene_id, owner, changes, body.character_ids)
    if isinstance(scene, SafelightError):
        raise scene
    return json_response(scene_view(scene))


@router.put(
    "/{id}/image",
    operation_id="chooseSceneImage",
    response_model=SceneView,
    summary="Show another picture of a scene",
    dependencies=RATED,
    responses=refusals(410, 429),
)
async def choose(scene_id: ItemId, body: Choice, world: World, owner: Owner) -> Response:
    """One that a job of this scene made: `GET /chapters/{id}/images?scene_number=` lists them.

    It stays until a picture is stored that was asked for after this choice.
    """
    scene = await world.database.write(stories.choose_scene_image, scene_id, owner, body.artifact_id, new_id())
    if isinstance(scene, SafelightError):
        raise scene
    return json_response(scene_view(scene))


@router.delete("/{id}", operation_id="deleteScene", status_code=204, response_class=Response, summary="Delete a scene")
async def delete(scene_id: ItemId, world: World, owner: Owner, images: WithImages = "keep") -> Response:
    """Its jobs that have not ended are cancelled.

    Pictures are kept with their chapter, without a scene number, or deleted with their jobs, as `images` says.
    """
    return await answer.delete(world, stories.delete_scene, scene_id, owner, images)
