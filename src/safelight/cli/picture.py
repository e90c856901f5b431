"""Where the results of a job go on this machine."""

import mimetypes
from pathlib import Path
from typing import Any

import click

from safelight_client import Client


def check_target(target: Path | None) -> None:
    """Refuse a place that cannot take a file, before anything is generated."""
    if target is None or target.is_dir():
        return
    if not target.parent.is_dir():
        raise click.UsageError(f"There is no folder {target.parent} to save {target.name} in.")


def save_artifacts(client: Client, job: dict[str, Any], target: Path | None) -> list[Path]:
    """Download everything a job made. Several get numbers: picture-1.png, picture-2.png."""
    artifacts: list[dict[str, Any]] = job.get("artifacts") or []
    saved: list[Path] = []
    for number, artifact in enumerate(artifacts, start=1):
        suffix = mimetypes.guess_extension(artifact.get("content_type") or "") or ""
        if container := (artifact.get("details") or {}).get("container"):  # mimetypes knows few sounds
            suffix = f".{container}"
        if target is None or target.is_dir():
            path = (target or Path()) / f"{job['id']}{suffix}"
        else:
            path = target if target.suffix else target.with_name(target.name + suffix)
        if len(artifacts) > 1:
            path = path.with_name(f"{path.stem}-{number}{path.suffix}")
        saved.append(client.download(artifact["url"], path))
    return saved
