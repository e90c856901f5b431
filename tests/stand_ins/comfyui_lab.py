"""What the tests of the ComfyUI provider share: orders, a quick pace, and ways to follow a generation."""

import asyncio
import uuid
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Protocol

from safelight.providers.base import (
    Accepted,
    Generation,
    InputImage,
    Parameters,
    Preview,
    Progress,
    Reserved,
    Update,
)
from safelight.providers.comfyui import ComfyUI, Pace
from stand_ins.comfyui import ComfyStandIn
from stand_ins.generation import collect

QUICK = Pace(
    look=0.03,
    silence=0.15,
    reopen=0.3,
    refused=0.15,
    down=0.3,
    waiting=0.1,
    settle=0.01,
    retry=0.01,
)
HASTY = replace(QUICK, answer=0.3, submit=0.3, probe=0.3, socket=0.3, hung=0.3)  # for servers that hang
STEPS = {"steps": 4}


class Make(Protocol):
    """Makes a provider of stand-ins or URLs, with a quick pace; it is closed after the test."""

    def __call__(self, *servers: ComfyStandIn | str, **options: Any) -> ComfyUI: ...


@asynccontextmanager
async def open_providers() -> AsyncGenerator[Make]:
    made: list[ComfyUI] = []

    def make(*servers: ComfyStandIn | str, **options: Any) -> ComfyUI:
        urls = [server if isinstance(server, str) else server.url for server in servers]
        options.setdefault("pace", QUICK)
        made.append(ComfyUI(urls, **options))
        return made[-1]

    try:
        yield make
    finally:
        for comfy in made:
            await comfy.close()


def asks(**fields: Any) -> Parameters:
    """An order with few steps, or with those given."""
    values: dict[str, Any] = {"kind": "image.generate", "prompt": "a red cube"}
    if "workflow" not in fields and "template" not in fields:
        values |= {"checkpoint_model": "tiny.safetensors", "sampler_params": STEPS}
    return Parameters(**values | fields)


def order(
    *, job_id: str | None = None, attempt: int = 1, images: tuple[InputImage, ...] = (), **fields: Any
) -> Generation:
    return Generation(job_id or str(uuid.uuid4()), attempt, asks(**fields), 60.0, images)


async def run(comfy: ComfyUI, **fields: Any) -> list[Update]:
    return await collect(comfy.generate(order(**fields)))


def remote_ids(updates: list[Update]) -> list[str]:
    return [update.remote_id for update in updates if isinstance(update, Reserved | Accepted)]


def previews(updates: list[Update]) -> list[Preview]:
    return [update for update in updates if isinstance(update, Preview)]


def percents(updates: list[Update]) -> list[int]:
    return [update.percent for update in updates if isinstance(update, Progress) and update.percent is not None]


def stages(updates: list[Update]) -> list[str]:
    """The stages in the order of their first appearance."""
    return list(dict.fromkeys(update.stage for update in updates if isinstance(update, Progress)))


async def until(is_so: Callable[[], bool], seconds: float = 5.0) -> None:
    """Wait for something that happens in the stand-in's thread."""
    async with asyncio.timeout(seconds):
        while not is_so():  # noqa: ASYNC110 - another thread makes it so
            await asyncio.sleep(0.002)


def workflow(**changes: Any) -> dict[str, Any]:
    """A workflow in API format; `changes` replace or add nodes."""
    return {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 0}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "mine"}},
    } | changes
