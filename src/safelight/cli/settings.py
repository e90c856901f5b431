"""Flags become settings: what is given wins over the environment, and a wrong value is a usage error."""

from typing import Any

import click
from pydantic import ValidationError

from safelight.config import Settings


def load_settings(**given: Any) -> Settings:
    """Settings with the flags that were given; None means not given."""
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, each['loc'])) or 'settings'}: {each['msg']}" for each in error.errors()]
        raise click.UsageError("A setting is wrong.\n" + "\n".join(f"  {problem}" for problem in problems)) from None
