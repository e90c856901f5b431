"""The commands that are the service: everything at once, or one process of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

import click

from safelight.cli.failure import Failure
from safelight.cli.settings import load_settings
from safelight.cli.start import quick_imports, refuse_unusable, refusing

AnyCommand = TypeVar("AnyCommand", bound=Callable[..., Any])
DATA_DIR = click.Path(file_okay=False, path_type=Path)

type_of_data_dir = click.option(
    "--data-dir", type=DATA_DIR, help="Where everything is kept: database, pictures, queue, logs.  [.safelight]"
)


def listening(command: AnyCommand) -> AnyCommand:
    """The options of what listens."""
    command = click.option("--port", type=click.IntRange(0, 65535), help="0 takes any free port.  [8080]")(command)
    return click.option("--host", help="Where to listen; beyond this machine with accounts only.  [127.0.0.1]")(command)


@click.command()
@listening
@type_of_data_dir
@click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="How many io workers.")
def up(host: str | None, port: int | None, data_dir: Path | None, workers: int) -> None:
    """Start everything on this machine: a queue, the API and the workers, as children of this command.

    It says "ready" after a real job has gone through. Children that die are started again; their words are shown here
    and kept in DATA_DIR/logs. Ctrl-C stops in order, a second Ctrl-C at once. Unfinished jobs go on at the next start.

    \b
    Example:
      safelight up --port 8090 --workers 2
    \b
    Other parts than the built-in ones, by URL:
      SAFELIGHT_REDIS_URL=redis://queue:6379 SAFELIGHT_DATABASE_URL=postgresql://... safelight up
    """
    import asyncio

    from safelight.pictures import libvips
    from safelight.supervisor import Supervisor

    settings = load_settings(host=host, port=port, data_dir=data_dir)
    with refusing():
        libvips()  # which each of its children needs
        code = asyncio.run(Supervisor(settings, io_workers=workers, quiet=False).run_until_stopped())
    raise click.exceptions.Exit(code)


@click.command()
@listening
@type_of_data_dir
def api(host: str | None, port: int | None, data_dir: Path | None) -> None:
    """Run the HTTP API alone. `safelight up` does this for you; deployments start it by itself.

    It needs a migrated database, and SAFELIGHT_REDIS_URL for live events and quick starts of jobs.

    \b
    Example:
      SAFELIGHT_REDIS_URL=redis://127.0.0.1:6379 safelight api --port 8080
    """
    with quick_imports():
        from safelight.api.server import serve
        from safelight.supervisor import require_loopback

    settings = load_settings(host=host, port=port, data_dir=data_dir)
    with refusing():
        require_loopback(settings.host, has_accounts=settings.has_accounts)
    refuse_unusable(settings)
    serve(settings)


@click.command()
@click.option(
    "--kind",
    type=click.Choice(["io", "local", "imports"]),
    default="io",
    show_default=True,
    help="io: jobs that wait for a provider, very many at once. local: those of workers that died, one per process. "
    "imports: media, one per process.",
)
@click.option(
    "--pool", type=click.Choice(["loop", "threads", "prefork"]), help="How jobs run.  [io: loop, else prefork]"
)
@click.option("--slots", type=click.IntRange(1), help="Jobs at once.  [io: 1000, else 2]")
@click.option("--name", help="Its name in logs and monitors.  [the kind]")
@type_of_data_dir
def worker(
    kind: Literal["io", "local", "imports"],
    pool: Literal["loop", "threads", "prefork"] | None,
    slots: int | None,
    name: str | None,
    data_dir: Path | None,
) -> None:
    """Run one worker alone. `safelight up` starts one of each kind; start more wherever the queue can be reached.

    SIGTERM drains it: running jobs may finish for a while, the others are handed back for another worker.

    \b
    Example:
      SAFELIGHT_REDIS_URL=redis://127.0.0.1:6379 safelight worker --kind io --name io-2
    """
    with quick_imports():
        from safelight.worker.process import run_worker

    settings = load_settings(data_dir=data_dir)
    refuse_unusable(settings)
    run_worker(settings, kind=kind, pool=pool, slots=slots, name=name)


@click.command()
@click.argument("revision", default="head")
@click.option("--check", is_flag=True, help="Change nothing: exit code 1 if the schema is not this version's.")
@type_of_data_dir
def migrate(revision: str, check: bool, data_dir: Path | None) -> None:
    """Bring the database to the newest schema, or up or down to REVISION. `safelight up` does the first at every start.

    It is one transaction: if it fails, the database is as it was. Going back loses what the older schema has no place
    for; `base` leaves no table. Stop the service first.

    \b
    Examples:
      SAFELIGHT_DATABASE_URL=postgresql://safelight@db/safelight safelight migrate
      safelight migrate --check
      safelight migrate 0001
    """
    from safelight import migrations

    settings = load_settings(data_dir=data_dir)
    with refusing():
        if check:
            problem = migrations.check(settings.database_url)
            if problem is not None:
                raise Failure(problem.detail)
            click.echo(f"The database has the schema of this version: {migrations.REVISIONS[-1]}.", err=True)
            return
        step = migrations.migrate(settings.database_url, revision)
    before, after = step.before or "nothing", step.after or "nothing"
    if before == after:
        click.echo(f"Nothing to do: the database has the schema {after}.", err=True)
    else:
        click.echo(f"The database's schema: {before} -> {after}.", err=True)
