"""What a FastAPI service usually looks like: async SQLAlchemy, `.delay()`, one pub/sub subscription per SSE client."""

import os
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import redis.asyncio
import uvicorn
from fastapi import FastAPI, HTTPException
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field
from sqlalchemy import event, select
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sse_starlette import EventSourceResponse, ServerSentEvent

from benchmarks.systems import celery_peer, work

DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql+psycopg": "postgresql+asyncpg"}
MAX_CLIENTS = 20_000
_SELECT = select(work.jobs)


class Request(BaseModel):
    prompt: str = Field(min_length=1, max_length=4000)
    provider: str | None = None
    width: int | None = Field(None, ge=64, le=4096)
    height: int | None = Field(None, ge=64, le=4096)
    seed: int | None = None
    provider_options: dict[str, Any] = {}


def _engine() -> AsyncEngine:
    scheme, _, rest = os.environ["BENCH_DATABASE_URL"].partition("://")
    made = create_async_engine(f"{DRIVERS[scheme]}://{rest}", pool_size=20, max_overflow=0, pool_timeout=60)
    if scheme == "sqlite":

        def connect(connection: Any, record: Any) -> None:
            cursor = connection.cursor()
            for pragma in ("busy_timeout=30000", "journal_mode=WAL", "synchronous=FULL"):
                cursor.execute(f"PRAGMA {pragma}")
            cursor.close()

        event.listen(made.sync_engine, "connect", connect)
    return made


def create_app() -> FastAPI:
    engine = _engine()
    live = redis.asyncio.Redis.from_url(os.environ["BENCH_REDIS_URL"], max_connections=MAX_CLIENTS)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        yield
        await engine.dispose()
        await live.aclose()

    app = FastAPI(lifespan=lifespan)

    @app.post("/jobs", status_code=202)
    async def submit(body: Request) -> dict[str, Any]:
        row: dict[str, Any] = work.new_row() | {
            "prompt": body.prompt,
            "provider": body.provider or "mock",
            "width": body.width,
            "height": body.height,
            "seed": body.seed,
            "parameters": body.provider_options,
        }
        async with engine.begin() as connection:
            await connection.execute(work.INSERT, row)
        celery_peer.send(row["id"])
        return {"task_id": row["id"], **row}

    @app.get("/jobs/{job_id}")
    async def look(job_id: str) -> dict[str, Any]:
        async with engine.connect() as connection:
            row = (await connection.execute(_SELECT.where(work.jobs.c.id == job_id))).mappings().one_or_none()
        if row is None:
            raise HTTPException(404)
        return {str(name): value for name, value in row.items()}

    async def updates(job_id: str) -> AsyncGenerator[bytes]:
        subscription = live.pubsub()
        await subscription.subscribe(f"task_updates:{job_id}")
        try:
            async for message in subscription.listen():
                if message["type"] == "message":
                    yield message["data"]
        finally:
            await subscription.aclose()

    @app.get("/jobs/{job_id}/events")
    async def follow(job_id: str) -> EventSourceResponse:
        async def events() -> AsyncIterator[ServerSentEvent]:
            yield ServerSentEvent(comment="ready")
            async for data in updates(job_id):
                yield ServerSentEvent(event="job.progress", data=data.decode())

        return EventSourceResponse(events())

    @app.get("/jobs/{job_id}/bare-events")
    async def follow_bare(job_id: str) -> StreamingResponse:
        async def events() -> AsyncIterator[bytes]:
            yield b": ready\n\n"
            async for data in updates(job_id):
                yield b"event: job.progress\ndata: " + data + b"\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    return app


if __name__ == "__main__":
    uvicorn.run(
        create_app(),
        host="127.0.0.1",
        port=int(os.environ["SAFELIGHT_PORT"]),
        log_level="warning",
        access_log=False,
        backlog=4096,
        timeout_graceful_shutdown=1,
    )
