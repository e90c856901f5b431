"""What the tests of providers share: orders, and ways to follow a generation to its end."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace
from io import BytesIO
from typing import Any

import pytest
from PIL import Image

from safelight.providers.base import Generation, InputImage, Output, Parameters, ProviderError, Update


def asked(**changes: Any) -> Parameters:
    given: dict[str, Any] = {"kind": "image.generate", "prompt": "a harbour"}
    return Parameters(**(given | changes))


def order(
    parameters: Parameters | None = None, images: tuple[InputImage, ...] = (), job_id: str = "job-1"
) -> Generation:
    return Generation(job_id, 1, replace(parameters or asked(), seed=7), 300, images)


async def collect(updates: AsyncGenerator[Update], seconds: float = 30.0) -> list[Update]:
    """All updates; it fails if they take too long."""
    async with asyncio.timeout(seconds):
        return [update async for update in updates]


def names(updates: list[Update]) -> list[str]:
    """The kinds of updates in their order."""
    return [type(update).__name__ for update in updates]


def kinds(updates: list[Update]) -> list[str]:
    """The same, each once for a run of the same."""
    told = names(updates)
    return [name for at, name in enumerate(told) if at == 0 or told[at - 1] != name]


def outputs(updates: list[Update]) -> list[Output]:
    return [update for update in updates if isinstance(update, Output)]


def sizes(updates: list[Update]) -> list[tuple[int, int]]:
    """Of the pictures that came, in pixels."""
    return [Image.open(BytesIO(output.read())).size for output in outputs(updates)]


async def refused(secret: str, updates: AsyncGenerator[Update], error: type[ProviderError]) -> ProviderError:
    """The error a generation ends with, exactly of this class, and without the secret."""
    with pytest.raises(error) as caught:
        await collect(updates)
    assert type(caught.value) is error
    assert secret not in str(caught.value) + str(caught.value.details)
    return caught.value
