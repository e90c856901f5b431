"""One ComfyUI server over HTTP: its version, queue, jobs, files and node types.

Everything it may answer is turned into values or into two errors here: `ServerUnreachable` (nobody there, or nobody who
answers like ComfyUI) and `InvalidParameters` (it will not take the workflow). Versions from 0.3.64 on are spoken to:
`/api/jobs` where it exists (0.6), else `/queue` before `/history`, in this order, because jobs only move that way.
"""

import asyncio
import hashlib
import json
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit, urlunsplit

import httpx
import orjson
import structlog

from safelight.providers.base import BadOutput, InvalidParameters
from safelight.providers.comfyui.catalogue import Catalogue
from safelight.providers.comfyui.graph import Graph, Plan
from safelight.providers.comfyui.prompt_state import Ended, File, PromptState, Queued, Running, end_of
from safelight.providers.comfyui.refusal import reject

log = structlog.get_logger()

MAX_RESULT_BYTES = 1 << 30
HELD_BYTES = 8 << 20  # of a result in memory; the rest of a larger one is on the disk
JOBS_SINCE, JOB_CANCEL_SINCE = (0, 6), (0, 26)
LOAD_SECONDS = 0.5  # how long a count of the queue is believed


@dataclass(frozen=True, slots=True)
class Pace:
    """How often to look and how long to wait, in seconds."""

    answer: float = 10.0  # for an ordinary request
    submit: float = 30.0  # for a workflow to be taken
    transfer: float = 60.0  # for the next part of a file
    probe: float = 5.0  # for a sign of life
    socket: float = 5.0  # for a socket to open
    look: float = 1.0  # between two looks while the socket tells nothing
    silence: float = 10.0  # of a working socket before a look all the same
    reopen: float = 30.0  # of silence before the socket is opened anew
    refused: float = 10.0  # nobody at the port: the server is given up
    hung: float = 45.0  # no answer: the server is given up
    down: float = 15.0  # before a server that was given up is asked again
    waiting: float = 5.0  # before a waiting job looks at the servers again
    catalogue: float = 60.0  # how long node types are believed
    verify: float = 1.0  # for a check at submit
    settle: float = 1.0  # for /free to act
    retry: float = 0.5  # before a download is tried again, doubled each time


class ServerUnreachable(Exception):
    """The server cannot be used now. `was_sent`: the request may have arrived all the same."""

    def __init__(self, reason: str, *, was_sent: bool = True) -> None:
        self.reason = reason
        self.was_sent = was_sent
        super().__init__(reason)


class FileGone(Exception):
    """The server names a file it no longer has."""


@dataclass(slots=True)
class _Memory:
    """What was last heard."""

    version: tuple[int, ...] | None = None
    version_text: str = ""
    waiting: int = 0
    counted_at: float = -1e9
    catalogue: Catalogue | None = None
    catalogue_at: float = -1e9
    catalogue_digest: bytes = b""
    old_catalogue: Catalogue | None = None  # of before it was given up
    down_until: float = 0.0
    down_reason: str = ""


class Server:
    """A ComfyUI server. `inside` counts the jobs of this process in it."""

    def __init__(self, url: str, headers: Mapping[str, str], pace: Pace) -> None:
        parts = urlsplit(url.strip())
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"A ComfyUI server is a URL like http://127.0.0.1:8188, not {url!r}.")
        path = parts.path.rstrip("/")
        self._credentials = parts.netloc.rpartition("@")[0]
        self._netloc = parts.netloc.rpartition("@")[2]
        self.name = urlunsplit((parts.scheme, self._netloc, path, "", ""))
        self.headers = dict(headers)
        self.inside = 0
        self.pace = pace
        self._memory = _Memory()
        self._refreshing: asyncio.Task[Catalogue] | None = None
        self._probing: asyncio.Task[None] | None = None
        self._http = httpx.AsyncClient(
            base_url=urlunsplit((parts.scheme, parts.netloc, path, "", "")),
            headers={"Accept-Encoding": "identity", **self.headers},
            timeout=httpx.Timeout(pace.answer, connect=pace.probe),
            limits=httpx.Limits(max_connections=32, max_keepalive_connections=8, keepalive_expiry=5),
            verify=parts.scheme == "https",  # certificates are loaded only where they are needed
            trust_env=False,  # servers are reached as configured, never through a proxy of the environment
        )

    async def close(self) -> None:
        """End its connections."""
        for task in (self._refreshing, self._probing):
            if task is not None:
                task.cancel()
        await self._http.aclose()

    def socket_url(self, client_id: str) -> str:
        """Where the messages for a client are heard."""
        scheme, rest = self.name.split("://", 1)
        credentials = f"{self._credentials}@" if self._credentials else ""
        return f"{'wss' if scheme == 'https' else 'ws'}://{credentials}{rest}/ws?clientId={client_id}"

    # --- health ------------------------------------------------------------------------------------------------------

    @property
    def is_down(self) -> bool:
        """It was given up a moment ago."""
        return time.monotonic() < self._memory.down_until

    @property
    def version(self) -> str:
        """As it was last told, perhaps empty."""
        return self._memory.version_text

    @property
    def trouble(self) -> str:
        """Why it was last given up."""
        return self._memory.down_reason

    def mark_down(self, reason: str) -> None:
        """Give it nothing for a while. When it comes back it may be another version with other models."""
        log.warning("comfyui.server_down", server=self.name, reason=reason)
        until = time.monotonic() + self.pace.down
        self._memory = _Memory(down_until=until, down_reason=reason, old_catalogue=self.known)

    async def probe(self) -> None:
        """Make sure that it is there, and count its queue. Raises `ServerUnreachable`, and remembers that."""
        if time.monotonic() - self._memory.counted_at < LOAD_SECONDS:
            return
        if self._probing is None or self._probing.done():
            self._probing = asyncio.create_task(self._probe())
            self._probing.add_done_callback(_forget)
        await asyncio.shield(self._probing)

    async def _probe(self) -> None:
        try:
            async with asyncio.timeout(self.pace.probe):
                if self._memory.version is None:
                    await self._learn_version()
                inside = self.inside
                count = (await self._get("/prompt"))["exec_info"]["queue_remaining"]
        except (ServerUnreachable, TimeoutError, KeyError, TypeError) as error:
            self.mark_down(
                error.reason if isinstance(error, ServerUnreachable) else "it does not answer like ComfyUI in time"
            )
            raise ServerUnreachable(self._memory.down_reason) from None
        self._memory.waiting = max(0, int(count) - inside)
        self._memory.counted_at = time.monotonic()
        self._memory.down_until = 0.0

    @property
    def load(self) -> int:
        """Jobs in it: those of others when last counted, and ours now."""
        return self._memory.waiting + self.inside

    async def _learn_version(self) -> None:
        system = (await self._get("/system_stats")).get("system") or {}
        text = str(system.get("comfyui_version") or "")
        self._memory.version_text = text
        self._memory.version = tuple(int(part) for part in re.findall(r"\d+", text)[:3])

    async def _is_since(self, version: tuple[int, ...]) -> bool:
        if self._memory.version is None:
            await self._learn_version()
        return (self._memory.version or ()) >= version

    # --- what it can do ----------------------------------------------------------------------------------------------

    @property
    def known(self) -> Catalogue | None:
        """Its node types as they were last told."""
        return self._memory.catalogue or self._memory.old_catalogue

    async def catalogue(self, max_age: float | None = None) -> Catalogue:
        """Its node types, at most so many seconds old; without a bound old ones serve while new ones are fetched.

        Raises `ServerUnreachable`.
        """
        known, age = self._memory.catalogue, time.monotonic() - self._memory.catalogue_at
        if known is not None and age < (self.pace.catalogue if max_age is None else max_age):
            return known
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.create_task(self._read_catalogue())
            self._refreshing.add_done_callback(_forget)
        if known is not None and max_age is None:
            return known
        return await asyncio.shield(self._refreshing)

    async def _read_catalogue(self) -> Catalogue:
        response = await self._ask("GET", "/object_info", seconds=self.pace.submit)
        if response.status_code != 200:
            raise ServerUnreachable(f"it answers /object_info with HTTP {response.status_code}")
        digest = hashlib.sha256(response.content).digest()
        catalogue = self._memory.catalogue
        if catalogue is None or digest != self._memory.catalogue_digest:  # near a megabyte, so not on the loop
            catalogue = await asyncio.to_thread(lambda: Catalogue.read(self._json(response)))
        self._memory.catalogue, self._memory.catalogue_digest = catalogue, digest
        self._memory.catalogue_at = time.monotonic()
        return catalogue

    # --- a job -------------------------------------------------------------------------------------------------------

    async def submit(self, plan: Plan, graph: Graph, prompt_id: str, client_id: str, extra: Mapping[str, Any]) -> None:
        """Queue a graph under our own id. Raises `InvalidParameters` if it is refused, wholly or in part."""
        body = {"prompt": graph, "prompt_id": prompt_id, "client_id": client_id, "extra_data": dict(extra)}
        response = await self._ask("POST", "/prompt", seconds=self.pace.submit, json=body, bad_input=True)
        if response.status_code == 413:
            raise InvalidParameters("The workflow is larger than the ComfyUI server takes.", field=plan.root)
        if response.status_code == 500:
            message = "The ComfyUI server cannot make sense of the workflow and says nothing about why."
            raise InvalidParameters(message, field=plan.root)
        answer = self._json(response)
        node_errors = answer.get("node_errors") or {}
        if response.status_code == 400 or "error" in answer:
            reject(plan, answer.get("error"), node_errors)
        if response.status_code != 200:
            raise ServerUnreachable(f"it answers POST /prompt with HTTP {response.status_code}")
        if node_errors:  # the rest of the graph would run all the same
            with suppress(ServerUnreachable):
                await self.cancel(prompt_id)
            reject(plan, None, node_errors)

    async def look(self, prompt_id: str) -> PromptState:
        """How a job stands, and None if it is nowhere. Raises `ServerUnreachable`."""
        if await self._is_since(JOBS_SINCE):
            return await self._look_at_job(prompt_id)
        queue = await self._get("/queue")
        if any(_id_of(item) == prompt_id for item in queue.get("queue_running") or ()):
            return Running()
        pending = sorted(queue.get("queue_pending") or (), key=lambda item: item[0])
        for place, item in enumerate(pending, 1):
            if _id_of(item) == prompt_id:
                return Queued(place)
        entry = (await self._get(f"/history/{prompt_id}")).get(prompt_id)
        if entry is None:
            return None
        ran: Any = entry.get("prompt")
        return end_of(entry.get("outputs"), entry.get("status"), ran[2] if isinstance(ran, list) else None)

    async def _look_at_job(self, prompt_id: str) -> PromptState:
        response = await self._ask("GET", f"/api/jobs/{prompt_id}")
        if response.status_code == 404:
            return None
        if response.status_code != 200:
            raise ServerUnreachable(f"it answers /api/jobs with HTTP {response.status_code}")
        job = self._json(response)
        match job.get("status"):
            case "pending":
                return Queued(await self._place_of(prompt_id))
            case "in_progress":
                return Running()
            case "cancelled":
                return Ended(is_interrupted=True)
            case _:
                ran: Any = job.get("workflow")
                graph = cast(Mapping[str, Any], ran).get("prompt") if isinstance(ran, Mapping) else None
                return end_of(job.get("outputs"), job.get("execution_status"), graph)

    async def _place_of(self, prompt_id: str) -> int | None:
        """The list of jobs bears no graphs, unlike the queue; its order is not that in which they run."""
        listed: Any = (await self._get("/api/jobs?status=pending")).get("jobs")
        waiting = [job for job in listed if isinstance(job, dict)] if isinstance(listed, list) else []
        ids = [job.get("id") for job in sorted(waiting, key=lambda job: job.get("priority") or 0)]
        return ids.index(prompt_id) + 1 if prompt_id in ids else None

    async def cancel(self, prompt_id: str) -> None:
        """Take a job out of the queue, or interrupt it; unknown and finished ones are left alone."""
        if await self._is_since(JOB_CANCEL_SINCE):
            await self._ask("POST", f"/api/jobs/{prompt_id}/cancel")
            return
        await self._ask("POST", "/queue", json={"delete": [prompt_id]})
        await self._ask("POST", "/interrupt", json={"prompt_id": prompt_id})

    async def free(self, *, unload_models: bool) -> None:
        """Drop every cached result, and the models if told so. Takes effect when the current job ends."""
        await self._ask("POST", "/free", json={"free_memory": True, "unload_models": unload_models})

    # --- files -------------------------------------------------------------------------------------------------------

    async def upload(self, data: bytes, content_type: str, filename: str) -> str:
        """Put a picture into the input folder; the name to give to LoadImage."""
        response = await self._ask(
            "POST",
            "/upload/image",
            seconds=self.pace.transfer,
            files={"image": (filename, data, content_type)},
            data={"subfolder": "safelight", "type": "input"},
        )
        if response.status_code != 200:
            raise ServerUnreachable(f"it answers an upload with HTTP {response.status_code}")
        stored = self._json(response)
        return f"{stored['subfolder']}/{stored['name']}" if stored.get("subfolder") else str(stored["name"])

    async def download(self, file: File, to: Path) -> bytes | Path:
        """A whole file: its bytes, or `to`, which then holds them, if they are many.

        Raises `FileGone`, `ServerUnreachable`, `BadOutput` for an endless one.
        """
        query = {"filename": file.filename, "subfolder": file.subfolder, "type": file.type}
        timeout = httpx.Timeout(self.pace.transfer, connect=self.pace.probe)
        data, written = bytearray(), 0
        try:
            async with self._http.stream("GET", "/view", params=query, timeout=timeout) as response:
                if response.status_code == 404:
                    raise FileGone
                if response.status_code != 200:
                    raise ServerUnreachable(f"it answers /view with HTTP {response.status_code}")
                async for part in response.aiter_raw():
                    data += part
                    if written + len(data) > MAX_RESULT_BYTES:
                        raise BadOutput(f"The result {file.filename} is larger than {MAX_RESULT_BYTES >> 20} MB.")
                    if len(data) >= HELD_BYTES:
                        await asyncio.to_thread(_write, to, written, bytes(data))
                        written += len(data)
                        data.clear()
        except httpx.RequestError as error:  # also when it ends before its Content-Length
            raise ServerUnreachable(_describe(error)) from None
        if not written:
            return bytes(data)
        await asyncio.to_thread(_write, to, written, bytes(data))
        return to

    # --- asking ------------------------------------------------------------------------------------------------------

    async def _get(self, path: str) -> dict[str, Any]:
        response = await self._ask("GET", path)
        if response.status_code != 200:
            raise ServerUnreachable(f"it answers {path} with HTTP {response.status_code}")
        return self._json(response)

    async def _ask(
        self, method: str, path: str, *, seconds: float | None = None, bad_input: bool = False, **content: Any
    ) -> httpx.Response:
        """Send a request. `bad_input`: a plain HTTP 500 blames the request and is returned."""
        timeout = httpx.Timeout(seconds or self.pace.answer, connect=self.pace.probe)
        try:
            response = await self._http.request(method, path, timeout=timeout, **content)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise ServerUnreachable(_describe(error), was_sent=False) from None
        except httpx.RequestError as error:
            raise ServerUnreachable(_describe(error)) from None
        if response.status_code in (401, 403):
            raise ServerUnreachable(f"it refuses us (HTTP {response.status_code}); is SAFELIGHT_COMFYUI_HEADERS right?")
        is_plain = response.status_code == 500 and response.headers.get("content-type", "").startswith("text/plain")
        if response.status_code >= 500 and not (bad_input and is_plain):
            raise ServerUnreachable(f"it answers {path.split('?')[0]} with HTTP {response.status_code}")
        return response

    def _json(self, response: httpx.Response) -> dict[str, Any]:
        try:
            answer = read_json(response.content)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise ServerUnreachable("it does not answer like ComfyUI")
        return cast(dict[str, Any], answer)


def read_json(data: bytes | str) -> Any:
    """JSON as ComfyUI writes it, which may hold NaN and Infinity. Raises `ValueError`."""
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        return json.loads(data)


def _write(path: Path, at: int, data: bytes) -> None:
    """The next piece of a file; the first one begins it anew."""
    with path.open("ab" if at else "wb") as file:
        file.write(data)


def _forget(task: asyncio.Task[Any]) -> None:
    """A shared request may fail after everybody who waited has gone."""
    if not task.cancelled():
        task.exception()


def _describe(error: httpx.RequestError) -> str:
    """In words, without the address (its owner names it)."""
    if isinstance(error, httpx.ConnectTimeout | httpx.ConnectError):
        return "nobody answers at its address"
    return "it does not answer in time" if isinstance(error, httpx.TimeoutException) else "it broke the connection off"


def _id_of(item: Any) -> str:
    return str(item[1]) if isinstance(item, list) and len(cast(list[Any], item)) > 1 else ""
