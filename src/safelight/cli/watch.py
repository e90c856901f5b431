"""Following one job to its end: events feed the display, the last word is the job view itself."""

import queue
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from safelight.cli.display import Display
from safelight_client import ApiError, Client, ClientError, Unreachable

FRAME_SECONDS = 0.5  # the remaining time is counted down at this pace
ETA_SECONDS = 3.0  # how often the estimate is asked for again: it shifts while a queue moves


class StillRunning(Exception):
    """The time for watching is over; the job goes on."""


def watch_job(
    client: Client, job: dict[str, Any], display: Display, *, give_up: float | None, patience: float
) -> dict[str, Any]:
    """Show the job until it ends and return its last view.

    `give_up` is a moment of `time.monotonic()`; `StillRunning` is raised then, and `Unreachable` when the server has
    been away for `patience` seconds.
    """
    state = dict(job)
    running_since = time.monotonic() - age_seconds(state.get("started_at")) if state["status"] == "processing" else None
    display.show(state)
    feed = EventFeed(client, job["id"], patience)
    asked = time.monotonic()
    while not state.get("is_terminal"):
        remaining = None if give_up is None else give_up - time.monotonic()
        if remaining is not None and remaining <= 0:
            raise StillRunning
        for update in feed.take(min(remaining or FRAME_SECONDS, FRAME_SECONDS)):
            state |= update
        if not state.get("is_terminal") and time.monotonic() - asked >= ETA_SECONDS:
            asked = time.monotonic()
            state["eta"] = latest_estimate(client, job["id"]) or state.get("eta")
        if state.get("status") != "processing":
            running_since = None
        elif running_since is None:
            running_since = time.monotonic()
        state["running_seconds"] = None if running_since is None else time.monotonic() - running_since
        display.show(state)
    return client.get(job["id"])


def age_seconds(moment: str | None) -> float:
    """How long ago a time of the API was; 0 where it is unknown or the clocks disagree."""
    if moment is None:
        return 0.0
    return max(0.0, (datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds())


def latest_estimate(client: Client, job_id: str) -> dict[str, Any] | None:
    """The estimate of the job view; events do not carry it."""
    try:
        return client.get(job_id).get("eta")
    except ClientError:
        return None


class EventFeed:
    """The events of a job, read in a thread: the main thread keeps its hands free for time and Ctrl-C."""

    def __init__(self, client: Client, job_id: str, patience: float) -> None:
        self._queue: queue.SimpleQueue[dict[str, Any] | ClientError] = queue.SimpleQueue()
        self._arguments = (client, job_id, patience)
        threading.Thread(target=self._read, name=f"events of {job_id}", daemon=True).start()

    def take(self, wait_seconds: float) -> Iterator[dict[str, Any]]:
        """What has been told, after waiting for the first of it."""
        try:
            update = self._queue.get(timeout=wait_seconds)
            while True:
                if isinstance(update, ClientError):
                    raise update
                yield update
                update = self._queue.get_nowait()
        except queue.Empty:
            return

    def _read(self) -> None:
        client, job_id, patience = self._arguments
        try:
            for event in client.events(job_id, patience=patience):
                self._queue.put({name: value for name, value in event.data.items() if name not in ("type", "seq")})
            self._queue.put({"is_terminal": True})  # also when there was nothing more to tell
        except (Unreachable, ApiError) as error:
            self._queue.put(error)
        except Exception as error:  # the client was closed under our feet, or worse
            self._queue.put(Unreachable(str(error)))
