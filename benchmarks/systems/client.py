"""A submitting process: `python -m benchmarks.systems.client celery|dramatiq|safelight`, told by lines on stdin.

`burst` submits n jobs as fast as it can (4 threads where the library blocks, 32 coroutines where not); `single` submits
one after the other, each after the end of the one before, and says how long each took.
"""

import asyncio
import json
import os
import sys
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import uvloop

from benchmarks.listener import Listener
from benchmarks.systems import null_provider, work
from safelight import log
from safelight.api.job_request import GenerationRequest, new_job
from safelight.bootstrap import LOCAL_OWNER, Safelight, open_safelight
from safelight.cli.settings import load_settings
from safelight.config import Settings
from safelight.jobs import NewJob, Submitted
from safelight.providers.registry import Registry

THREADS = 4
COROUTINES = 32
PATIENCE_SECONDS = 30.0
ASKED: dict[str, dict[str, Any]] = {  # what these providers need to be told
    "mock": {"provider_options": {"duration_seconds": 0}},
    "comfyui": {"checkpoint_model": "tiny.safetensors"},
    "modelslab": {"width": 256, "height": 256},
}


def answer(**values: Any) -> None:
    print(json.dumps(values), flush=True)


# --- libraries that block ---------------------------------------------------------------------------------------------


def serve_blocking(send: Callable[[str], object]) -> None:
    listener = Listener(os.environ["BENCH_REDIS_URL"], keeps_times=True)
    pool = ThreadPoolExecutor(THREADS)
    answer(ready=True)
    for line in sys.stdin:
        request = json.loads(line)
        count: int = request["count"]
        if request["do"] == "burst":
            began = time.monotonic()
            list(pool.map(lambda _: work.submit(send), range(count), chunksize=1))
            answer(began=began, ended=time.monotonic())
        else:
            waits: list[float] = []
            for _ in range(count):
                began = time.monotonic()
                job_id = work.submit(send)
                waits.append(listener.wait_for(job_id, PATIENCE_SECONDS) - began)
            answer(waits=waits)


# --- Safelight: what the API does for a submit, without HTTP ----------------------------------------------------------


@asynccontextmanager
async def opened() -> AsyncGenerator[Safelight]:
    async with open_safelight(load_settings()) as world:
        await world.valkey.wait_connected(5)
        dispatch = asyncio.create_task(world.dispatcher.run())
        yield world
        dispatch.cancel()
        await asyncio.wait([dispatch])


async def submit(world: Safelight, provider: str) -> str:
    new = new_null_job(world.providers, world.settings, provider)
    hint = world.dispatcher.take_room(new.queue, new.values["provider"])
    outcome = await world.database.write_one(world.jobs.submit, replace(new, hint=hint))
    assert isinstance(outcome, Submitted)
    return outcome.job.id


async def submit_some(world: Safelight, provider: str, numbers: Iterator[int]) -> list[str]:
    return [await submit(world, provider) for _ in numbers]


def new_null_job(providers: Registry | None = None, settings: Settings | None = None, provider: str = "mock") -> NewJob:
    """A small job as the API makes it of a request."""
    body = GenerationRequest.model_validate(
        {"prompt": "a lighthouse at dusk", "provider": provider, "width": 64, "height": 64, "seed": 7}
        | ASKED.get(provider, {})
    )
    return new_job(
        body,
        owner_id=LOCAL_OWNER,
        providers=providers or Registry(mock_mode=True, default="mock"),
        settings=settings or load_settings(),
        request_id="bench",
    )


async def serve_safelight(provider: str) -> None:
    listener = Listener(os.environ["BENCH_REDIS_URL"], keeps_times=True)
    async with opened() as world:
        answer(ready=True)
        loop = asyncio.get_running_loop()
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            request = json.loads(line)
            count: int = request["count"]
            provider = request.get("provider", provider)
            if request["do"] == "burst":
                numbers = iter(range(count))
                began = time.monotonic()
                made = await asyncio.gather(*(submit_some(world, provider, numbers) for _ in range(COROUTINES)))
                answer(began=began, ended=time.monotonic(), ids=[job_id for some in made for job_id in some])
            else:
                waits: list[float] = []
                for _ in range(count):
                    began = time.monotonic()
                    job_id = await submit(world, provider)
                    waits.append(await loop.run_in_executor(None, listener.wait_for, job_id, PATIENCE_SECONDS) - began)
                answer(waits=waits)


def main(system: str) -> None:
    if system == "celery":
        from benchmarks.systems import celery_peer  # noqa: PLC0415 - one system a process

        serve_blocking(celery_peer.send)
    elif system == "dramatiq":
        from benchmarks.systems import dramatiq_peer  # noqa: PLC0415

        serve_blocking(dramatiq_peer.send)
    else:
        null_provider.install()
        log.configure("warning", "json")
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop_runner:
            loop_runner.run(serve_safelight(system))


if __name__ == "__main__":
    threading.current_thread().name = "client"
    main(sys.argv[1])
