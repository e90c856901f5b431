"""`providers`: who makes the pictures, and how each is at the moment."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from safelight.cli.failure import Exit, Failure
from safelight.cli.stack import StackAccess
from safelight_client import ApiError, Unreachable


@click.group()
def providers() -> None:
    """Look at the providers."""


@providers.command()
@click.option("--data-dir", type=click.Path(file_okay=False, path_type=Path), help="Whose stack.  [.safelight]")
@click.option("--url", help="Use the Safelight at this address; never start one.")
@click.option("--api-key", help="For a Safelight with accounts; better SAFELIGHT_API_KEY: arguments can be seen.")
@click.option("--json", "as_json", is_flag=True, help="Print them as JSON.")
def ls(data_dir: Path | None, url: str | None, api_key: str | None, as_json: bool) -> None:
    """List the providers: what each does now, and why it does nothing.

    \b
    Examples:
      safelight providers ls
      safelight providers ls --json --url https://pictures.example.com
    """
    try:
        with StackAccess(url, data_dir, lambda text: click.echo(text, err=True), api_key) as stack:
            found = stack.client.providers()
    except Unreachable as error:
        raise Failure(str(error), Exit.UNAVAILABLE) from None
    except ApiError as error:
        raise Failure(f"{error.code}: {error}") from None
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    rows = [("NAME", "STATE", "RUNNING", "WAITING", "AT ONCE", "RATE", "USUALLY", "HEALTH")]
    rows += [
        (
            each["name"] + (" (mocked)" if each["mocked"] and each["name"] != "mock" else ""),
            state_of(each),
            str(each["running"]),
            str(each["waiting"]),
            str(each["limits"]["jobs_at_once"] or "-"),
            rate_of(each["limits"]["rate"]),
            usual_time_of(each["run_times"]),
            each["health"]["detail"] or each["health"]["state"],
        )
        for each in found
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    for each in found:
        for warning in each["warnings"]:
            click.echo(f"{each['name']}: {warning}", err=True)


def state_of(provider: dict[str, Any]) -> str:
    """In a word or two."""
    if provider["paused_until"] is not None:
        return f"paused, {_left_until(provider['paused_until'])}"
    trouble = "failing" if provider["unreachable_since"] is None else "unreachable"
    if provider["breaker"] == "open":
        return f"{trouble}, {_left_until(provider['retry_at'])}"
    if provider["breaker"] == "half_open":
        return f"{trouble}, being tried"
    return {"ok": "ready", "not_configured": "not configured"}.get(provider["health"]["state"], "unavailable")


def _left_until(moment: str) -> str:
    left = (datetime.fromisoformat(moment) - datetime.now(UTC)).total_seconds()
    return f"{max(0.0, left):.0f} s more"


def rate_of(rate: dict[str, int] | None) -> str:
    """As the setting is written."""
    return "-" if rate is None else f"{rate['jobs']}/{rate['seconds']}"


def usual_time_of(run_times: list[dict[str, Any]]) -> str:
    """The run time of what is asked for most."""
    if not run_times:
        return "-"
    return f"{max(run_times, key=lambda each: each['samples'])['median_seconds']:.1f} s"
