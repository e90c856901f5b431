"""The two requests that are asked most, in their plain form, past FastAPI's own machinery.

A submit and a look without a query are routed here before the documented routes and call the same functions: half of
the time of such a request was spent on resolving dependencies. Whatever is unusual about one (a body that is no valid
JSON object of the kind, another content type) is left to the documented route, so that there is one behaviour.
"""

import json
from collections.abc import Awaitable, Callable

from fastapi import FastAPI
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from safelight.api import jobs
from safelight.api.body import replay, work
from safelight.api.deps import asker_of, parse_id, world_of
from safelight.api.job_request import GenerationRequest
from safelight.api.job_view import PREFIX

Endpoint = Callable[[Request], Awaitable[Response | ASGIApp]]


def install(app: FastAPI) -> None:
    """Put the plain routes first."""
    app.router.routes[:0] = [_PlainRoute(PREFIX, "POST", _submit), _PlainRoute(PREFIX + "/{id}", "GET", _look)]


class _PlainRoute(Route):
    """Takes a request of exactly this method and path, without a query and not seen to be unusual."""

    def __init__(self, path: str, method: str, endpoint: Endpoint) -> None:
        super().__init__(path, endpoint, methods=[method], include_in_schema=False)
        self._method = method

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if scope["type"] != "http" or scope["method"] != self._method or scope["query_string"]:
            return Match.NONE, {}
        if scope["state"].get("is_unusual"):
            return Match.NONE, {}
        return super().matches(scope)


async def _submit(request: Request) -> Response | ASGIApp:
    body = await request.body()
    if request.headers.get("content-type") != "application/json":
        return _Documented(body)
    try:
        asked = await work(len(body), _read, body)
    except (ValidationError, ValueError, RecursionError):
        return _Documented(body)
    headers = request.headers
    key, prefer = headers.get("idempotency-key"), headers.get("prefer")
    return await jobs.submit(asked, request, await world_of(request), await asker_of(request), key, prefer)


def _read(body: bytes) -> GenerationRequest:
    return GenerationRequest.model_validate(json.loads(body))


async def _look(request: Request) -> Response:
    job_id = parse_id(request.path_params["id"])
    known = request.headers.get("if-none-match")
    return await jobs.get_job(job_id, request, await world_of(request), (await asker_of(request)).owner_id, None, known)


class _Documented:
    """The answer of the documented route to a request whose body was read already."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"]["is_unusual"] = True
        await scope["app"].router(scope, replay(self._body, receive), send)
