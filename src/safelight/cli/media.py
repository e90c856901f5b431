"""`import`: what a URL leads to, from the link to the saved file."""

from pathlib import Path
from typing import Any

import click

from safelight.cli.generate import JobSession, watching
from safelight.cli.picture import check_target
from safelight.cli.stack import StackAccess


@click.command(name="import")
@click.argument("source", metavar="URL")
@click.option("--max-height", type=click.IntRange(1, 8192), help="Pixels: of several forms, the largest not higher.")
@click.option("--audio-only", is_flag=True, help="The sound alone.")
@watching
def import_(
    source: str,
    max_height: int | None,
    audio_only: bool,
    output: Path | None,
    timeout: float | None,
    data_dir: Path | None,
    url: str | None,
    api_key: str | None,
    as_json: bool,
) -> None:
    """Import the video, sound or picture at URL, watch it come, and save it.

    URL is that of a media file, or of a page that plays one. Everything else is as with `generate`.

    \b
    Examples:
      safelight import https://example.com/lighthouse.mp4 -o lighthouse.mp4
      safelight import "https://example.com/watch?v=7" --max-height 720 -o talk.mp4
    """
    check_target(output)

    def store(stack: StackAccess) -> dict[str, Any]:
        return stack.client.media.store(source, max_height=max_height, audio_only=audio_only or None)

    JobSession(output, timeout, data_dir, url, api_key, as_json).run(store)
