"""The watchdog on the loop bites."""

import time

from api_service import Service
from watchdog import MOST_SECONDS, watched


def test_the_watchdog_bites(idle: Service) -> None:
    def stand_still() -> None:
        begun = time.thread_time()
        while time.thread_time() - begun < 0.15:
            pass

    with watched(idle.api) as watchdog:
        assert watchdog.read() < MOST_SECONDS
        watchdog.loop.call_soon_threadsafe(stand_still)
        assert watchdog.read() >= 0.15
