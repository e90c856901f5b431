"""Media imports: what stands at a URL, in Safelight's storage."""

import uuid
from typing import Any, Protocol

import httpx

PREFIX = "/api/v1/media"
PROBE_SECONDS = 20.0  # the server's own limit


class MediaCall(Protocol):
    """How the client makes a call."""

    def __call__(
        self,
        method: str,
        path: str,
        *,
        headers: dict[str, str] | None = None,
        json: dict[str, Any] | None = None,
        extra_seconds: float = 0,
    ) -> httpx.Response: ...


class Media:
    """The imports of a `Client`, as its `media`."""

    def __init__(self, call: MediaCall) -> None:
        self._call = call

    def store(self, url: str, *, idempotency_key: str | None = None, **fields: Any) -> dict[str, Any]:
        """Have the media at a URL imported and return the job's view; follow it with `events` or `get` like any other.

        The fields are those of the API (`scene_id`, `max_height`, `audio_only`, `metadata`, ...); those that are None
        are left out. The call bears an idempotency key as `submit` does.
        """
        body = {"url": url} | {name: value for name, value in fields.items() if value is not None}
        headers = {"Idempotency-Key": idempotency_key or str(uuid.uuid4())}
        return self._call("POST", f"{PREFIX}/store", headers=headers, json=body).json()

    def probe(self, url: str) -> dict[str, Any]:
        """Title, duration, size and heights of what is there, as far as its source tells; nothing is fetched."""
        return self._call("POST", f"{PREFIX}/probe", json={"url": url}, extra_seconds=PROBE_SECONDS).json()
