"""Batches: up to 1,000 jobs accepted, followed, cancelled and retried together."""

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import httpx

from safelight_client.event import Event

BATCHES = "/api/v1/batches"
JOBS = "/api/v1/generation-jobs"
ENDS = frozenset({"batch.completed", "batch.failed", "batch.cancelled"})


class Batches:
    """Many jobs as one: `client.batches`."""

    def __init__(self, call: Callable[..., httpx.Response], follow: Callable[..., Iterator[Event]]) -> None:
        self._call = call
        self._follow = follow

    def submit(
        self,
        jobs: Sequence[Mapping[str, Any]],
        *,
        name: str | None = None,
        metadata: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
    ) -> dict[str, Any]:
        """Submit up to 1,000 jobs, all of them or none, and return the batch's view.

        Each has the fields of a single submit; `job_ids` of the view stand in their order. An `ApiError` names what is
        wrong by its place, as `#/jobs/17/prompt`.
        """
        headers = {"Idempotency-Key": idempotency_key or str(uuid.uuid4())}
        given = {"jobs": [dict(job) for job in jobs], "name": name, "metadata": metadata}
        body = {name: value for name, value in given.items() if value is not None}
        return self._call("POST", BATCHES, headers=headers, json=body).json()

    def get(self, batch_id: str) -> dict[str, Any]:
        """The view of a batch now: how many of its jobs have each status, and one progress for all."""
        return self._call("GET", f"{BATCHES}/{batch_id}").json()

    def jobs(self, batch_id: str) -> Iterator[dict[str, Any]]:
        """The views of its jobs, the last one first."""
        query = {"batch_id": batch_id, "limit": "100"}
        while True:
            page = self._call("GET", JOBS, params=query).json()
            yield from page["items"]
            if page["next_cursor"] is None:
                return
            query["cursor"] = page["next_cursor"]

    def cancel(self, batch_id: str) -> dict[str, Any]:
        """Cancel what waits and ask what runs to stop; return the batch's view."""
        return self._call("POST", f"{BATCHES}/{batch_id}/cancel").json()

    def retry(self, batch_id: str, *, idempotency_key: str | None = None) -> dict[str, Any]:
        """Submit what failed or was cancelled in an ended batch again; return the view of the new batch."""
        headers = {"Idempotency-Key": idempotency_key or str(uuid.uuid4())}
        return self._call("POST", f"{BATCHES}/{batch_id}/retry", headers=headers).json()

    def events(self, batch_id: str, last_event_id: str | None = None, *, patience: float = 60.0) -> Iterator[Event]:
        """What happens to a batch and to all its jobs, live, from `batch.snapshot` to its end; then the iterator stops.

        `job.*` events are those of its jobs (`event.data["job_id"]`), `batch.progress` tells the counts and the
        progress of all. A broken connection is made again and resumed as with a job's events.
        """
        path = f"{BATCHES}/{batch_id}/events"
        return self._follow(path, last_event_id, patience, lambda event: event.type in ENDS)
