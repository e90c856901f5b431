"""Whether the service lives, and whether each part it needs does."""

import asyncio
import time
from collections.abc import Awaitable
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from safelight.accounts import Identity
from safelight.api.deps import World, json_response
from safelight.bootstrap import Safelight
from safelight.errors import SafelightError
from safelight.jobs import QueueLoad, read_queues
from safelight.queue import IMAGE_GENERATION, ISOLATED

CHECK_SECONDS = 3.0
State = Literal["ok", "degraded", "unavailable"]

router = APIRouter(tags=["health"])


class PartView(BaseModel):
    state: State
    latency_ms: float | None = None
    detail: str | None = None


class QueueView(BaseModel):
    state: State
    workers: int
    slots: int
    running: int
    waiting: int


class BriefView(BaseModel):
    """What those are told who do not say who they are."""

    status: State


class ReadyView(BaseModel):
    """`unavailable`: jobs cannot be accepted. `degraded`: they are accepted, but something makes them wait."""

    status: State
    parts: dict[str, PartView]
    queues: dict[str, QueueView] = Field(description="Workers heard from, per queue")


@router.get("/health/live", operation_id="getLiveness", response_model=BriefView, summary="This process lives")
@router.get("/api/v1/health/live", include_in_schema=False)
async def live() -> Response:
    """Answers as long as the process does."""
    return json_response({"status": "ok"})


@router.get(
    "/health/ready",
    operation_id="getReadiness",
    response_model=ReadyView | BriefView,
    responses={503: {"model": ReadyView | BriefView}},
    summary="Each dependency, and the workers of each queue",
)
@router.get("/api/v1/health/ready", include_in_schema=False)
async def ready(request: Request, world: World) -> Response:
    """503 only when jobs cannot be accepted: without the database. Where there are accounts, whoever does not say who
    they are is told the status alone."""
    identity: Identity | None = request.state.identity
    database, redis, storage = await asyncio.gather(
        _check(world.database.read(read_queues, 3 * world.settings.beat_seconds)),
        _check(_ping(world)),
        _check(world.storage.probe()),
    )
    if database[0]["state"] == "ok" and (why := await world.database.hindrance()):
        database[0].update(state="degraded", detail=why)
    loads: dict[str, QueueLoad] = database[1] if isinstance(database[1], dict) else {}
    queues = {
        name: {
            "state": "ok" if load.workers else "degraded",
            "workers": load.workers,
            "slots": load.slots,
            "running": load.running,
            "waiting": load.waiting + load.released,
        }
        for name in sorted({IMAGE_GENERATION, ISOLATED} | loads.keys())
        for load in (loads.get(name, QueueLoad()),)
    }
    parts = {"database": database[0], "redis": redis[0], "storage": storage[0]}
    if parts["database"]["state"] == "unavailable":
        status, code = "unavailable", 503
    else:
        well = all(part["state"] == "ok" for part in [*parts.values(), *queues.values()])
        status, code = ("ok" if well else "degraded"), 200
    headers = {"Cache-Control": "no-store"} | ({"Retry-After": "2"} if code == 503 else {})
    if identity is None:
        return json_response({"status": status}, code, headers)
    return json_response({"status": status, "parts": parts, "queues": queues}, code, headers)


async def _ping(world: Safelight) -> None:
    await world.valkey.send("PING")


async def _check(part: Awaitable[Any]) -> tuple[dict[str, Any], Any]:
    began = time.monotonic()
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            result = await part
    except TimeoutError:
        return {"state": "unavailable", "latency_ms": None, "detail": f"no answer within {CHECK_SECONDS:g} s"}, None
    except SafelightError as error:
        return {"state": "unavailable", "latency_ms": None, "detail": error.detail}, None
    return {"state": "ok", "latency_ms": round((time.monotonic() - began) * 1000, 2), "detail": None}, result
