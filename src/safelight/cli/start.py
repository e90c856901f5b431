"""What is looked at before a process begins: libvips, and the folder, database and queue that its settings name.

What cannot work is refused in one sentence that says what to write instead; what is only away is waited for.
"""

import contextlib
import gc
import sys
from collections.abc import Generator
from typing import TYPE_CHECKING, Any, cast

from safelight.cli.failure import Exit, Failure

if TYPE_CHECKING:
    from safelight.config import Settings


@contextlib.contextmanager
def refusing() -> Generator[None]:
    """End the command with one sentence where a setting names what cannot be used."""
    from safelight.errors import Invalid, SafelightError

    try:
        yield
    except Invalid as error:
        raise Failure(error.detail, Exit.USAGE) from None
    except SafelightError as error:
        raise Failure(error.detail) from None


@contextlib.contextmanager
def quick_imports() -> Generator[None]:
    """For the imports of a server, a third quicker: nothing is collected between them, and structlog and httpx do
    without rich, which they would load for terminals of their own."""
    modules = cast(dict[str, Any], sys.modules)
    gc.disable()
    modules.setdefault("rich", None)
    try:
        yield
    finally:
        if modules["rich"] is None:
            del modules["rich"]
        gc.enable()


def refuse_unusable(settings: "Settings") -> None:
    """For the API or a worker alone: end with what to do about libvips, its folder, database or queue."""
    import asyncio

    from safelight.bootstrap import require_database, require_folder
    from safelight.errors import Unavailable
    from safelight.pictures import libvips
    from safelight.valkey import require_redis

    with refusing():
        libvips()
        asyncio.run(require_database(settings))
        refuse_without_queue(settings)
        require_folder(settings)
        with contextlib.suppress(Unavailable):  # it is waited for, and the log says so
            asyncio.run(require_redis(settings.redis_url.get_secret_value(), database=settings.redis_database))


def refuse_without_queue(settings: "Settings") -> None:
    """End the command if no setting names a queue."""
    if not settings.redis_url.get_secret_value():
        raise Failure(
            "SAFELIGHT_REDIS_URL is not set. `safelight up` starts a queue of its own; the API or a worker alone "
            "needs to be told of one, as in redis://127.0.0.1:6379.",
            Exit.USAGE,
        )
