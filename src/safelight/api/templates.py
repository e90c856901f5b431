"""Workflow templates over HTTP: what can be asked for by name, and with which inputs."""

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.responses import Response

from safelight.api.deps import Owner, json_response
from safelight.api.problems import PROBLEMS
from safelight.errors import SafelightError

router = APIRouter(prefix="/api/v1/templates", tags=["providers"], responses=PROBLEMS)


class TemplateNotFound(SafelightError):
    """There is no template of this name."""

    kind = "not_found"
    code = "template_not_found"


class TemplateView(BaseModel):
    """A workflow as data. `inputs` maps a name to its type, bounds, default and description."""

    name: str
    title: str
    description: str
    inputs: dict[str, dict[str, Any]]


class WholeTemplateView(TemplateView):
    """The template with its workflow, as `safelight templates check` takes it."""

    workflow: dict[str, Any] = Field(description="In ComfyUI's API format")


class TemplateList(BaseModel):
    items: list[TemplateView]


@router.get("", response_model=TemplateList, summary="List the templates")
async def list_templates(owner: Owner) -> Response:
    """What `template` of a submit may name, for the provider comfyui."""
    fields = TemplateView.model_fields
    return json_response({"items": [{name: found[name] for name in fields} for found in _templates().values()]})


@router.get("/{name}", response_model=WholeTemplateView, summary="Look at a template")
async def get_template(name: str, owner: Owner) -> Response:
    """With its workflow: a beginning for one of your own."""
    found = _templates().get(name)
    if found is None:
        raise TemplateNotFound(f"There is no template {name[:60]!r}; there are {', '.join(_templates())}.")
    return json_response(found)


def _templates() -> dict[str, dict[str, Any]]:
    from safelight.providers.comfyui import builtin_templates  # noqa: PLC0415 - most installations have no ComfyUI

    return {name: template.model_dump(exclude_none=True) for name, template in builtin_templates().items()}
