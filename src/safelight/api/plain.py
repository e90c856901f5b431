"""The two requests that are asked most, in their plain form, past FastAPI's own machinery.

A submit and a look without a query are answered here, before the documented routes, and call the same functions: half
of the time of such a request was spent on routing it and on resolving dependencies. Whatever is unusual about one (a
body that is no valid JSON object of the kind, another content type) is left to the documented route, so that there is
one behaviour.
"""

import re

from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from safelight.api import jobs
from safelight.api.body import parse, replay, work
from safelight.api.deps import asker_of, parse_id, world_of
from safelight.api.job_request import GenerationRequest
from safelight.api.job_view import PREFIX
from safelight.api.problems import problem_of
from safelight.errors import SafelightError

LOOK = re.compile(f"{PREFIX}/([^/]+)")


class Plain:
    """Answers what it takes, and gives the rest to the app."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer: Response | None = None
        if scope["type"] == "http" and not scope["query_string"]:
            path, method = scope["path"], scope["method"]
            request = Request(scope, receive)
            try:
                if method == "GET" and (asked := LOOK.fullmatch(path)):
                    answer = await _look(request, asked[1])
                elif method == "POST" and path == PREFIX:
                    body = await request.body()
                    answer = await _submit(request, body)
                    receive = replay(body, receive)
            except SafelightError as error:
                answer = problem_of(scope["state"]["request_id"], error)
        await (answer or self._app)(scope, receive, send)


async def _submit(request: Request, body: bytes) -> Response | None:
    headers = request.headers
    if headers.get("content-type") != "application/json":
        return None
    try:
        asked = await work(len(body), _read, body)
    except (ValidationError, ValueError, RecursionError):
        return None
    key, prefer = headers.get("idempotency-key"), headers.get("prefer")
    return await jobs.submit(asked, request, await world_of(request), await asker_of(request), key, prefer)


def _read(body: bytes) -> GenerationRequest:
    return GenerationRequest.model_validate(parse(body))


async def _look(request: Request, item: str) -> Response:
    job_id = parse_id(item)
    known = request.headers.get("if-none-match")
    return await jobs.get_job(job_id, request, await world_of(request), (await asker_of(request)).owner_id, None, known)
