"""Threads for pictures: small ones never wait for large ones, and no more wait than may."""

import asyncio
import threading
from collections.abc import Iterator

import pytest

from patience import PATIENCE_SECONDS
from safelight.pictures import PicturesBusy, PictureWorkers

SMALL, LARGE = 1_000_000, 64_000_000


@pytest.fixture
def workers() -> Iterator[PictureWorkers]:
    with PictureWorkers(threads=2, large_threads=1) as workers:
        yield workers


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    gate = threading.Event()
    yield gate
    gate.set()


async def held(workers: PictureWorkers, gate: threading.Event, pixels: int, count: int) -> list["asyncio.Task[bool]"]:
    """So many pictures that are being worked on, or wait, until the gate is open."""
    tasks = [asyncio.create_task(workers.run(gate.wait, PATIENCE_SECONDS, pixels=pixels)) for _ in range(count)]
    await asyncio.sleep(0)
    return tasks


@pytest.mark.anyio
async def test_small_pictures_never_wait_for_large_ones(workers: PictureWorkers, gate: threading.Event) -> None:
    large = await held(workers, gate, LARGE, 10)
    for _ in range(20):
        assert await workers.run(len, b"small", pixels=SMALL, max_waiting=0) == 5
    assert not any(task.done() for task in large)
    gate.set()
    assert all(await asyncio.gather(*large))


@pytest.mark.anyio
@pytest.mark.parametrize(("pixels", "threads", "other"), [(LARGE, 1, SMALL), (SMALL, 2, LARGE)])
@pytest.mark.parametrize("max_waiting", [0, 3])
async def test_no_more_wait_than_may(
    workers: PictureWorkers, gate: threading.Event, pixels: int, threads: int, other: int, max_waiting: int
) -> None:
    tasks = await held(workers, gate, pixels, threads + max_waiting)
    with pytest.raises(PicturesBusy) as caught:
        await workers.run(len, b"", pixels=pixels, max_waiting=max_waiting)
    assert (caught.value.kind, caught.value.code) == ("unavailable", "uploads_busy")
    assert caught.value.retry_after
    assert await workers.run(len, b"other", pixels=other, max_waiting=max_waiting) == 5
    gate.set()
    await asyncio.gather(*tasks)
    assert await workers.run(len, b"again", pixels=pixels, max_waiting=max_waiting) == 5


@pytest.mark.anyio
async def test_what_nobody_waits_for_any_more_makes_room(workers: PictureWorkers, gate: threading.Event) -> None:
    begun, waiting = await held(workers, gate, LARGE, 2)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    with pytest.raises(PicturesBusy):  # the thread is not free by that
        await workers.run(len, b"", pixels=LARGE, max_waiting=0)
    again = asyncio.create_task(workers.run(len, b"again", pixels=LARGE, max_waiting=1))
    await asyncio.sleep(0)
    gate.set()
    assert (await begun, await again) == (True, 5)
