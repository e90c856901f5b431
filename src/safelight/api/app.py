"""The HTTP application: its routers, and what stands before them."""

import asyncio
import contextlib
import gc
from collections.abc import AsyncGenerator
from functools import partial

from fastapi import Depends, FastAPI

from safelight.api import document, events, jobs, problems
from safelight.api.accounts import keys, session
from safelight.api.authentication import Authentication
from safelight.api.batches import events as batch_events
from safelight.api.batches import router as batches
from safelight.api.body import Bodies
from safelight.api.entrance import Entrance
from safelight.api.job_view import Estimator
from safelight.api.media import artifacts, files, imports
from safelight.api.origin import Origins
from safelight.api.plain import Plain
from safelight.api.proxy import Proxies
from safelight.api.query import known_query
from safelight.api.service import docs, front, health, providers, templates, webhooks
from safelight.api.service.providers import Survey
from safelight.api.stories import chapters, characters, projects, scenes
from safelight.bootstrap import open_safelight
from safelight.config import Settings
from safelight.jobs import reread
from safelight.providers.base import InvalidParameters
from safelight.providers.registry import Registry

VERSION = "0.1.0"
LOCAL_HOSTS = frozenset({"127.0.0.1", "localhost", "[::1]"})
DESCRIPTION = """Submit a picture, watch it develop, keep it. Every accepted job ends exactly once.

Errors are problem details (RFC 9457) with a stable `code`. Times are RFC 3339 in UTC, durations seconds."""


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
                asyncio.create_task(safelight.stream.run(partial(safelight.database.read, reread)), name="watchers"),
            ]
            _make_providers(safelight.providers)
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
        dependencies=[Depends(known_query)],
        openapi_url=None,  # `service.docs` serves the document and its page
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
        docs,
        front,
    ):
        app.include_router(module.router)
    _make_routes(app)
    app.add_middleware(Plain)
    app.add_middleware(Authentication, has_accounts=settings.has_accounts)
    bodies = Bodies(max_held_bytes=settings.max_held_bytes, max_values=settings.max_body_values)
    app.add_middleware(
        Entrance,
        hosts=LOCAL_HOSTS | {settings.host} | {host.lower() for host in settings.allowed_hosts},
        proxies=Proxies(settings.trusted_proxies, settings.root_path),
        origins=Origins(settings.cors_origins),
        max_body_bytes=settings.max_body_bytes,
        bodies=bodies,
        larger={batches.PREFIX: settings.max_batch_bytes},
    )
    return app


def _make_providers(providers: Registry) -> None:
    """Import and make all of them now: the first request of each would do so, and hold up the loop."""
    for name in providers.names():
        with contextlib.suppress(InvalidParameters):  # told where it is asked for
            providers.resolve(name)


def _make_routes(app: FastAPI) -> None:
    """Have FastAPI make all routes now: it would do so at the first request of each router, and hold up the loop."""
    scope = {"type": "http", "method": "GET", "path": "/", "root_path": "", "query_string": b"none", "headers": []}
    for route in app.routes:
        route.matches(scope)
