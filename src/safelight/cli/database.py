"""Commands on what is kept: move it to another database, delete what was kept long enough."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from safelight.cli.service import type_of_data_dir
from safelight.cli.settings import load_settings
from safelight.cli.start import refusing

if TYPE_CHECKING:
    from safelight.config import Settings
    from safelight.jobs import Cleaned


@click.group()
def db() -> None:
    """Move everything to another database."""


@db.command()
@click.argument("source", metavar="FROM")
@click.argument("target", metavar="TO")
@click.option("--resume", is_flag=True, help="Go on with a copy that broke off: rows that are there are skipped.")
@click.option("--force", is_flag=True, help="Copy although something seems to work on FROM.")
def copy(source: str, target: str, resume: bool, force: bool) -> None:
    """Copy every row of the database FROM to the empty database TO; SQLite and PostgreSQL in either direction.

    Stop the service first: what is written to FROM meanwhile would be missing. TO must have the newest schema. Files
    stay where they are. Jobs keep their ids and numbers, so unfinished ones go on and watchers resume.

    \b
    Example:
      SAFELIGHT_DATABASE_URL=postgresql://safelight@db/safelight safelight migrate
      safelight db copy sqlite:////var/lib/safelight/safelight.db postgresql://safelight@db/safelight
    """
    from safelight.migrations import transfer

    progress = _TableProgress()
    with refusing():
        try:
            totals = transfer.copy(source, target, resume=resume, force=force, progress=progress.table)
        finally:
            progress.end()
    click.echo(f"Copied and counted: {sum(totals.values())} rows in {len(totals)} tables.", err=True)


@click.command()
@click.option("--dry-run", is_flag=True, help="Say what would go, and delete nothing.")
@click.option(
    "--older-than",
    type=click.FloatRange(min=0),
    metavar="DAYS",
    help="Also jobs that ended, and unused uploads that came, before that.",
)
@type_of_data_dir
def cleanup(dry_run: bool, older_than: float | None, data_dir: Path | None) -> None:
    """Delete what was kept long enough, now: jobs and their pictures, uploads that no job needs, stray files.

    The service does this by itself, a few at a time, for jobs that ended and uploads that came while a retention was
    set (SAFELIGHT_RETENTION_DAYS, or that of a tier); `--older-than` is for all others. It may run beside the service,
    and may be interrupted and repeated.

    \b
    Examples:
      safelight cleanup --dry-run --older-than 90
      safelight cleanup --older-than 90
    """
    import asyncio

    settings = load_settings(data_dir=data_dir)
    with refusing():
        asyncio.run(_clean(settings, dry_run, older_than))


async def _clean(settings: "Settings", dry_run: bool, older_than: float | None) -> None:
    from safelight.bootstrap import open_retention

    async with open_retention(settings) as retention:
        outlook = await retention.outlook(older_than)
        click.echo(f"{'Would go' if dry_run else 'To go'}: {_told(outlook)}.", err=True)
        if dry_run:
            return
        progress = _TableProgress()
        done = None
        async for done in retention.cleanup(older_than):
            progress.show(f"jobs: {done.jobs}/{max(done.jobs, outlook.jobs)}")
        progress.end()
        if done is not None:
            jobs = f"{done.jobs} jobs, {done.artifacts} pictures ({_size(done.artifact_bytes)})"
            uploads = f"{done.uploads} unused uploads ({_size(done.upload_bytes)})"
            click.echo(
                f"Deleted: {jobs}, {uploads}, {done.orphans} stray files, {done.tombstones} tombstones.", err=True
            )


def _told(cleaned: "Cleaned") -> str:
    return (
        f"{cleaned.jobs} jobs, {cleaned.artifacts} pictures ({_size(cleaned.artifact_bytes)} and their thumbnails), "
        f"{cleaned.uploads} unused uploads ({_size(cleaned.upload_bytes)}), "
        f"{cleaned.orphans} stray files ({_size(cleaned.orphan_bytes)}), {cleaned.tombstones} tombstones"
    )


def _size(size_bytes: int) -> str:
    size, unit = float(size_bytes), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"


class _TableProgress:
    """One line on stderr that is written over on a terminal; elsewhere a line for each thing that is done."""

    def __init__(self) -> None:
        self._on_terminal = sys.stderr.isatty()
        self._width = 0

    def table(self, name: str, done: int, total: int) -> None:
        """Rows of a table."""
        self.show(f"{name}: {done}/{total}", is_last=done == total)

    def show(self, line: str, *, is_last: bool = False) -> None:
        """The line as it is now."""
        if not self._on_terminal:
            if is_last:
                click.echo(line, err=True)
            return
        click.echo(f"\r{line:<{self._width}}", nl=is_last, err=True)
        self._width = 0 if is_last else len(line)

    def end(self) -> None:
        """Leave an unfinished line."""
        if self._width:
            click.echo(err=True)
            self._width = 0
