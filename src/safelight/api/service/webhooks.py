"""Inbound webhooks: somebody says that a provider has news. They only wake up: the truth is read from the provider.

The secret stands in the address (`SAFELIGHT_WEBHOOK_SECRET`); without one set, or with another, there is nothing here.
"""

import secrets
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request
from pydantic import BaseModel
from starlette.responses import Response

from safelight.api.deps import World, parse_id
from safelight.errors import SafelightError
from safelight.jobs import jobs_at_provider


class WebhookUnknown(SafelightError):
    """There is no such webhook."""

    kind = "not_found"
    code = "webhook_not_found"


async def _knows_the_secret(world: World, secret: Annotated[str, Path()]) -> None:
    expected = world.settings.webhook_secret.get_secret_value()
    if not expected or not secrets.compare_digest(secret.encode(), expected.encode()):
        raise WebhookUnknown


router = APIRouter(prefix="/webhooks", tags=["webhooks"], dependencies=[Depends(_knows_the_secret)])


class PromptEnded(BaseModel):
    """What the node for ComfyUI sends."""

    prompt_id: str


@router.post(
    "/comfyui/{secret}",
    operation_id="reportComfyuiPrompt",
    status_code=204,
    response_class=Response,
    summary="A ComfyUI prompt has ended",
)
async def comfyui(body: PromptEnded, world: World) -> Response:
    """Sent by the custom node in `integrations/`. Unknown prompts are no error: others may use the server, too."""
    from safelight.providers.comfyui import ComfyUI  # noqa: PLC0415 - most installations have none

    provider = None if world.settings.mock_mode else world.providers.resolve("comfyui")[1]
    if isinstance(provider, ComfyUI):
        remote_ids = provider.remote_ids(parse_id(body.prompt_id))
        for job_id in await world.database.read(jobs_at_provider, "comfyui", remote_ids):
            world.stream.nudge(job_id)
    return Response(status_code=204)


@router.post(
    "/modelslab/{secret}",
    operation_id="reportModelslabGeneration",
    status_code=204,
    response_class=Response,
    summary="A ModelsLab generation has ended",
)
async def modelslab(request: Request, world: World) -> Response:
    """Not signed, and perhaps sent twice: the worker that follows the job looks at once."""
    from safelight.providers.modelslab import job_of_webhook  # noqa: PLC0415

    job_id = job_of_webhook(await request.body())
    if job_id is not None:
        world.stream.nudge(parse_id(job_id))
    return Response(status_code=204)
