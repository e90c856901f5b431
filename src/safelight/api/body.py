"""A request's body on its way in: read whole within bounds, worked on where that takes long, let run out where refused.

What a body costs grows with its bytes and, far more, with the number of values in its JSON. Both are bounded before it
is parsed, and so are the bytes of all bodies that a process holds at a time.

Whoever is answered while still sending may never see the answer: a connection that is closed with bytes unread is
reset, and most clients send all they have before they read. So the rest is taken in and dropped, within bounds.
"""

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope

from safelight.errors import SafelightError, Unavailable

DRAIN_SECONDS = 10.0
DRAIN_BYTES = 256 * 1024 * 1024
SMALL_BYTES = 16 * 1024  # less is worked on at once: handing it to a thread would cost more
PUNCTUATION = (b",", b":", b"[", b"{")  # each stands before a value

Result = TypeVar("Result")


class BodyTooLarge(SafelightError):
    """The body is too large."""

    kind = "too_large"
    code = "body_too_large"


class TooManyValues(SafelightError):
    """The JSON of the body has too many values."""

    kind = "too_large"
    code = "too_many_values"


class BodiesHeld(Unavailable):
    """This process holds as many bytes of bodies as it may. Try again."""

    code = "bodies_held"


class Gone(Exception):
    """The client went away before the body was whole."""


class Bodies:
    """The bodies that one process holds, together."""

    def __init__(self, *, max_held_bytes: int, max_values: int) -> None:
        self._max_held_bytes = max_held_bytes
        self._max_values = max_values
        self._held_bytes = 0

    def take(self, count: int) -> None:
        """Count so many bytes more. Raises `BodiesHeld`."""
        if self._held_bytes + count > self._max_held_bytes:
            raise BodiesHeld
        self._held_bytes += count

    def forget(self, count: int) -> None:
        """Count so many bytes less."""
        self._held_bytes -= count

    def check(self, body: bytes) -> None:
        """Raises `TooManyValues`."""
        if has_more_values(body, self._max_values):
            raise TooManyValues(f"The JSON of a request may have at most {self._max_values} values.")


class Incoming:
    """The body of one request. `receive` is the channel for whoever reads it further on."""

    def __init__(self, receive: Receive, bodies: Bodies, *, waits_for_leave: bool) -> None:
        """`waits_for_leave`: nothing is sent before somebody reads (`Expect: 100-continue`)."""
        self._receive = receive
        self._bodies = bodies
        self._waits_for_leave = waits_for_leave
        self._is_over = False
        self.size = 0

    async def receive(self) -> Message:
        self._waits_for_leave = False
        message = await self._receive()
        self._is_over = message["type"] == "http.disconnect" or not message.get("more_body", False)
        return message

    async def read(self, most_bytes: int) -> bytes:
        """All of it, held until `forget`. Raises `BodyTooLarge`, `TooManyValues`, `BodiesHeld` and `Gone`."""
        parts: list[bytes] = []
        while not self._is_over:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise Gone
            part: bytes = message.get("body", b"")
            if self.size + len(part) > most_bytes:
                raise too_large(most_bytes)
            self._bodies.take(len(part))
            self.size += len(part)
            parts.append(part)
        body = b"".join(parts)
        if self.size > SMALL_BYTES:
            await asyncio.to_thread(self._bodies.check, body)
        return body

    def forget(self) -> None:
        """It is held no longer."""
        self._bodies.forget(self.size)
        self.size = 0

    @property
    def has_rest(self) -> bool:
        """Whether the client may still be sending."""
        return not self._is_over and not self._waits_for_leave

    async def drain(self) -> None:
        """Let the rest run out, as far as it does within the bounds."""
        left = DRAIN_BYTES
        try:
            async with asyncio.timeout(DRAIN_SECONDS):
                while not self._is_over and left > 0:
                    left -= len((await self.receive()).get("body", b""))
        except TimeoutError:
            return


def too_large(most_bytes: int) -> BodyTooLarge:
    """The error that tells how large a body may be."""
    return BodyTooLarge(f"The body may have at most {most_bytes} bytes.")


def has_more_values(body: bytes, most: int) -> bool:
    """Whether JSON has more objects, lists, texts, numbers and the like than so many, counted without parsing it."""
    if sum(map(body.count, PUNCTUATION)) < most:
        return False
    plain = body.replace(b"\\\\", b"").replace(b'\\"', b"")  # no quote is left that does not begin or end a text
    if plain.count(b'"') > 4 * most:  # each value may have a name
        return True
    outside = b"".join(plain.split(b'"')[::2])
    return sum(map(outside.count, PUNCTUATION)) >= most


async def work(size_bytes: int, function: Callable[..., Result], *arguments: Any) -> Result:
    """Do what takes the longer the larger a body is: here if it is small, in a thread if not."""
    if size_bytes <= SMALL_BYTES:
        return function(*arguments)
    return await asyncio.to_thread(function, *arguments)


def replay(body: bytes, receive: Receive) -> Receive:
    """A receive channel that gives the body read already, then whatever follows."""
    told = False

    async def channel() -> Message:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return channel


class JsonRoute(APIRoute):
    """Reads JSON by `parse`, that of a large body in a thread."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def parse_first(request: Request) -> Response:
            if not size_of(request):
                return await handle(request)
            body = await request.body()
            parsed = await work(len(body), _parsed, body)
            return await handle(_ParsedRequest(request.scope, replay(body, request.receive), parsed))

        return parse_first


class _ParsedRequest(Request):
    """A request whose JSON is known, or why it is none."""

    def __init__(self, scope: Scope, receive: Receive, parsed: Any) -> None:
        super().__init__(scope, receive)
        self._parsed = parsed

    async def json(self) -> Any:
        if isinstance(self._parsed, Exception):
            raise self._parsed
        return self._parsed


class FieldTwice(ValueError):
    """An object of the JSON has two fields of one name."""


def parse(body: bytes) -> Any:
    """JSON in UTF-8, where each field of an object stands once. Raises `ValueError` and `RecursionError`."""
    return json.loads(body.decode().removeprefix("\ufeff"), object_pairs_hook=_each_once)


def _each_once(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(fields)
    if len(found) < len(fields):
        name, _ = Counter(name for name, _ in fields).most_common(1)[0]
        raise FieldTwice(name)
    return found


def _parsed(body: bytes) -> Any:
    try:
        return parse(body)
    except (ValueError, RecursionError) as error:
        return error


def size_of(request: Request) -> int:
    """The bytes of its body."""
    return getattr(request.state, "body_bytes", 0)
