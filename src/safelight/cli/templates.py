"""`safelight templates`: check a ComfyUI template, and keep those of your own in Safelight."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from safelight.cli.failure import Exit, Failure
from safelight.cli.stack import StackAccess
from safelight_client import ApiError, Client, Unreachable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from safelight.providers.comfyui import Fault, Template

AnyCommand = TypeVar("AnyCommand", bound=Callable[..., Any])
T = TypeVar("T")


def on_a_safelight(command: AnyCommand) -> AnyCommand:
    """The options of what speaks to one."""
    for option in (
        click.option(
            "--api-key", help="For a Safelight with accounts; better SAFELIGHT_API_KEY: arguments can be seen."
        ),
        click.option("--url", help="Use the Safelight at this address; never start one."),
        click.option("--data-dir", type=click.Path(file_okay=False, path_type=Path), help="Whose stack.  [.safelight]"),
    ):
        command = option(command)
    return command


@click.group()
def templates() -> None:
    """Workflow templates for ComfyUI: a workflow as data, with typed and bounded inputs."""


@templates.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--server", help="Check it against the nodes and models of this ComfyUI server, too.")
@click.option("--header", "headers", multiple=True, help="'Name: value' to send to it; may be repeated.")
def check(file: Path, server: str | None, headers: tuple[str, ...]) -> None:
    """Say what is wrong with the template in FILE, or what inputs it has.

    \b
    Examples:
      safelight templates check poster.json
      safelight templates check poster.json --server http://127.0.0.1:8188
    """
    from safelight.providers.comfyui import InvalidTemplate, check_template

    try:
        template = check_template(read_json(file))
    except InvalidTemplate as error:
        raise Failure(_told(file, ((each.field, each.message) for each in error.problems))) from None
    if server is not None:
        problems = _ask(server, template, dict(_header(header) for header in headers))
        if problems:
            raise Failure(_told(file, ((each.field, each.message) for each in problems)))
    click.echo(f"{template.name}: {template.title}")
    for name, spec in template.inputs.items():
        bounds = ", ".join(
            part
            for part in (
                spec.type,
                "required" if spec.required else "",
                _range(spec.minimum, spec.maximum),
                f"one of {', '.join(spec.choices)}" if spec.choices else "",
                "" if spec.default is None else f"default {spec.default}",
            )
            if part
        )
        click.echo(f"  {name} ({bounds}){': ' + spec.description if spec.description else ''}")
    click.echo("It can be used" + (f", and {server} has all it needs." if server else "."), err=True)


@templates.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--replace", is_flag=True, help="If there is one of this name already.")
@on_a_safelight
def add(file: Path, replace: bool, data_dir: Path | None, url: str | None, api_key: str | None) -> None:
    """Keep the template in FILE as one of your own. It is checked first, as by `check`.

    \b
    Examples:
      safelight templates add poster.json
      safelight templates add poster.json --replace --url https://pictures.example.com
    """
    definition = read_json(file)
    if not isinstance(definition, dict):
        raise Failure(f"{file} cannot be used: a template is a JSON object.")
    given: dict[str, Any] = definition
    added = asked(url, data_dir, api_key, lambda client: client.add_template(given, replace=replace), file)
    click.echo(added["name"])
    click.echo(f'It is kept. Use it: safelight generate "..." --provider comfyui --template {added["name"]}', err=True)


@templates.command()
@click.option("--json", "as_json", is_flag=True, help="Print them as JSON.")
@on_a_safelight
def ls(as_json: bool, data_dir: Path | None, url: str | None, api_key: str | None) -> None:
    """List the templates that a job may name: everybody's, then your own.

    \b
    Examples:
      safelight templates ls
      safelight templates ls --json --url https://pictures.example.com
    """
    found = asked(url, data_dir, api_key, lambda client: client.templates())
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    rows = [("NAME", "WHOSE", "TITLE", "INPUTS (* REQUIRED)")]
    for each in found:
        inputs = (name + "*" * bool(spec.get("required")) for name, spec in each["inputs"].items())
        rows.append((each["name"], each["source"].replace("_", "-"), each["title"], ", ".join(inputs)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@templates.command()
@click.argument("name")
@on_a_safelight
def rm(name: str, data_dir: Path | None, url: str | None, api_key: str | None) -> None:
    """Delete your template NAME. Jobs that were accepted keep it.

    \b
    Example:
      safelight templates rm poster
    """
    asked(url, data_dir, api_key, lambda client: client.delete_template(name))
    click.echo(f"Deleted: {name}.", err=True)


def read_json(file: Path) -> Any:
    """What a file holds."""
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise Failure(f"{file} is not JSON: {error}") from None


def asked(
    url: str | None, data_dir: Path | None, api_key: str | None, ask: Callable[[Client], T], file: Path | None = None
) -> T:
    """The answer of a Safelight, if one runs. A refusal of `file` names its wrong parts."""
    try:
        with StackAccess(url, data_dir, lambda text: click.echo(text, err=True), api_key) as stack:
            return ask(stack.client)
    except Unreachable as error:
        raise Failure(str(error), Exit.UNAVAILABLE) from None
    except ApiError as error:
        if file is not None and error.errors:
            parts = ((str(each["pointer"])[2:].replace("/", "."), str(each["detail"])) for each in error.errors)
            raise Failure(_told(file, parts)) from None
        hint = " Replace it with --replace." if error.code == "template_exists" else ""
        raise Failure(f"{error.code}: {error}{hint}") from None


def _range(minimum: float | None, maximum: float | None) -> str:
    ends = (("from", minimum), ("to", maximum))
    return " ".join(f"{word} {value:.15g}" for word, value in ends if value is not None)


def _told(file: Path, problems: Iterable[tuple[str, str]]) -> str:
    return f"{file} cannot be used:\n" + "\n".join(f"  {field or '(the whole)'}: {said}" for field, said in problems)


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise click.UsageError(f"--header must look like 'Authorization: Bearer KEY', not {text!r}.")
    return name.strip(), value.strip()


def _ask(server: str, template: "Template", headers: "Mapping[str, str]") -> "list[Fault]":
    import asyncio

    from safelight.providers.comfyui import problems_on
    from safelight.providers.comfyui.server import ServerUnreachable

    try:
        return asyncio.run(problems_on(server, template, headers))
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    except ServerUnreachable as error:
        raise Failure(f"{server}: {error.reason}.", Exit.UNAVAILABLE) from None
