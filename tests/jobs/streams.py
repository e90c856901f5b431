"""Events made by hand, and a stream with the rows that it reads again, for tests of watching."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import orjson

from safelight.errors import Unavailable
from safelight.jobs import JobEvent
from safelight.stream import Missed, Stream
from safelight.valkey import Valkey
from safelight.watch import Message, Watch
from servers import ValkeyServer

JOB = "01900000-0000-7000-8000-000000000001"


def event(version: int, kind: str = "job.progress", *, seq: int = 0, job_id: str = JOB, **changes: Any) -> JobEvent:
    status: Any = {
        "job.pending": "pending",
        "job.completed": "completed",
        "job.failed": "failed",
        "job.cancelled": "cancelled",
    }.get(kind, "processing")
    made = JobEvent(
        type="job.progress",
        job_id=job_id,
        task_id=job_id,
        request_id=None,
        kind="image.generate",
        status=status,
        is_terminal=status in ("completed", "failed", "cancelled"),
        stage="sampling",
        message="Rendering...",
        progress=50,
        attempt=1,
        retry_count=0,
        blocked_reason=None,
        provider="mock",
        mocked=True,
        batch_id=None,
        project_id=None,
        chapter_id=None,
        scene_number=None,
        character_id=None,
        artifacts=[],
        preview_url=None,
        error=None,
        at=datetime(2026, 3, 1, 12, 0, 0, 250000, tzinfo=UTC),
        version=version,
        seq=seq,
    )
    given: Any = kind
    return replace(made, type=given, **changes)


class House:
    """A stream on a connection of its own, and the rows it reads again."""

    def __init__(self, server: ValkeyServer) -> None:
        self.valkey = Valkey(
            server.url, on_push=lambda push: self.stream.on_push(push), on_connect=lambda: self.stream.on_connect()
        )
        self.stream = Stream(self.valkey, "test")
        self.rows: dict[str, list[Message]] = {}
        self.asked: list[dict[str, int]] = []
        self.database_is_there = True

    async def reread(self, versions: Mapping[str, int], reasons: Mapping[str, str | None]) -> Missed:
        self.asked.append(dict(versions))
        if not self.database_is_there:
            raise Unavailable
        messages = {
            job_id: [message for message in self.rows.get(job_id, []) if message.version > version]
            for job_id, version in versions.items()
        }
        return Missed(messages, {})

    def publish(self, told: JobEvent) -> bool:
        payload = told.as_json()
        return self.stream.publish(
            told.job_id, told.task_id, told.as_message(payload), payload, told.as_celery_result()
        )

    async def latest(self, job_id: str = JOB) -> tuple[int, int] | None:
        found = await self.stream.latest(job_id)
        return None if found is None else (orjson.loads(found)["version"], orjson.loads(found)["seq"])


@contextlib.asynccontextmanager
async def housed(server: ValkeyServer, *, running: bool = False) -> AsyncGenerator[House]:
    house = House(server)
    await house.valkey.start()
    await house.valkey.wait_connected(5)
    hub = asyncio.ensure_future(house.stream.run(house.reread)) if running else None
    try:
        yield house
    finally:
        if hub is not None:
            hub.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await hub
        await house.valkey.close()


async def read(watch: Watch, count: int, seconds: float = 8.0) -> list[tuple[int, int]]:
    """The next `count` messages, as (version, seq)."""
    found: list[tuple[int, int]] = []
    async with asyncio.timeout(seconds):
        while len(found) < count:
            found += [(message.version, message.seq) for message in await watch.next(1.0)]
    return found
