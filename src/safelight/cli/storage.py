"""`safelight storage`: prove that the place for files works, and carry files from one place to another."""

import asyncio
import os
import sys
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from safelight.cli.failure import Exit, Failure
from safelight.cli.main import program
from safelight.cli.service import type_of_data_dir
from safelight.cli.settings import load_settings
from safelight.errors import Invalid, SafelightError, Unavailable

if TYPE_CHECKING:
    from safelight.config import Settings
    from safelight.storage import Storage
    from safelight.storage.transfer import Known, Moved

SHOWN_PROBLEMS = 20
LINE_SECONDS = 5.0
FORMS = """\b
Places:
  file:///a/folder
  s3://bucket/prefix?region=eu-central-1
  s3://bucket/prefix?endpoint=https://ACCOUNT.r2.cloudflarestorage.com
  gs://bucket/prefix
  az://container/prefix?account=NAME

Keys are never part of it: SAFELIGHT_STORAGE_ACCESS_KEY and
SAFELIGHT_STORAGE_SECRET_KEY, or the store's own variables."""


@click.group()
def storage() -> None:
    """The place where pictures are kept: prove that it works, or move to another."""


@storage.command(epilog=FORMS)
@click.argument("place", required=False)
@type_of_data_dir
def check(place: str | None, data_dir: Path | None) -> None:
    """Prove that pictures can be put, read, listed, linked to and deleted where SAFELIGHT_STORAGE_URL (or PLACE) says.

    A small file of its own is written below health/ and deleted again.

    \b
    Example:
      SAFELIGHT_STORAGE_URL='s3://pictures?region=eu-central-1' safelight storage check
    """
    settings = load_settings(data_dir=data_dir, storage_url=place)
    opened = _open(settings, settings.storage_url)
    click.echo(f"Storage: {opened.place}", err=True)
    if not asyncio.run(_check(settings, opened)):
        raise Failure("The storage cannot be used as it is.")
    click.echo("The storage does all that Safelight needs.", err=True)


async def _check(settings: "Settings", opened: "Storage") -> bool:
    from safelight.artifacts import StoredFile
    from safelight.bootstrap import open_links
    from safelight.storage.proof import ProofFailed, prove

    links = open_links(settings, opened)

    async def own_link(key: str, size_bytes: int) -> str:
        file = StoredFile(key, "image/png", "check.png", size_bytes, '"check"')
        link = await links.make(file, 60)
        if links.read(link.url.rpartition("/")[2])[0] != file:
            raise ProofFailed("A link was not read as it was signed.")
        return "links to these files are signed and served by the API itself"

    is_ok = True
    async for step in prove(opened, own_link):
        took = f"{step.milliseconds:8.1f} ms"
        if step.is_ok:
            click.echo(f"{step.name:<7}{took}  ok" + (f"      {step.note}" if step.note else ""))
        else:
            is_ok = False
            click.echo(f"{step.name:<7}{took}  failed  {step.reason}\n{'':<26}{step.advice}")
    return is_ok


@storage.command(epilog=FORMS)
@click.argument("source", metavar="FROM")
@click.argument("target", metavar="TO")
@click.option("--verify", is_flag=True, help="Read what is there already, too, and compare it.")
@type_of_data_dir
def migrate(source: str, target: str, verify: bool, data_dir: Path | None) -> None:
    """Copy every picture from one place to another. FROM or TO may be `current`: where SAFELIGHT_STORAGE_URL says.

    Run it as often as you like: it goes on where it stopped, and copies only what is missing. Sizes are compared, and
    SHA-256 hashes where the database knows them. Nothing is deleted, and the database is not changed: files keep their
    keys. If FROM needs other keys than TO, set SAFELIGHT_STORAGE_FROM_ACCESS_KEY and SAFELIGHT_STORAGE_FROM_SECRET_KEY.

    \b
    Example:
      safelight storage migrate current 's3://pictures?endpoint=https://ACCOUNT.r2.cloudflarestorage.com'
    """
    settings = load_settings(data_dir=data_dir)
    source, target = (settings.storage_url if place == "current" else place for place in (source, target))
    own_keys = (os.environ.get(f"SAFELIGHT_STORAGE_FROM_{name}_KEY") for name in ("ACCESS", "SECRET"))
    origin = _open(settings, source, *own_keys)
    goal = _open(settings, target)
    if origin.place == goal.place:
        raise click.UsageError("FROM and TO are the same place.")
    click.echo(f"From {origin.place}\nto   {goal.place}", err=True)
    counts = FileCounts()
    try:
        asyncio.run(_migrate(settings, origin, goal, verify, counts))
    except KeyboardInterrupt:
        click.echo(f"Interrupted. {counts}\nRun the same command again: it goes on where it stopped.", err=True)
        raise click.exceptions.Exit(Exit.CANCELLED) from None
    except SafelightError as error:
        raise Failure(f"{error.detail}\n{counts}\nRun the same command again: it goes on where it stopped.") from None
    click.echo(str(counts), err=True)
    if counts.files == 0:
        click.echo(f"There is nothing at {origin.place}. Is it the right place?", err=True)
        return
    if counts.failed:
        raise Failure("Some files could not be copied. They are named above; all others are there.")
    click.echo(
        "Everything is there. Files keep their keys, so nothing in the database has to change.\n"
        "If Safelight is running, stop it and run this once more; it takes only what is new. Then set\n"
        f"  SAFELIGHT_STORAGE_URL='{target}'\n"
        f"and its keys, prove it with `{program()} storage check`, and start Safelight again. The old place is as it "
        "was.",
        err=True,
    )


class FileCounts:
    """What became of the files so far."""

    def __init__(self) -> None:
        self.copied = self.there = self.failed = self.foreign = self.size_bytes = 0

    def add(self, moved: "Moved") -> None:
        """Count one."""
        match moved.outcome:
            case "copied":
                self.copied += 1
                self.size_bytes += moved.size_bytes
            case "there":
                self.there += 1
            case "failed":
                self.failed += 1
            case "foreign":
                self.foreign += 1

    @property
    def files(self) -> int:
        """All of them."""
        return self.copied + self.there + self.failed + self.foreign

    def __str__(self) -> str:
        parts = [f"{self.copied} copied ({self.size_bytes / 1e6:.1f} MB)", f"{self.there} were there"]
        if self.foreign:
            parts.append(f"{self.foreign} not of Safelight left alone")
        if self.failed:
            parts.append(f"{self.failed} failed")
        return "Files: " + ", ".join(parts) + "."


async def _migrate(
    settings: "Settings", source: "Storage", target: "Storage", verify: bool, counts: FileCounts
) -> None:
    from safelight.db import Database
    from safelight.storage.transfer import total, transfer

    await target.probe()
    files, _ = await total(source)
    database = Database(settings.database_url, readers=1)
    try:
        with _FileProgress(files) as progress:
            records = _Records(database, progress)
            async for moved in transfer(source, target, records=records, verify=verify):
                counts.add(moved)
                progress.show(counts)
                if moved.outcome == "failed" and counts.failed <= SHOWN_PROBLEMS:
                    progress.say(f"failed: {moved.reason}")
    finally:
        database.close()


class _Records:
    """What the database knows of files. Without a database, files are copied all the same."""

    def __init__(self, database: Any, progress: "_FileProgress") -> None:
        self._database = database
        self._progress = progress
        self._is_told = False

    async def __call__(self, keys: list[str]) -> "Mapping[str, Known]":
        from safelight.artifacts import known_files
        from safelight.storage.transfer import Known, owners_of

        jobs, uploads = (sorted(filter(_is_id, ids)) for ids in owners_of(keys))
        try:
            found = await self._database.read(known_files, jobs, uploads)
        except Unavailable as error:
            if not self._is_told:
                self._is_told = True
                self._progress.say(f"Hashes are not compared: {error.detail}")
            return {}
        return {key: Known(*known) for key, known in found.items()}


def _is_id(text: str) -> bool:
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False


class _FileProgress:
    """A bar on a terminal, a line now and then elsewhere; on stderr."""

    def __init__(self, files: int) -> None:
        self._files = files
        self._bar: Any = None
        self._row: Any = None
        self._told_at = time.monotonic()

    def __enter__(self) -> "_FileProgress":
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (BarColumn(bar_width=32), MofNCompleteColumn(), TextColumn("{task.description}"))
            self._bar = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True)
            self._row = self._bar.add_task("", total=self._files)
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, counts: FileCounts) -> None:
        """What was done so far."""
        if self._bar is not None:
            self._bar.update(self._row, completed=counts.files, description=f"{counts.size_bytes / 1e6:.1f} MB copied")
        elif time.monotonic() - self._told_at > LINE_SECONDS:
            self._told_at = time.monotonic()
            click.echo(f"{counts.files} of {self._files} files, {counts.size_bytes / 1e6:.1f} MB copied", err=True)

    def say(self, text: str) -> None:
        """A line above the bar."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            click.echo(text, err=True)


def _open(settings: "Settings", url: str, access_key: str | None = None, secret_key: str | None = None) -> "Storage":
    from safelight.storage import Storage

    try:
        return Storage.open(
            url,
            access_key=access_key or settings.storage_access_key.get_secret_value(),
            secret_key=secret_key or settings.storage_secret_key.get_secret_value(),
        )
    except Invalid as error:
        raise click.UsageError(error.detail) from None
    except SafelightError as error:
        raise Failure(error.detail) from None
