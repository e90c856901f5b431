"""Flags become settings: what is given wins over the environment, and a wrong value or name is a usage error."""

import os
import re
from collections.abc import Collection, Mapping
from typing import Any

import click
from pydantic import AliasChoices, ValidationError
from pydantic_settings import SettingsError

from safelight.config import Settings
from safelight.suggestion import near_names

PREFIX = "SAFELIGHT_"
OTHERS = ("SAFELIGHT_API_KEY", "SAFELIGHT_COMMAND", "SAFELIGHT_STACK", "SAFELIGHT_URL")  # of the command line
# What Kubernetes sets in every container for a service that is called safelight.
OF_A_SERVICE = re.compile(r"SAFELIGHT_(?:\w+_)?(SERVICE_(HOST|PORT\w*)|PORT_\d+_(TCP|UDP|SCTP)\w*)")
# Of 100, how like a setting a variable must be to be taken for a slip of it: one of ours, and a foreign program's.
OWN_SLIP, FOREIGN_SLIP = 75, 80


def load_settings(**given: Any) -> Settings:
    """Settings with the flags that were given; None means not given. A misspelt variable is refused, or warned of."""
    check_names(os.environ)
    flags = {name: value for name, value in given.items() if value is not None}
    try:
        return Settings(**flags)
    except ValidationError as error:
        problems = [f"  {_place(each['loc'], flags)}: {each['msg']}" for each in error.errors()]
        raise click.UsageError("\n".join(["A setting is wrong.", *problems])) from None
    except SettingsError as error:  # names the field alone
        name = next((each for each in Settings.model_fields if f'"{each}"' in str(error)), "")
        where = _place((name,), flags) if name else "An environment variable"
        raise click.UsageError(f"A setting is wrong.\n  {where}: This must be JSON.") from None


def variables() -> list[str]:
    """Every variable that is a setting."""
    return [variable for name in Settings.model_fields for variable in _variables_of(name)]


def _variables_of(name: str) -> list[str]:
    alias = Settings.model_fields[name].validation_alias
    return list(map(str, alias.choices)) if isinstance(alias, AliasChoices) else [f"{PREFIX}{name.upper()}"]


def _place(location: tuple[int | str, ...], flags: Collection[str]) -> str:
    """Where a wrong value was given: `--port`, or `SAFELIGHT_TIERS.free.models`."""
    if not location:
        return "settings"
    name, *deeper = map(str, location)
    if name in flags:
        name = f"--{name.replace('_', '-')}"
    elif name in Settings.model_fields:
        name = _variables_of(name)[0]
    return ".".join([name, *deeper])


def check_names(environment: Mapping[str, str]) -> None:
    """Refuse a variable of ours that is misspelt: what it was to set would silently not be so.

    One that is like no setting is warned of, since another version may know it; so is one like AI_MOCK_MODE or APP_ENV,
    which may belong to another program.
    """
    if "SAFELIGHT_STACK" in environment:  # a child of `safelight up`, which has looked
        return
    known = variables()
    foreign = [name for name in known if not name.startswith(PREFIX)]
    for variable in sorted(environment):
        name = variable.upper()
        if name in known or name in OTHERS or name.startswith("SAFELIGHT_TEST_") or OF_A_SERVICE.fullmatch(name):
            continue
        if name.startswith(PREFIX):
            near = near_names(name.removeprefix(PREFIX), [each.removeprefix(PREFIX) for each in known], alike=OWN_SLIP)
            if near:
                meant = near[0] if near[0] in foreign else f"{PREFIX}{near[0]}"
                raise click.UsageError(f"{variable} is no setting. Did you mean {meant}? Unset it, or write that.")
            click.echo(f"Warning: {variable} is no setting and changes nothing.", err=True)
        elif name.startswith(("AI_", "APP_")) and (near := near_names(name, foreign, alike=FOREIGN_SLIP)):
            click.echo(f"Warning: {variable} is no setting and changes nothing. Did you mean {near[0]}?", err=True)
