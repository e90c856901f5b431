"""HTTP connections within bounds: how large the head of a request may be, how long it and a body may take, how many.

uvicorn's protocol reads a head of any size, adding to each header byte by byte, and waits for the rest of a request for
ever; whoever can connect could take the process's memory with it, before anybody asked who they are.
"""

import asyncio
import re
from dataclasses import dataclass
from typing import Any, cast

import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from safelight.api.problems import problem
from safelight.db import new_id

LINGER_SECONDS = 1.0  # that a client has to read why it was refused
SWEEP_TICKS = 10  # of uvicorn's main loop, a tenth of a second each


@dataclass(frozen=True, slots=True)
class Bounds:
    """Of one process's connections. A body may take `body_seconds`, and a second more for every
    `body_bytes_per_second` of it."""

    connections: int
    head_bytes: int
    head_seconds: float
    body_seconds: float
    body_bytes_per_second: int


@dataclass(frozen=True, slots=True)
class _Refusal:
    status: int
    code: str
    detail: str


MALFORMED = _Refusal(400, "malformed_http", "This is not an HTTP request.")


class _Refused(Exception):
    """Ends the parsing."""


def bounded(bounds: Bounds) -> type[HttpToolsProtocol]:
    """uvicorn's protocol, within these bounds; connections are looked over by `sweep`."""

    class Bounded(_Connection):
        _bounds = bounds

    return Bounded


class _Connection(HttpToolsProtocol):
    _bounds: Bounds
    _unread_bytes = 0  # that came since the parser last gave a whole head or part of a body: of a head, or of trailers
    _deadline: float | None = None  # of the head or body that is arriving; None while we are at work, or idle
    _is_body = False
    _is_over = False  # refused; what still comes is not read
    _refusal = MALFORMED

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._deadline = self.loop.time() + self._bounds.head_seconds
        if len(self.connections) > self._bounds.connections:
            detail = f"This process has {self._bounds.connections} connections, which is as many as it may."
            self.refuse(_Refusal(503, "too_many_connections", detail))

    def data_received(self, data: bytes) -> None:
        if self.timeout_keep_alive_task is not None:
            self._deadline = self.loop.time() + self._bounds.head_seconds
        self._unread_bytes += len(data)
        super().data_received(data)
        if self._unread_bytes > self._bounds.head_bytes and not self._is_over:
            self.refuse(self._too_large())

    def on_headers_complete(self) -> None:
        most = self._bounds.head_bytes
        if self._unread_bytes > most and self._head_size() > most:  # the beginning of a body may have come with it
            self._refusal = self._too_large()
            raise _Refused
        self._unread_bytes = 0
        if not self.url.startswith(b"/"):
            self._take_host()
        self._deadline = self.loop.time() + self._bounds.body_seconds
        self._is_body = True
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._unread_bytes = 0
        if self._deadline is not None:
            self._deadline += len(body) / self._bounds.body_bytes_per_second
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._unread_bytes = 0
        self._deadline = None
        self._is_body = False
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """What uvicorn calls for whatever the parser does not take."""
        self.refuse(self._refusal)

    def look_over(self, now: float) -> None:
        """End it if what arrives takes too long. What we do not take from the socket ourselves is not late."""
        if self._deadline is None or self._is_over:
            return
        if self.flow.read_paused:
            self._deadline = max(self._deadline, now + self._bounds.body_seconds)
        elif now > self._deadline:
            what = "body" if self._is_body else "head"
            self.refuse(_Refusal(408, f"{what}_too_slow", f"The {what} of the request did not arrive in time."))

    def refuse(self, refusal: _Refusal) -> None:
        """Say why, unless an answer is on its way already, and close."""
        cycle = cast("RequestResponseCycle | None", self.cycle)  # None before the first request
        is_answering = cycle is not None and cycle.response_started and not cycle.response_complete
        if not is_answering:
            self.transport.write(_answer(refusal))
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
        if self._unread_bytes and self.transport.can_write_eof():  # what is still coming must not cost it our answer
            self._is_over = True
            self.flow.pause_reading()
            self.transport.write_eof()
            self.loop.call_later(LINGER_SECONDS, self.transport.close)
        else:
            self.transport.close()

    def _take_host(self) -> None:
        """A target in absolute form names the host that is meant, whatever the header says (RFC 9112)."""
        named = re.match(rb"[a-z][a-z0-9+.-]*://(?:[^/?#]*@)?([^/?#]*)", self.url, re.IGNORECASE)
        if named is not None:
            told = [(name, named[1] if name == b"host" else value) for name, value in self.headers]
            self.headers[:] = told if any(name == b"host" for name, _ in told) else [*told, (b"host", named[1])]

    def _head_size(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _too_large(self) -> _Refusal:
        detail = f"The head of a request may have at most {self._bounds.head_bytes} bytes."
        return _Refusal(431, "head_too_large", detail)


class HttpServer(uvicorn.Server):
    """uvicorn's server, which looks its connections over once a second."""

    async def on_tick(self, counter: int) -> bool:
        if counter % SWEEP_TICKS == 0:
            now = asyncio.get_running_loop().time()
            for connection in list(self.server_state.connections):
                if isinstance(connection, _Connection):
                    connection.look_over(now)
        return await super().on_tick(counter)


def _answer(refusal: _Refusal) -> bytes:
    request_id = new_id()
    headers = {"Connection": "close", "X-Request-Id": request_id, "X-Content-Type-Options": "nosniff"}
    response = problem(request_id, refusal.status, refusal.code, refusal.detail, headers=headers, retry_after=None)
    lines = [name + b": " + value + b"\r\n" for name, value in response.raw_headers]
    return b"".join([STATUS_LINE[refusal.status], *lines, b"\r\n", bytes(response.body)])
