"""The HTTP application: routers, problems, and the one middleware every request passes."""

import asyncio
import contextlib
import gc
import re
import time
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import structlog
from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bound_contextvars

from safelight.api import document, events, jobs, plain, problems
from safelight.api.accounts import keys, session
from safelight.api.authentication import Authentication
from safelight.api.batches import events as batch_events
from safelight.api.batches import router as batches
from safelight.api.job_view import Estimator
from safelight.api.media import artifacts, files, imports
from safelight.api.problems import problem
from safelight.api.service import health, providers, templates, webhooks
from safelight.api.service.providers import Survey
from safelight.api.stories import chapters, characters, projects, scenes
from safelight.bootstrap import Safelight, open_safelight
from safelight.config import Settings
from safelight.db import new_id
from safelight.jobs import missed

VERSION = "0.1.0"
LOCAL_HOSTS = frozenset({"127.0.0.1", "localhost", "[::1]"})
JOB_PATH = re.compile(r"/api/v1/generation-jobs/([0-9a-f-]{36})(?:/|$)")
DESCRIPTION = """Submit a picture, watch it develop, keep it. Every accepted job ends exactly once.

Errors are problem details (RFC 9457) with a stable `code`. Times are RFC 3339 in UTC, durations seconds."""

log = structlog.get_logger()


def create_app(settings: Settings) -> FastAPI:
    """The application for one process; it opens the world when the server starts it."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        async with open_safelight(settings) as safelight:
            app.state.safelight = safelight
            app.state.estimator = Estimator(safelight.database, safelight.dispatcher)
            app.state.probes = imports.Probes()
            app.state.survey = Survey(safelight.providers, safelight.database)
            background = [
                asyncio.create_task(safelight.dispatcher.run(), name="dispatch"),
                asyncio.create_task(app.state.survey.watch(), name="warnings"),
                asyncio.create_task(
                    safelight.stream.run(lambda versions: _missed(safelight, versions)), name="watchers"
                ),
            ]
            # A full collection of this heap would stop the loop for 40 ms.
            gc.collect()
            gc.freeze()
            gc.set_threshold(20_000, 20, 50)
            yield
            for task in background:
                task.cancel()
            await asyncio.wait(background)
            await safelight.dispatcher.release_lease()

    app = FastAPI(
        title="Safelight",
        version=VERSION,
        description=DESCRIPTION,
        lifespan=lifespan,
        redirect_slashes=False,
        openapi_url="/api/v1/openapi.json",
        docs_url="/api/v1/docs",
        redoc_url=None,
    )
    problems.install(app)
    document.install(app)
    for module in (
        jobs,
        events,
        batches,
        batch_events,
        artifacts,
        files,
        projects,
        chapters,
        scenes,
        characters,
        session,
        keys,
        providers,
        templates,
        imports,
        webhooks,
        health,
    ):
        app.include_router(module.router)
    plain.install(app)
    app.add_middleware(Authentication, has_accounts=settings.has_accounts)
    hosts = LOCAL_HOSTS | {settings.host} | {host.lower() for host in settings.allowed_hosts}
    larger: dict[str, int] = dict.fromkeys((batches.PREFIX, f"{batches.PREFIX}/"), settings.max_batch_bytes)
    app.add_middleware(Entrance, max_body_bytes=settings.max_body_bytes, larger=larger, hosts=hosts)
    return app


async def _missed(safelight: Safelight, versions: Any) -> Any:
    return await safelight.database.read(missed, versions)


class Entrance:
    """Gives every request an id and a log line, and turns away foreign hosts and bodies that are too large.

    Without accounts the loopback interface is the only lock, so a page elsewhere must not reach us under a name of its
    own (DNS rebinding): the Host header has to be one of ours. `*` among the hosts, which accounts allow, is any.
    """

    def __init__(self, app: ASGIApp, *, max_body_bytes: int, larger: Mapping[str, int], hosts: frozenset[str]) -> None:
        """`larger`: the paths that take more than `max_body_bytes`, and how much."""
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._larger = larger
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers: dict[bytes, bytes] = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        request_id = given if re.fullmatch(r"[\w.:-]{1,128}", given) else new_id()
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        state["server_send"] = send  # for streams of many small parts
        began = time.monotonic()
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        about = JOB_PATH.match(scope["path"])
        job_ids = {} if about is None else {"job_id": about[1], "task_id": about[1]}
        with bound_contextvars(request_id=request_id, **job_ids):
            takes_files = artifacts.takes_file(scope["path"])  # and reads its body itself
            most = self._larger.get(scope["path"], self._max_body_bytes)
            refused = self._refuse(headers, request_id, None if takes_files else most)
            body: bytes | None = None
            if refused is None and not takes_files:
                body = await self._read(receive, most) if scope["method"] in ("POST", "PUT", "PATCH") else None
                if body is TOO_LARGE:
                    refused = self._too_large(request_id, most)
            if refused is not None:
                await refused(scope, receive, answer)
            else:
                try:
                    await self._app(scope, receive if body is None else plain.replay(body, receive), answer)
                except Exception:
                    log.exception("request.broken")
                    if status:
                        raise
                    await problem(request_id, 500, "internal_error", "Something went wrong inside Safelight.")(
                        scope, receive, answer
                    )
            log.debug(
                "request.answered",
                method=scope["method"],
                path=re.sub(r"(/files/|/webhooks/\w+/).+", r"\1***", scope["path"]),  # a link is a key
                status=status,
                milliseconds=round((time.monotonic() - began) * 1000, 1),
            )

    def _refuse(self, headers: dict[bytes, bytes], request_id: str, most_bytes: int | None) -> ASGIApp | None:
        host = re.sub(r":\d*$", "", headers.get(b"host", b"").decode("latin-1")).lower()
        if host not in self._hosts and "*" not in self._hosts:
            detail = f"This service does not answer for the host {host[:100]!r}; its names are SAFELIGHT_ALLOWED_HOSTS."
            return problem(request_id, 421, "wrong_host", detail)
        length = headers.get(b"content-length", b"0")
        if most_bytes is not None and length.isdigit() and int(length) > most_bytes:
            return self._too_large(request_id, most_bytes)
        return None

    def _too_large(self, request_id: str, most_bytes: int) -> ASGIApp:
        detail = f"The body may have at most {most_bytes} bytes."
        return problem(request_id, 413, "body_too_large", detail, headers={"Connection": "close"})

    async def _read(self, receive: Receive, most_bytes: int) -> "bytes | None":
        parts: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return b""
            part: bytes = message.get("body", b"")
            size += len(part)
            if size > most_bytes:
                return TOO_LARGE
            parts.append(part)
            if not message.get("more_body", False):
                return b"".join(parts)


TOO_LARGE = b"\0too large"
