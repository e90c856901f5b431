"""Imports in tests: one from beginning to end, and how it was refused."""

from collections.abc import Callable
from contextlib import aclosing
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from safelight.providers.base import Generation, Output, Parameters, Progress, ProviderError
from safelight.providers.media_import import MediaImport

Make = Callable[..., MediaImport]
LOOPBACK = ip_network("127.0.0.1/32")


def programs_in(folder: Path) -> list[int]:
    """The processes that work below a folder."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if str(folder) in str((entry / "cwd").readlink()):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def order(url: str, **options: Any) -> Generation:
    return Generation("job-1", 1, Parameters("media.import", "", provider_options={"url": url, **options}), 60)


async def imported(provider: MediaImport, url: str, **options: Any) -> tuple[Output, bytes, list[Progress]]:
    """The output with its bytes, and what was told on the way."""
    told: list[Progress] = []
    output: tuple[Output, bytes] | None = None
    async with aclosing(provider.generate(order(url, **options))) as updates:
        async for update in updates:
            if isinstance(update, Progress):
                told.append(update)
            elif isinstance(update, Output):
                output = update, update.read()
    assert output is not None
    return *output, told


async def refusal(provider: MediaImport, url: str, **options: Any) -> ProviderError:
    with pytest.raises(ProviderError) as caught:
        await imported(provider, url, **options)
    return caught.value
