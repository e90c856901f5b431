"""Projects over HTTP, with their chapters and characters."""

from fastapi import APIRouter
from starlette.responses import Response

from safelight import stories
from safelight.api.body import JsonRoute
from safelight.api.deps import (
    IdCursor,
    ItemId,
    Limit,
    NumberCursor,
    Owner,
    World,
    json_response,
    read_id_cursor,
    read_number_cursor,
)
from safelight.api.problems import refusals
from safelight.api.rate import RATED
from safelight.api.stories import answer
from safelight.api.stories.request import (
    ChapterRequest,
    CharacterRequest,
    ProjectChanges,
    ProjectRequest,
    WithImages,
)
from safelight.api.stories.view import (
    API,
    ChapterList,
    ChapterView,
    CharacterList,
    CharacterView,
    ProjectList,
    ProjectView,
    chapter_view,
    character_view,
    project_view,
)
from safelight.db import new_id
from safelight.errors import SafelightError

router = APIRouter(prefix=f"{API}/projects", tags=["stories"], route_class=JsonRoute)


@router.post(
    "",
    operation_id="createProject",
    status_code=201,
    response_model=ProjectView,
    summary="Make a project",
    dependencies=RATED,
    responses=refusals(429),
)
async def create(body: ProjectRequest, world: World, owner: Owner) -> Response:
    """A title, and the style of all its pictures."""
    project = await world.database.write(stories.create_project, new_id(), owner, body.title, body.style)
    return json_response(project_view(project), 201, {"Location": f"{API}/projects/{project.id}"})


@router.get("", operation_id="listProjects", response_model=ProjectList, summary="Your projects, newest first")
async def list_all(world: World, owner: Owner, cursor: IdCursor = None, limit: Limit = 50) -> Response:
    """A page of them."""
    found = await world.database.read(stories.list_projects, owner, read_id_cursor(cursor), limit + 1)
    return await answer.page(found, limit, project_view, lambda project: project.id)


@router.get("/{id}", operation_id="getProject", response_model=ProjectView, summary="Look at a project")
async def get(project_id: ItemId, world: World, owner: Owner) -> Response:
    """Its title and style."""
    project = await world.database.read(stories.get_project, project_id, owner)
    if isinstance(project, SafelightError):
        raise project
    return json_response(project_view(project))


@router.patch(
    "/{id}",
    operation_id="changeProject",
    response_model=ProjectView,
    summary="Change a project",
    dependencies=RATED,
    responses=refusals(429),
)
async def change(project_id: ItemId, body: ProjectChanges, world: World, owner: Owner) -> Response:
    """A new style is that of the pictures to come."""
    project = await world.database.write(stories.change_project, project_id, owner, body.given())
    if isinstance(project, SafelightError):
        raise project
    return json_response(project_view(project))


@router.delete(
    "/{id}", operation_id="deleteProject", status_code=204, response_class=Response, summary="Delete a project"
)
async def delete(project_id: ItemId, world: World, owner: Owner, images: WithImages = "keep") -> Response:
    """With its chapters, scenes and characters. Jobs of theirs that have not ended are cancelled.

    Pictures are kept, in the list of your jobs, or deleted with their jobs, as `images` says.
    """
    return await answer.delete(world, stories.delete_project, project_id, owner, images)


@router.post(
    "/{id}/chapters",
    operation_id="createChapter",
    status_code=201,
    response_model=ChapterView,
    summary="Make a chapter",
    dependencies=RATED,
    responses=refusals(409, 429),
)
async def create_chapter(project_id: ItemId, body: ChapterRequest, world: World, owner: Owner) -> Response:
    """At the end of the project."""
    chapter = await world.database.write(stories.create_chapter, new_id(), owner, project_id, body.title, body.script)
    if isinstance(chapter, SafelightError):
        raise chapter
    return json_response(chapter_view(chapter), 201, {"Location": f"{API}/chapters/{chapter.id}"})


@router.get(
    "/{id}/chapters",
    operation_id="listChapters",
    response_model=ChapterList,
    summary="The chapters of a project, in their order",
)
async def list_chapters(
    project_id: ItemId, world: World, owner: Owner, cursor: NumberCursor = None, limit: Limit = 50
) -> Response:
    """A page of them."""
    after = read_number_cursor(cursor) or 0
    found = await world.database.read(stories.list_chapters, project_id, owner, after, limit + 1)
    if isinstance(found, SafelightError):
        raise found
    return await answer.page(found, limit, chapter_view, lambda chapter: chapter.position)


@router.post(
    "/{id}/characters",
    operation_id="createCharacter",
    status_code=201,
    response_model=CharacterView,
    summary="Make a character",
    dependencies=RATED,
    responses=refusals(409, 429),
)
async def create_character(project_id: ItemId, body: CharacterRequest, world: World, owner: Owner) -> Response:
    """A name, and how they look in the project's pictures."""
    character = await world.database.write(
        stories.create_character, new_id(), owner, project_id, body.name, body.description
    )
    if isinstance(character, SafelightError):
        raise character
    return json_response(character_view(character), 201, {"Location": f"{API}/characters/{character.id}"})


@router.get(
    "/{id}/characters",
    operation_id="listCharacters",
    response_model=CharacterList,
    summary="The characters of a project",
)
async def list_characters(
    project_id: ItemId, world: World, owner: Owner, cursor: IdCursor = None, limit: Limit = 50
) -> Response:
    """A page of them, in the order in which they were made."""
    found = await world.database.read(stories.list_characters, project_id, owner, read_id_cursor(cursor), limit + 1)
    if isinstance(found, SafelightError):
        raise found
    return await answer.page(found, limit, character_view, lambda character: character.id)
