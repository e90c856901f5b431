"""The client: one object per Safelight, made of plain calls that return what the API answers."""

import mimetypes
import random
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, overload
from urllib.parse import quote

import httpx

from safelight_client.batch import Batches
from safelight_client.error import ApiError, Unreachable
from safelight_client.event import Event, EventReader
from safelight_client.media import Media
from safelight_client.story import Stories

API = "/api/v1"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
LONGEST_WAIT = 30.0  # seconds between two tries; a server that asks for more is believed and not bothered
UPLOAD_SECONDS = 60.0  # for an uploaded picture to be checked and stored
SILENCE = 45.0  # seconds without a byte after which an event stream counts as broken; comments come every 15 s


class Client:
    """Speaks to one Safelight. Use it as a context manager or call `close`; it may be shared between threads.

    `api_key` is a key of Safelight's, or a token of its identity provider; an installation for one user needs none. It
    is sent to that Safelight alone, not to other addresses that a `download` may lead to.
    `timeout` is the number of seconds one answer may take. A call that gets no answer, or 429 or 503, is tried again
    up to `retries` times, after `retry_seconds` doubling each time or what the server's `Retry-After` says.
    """

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8080",
        *,
        api_key: str | None = None,
        timeout: float = 10.0,
        retries: int = 4,
        retry_seconds: float = 0.5,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self._timeout = timeout
        self._retries = retries
        self._retry_seconds = retry_seconds
        # A proxy from the environment can never lead back to this machine.
        is_here = httpx.URL(self.base_url).host in LOOPBACK
        self._http = httpx.Client(timeout=timeout, trust_env=not is_here, follow_redirects=True)
        self.stories = Stories(self._call)
        self.media = Media(self._call)
        self._own_headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self.batches = Batches(self._call, self._follow)

    def close(self) -> None:
        """Close the connections. An iterator of `events` in another thread ends with `Unreachable`."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def submit(self, *, idempotency_key: str | None = None, wait: int | None = None, **fields: Any) -> dict[str, Any]:
        """Submit a generation job and return its view, usually still `pending`.

        The fields are those of the API (`prompt`, `width`, `provider_options`, ...); those that are None are left out.
        The call bears an idempotency key, so its own retries make one job; pass your own to survive a restart of your
        program too. `wait` lets the server hold the answer until the job has ended, 60 s at most.
        """
        headers = {"Idempotency-Key": idempotency_key or str(uuid.uuid4())}
        if wait is not None:
            headers["Prefer"] = f"wait={wait}"
        body = {name: value for name, value in fields.items() if value is not None}
        response = self._call("POST", f"{API}/generation-jobs", headers=headers, json=body, extra_seconds=wait or 0)
        return response.json()

    def get(self, job_id: str, wait: int | None = None) -> dict[str, Any]:
        """The view of a job now, or when it has ended or `wait` seconds have passed (60 at most)."""
        query = {} if wait is None else {"wait": str(wait)}
        return self._call("GET", f"{API}/generation-jobs/{job_id}", params=query, extra_seconds=wait or 0).json()

    def cancel(self, job_id: str) -> dict[str, Any]:
        """Ask for a job to be cancelled and return its view. One that is running ends a moment later."""
        return self._call("POST", f"{API}/generation-jobs/{job_id}/cancel").json()

    def events(self, job_id: str, last_event_id: str | None = None, *, patience: float = 60.0) -> Iterator[Event]:
        """What happens to a job, live, from a snapshot to its end; the iterator stops when the job has ended.

        A broken connection is made again and resumed where it broke, so no state is missed; an event that is older
        than one already seen is dropped. `patience` is how many seconds in a row the server may be away before
        `Unreachable` is raised.
        """
        newest = (0, 0)
        path = f"{API}/generation-jobs/{job_id}/events"
        for event in self._follow(path, last_event_id, patience, lambda event: event.is_terminal):
            if event.order >= newest or event.is_terminal:
                newest = max(newest, event.order)
                yield event

    @overload
    def download(self, url: str) -> bytes: ...

    @overload
    def download(self, url: str, to: str | Path) -> Path: ...

    def download(self, url: str, to: str | Path | None = None) -> bytes | Path:
        """The bytes behind an artifact's `url`, or the file they were written to.

        A file appears whole or not at all: it is written beside its place under a passing name.
        """
        if to is None:
            return self._call("GET", url).content
        target = Path(to)
        partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")
        try:
            self._download(url, partial)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
        return target

    def providers(self) -> list[dict[str, Any]]:
        """Every provider: its health, limits and load, whether it is paused, and how long its jobs take."""
        return self._call("GET", f"{API}/providers").json()["items"]

    def upload(self, picture: bytes | str | Path, content_type: str | None = None) -> dict[str, Any]:
        """Upload a picture to start from, and return its record: its `id` is what `input_images` of a submit takes.

        PNG, JPEG or WebP; of a file, the type follows from its name if it is not given.
        """
        data = picture if isinstance(picture, bytes) else Path(picture).read_bytes()
        if content_type is None and not isinstance(picture, bytes):
            content_type = mimetypes.guess_type(Path(picture).name)[0]
        headers = {"Content-Type": content_type or "application/octet-stream"}
        return self._call(
            "POST", f"{API}/artifacts", headers=headers, content=data, extra_seconds=UPLOAD_SECONDS
        ).json()

    def templates(self) -> list[dict[str, Any]]:
        """The workflow templates that a submit may name: everybody's, then your own."""
        return self._call("GET", f"{API}/templates").json()["items"]

    def template(self, name: str) -> dict[str, Any]:
        """A template with its workflow."""
        return self._call("GET", f"{API}/templates/{quote(name, safe='')}").json()

    def add_template(self, definition: Mapping[str, Any], *, replace: bool = False) -> dict[str, Any]:
        """Add a template of your own. One that you have already is refused (409) unless it is to be replaced."""
        if replace:
            path = f"{API}/templates/{quote(str(definition.get('name')), safe='')}"
            return self._call("PUT", path, json=dict(definition)).json()
        return self._call("POST", f"{API}/templates", json=dict(definition)).json()

    def delete_template(self, name: str) -> None:
        """Delete a template of your own; jobs that were accepted keep it."""
        self._call("DELETE", f"{API}/templates/{quote(name, safe='')}")

    def ready(self) -> dict[str, Any]:
        """The health of each part, as the server tells it. Answered once, without retries."""
        response = self._look(f"{API}/health/ready")
        return response.json() if response.status_code == 503 else self._checked(response).json()

    def is_live(self) -> bool:
        """Whether a Safelight answers at all, now."""
        try:
            return self._look(f"{API}/health/live").is_success
        except Unreachable:
            return False

    # --- how a stream is followed ---------------------------------------------------------------------------------

    def _follow(
        self, path: str, last_event_id: str | None, patience: float, is_last: Callable[[Event], bool]
    ) -> Iterator[Event]:
        """Every event until the last, over as many connections as it takes."""
        reader = EventReader(last_event_id)
        failures = 0
        last_contact = time.monotonic()
        while True:
            if self._http.is_closed:
                raise Unreachable("The client was closed.")
            pause: float | None = None
            try:
                for event in self._stream(path, reader):
                    failures = 0
                    yield event
                    last_contact = time.monotonic()
                    if is_last(event):
                        return
                last_contact = time.monotonic()
            except NothingMore:
                return
            except httpx.TransportError as error:
                if self._http.is_closed or time.monotonic() - last_contact >= patience:
                    raise Unreachable(self._no_answer(error)) from error
            except ApiError as error:
                if not error.retryable or time.monotonic() - last_contact >= patience:
                    raise
                pause = error.retry_after
            failures += 1
            self._sleep(failures, pause if pause is not None else reader.retry_seconds if failures == 1 else None)

    # --- how a call is made ---------------------------------------------------------------------------------------

    def _look(self, path: str) -> httpx.Response:
        """One answer. A kept connection that the server closed as we wrote says nothing: ask on a new one."""
        try:
            return self._send("GET", path)
        except Unreachable as error:
            if isinstance(error.__cause__, httpx.TimeoutException):
                raise
            return self._send("GET", path)

    def _call(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
        json: dict[str, Any] | None = None,
        content: bytes | None = None,
        extra_seconds: float = 0,
        repeatable: bool = True,
    ) -> httpx.Response:
        failures = 0
        while True:
            pause: float | None = None
            try:
                response = self._send(method, path, headers, params, json, extra_seconds, content)
            except Unreachable:
                if failures >= self._retries or not repeatable:
                    raise
            else:
                if response.status_code not in (429, 503):
                    return self._checked(response)
                error = ApiError.from_response(response)
                pause = error.retry_after
                if failures >= self._retries or (pause or 0) > LONGEST_WAIT:
                    raise error
            failures += 1
            self._sleep(failures, pause)

    def _send(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
        json: dict[str, Any] | None = None,
        extra_seconds: float = 0,
        content: bytes | None = None,
    ) -> httpx.Response:
        timeout = httpx.Timeout(self._timeout, read=self._timeout + extra_seconds)
        try:
            address = self._address(path)
            sent = {**self._headers_for(address), **(headers or {})}
            return self._http.request(
                method, address, headers=sent, params=params, json=json, content=content, timeout=timeout
            )
        except httpx.TransportError as error:
            raise Unreachable(self._no_answer(error)) from error

    def _stream(self, path: str, reader: EventReader) -> Iterator[Event]:
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
        if reader.last_id is not None:
            headers["Last-Event-ID"] = reader.last_id
        address = self._address(path)
        headers |= self._headers_for(address)
        timeout = httpx.Timeout(self._timeout, read=SILENCE)
        with self._http.stream("GET", address, headers=headers, timeout=timeout) as response:
            if response.status_code == 204:
                raise NothingMore
            if not response.is_success:
                response.read()
                raise ApiError.from_response(response)
            yield from reader.read(response.iter_bytes())

    def _download(self, url: str, partial: Path) -> None:
        failures = 0
        while True:
            try:
                address = self._address(url)
                sent = self._headers_for(address)
                with self._http.stream("GET", address, headers=sent) as response, partial.open("wb") as file:
                    if not response.is_success:
                        response.read()
                        raise ApiError.from_response(response)
                    for chunk in response.iter_bytes():
                        file.write(chunk)
                return
            except httpx.TransportError as error:
                if failures >= self._retries:
                    raise Unreachable(self._no_answer(error)) from error
            except ApiError as error:
                if not error.retryable or failures >= self._retries:
                    raise
            failures += 1
            self._sleep(failures, None)

    def _address(self, path: str) -> str:
        """A path of the API's, or one that the server has told: then the path that it stands below is in it already."""
        if path.startswith(("http://", "https://")):
            return path
        below = httpx.URL(self.base_url).path.rstrip("/")
        is_told = below and path.startswith(f"{below}{API}/")
        return (self.base_url.removesuffix(below) if is_told else self.base_url) + path

    def _headers_for(self, address: str) -> dict[str, str]:
        """The key, if the address is one of this Safelight's: signed addresses elsewhere must not learn it."""
        there, here = httpx.URL(address), httpx.URL(self.base_url)
        is_ours = (there.scheme, there.host, there.port) == (here.scheme, here.host, here.port)
        return dict(self._own_headers) if is_ours else {}

    def _checked(self, response: httpx.Response) -> httpx.Response:
        if not response.is_success:
            raise ApiError.from_response(response)
        return response

    def _no_answer(self, error: httpx.TransportError) -> str:
        return f"Safelight does not answer at {self.base_url} ({type(error).__name__}: {error or 'no details'})."

    def _sleep(self, failures: int, asked: float | None) -> None:
        """Wait before another try: what was asked for, else doubling, with jitter so that clients do not keep step."""
        own = min(self._retry_seconds * 2 ** min(failures - 1, 10), LONGEST_WAIT) * random.uniform(0.8, 1.2)
        time.sleep(min(asked, LONGEST_WAIT) if asked is not None else own)


class NothingMore(Exception):
    """The server said that everything was told before, to the end."""
