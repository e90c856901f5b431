"""A request's body on its way in: read within a limit, given again, and let run out where it is refused.

Whoever is answered while still sending may never see the answer: a connection that is closed with bytes unread is
reset, and most clients send all they have before they read. So the rest is taken in and dropped, within bounds.
"""

import asyncio

from starlette.types import Message, Receive

DRAIN_SECONDS = 10.0
DRAIN_BYTES = 256 * 1024 * 1024


class BodyTooLarge(Exception):
    """There is more than may be sent."""


class Incoming:
    """The body of one request. `receive` is the channel for whoever reads it further on."""

    def __init__(self, receive: Receive, *, waits_for_leave: bool) -> None:
        """`waits_for_leave`: nothing is sent before somebody reads (`Expect: 100-continue`)."""
        self._receive = receive
        self._waits_for_leave = waits_for_leave
        self._is_over = False

    async def receive(self) -> Message:
        self._waits_for_leave = False
        message = await self._receive()
        self._is_over = message["type"] == "http.disconnect" or not message.get("more_body", False)
        return message

    async def read(self, most_bytes: int) -> bytes:
        """All of it. Raises `BodyTooLarge`."""
        parts: list[bytes] = []
        size = 0
        while not self._is_over:
            part: bytes = (await self.receive()).get("body", b"")
            size += len(part)
            if size > most_bytes:
                raise BodyTooLarge
            parts.append(part)
        return b"".join(parts)

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
