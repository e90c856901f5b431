"""`safelight templates`: check a ComfyUI template before it is put to use."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from safelight.cli.failure import Exit, Failure

if TYPE_CHECKING:
    from collections.abc import Mapping

    from safelight.providers.comfyui import Problem, Template


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
        data = json.loads(file.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise Failure(f"{file} is not JSON: {error}") from None
    try:
        template = check_template(data)
    except InvalidTemplate as error:
        raise Failure(_told(file, error.problems)) from None
    if server is not None:
        problems = _ask(server, template, dict(_header(header) for header in headers))
        if problems:
            raise Failure(_told(file, problems))
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


def _range(minimum: float | None, maximum: float | None) -> str:
    ends = (("from", minimum), ("to", maximum))
    return " ".join(f"{word} {value:.15g}" for word, value in ends if value is not None)


def _told(file: Path, problems: "list[Problem]") -> str:
    return f"{file} cannot be used:\n" + "\n".join(
        f"  {problem.field or '(the whole)'}: {problem.message}" for problem in problems
    )


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise click.UsageError(f"--header must look like 'Authorization: Bearer KEY', not {text!r}.")
    return name.strip(), value.strip()


def _ask(server: str, template: "Template", headers: "Mapping[str, str]") -> "list[Problem]":
    import asyncio

    from safelight.providers.comfyui import problems_on
    from safelight.providers.comfyui.server import Unreachable

    try:
        return asyncio.run(problems_on(server, template, headers))
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    except Unreachable as error:
        raise Failure(f"{server}: {error.reason}.", Exit.UNAVAILABLE) from None
