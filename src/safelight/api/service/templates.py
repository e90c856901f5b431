"""Workflow templates over HTTP: what can be asked for by name, and the asker's own."""

import asyncio
from collections.abc import Mapping
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Body
from fastapi import Path as PathParameter
from pydantic import BaseModel, Field
from starlette.responses import Response

from safelight import template as own
from safelight.api.body import JsonRoute
from safelight.api.deps import Owner, World, json_response, list_response
from safelight.api.prefix import encode
from safelight.api.problems import refusals
from safelight.api.rate import RATED
from safelight.bootstrap import Safelight
from safelight.bounds import storable
from safelight.db import Tx
from safelight.errors import FieldError, Invalid, SafelightError, Unavailable
from safelight.template import StoredTemplate, TemplateNotFound

PREFIX = "/api/v1/templates"
MAX_TEMPLATE_BYTES = 256 * 1024

router = APIRouter(prefix=PREFIX, tags=["providers"], route_class=JsonRoute)


class TemplateShared(SafelightError):
    """This template is everybody's: it can neither be replaced nor deleted, nor its name be taken."""

    kind = "conflict"
    code = "template_shared"


class TemplatesBroken(Unavailable):
    """The templates of this installation cannot be read."""

    code = "templates_broken"


EXAMPLE: dict[str, Any] = {
    "name": "swatch",
    "title": "A colour swatch",
    "description": "One plain colour, for trying things out: it needs no model.",
    "workflow": {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 0}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "swatch"}},
    },
    "inputs": {
        "width": {"node": "1", "input": "width", "type": "integer", "minimum": 16, "maximum": 2048},
        "colour": {"node": "1", "input": "color", "type": "integer", "required": True, "description": "As one number"},
    },
}


class TemplateView(BaseModel):
    """A workflow as data. `inputs` maps a name to its type, bounds, default and description."""

    name: str = Field(examples=["swatch"])
    title: str = Field(examples=["A colour swatch"])
    description: str = Field(examples=["One plain colour"])
    inputs: dict[str, dict[str, Any]]
    source: Literal["built_in", "installation", "own"] = Field(description="Whose it is; only your own can be changed")
    created_at: datetime | None = Field(description="Of your own")
    updated_at: datetime | None = Field(description="Of your own")


class WholeTemplateView(TemplateView):
    """The template with its workflow."""

    workflow: dict[str, Any] = Field(description="In ComfyUI's API format")


class TemplateList(BaseModel):
    items: list[TemplateView]


Name = Annotated[str, PathParameter(description="As in the field `template` of a job", max_length=80)]
TOLD = (
    "The template as `safelight templates check` takes it: `name`, `title`, `workflow` (ComfyUI's `Export (API)`), and "
    "perhaps `description` and `inputs`. At most 256 KiB."
)


def _tell(schema: dict[str, Any]) -> None:
    """What a template is made of, in the document."""
    from safelight.providers.comfyui import Template  # noqa: PLC0415 - many have no ComfyUI

    found = Template.model_json_schema()
    found["properties"]["inputs"]["additionalProperties"] = found.pop("$defs")["TemplateInput"]
    schema |= {name: found[name] for name in ("properties", "required", "additionalProperties")}


def _tell_of_named(schema: dict[str, Any]) -> None:
    """The same where the path says the name."""
    _tell(schema)
    schema["required"].remove("name")


Definition = Annotated[dict[str, Any], Body(description=TOLD, examples=[EXAMPLE], json_schema_extra=_tell)]
Named = Annotated[dict[str, Any], Body(description=TOLD, examples=[EXAMPLE], json_schema_extra=_tell_of_named)]


@router.get("", operation_id="listTemplates", response_model=TemplateList, summary="List the templates")
async def list_templates(world: World, owner: Owner) -> Response:
    """What `template` of a submit may name, for the provider comfyui: everybody's, then your own."""
    mine = await world.database.read(_listed, owner)
    shared = await asyncio.to_thread(_shared, world)
    return await list_response([*map(_brief, shared.values()), *mine])


@router.get("/{name}", operation_id="getTemplate", response_model=WholeTemplateView, summary="Look at a template")
async def get_template(name: Name, world: World, owner: Owner) -> Response:
    """With its workflow: a beginning for one of your own."""
    mine = await template_of(world, owner, name)
    shared = await asyncio.to_thread(_shared, world)
    view = shared.get(name) if mine is None else _own_view(mine)
    if view is None:
        raise TemplateNotFound(f"There is no template {name!r}; there are {', '.join(shared)} and your own.")
    return json_response(view)


@router.post(
    "",
    operation_id="addTemplate",
    status_code=201,
    response_model=WholeTemplateView,
    summary="Add a template of your own",
    dependencies=RATED,
    responses=refusals(409, 429),
)
async def add_template(definition: Definition, world: World, owner: Owner) -> Response:
    """Checked completely; the errors name each wrong part. A name you have already is refused: replace it by `PUT`.

    Whether the servers have its nodes and models is checked when a job names it.
    """
    checked = await asyncio.to_thread(_checked, world, definition)
    outcome = await world.database.write(own.add, owner, checked["name"], checked)
    if not isinstance(outcome, StoredTemplate):
        raise outcome
    return json_response(_own_view(outcome), 201, {"Location": f"{PREFIX}/{outcome.name}"})


@router.put(
    "/{name}",
    operation_id="putTemplate",
    response_model=WholeTemplateView,
    dependencies=RATED,
    responses={**refusals(409, 429), 201: {"model": WholeTemplateView, "description": "It is new"}},
    summary="Replace a template of your own, or add it",
)
async def put_template(name: Name, definition: Named, world: World, owner: Owner) -> Response:
    """Jobs that were accepted keep the template as it was."""
    checked = await asyncio.to_thread(_checked, world, {"name": name} | definition)
    if checked["name"] != name:
        raise Invalid(
            "name: It differs from the name in the path.",
            errors=[FieldError("#/name", f"The path says {name}; give the same name, or leave it out.")],
        )
    outcome = await world.database.write(own.put, owner, name, checked)
    if isinstance(outcome, SafelightError):
        raise outcome
    stored, is_new = outcome
    return json_response(_own_view(stored), 201 if is_new else 200)


@router.delete(
    "/{name}",
    operation_id="deleteTemplate",
    status_code=204,
    response_class=Response,
    summary="Delete a template of your own",
    responses=refusals(409),
)
async def delete_template(name: Name, world: World, owner: Owner) -> Response:
    """Jobs that were accepted keep it."""
    if "\0" in name or not await world.database.write(own.remove, owner, name):
        if name in _shared(world):
            raise TemplateShared
        raise TemplateNotFound(f"You have no template {name!r}.")
    return Response(status_code=204)


async def template_of(world: Safelight, owner: str, name: str | None) -> StoredTemplate | None:
    """The owner's own template of this name, if there is one."""
    if name is None or "\0" in name:  # which PostgreSQL cannot compare with
        return None
    return await world.database.read(own.get, owner, name)


def _checked(world: Safelight, definition: Mapping[str, Any]) -> dict[str, Any]:
    """A definition that can be stored. Raises `Invalid` with all that is wrong, and `TemplateShared`."""
    from safelight.providers.comfyui import InvalidTemplate, check_template  # noqa: PLC0415 - as below

    try:
        storable({key: value for key, value in definition.items() if key != "name"}, MAX_TEMPLATE_BYTES)
    except ValueError as error:
        raise Invalid(f"The template {error}.", errors=[FieldError("#", f"The template {error}.")]) from None
    try:
        checked = check_template(definition)
    except InvalidTemplate as error:
        errors = [FieldError(_pointer(each.field), each.message) for each in error.problems]
        raise Invalid(str(error)[:1000], errors=errors) from None
    if checked.name in _shared(world):
        raise TemplateShared(f"The name {checked.name} belongs to a template that everybody has; choose another.")
    return checked.as_json()


def _pointer(field: str) -> str:
    """A JSON pointer, of a dotted path."""
    parts = field.split(".") if field else []
    return "/".join(["#", *(part.replace("~", "~0").replace("/", "~1") for part in parts)])


def _own_view(stored: StoredTemplate) -> dict[str, Any]:
    """The fields of `WholeTemplateView`."""
    dates = {"created_at": stored.created_at, "updated_at": stored.updated_at}
    return stored.definition | {"source": "own"} | dates


def _brief(view: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `TemplateView`, of those of the whole."""
    return {name: view[name] for name in TemplateView.model_fields}


def _listed(tx: Tx, owner: str) -> list[orjson.Fragment]:
    """The owner's own as a list tells of them, encoded where they are read: they are large."""
    return [orjson.Fragment(encode(_brief(_own_view(stored)))) for stored in own.list_all(tx, owner)]


def _shared(world: Safelight) -> dict[str, dict[str, Any]]:
    """The same for the templates that everybody may name."""
    try:
        return _read_shared(world.settings.comfyui_templates)
    except ValueError as error:
        raise TemplatesBroken(str(error)) from None


@cache
def _read_shared(folder: Path | None) -> dict[str, dict[str, Any]]:
    from safelight.providers.comfyui import builtin_templates, shared_templates  # noqa: PLC0415 - many have no ComfyUI

    built_in = builtin_templates()
    return {
        name: template.as_json()
        | {"source": "built_in" if template == built_in.get(name) else "installation"}
        | {"created_at": None, "updated_at": None}
        for name, template in shared_templates(folder).items()
    }
