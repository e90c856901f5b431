"""Where pictures are worked on: threads, so that no loop stands still, and few, so that memory is bounded."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Self, TypeVar

from safelight.pictures.picture import MAX_PIXELS

THREADS, LARGE_THREADS, LARGE_PIXELS = 2, 1, 8_000_000
T = TypeVar("T")


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
        self._small = ThreadPoolExecutor(threads, thread_name_prefix="pictures")
        self._large = ThreadPoolExecutor(large_threads, thread_name_prefix="large-pictures")

    async def run(self, function: Callable[..., T], *arguments: object, pixels: int = 0) -> T:
        """What a function makes of a picture of so many pixels."""
        threads = self._large if pixels > self._large_pixels else self._small
        return await asyncio.get_running_loop().run_in_executor(threads, function, *arguments)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Take no more work, and forget what was not begun."""
        for threads in (self._small, self._large):
            threads.shutdown(wait=False, cancel_futures=True)
