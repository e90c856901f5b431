"""The API process: uvicorn with our app."""

import uvicorn

from safelight import log
from safelight.api.app import create_app
from safelight.config import Settings

GRACE_SECONDS = 1  # for open event streams at shutdown: their clients reconnect and resume


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT."""
    log.configure(settings.log_level, settings.log_format)
    uvicorn.run(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # the entrance reads them
        timeout_graceful_shutdown=GRACE_SECONDS,
        backlog=4096,
    )
