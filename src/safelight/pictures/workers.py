"""Where pictures are worked on: threads, so that no loop stands still, and few, so that memory is bounded."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self, TypeVar

from safelight.errors import Unavailable
from safelight.pictures.picture import MAX_PIXELS

THREADS, LARGE_THREADS, LARGE_PIXELS = 2, 1, 8_000_000
T = TypeVar("T")


class PicturesBusy(Unavailable):
    """As many pictures wait to be decoded as may. Try again."""

    code = "uploads_busy"


class PictureWorkers:
    """Threads of one process. Large pictures have threads of their own: they wait for each other, and small ones never.

    `max_pixels` is what a picture may have at all. libvips does its work without Python's lock.
    """

    def __init__(
        self,
        *,
        threads: int = THREADS,
        large_threads: int = LARGE_THREADS,
        large_pixels: int = LARGE_PIXELS,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.max_pixels = max_pixels
        self._large_pixels = large_pixels
        self._small = _Lane(threads, "pictures")
        self._large = _Lane(large_threads, "large-pictures")

    async def run(
        self, function: Callable[..., T], *arguments: object, pixels: int = 0, max_waiting: int | None = None
    ) -> T:
        """What a function makes of a picture of so many pixels.

        Raises `PicturesBusy` if `max_waiting` others of its size wait already; None: it waits however many there are.
        """
        lane = self._large if pixels > self._large_pixels else self._small
        return await lane.run(function, *arguments, max_waiting=max_waiting)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Take no more work, and forget what was not begun."""
        self._small.close()
        self._large.close()


class _Lane:
    """So many threads, and what was given to them and is not done."""

    def __init__(self, threads: int, name: str) -> None:
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._given: set[Future[Any]] = set()

    async def run(self, function: Callable[..., T], *arguments: object, max_waiting: int | None) -> T:
        if max_waiting is not None and len(self._given) >= self._threads + max_waiting:
            raise PicturesBusy(retry_after=len(self._given) / self._threads)
        future = self._pool.submit(function, *arguments)
        self._given.add(future)
        future.add_done_callback(self._given.discard)  # once a thread is free of it, even if nobody waits any more
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
