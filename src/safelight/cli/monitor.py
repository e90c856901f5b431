"""Celery's own commands, over the queue of the stack that runs here or of the one in the environment."""

import json
from pathlib import Path

import click
from pydantic import SecretStr

from safelight.cli.settings import load_settings
from safelight.cli.start import refuse_without_queue


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("arguments", nargs=-1, required=True, type=click.UNPROCESSED)
def celery(arguments: tuple[str, ...]) -> None:
    """Ask the workers in Celery's own words, over the queue of the stack that runs here or SAFELIGHT_REDIS_URL.

    It shows and controls; workers are started by `safelight up` and `safelight worker`.

    \b
    Examples:
      safelight celery inspect active
      safelight celery control enable_events
      safelight celery events --dump
    """
    from safelight.worker import tasks

    settings = load_settings()
    if not settings.redis_url.get_secret_value():
        settings = settings.model_copy(update={"redis_url": SecretStr(queue_of_stack(settings.data_dir))})
    refuse_without_queue(settings)
    tasks.configure(settings)
    tasks.app.start(list(arguments))


def queue_of_stack(data_dir: Path) -> str:
    """The queue that a running `safelight up` started for itself; empty if there is none."""
    try:
        return str(json.loads((data_dir / "stack.json").read_text())["redis_url"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
