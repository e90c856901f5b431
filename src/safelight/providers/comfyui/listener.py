"""What a server's socket tells about one run: progress, previews, and that it is over.

Each run has a socket of its own, whose client id is made of the run's prompt id: no other run ever uses it, and an
attempt that adopts the run after a crash hears the rest of it. A socket is closed fully before it is opened again,
because a server drops the id when the older of two closes. Nothing here is believed about the end: it only says when to
look. The latest progress and preview are kept, not a queue of them, so a slow reader costs nothing.
"""

import asyncio
import contextlib
import itertools
import struct
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self, cast

import orjson
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from safelight.providers.base import Preview, Progress
from safelight.providers.comfyui.graph import Graph
from safelight.providers.comfyui.progress import Tracker
from safelight.providers.comfyui.prompt_state import Ended, files_of
from safelight.providers.comfyui.server import Server, read_json

FEATURES = orjson.dumps({"type": "feature_flags", "data": {"supports_preview_metadata": True}}).decode()
PREVIEW, PREVIEW_WITH_METADATA = 1, 4
CONTENT_TYPES = {b"\xff\xd8": "image/jpeg", b"\x89P": "image/png", b"RI": "image/webp"}
MAX_FRAME_BYTES = 64 << 20
AGAIN_SECONDS = (0.2, 0.5, 1.0, 2.0)


class Listener:
    """Listens while its context lasts. `news` is set when there is something to take or a reason to look by HTTP."""

    def __init__(self, server: Server, prompt_id: str, graph: Graph, woken: asyncio.Event) -> None:
        self.news = asyncio.Event()
        self.is_connected = False
        self.is_over = False
        self.was_broken = False
        self.heard_at = time.monotonic()
        self._server = server
        self._prompt_id = prompt_id
        self._woken = woken
        self._tracker = Tracker(graph)
        self._progress: Progress | None = None
        self._preview: Preview | None = None
        self._is_to_look = False
        self._outputs: dict[str, Any] = {}
        self._has_succeeded = False
        self._tried = asyncio.Event()
        self._socket: ClientConnection | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._listen()), asyncio.create_task(self._relay())]
        try:
            await self._tried.wait()
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop()

    async def _stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- what was heard ----------------------------------------------------------------------------------------------

    def take_progress(self) -> Progress | None:
        """The latest progress, once."""
        progress, self._progress = self._progress, None
        return progress

    def take_preview(self) -> Preview | None:
        """The latest preview, once."""
        preview, self._preview = self._preview, None
        return preview

    def take_look(self) -> bool:
        """Whether there was a reason to look, once."""
        is_to_look, self._is_to_look = self._is_to_look, False
        return is_to_look

    @property
    def end(self) -> Ended | None:
        """The end by the messages alone, for a server whose history was cleared before anybody could read it."""
        return Ended(files_of(self._outputs)) if self._has_succeeded else None

    @property
    def is_executing(self) -> bool:
        """Whether the server said that it works on the run, and not yet that it is over."""
        return self._tracker.is_executing

    async def reopen(self) -> None:
        """Close the socket, so that it is opened anew."""
        self.heard_at = time.monotonic()
        if self._socket is not None:
            await self._socket.close()

    # --- hearing -----------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        self._is_to_look = True
        self.news.set()

    async def _relay(self) -> None:
        """A webhook said that there is news."""
        while True:
            await self._woken.wait()
            self._woken.clear()
            self._look()

    async def _listen(self) -> None:
        pauses = itertools.chain(AGAIN_SECONDS, itertools.repeat(AGAIN_SECONDS[-1]))
        while True:
            with contextlib.suppress(OSError, TimeoutError, WebSocketException):
                async with connect(
                    self._server.socket_url(f"safelight-{self._prompt_id}"),
                    additional_headers=self._server.headers,
                    open_timeout=self._server.pace.socket,
                    close_timeout=1,
                    compression=None,
                    max_size=MAX_FRAME_BYTES,
                    proxy=None,
                ) as socket:
                    self._socket = socket
                    await socket.send(FEATURES)
                    self.is_connected = True
                    self.heard_at = time.monotonic()
                    pauses = itertools.chain(AGAIN_SECONDS, itertools.repeat(AGAIN_SECONDS[-1]))
                    if self._tried.is_set():
                        self._look()  # what was said meanwhile is lost
                    self._tried.set()
                    async for frame in socket:
                        self._take(frame)
            self._socket, self.is_connected, self.was_broken = None, False, True
            self._tried.set()
            self._look()
            await asyncio.sleep(next(pauses))

    def _take(self, frame: str | bytes) -> None:
        if isinstance(frame, bytes):
            self._preview = self._preview_of(frame) or self._preview
        else:
            self._take_message(frame)
        if self._preview is not None or self._progress is not None:
            self.news.set()

    def _take_message(self, frame: str) -> None:
        try:
            message: Any = read_json(frame)
            kind, data = str(message["type"]), message["data"]
        except (ValueError, KeyError, TypeError):
            return
        if not isinstance(data, Mapping):
            return
        told = cast(Mapping[str, Any], data)
        # What a server repeats after a reconnection bears no prompt id; the client id is ours alone.
        if told.get("prompt_id", self._prompt_id if kind == "executing" else None) != self._prompt_id:
            return
        self.heard_at = time.monotonic()
        if kind == "executed":
            self._outputs[str(told.get("node"))] = told.get("output")
        elif kind == "execution_success":
            self._has_succeeded = True
        elif kind == "executing" and told.get("node") is None:
            self.is_over = "prompt_id" in told
            self._look()
        try:
            self._tracker.take(kind, told)
        except (AttributeError, TypeError, ValueError):
            return  # not as any version known says it; progress is not worth a job
        self._progress = self._tracker.progress

    def _preview_of(self, frame: bytes) -> Preview | None:
        """A preview of this very run: by its metadata, or on older servers because the run is the one executing."""
        if len(frame) < 8:
            return None
        event, second = struct.unpack(">II", frame[:8])
        if event == PREVIEW_WITH_METADATA:
            try:
                metadata = orjson.loads(frame[8 : 8 + second])
            except orjson.JSONDecodeError:
                return None
            if not isinstance(metadata, dict) or cast(dict[str, Any], metadata).get("prompt_id") != self._prompt_id:
                return None
            data = frame[8 + second :]
        elif event == PREVIEW and self._tracker.is_executing:
            data = frame[8:]
        else:
            return None
        content_type = CONTENT_TYPES.get(data[:2])
        self.heard_at = time.monotonic()
        return Preview(data, content_type) if content_type else None
