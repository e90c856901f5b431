"""The API process: uvicorn with our app."""

import contextlib
import sys
from typing import Any

import uvicorn

from safelight import log
from safelight.api.app import create_app
from safelight.api.connection import Bounds, HttpServer, bounded
from safelight.config import Settings

STARTUP_FAILURE = 3  # as uvicorn's own command ends
MAX_INT_DIGITS = 1000  # of a number in JSON; reading one takes time that grows with their square
GRACE_SECONDS = 1  # for open event streams at shutdown: their clients reconnect and resume


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT."""
    log.configure(settings.log_level, settings.log_format)
    server = server_of(settings)
    with contextlib.suppress(KeyboardInterrupt):
        server.run()
    if not server.started:
        sys.exit(STARTUP_FAILURE)


def server_of(settings: Settings, **options: Any) -> HttpServer:
    """The server of one process, not yet started; `options` are uvicorn's."""
    bounds = Bounds(
        connections=settings.max_connections,
        head_bytes=settings.max_head_bytes,
        head_seconds=settings.head_seconds,
        body_seconds=settings.body_seconds,
        body_bytes_per_second=settings.body_bytes_per_second,
    )
    sys.set_int_max_str_digits(MAX_INT_DIGITS)
    config = uvicorn.Config(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        http=bounded(bounds),
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # the entrance reads them
        reset_contextvars=True,  # what one request binds for its log lines is no other's
        timeout_graceful_shutdown=GRACE_SECONDS,
        timeout_keep_alive=settings.keep_alive_seconds,
        backlog=4096,
        **options,
    )
    return HttpServer(config)
