"""A watchdog on the loop of a service: how long its thread was at work without letting others have their turn."""

import asyncio
import time
from collections.abc import Generator
from contextlib import contextmanager

from api_service import Api, eventually

MOST_SECONDS = 0.1  # of work in one turn
BEAT_SECONDS = 0.002


class Watchdog:
    """Measures the processor time of the loop's own thread between two beats: a busy machine changes nothing."""

    def __init__(self, api: Api) -> None:
        self.loop: asyncio.AbstractEventLoop = api.server.servers[0].get_loop()
        self._last = 0.0
        self._worst = 0.0
        self._beats = 0
        self._is_on = True
        self.loop.call_soon_threadsafe(self._begin)

    def _begin(self) -> None:
        self._last = time.thread_time()
        self._beat()

    def _beat(self) -> None:
        now = time.thread_time()
        self._worst = max(self._worst, now - self._last)
        self._last = now
        self._beats += 1
        if self._is_on:
            self.loop.call_later(BEAT_SECONDS, self._beat)

    def read(self) -> float:
        """The longest so far, in seconds, once the loop has had a turn after all that was asked of it."""
        seen = self._beats
        eventually(lambda: self._beats > seen + 1, "the loop goes on")
        worst, self._worst = self._worst, 0.0
        return worst

    def close(self) -> None:
        self._is_on = False


@contextmanager
def watched(api: Api) -> Generator[Watchdog]:
    made = Watchdog(api)
    yield made
    made.close()
