"""`keys`: API keys, straight in the database of the settings, so that the first one can be made."""

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from safelight.cli.failure import Exit, Failure
from safelight.cli.settings import load_settings
from safelight.cli.start import refusing

if TYPE_CHECKING:
    from safelight.accounts import Key
    from safelight.config import Settings

AnyCommand = TypeVar("AnyCommand", bound=Callable[..., Any])
DAY_SECONDS = 86400.0
SCOPES = ("read", "write", "admin")  # as in accounts; the command line starts quicker without it

on_data_dir = click.option(
    "--data-dir", type=click.Path(file_okay=False, path_type=Path), help="Whose database.  [.safelight]"
)


@click.group()
def keys() -> None:
    """Make, list and revoke API keys.

    Works on the database itself, with the same environment as the service: on the machine that runs it, that is. A key
    belongs to an owner, who sees nothing of what belongs to others. Keys are needed where SAFELIGHT_AUTH=required.
    """


@keys.command()
@click.argument("name")
@click.option("--owner", required=True, help="Whose key it is: any name, or the id of a user that was seen.")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice(SCOPES),
    default=("write",),
    show_default=True,
    help="May be repeated; each includes the ones before it.",
)
@click.option("--tier", help="What it may use.  [the default tier]")
@click.option("--days", type=click.FloatRange(0, min_open=True), help="When it expires.  [never]")
@click.option("--json", "as_json", is_flag=True, help="Print the key as JSON instead of the secret alone.")
@on_data_dir
def create(
    name: str,
    owner: str,
    scopes: tuple[Any, ...],
    tier: str | None,
    days: float | None,
    as_json: bool,
    data_dir: Path | None,
) -> None:
    """Make a key called NAME and print its secret, which is shown this once only.

    \b
    Examples:
      safelight keys create backend --owner shop --tier pro
      safelight keys create laptop --owner ada --scope admin --days 90
    """
    from safelight.accounts import SHOWN, NewKey, create_key, hash_of, is_owner_id, new_secret
    from safelight.db import new_id

    settings = load_settings(data_dir=data_dir)
    if not is_owner_id(owner):
        raise click.UsageError("--owner must be 1 to 200 printable characters.")
    if not 0 < len(name) <= 200 or not name.isprintable():
        raise click.UsageError("NAME must be 1 to 200 printable characters.")
    if tier is not None and tier not in settings.tiers:
        raise click.UsageError(f"There is no tier {tier!r}; there are {', '.join(settings.tiers)}.")
    secret = new_secret()
    new = NewKey(
        id=new_id(),
        owner_id=owner,
        name=name,
        hash=hash_of(secret),
        prefix=secret[:SHOWN],
        scopes=scopes,
        tier=tier,
        expires_in_seconds=None if days is None else days * DAY_SECONDS,
    )
    key = in_database(settings, create_key, new)
    if as_json:
        click.echo(json.dumps(view_of(key) | {"secret": secret}, indent=2))
    else:
        click.echo("Keep it now, it is not shown again:", err=True)
        click.echo(secret)


@keys.command()
@click.option("--owner", help="Of this owner only.")
@click.option("--json", "as_json", is_flag=True, help="Print them as JSON.")
@on_data_dir
def ls(owner: str | None, as_json: bool, data_dir: Path | None) -> None:
    """List the keys, newest first; never their secrets."""
    from safelight.accounts import list_keys

    found = in_database(load_settings(data_dir=data_dir), list_keys, owner)
    if as_json:
        click.echo(json.dumps([view_of(key) for key in found], indent=2))
        return
    rows = [("ID", "OWNER", "NAME", "KEY", "SCOPES", "TIER", "STATE", "LAST USED")]
    rows += [
        (
            key.id,
            key.owner_id,
            key.name,
            f"{key.prefix}...",
            ",".join(key.scopes),
            key.tier or "-",
            state_of(key),
            key.last_used_at.strftime("%Y-%m-%d %H:%M") if key.last_used_at else "never",
        )
        for key in found
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@keys.command()
@click.argument("key_id", metavar="KEY")
@on_data_dir
def revoke(key_id: str, data_dir: Path | None) -> None:
    """Revoke the key with the id KEY (as `safelight keys ls` shows it), and end the sessions opened with it.

    Running processes believe it for five more seconds.
    """
    import uuid

    from safelight.accounts import Key, revoke_key

    try:
        wanted = str(uuid.UUID(key_id))
    except ValueError:
        raise click.UsageError("KEY must be an id as `safelight keys ls` shows it, not the secret.") from None
    outcome = in_database(load_settings(data_dir=data_dir), revoke_key, wanted)
    if not isinstance(outcome, Key):
        raise Failure(f"There is no key {wanted}.")
    click.echo(f"Revoked: {outcome.name} of {outcome.owner_id}.", err=True)


def in_database(settings: "Settings", fn: Callable[..., Any], *args: Any) -> Any:
    """Run a transaction on the database of the settings."""
    from safelight.db import Database, parse_url, prove_file
    from safelight.errors import Unavailable
    from safelight.schema import admit

    async def run() -> Any:
        await database.read(lambda tx: None)  # which tells, where there is no database or an older one, what to do
        return await database.write(lambda tx: fn(tx, *args))

    with refusing():
        prove_file(parse_url(settings.database_url))
        database = Database(settings.database_url, readers=1, admit=admit)
    try:
        return asyncio.run(run())
    except Unavailable as error:
        raise Failure(error.detail, Exit.UNAVAILABLE) from None
    finally:
        database.close()


def state_of(key: "Key") -> str:
    """In a word."""
    if key.revoked_at is not None:
        return "revoked"
    if key.expires_at is None:
        return "active"
    return "expired" if key.expires_at <= datetime.now(UTC) else f"until {key.expires_at:%Y-%m-%d}"


def view_of(key: "Key") -> dict[str, Any]:
    """A key as JSON."""
    times = ("created_at", "expires_at", "last_used_at", "revoked_at")
    return {
        "id": key.id,
        "owner_id": key.owner_id,
        "name": key.name,
        "prefix": key.prefix,
        "scopes": key.scopes,
        "tier": key.tier,
    } | {name: None if getattr(key, name) is None else getattr(key, name).isoformat() for name in times}
