"""What stands in for a provider and for picture work, so that the engine itself is measured.

Peers store no picture, so in these rows neither do we: `ArtifactStore.store` answers with a record at once. The row and
everything else is written as always. The rows called "full path" use neither.
"""

import asyncio
import hashlib
import os
from collections.abc import AsyncGenerator, Mapping
from dataclasses import replace
from typing import Any

import httptools

from safelight import bootstrap
from safelight.artifacts import Artifact, ArtifactStore
from safelight.artifacts.service import utc_now
from safelight.db import new_id
from safelight.providers.base import Accepted, Capabilities, Generation, Output, Parameters, Progress, Provider, Update
from safelight.providers.registry import Own, Registry
from safelight.worker import runner

RESULT = b"a tiny fixed result"


class NullProvider(Provider):
    """Takes no time: four progress updates and a result."""

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            kinds=frozenset({"image.generate"}),
            models=(),
            max_width=4096,
            max_height=4096,
            max_batch=8,
            cancel=False,
            progress=True,
            previews=False,
        )

    def check(self, parameters: Parameters) -> Parameters:
        return replace(parameters, width=parameters.width or 64, height=parameters.height or 64)

    async def generate(self, generation: Generation) -> AsyncGenerator[Update]:
        for percent in (20, 40, 60, 80):
            yield Progress(percent, "rendering", "Rendering...")
        yield Output(RESULT, "image/png")

    async def resume(self, generation: Generation, remote_id: str) -> AsyncGenerator[Update]:
        async for update in self.generate(generation):
            yield update


class WaitingProvider(NullProvider):
    """Is accepted at once, then waits for the slow HTTP server's answer."""

    async def generate(self, generation: Generation) -> AsyncGenerator[Update]:
        yield Accepted(f"remote-{generation.job_id}")
        host, _, port = os.environ["BENCH_SLOW_SERVER"].partition(":")
        loop = asyncio.get_running_loop()
        transport, request = await loop.create_connection(_Request, host, int(port))
        try:
            await request.answered
        finally:
            transport.close()
        for percent in (20, 40, 60, 80):
            yield Progress(percent, "rendering", "Rendering...")
        yield Output(RESULT, "image/png")


class _Request(asyncio.Protocol):
    """One GET."""

    def __init__(self) -> None:
        self.answered = asyncio.get_running_loop().create_future()
        self._parser = httptools.HttpResponseParser(self)

    def connection_made(self, transport: Any) -> None:
        transport.write(b"GET / HTTP/1.1\r\nHost: slow\r\n\r\n")

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        if not self.answered.done():
            self.answered.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.answered.done():
            self.answered.set_exception(exc or ConnectionResetError("the slow server closed the connection"))


class _Registry(Registry):
    def __init__(self, mock_mode: bool, default: str, own: Mapping[str, Own], **more: Any) -> None:
        ours = {"null": Own(NullProvider), "waiting": Own(WaitingProvider)}
        super().__init__(False, default or "mock", {**own, **ours}, **more)


async def _store(self: ArtifactStore, *, job_id: str, attempt: int, position: int, **order: Any) -> Artifact:
    data: bytes = order["data"]
    return Artifact(
        id=new_id(),
        job_id=job_id,
        attempt=attempt,
        position=position,
        owner_id=order["owner_id"],
        kind="image",
        storage_key=f"jobs/{job_id}/{attempt}/{position}.png",
        content_type="image/png",
        size_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        width=64,
        height=64,
        thumbhash="",
        seed=order["seed"],
        thumbnails=[],
        created_at=utc_now(),
    )


def install() -> None:
    """Make the benchmark's providers known to this process and take out what peers do not do.

    Progress is sent each time, as the peers do; shipped, four updates at once would be merged into one.
    """
    bootstrap.Registry = _Registry
    if os.environ.get("BENCH_FULL_PATH") != "1":
        ArtifactStore.store = _store
        runner.PROGRESS_SECONDS = 0.0
