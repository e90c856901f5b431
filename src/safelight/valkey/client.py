"""A small client for Valkey and Redis (RESP3) that never waits and fails at once while the server is away.

Our own, since redis-py's was a quarter of a worker's profile for events (docs/decisions/0002).

One connection carries commands and subscriptions. Commands of one loop turn leave in one write and their replies are
matched in order, so that a command costs microseconds of the loop. What this client promises its callers:

- `send` and `post` never block: they are accepted at once, or refused at once while the server is away.
- A reply that stands out longer than `overdue_seconds` ends the connection (a frozen server, a half-open socket),
  everything pending fails, and a new connection is tried for ever. Blocking commands (`BLPOP`) are not for this client.
- Subscriptions and scripts survive a reconnect and an emptied server.
"""

import asyncio
import contextlib
import os
import random
from collections import deque
from collections.abc import Callable, Sequence
from hashlib import sha1
from typing import Any, cast

import hiredis
import structlog

from safelight.errors import SafelightError, Unavailable
from safelight.valkey.address import ValkeyAddress

Argument = bytes | str | int | float

BACKOFF_SECONDS = (0.05, 1.0)  # first and longest wait between two connection attempts
IDLE_SECONDS = 3.0  # a connection that sent nothing for this long is asked with a PING
COMPLAIN_SECONDS = 10.0  # at most one log line about refused posts in this time
UNWRITTEN_BYTES = 32 * 1024 * 1024  # beyond this the server does not keep up and nothing more is accepted
TICKS_PER_OVERDUE = 5

_NOTHING = object()  # hiredis would say False, which is also a RESP3 value
_CONFIRMATIONS = {b"subscribe", b"unsubscribe"}
_pack = cast(Callable[[tuple[Argument, ...]], bytes], hiredis.pack_command)

log = structlog.get_logger("safelight.valkey")


class ValkeyAway(Unavailable):
    """Redis is not reachable at the moment. Try again."""

    code = "redis_unavailable"


class ValkeyError(SafelightError):
    """Redis answered with an error."""

    code = "redis_error"

    @property
    def name(self) -> str:
        """The first word of the reply: `NOSCRIPT`, `OOM`, `READONLY`, ..."""
        return self.detail.partition(" ")[0]


class LuaScript:
    """A Lua script that runs by its digest; the source travels once per connection."""

    __slots__ = ("sha", "source")

    def __init__(self, source: str) -> None:
        self.source = source
        self.sha = sha1(source.encode(), usedforsecurity=False).hexdigest()


class _Confirmation:
    """Stands in the line of replies for a SUBSCRIBE, which is answered by one push per channel (or by one error)."""

    __slots__ = ("missing",)

    def __init__(self, missing: int) -> None:
        self.missing = missing


class _ScriptCall:
    """A script's place in the line of replies: sends the source once if the server has forgotten the script."""

    __slots__ = ("future", "link", "rest", "script")

    def __init__(
        self, link: "_Link", script: LuaScript, rest: tuple[Argument, ...], future: asyncio.Future[Any] | None
    ) -> None:
        self.link, self.script, self.rest, self.future = link, script, rest, future


# Who waits for a reply: nobody (a post), a caller, a script that may have to be sent again, or a subscription.
_Waiter = asyncio.Future[Any] | _ScriptCall | _Confirmation | None


class _Link(asyncio.Protocol):
    """One connection: what is to be written, who waits for which reply. It is used once and thrown away."""

    def __init__(self, owner: "Valkey") -> None:
        self.owner = owner
        self.loop = asyncio.get_running_loop()
        self.lost: asyncio.Future[str] = self.loop.create_future()  # why the connection ended
        self.pending: deque[_Waiter] = deque()
        self.scripts: set[str] = set()  # digests of which this server has the source
        self.sent = self.answered = 0
        self.jammed = False
        self._reason = ""
        self._outbox: list[bytes] = []
        self._reader = hiredis.Reader(
            replyError=ValkeyError, protocolError=ValkeyError, errors="replace", notEnoughData=_NOTHING
        )
        self._transport: asyncio.Transport | None = None

    def submit(self, packed: bytes, waiter: _Waiter) -> None:
        """Put a command in this turn's write and its waiter in the line of replies."""
        if not self._outbox:
            self.loop.call_soon(self._flush)
        self._outbox.append(packed)
        self.pending.append(waiter)
        self.sent += 1

    def request(self, *args: Argument) -> asyncio.Future[Any]:
        future = self.loop.create_future()
        self.submit(_pack(args), future)
        return future

    def drop(self, reason: str) -> None:
        """End the connection now; everything pending fails in the next loop turn."""
        self._reason = reason
        if self._transport is not None:
            self._transport.abort()

    def _flush(self) -> None:
        outbox, self._outbox = self._outbox, []
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(outbox[0] if len(outbox) == 1 else b"".join(outbox))

    def _settle(self, waiter: _Waiter, reply: object) -> None:
        if isinstance(waiter, _ScriptCall):
            if isinstance(reply, ValkeyError) and reply.name == "NOSCRIPT":
                self.submit(_pack(("EVAL", waiter.script.source, *waiter.rest)), waiter.future)
                return
            waiter = waiter.future
        if isinstance(waiter, asyncio.Future):
            if waiter.done():  # its caller gave up waiting
                return
            if isinstance(reply, SafelightError):
                waiter.set_exception(reply)
            else:
                waiter.set_result(reply)
        elif isinstance(reply, ValkeyAway):
            self.owner.lost += waiter is None
        elif isinstance(reply, ValkeyError):
            self.owner.complain(reply)

    def _push(self, push: list[Any]) -> None:
        if push[0] not in _CONFIRMATIONS:
            self.owner.deliver(push)
        elif self.pending and isinstance(place := self.pending[0], _Confirmation):
            place.missing -= 1
            if not place.missing:
                self.pending.popleft()
                self.answered += 1

    # The rest is asyncio's Protocol.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=UNWRITTEN_BYTES)

    def data_received(self, data: bytes) -> None:
        reader, pending = self._reader, self.pending
        try:
            reader.feed(data)
            while (reply := reader.gets()) is not _NOTHING:
                if type(reply) is hiredis.PushNotification:
                    self._push(reply)
                    continue
                waiter = pending.popleft()
                self.answered += 1
                if waiter is not None or isinstance(reply, ValkeyError):
                    self._settle(waiter, reply)
        except (ValkeyError, IndexError) as error:  # not the protocol, or a reply nobody asked for
            self.drop(f"the server does not keep to the protocol: {error}")

    def pause_writing(self) -> None:
        self.jammed = True

    def resume_writing(self) -> None:
        self.jammed = False

    def connection_lost(self, exc: Exception | None) -> None:
        reason = self._reason or str(exc or "the connection was closed")
        self.owner.link_lost(self)
        while self.pending:
            self._settle(self.pending.popleft(), ValkeyAway())
        self.lost.set_result(reason)


class Valkey:
    """The client. `start` it once on a running loop; it connects, and reconnects for ever, in the background.

    `on_push` receives every push but the confirmations of subscriptions, e.g. `[b"message", channel, payload]`, on the
    loop. `on_connect` is called after each (re)connect, when the subscriptions were asked for again.
    The counters are plain attributes, for metrics.
    """

    def __init__(
        self,
        url: str,
        *,
        database: int = 0,
        overdue_seconds: float = 2.0,
        max_pending: int = 20_000,
        on_push: Callable[[list[Any]], None] | None = None,
        on_connect: Callable[[], None] | None = None,
    ) -> None:
        self.address = ValkeyAddress.parse(url, database=database)
        self.last_error: str | None = None  # why the last connection or attempt failed; never holds the password
        self.reconnects = 0
        self.dropped = 0  # posts refused because the server was away or behind
        self.lost = 0  # posts sent on a connection that ended before their reply
        self.errors = 0  # posts answered with an error
        self._overdue_seconds = overdue_seconds
        self._max_pending = max_pending
        self._on_push = on_push
        self._on_connect = on_connect
        self._channels: set[bytes] = set()
        self._link: _Link | None = None
        self._connected = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._known = False  # whether there ever was a connection
        self._complained_at = float("-inf")

    @property
    def connected(self) -> bool:
        """Whether commands are accepted at this moment (they may still be refused while too many are pending)."""
        return self._link is not None

    async def start(self) -> None:
        """Begin connecting. Returns at once and never fails because the server is away."""
        self._task = asyncio.create_task(self._run(), name="valkey")

    async def close(self) -> None:
        """Let the server execute what was sent (for at most `overdue_seconds`), then end the connection."""
        link, task, self._task = self._link, self._task, None
        if link is not None:
            with contextlib.suppress(TimeoutError, SafelightError):
                async with asyncio.timeout(self._overdue_seconds):
                    await link.request("PING")
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        if link is not None:
            await asyncio.wait([link.lost])

    async def wait_connected(self, timeout: float) -> None:
        """Wait for the connection; after `timeout` seconds raises `ValkeyAway` that says what stood in the way."""
        try:
            async with asyncio.timeout(timeout):
                await self._connected.wait()
        except TimeoutError:
            raise ValkeyAway(f"Redis is not reachable: {self.last_error or 'no answer'}") from None

    def send(self, *args: Argument) -> asyncio.Future[Any]:
        """Send a command; the future brings its reply, a `ValkeyError` or, when the connection ends, `ValkeyAway`.

        Raises `ValkeyAway` at once while the server is away or `max_pending` replies stand out. Replies are bytes.
        """
        return self._ready().request(*args)

    def post(self, *args: Argument) -> bool:
        """Send a command whose reply nobody reads; False when it was refused. Error replies are counted."""
        link = self._link
        if link is None or link.jammed or len(link.pending) >= self._max_pending:
            self.dropped += 1
            return False
        link.submit(_pack(args), None)
        return True

    def eval(self, script: LuaScript, keys: Sequence[Argument], args: Sequence[Argument]) -> asyncio.Future[Any]:
        """Run a script. It keeps its place among the commands, except right after somebody emptied the script cache."""
        link = self._ready()
        future = link.loop.create_future()
        self._call(link, script, (len(keys), *keys, *args), future)
        return future

    def post_script(self, script: LuaScript, keys: Sequence[Argument], args: Sequence[Argument]) -> bool:
        """Run a script whose reply nobody reads; False when it was refused."""
        link = self._link
        if link is None or link.jammed or len(link.pending) >= self._max_pending:
            self.dropped += 1
            return False
        self._call(link, script, (len(keys), *keys, *args), None)
        return True

    def subscribe(self, *channels: bytes | str) -> None:
        """Listen to channels, now or as soon as there is a connection, and again after each reconnect.

        Commands sent later are executed later: a reply to one of them shows that the subscription stands.
        """
        new = {_name(channel) for channel in channels} - self._channels
        self._channels |= new
        self._listen("SUBSCRIBE", new)

    def unsubscribe(self, *channels: bytes | str) -> None:
        """Stop listening to channels; a message on its way may still arrive."""
        old = {_name(channel) for channel in channels} & self._channels
        self._channels -= old
        self._listen("UNSUBSCRIBE", old)

    def deliver(self, push: list[Any]) -> None:
        """Called by the connection: hand a push on. A listener's mistake must not cost the connection."""
        if self._on_push is not None:
            try:
                self._on_push(push)
            except Exception:
                log.exception("redis.push_failed")

    def complain(self, error: ValkeyError) -> None:
        """Called by the connection: a post was answered with an error, which nobody else will hear of."""
        self.errors += 1
        now = asyncio.get_running_loop().time()
        if now - self._complained_at > COMPLAIN_SECONDS:
            self._complained_at = now
            log.warning("redis.command_refused", reason=error.detail, errors=self.errors)

    def link_lost(self, link: _Link) -> None:
        """Called by the connection when it ended, before its waiters hear of it."""
        if self._link is link:
            self._link = None
            self._connected.clear()

    def _ready(self) -> _Link:
        link = self._link
        if link is None:
            raise ValkeyAway()
        if link.jammed or len(link.pending) >= self._max_pending:
            raise ValkeyAway("Redis does not keep up at the moment. Try again.")
        return link

    def _call(
        self, link: _Link, script: LuaScript, rest: tuple[Argument, ...], future: asyncio.Future[Any] | None
    ) -> None:
        if script.sha in link.scripts:
            link.submit(_pack(("EVALSHA", script.sha, *rest)), _ScriptCall(link, script, rest, future))
        else:
            link.scripts.add(script.sha)
            link.submit(_pack(("EVAL", script.source, *rest)), future)

    def _listen(self, verb: str, channels: set[bytes]) -> None:
        if channels and self._link is not None:
            self._link.submit(_pack((verb, *channels)), _Confirmation(len(channels)))

    async def _run(self) -> None:
        first, longest = BACKOFF_SECONDS
        delay = first
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            known_error = self.last_error
            try:
                link = await self._connect()
            except Exception as error:  # whatever it is, the next attempt may succeed
                self.last_error = self._explain(error)
            else:
                try:
                    self._adopt(link)
                    await self._watch(link)
                finally:
                    link.drop("the client was closed")
                self.last_error = link.lost.result()
            if self.last_error != known_error:
                log.warning("redis.away", reason=self.last_error)
            if loop.time() - began > longest:
                delay = first
            await asyncio.sleep(delay * random.uniform(0.5, 1))
            delay = min(2 * delay, longest)

    async def _connect(self) -> _Link:
        """A connection that has proved itself: right password, right database, server not busy loading its data."""
        loop = asyncio.get_running_loop()
        address, link = self.address, _Link(self)
        async with asyncio.timeout(self._overdue_seconds):
            if address.path is not None:
                await loop.create_unix_connection(lambda: link, address.path)
            else:
                await loop.create_connection(lambda: link, address.host, address.port, ssl=address.tls)
            try:
                enter = () if address.password is None else ("AUTH", address.username, address.password)
                await asyncio.gather(
                    link.request("HELLO", 3, *enter),
                    link.request("SELECT", address.database),
                    link.request("CLIENT", "SETNAME", f"safelight-{os.getpid()}"),
                    link.request("PING"),
                )
            except BaseException:
                link.drop("the connection could not be set up")
                raise
        return link

    def _adopt(self, link: _Link) -> None:
        if link.lost.done():
            return
        self._link = link
        self._listen("SUBSCRIBE", self._channels)
        self._connected.set()
        self.last_error = None
        self.reconnects += self._known
        self._known = True
        log.info("redis.connected", host=self.address.path or self.address.host, database=self.address.database)
        if self._on_connect is not None:
            try:
                self._on_connect()
            except Exception:
                log.exception("redis.on_connect_failed")

    async def _watch(self, link: _Link) -> None:
        """Return when the connection is lost; end it when replies stand out too long.

        Time is counted in turns of this loop, not by the clock: after a pause of our own process the replies may
        simply not have been read yet.
        """
        tick = self._overdue_seconds / TICKS_PER_OVERDUE
        mark, stale, idle, asked_at = link.sent, 0, 0.0, link.sent
        while not link.lost.done():
            await asyncio.wait([link.lost], timeout=tick)
            if link.answered >= mark:
                mark, stale = link.sent, 0
            elif (stale := stale + 1) >= TICKS_PER_OVERDUE - 1:
                link.drop(f"no reply for {self._overdue_seconds:g} s")
                await asyncio.wait([link.lost])  # unlike await, this leaves the future alone when it is cancelled
            idle = idle + tick if link.sent == asked_at else 0.0
            asked_at = link.sent
            if idle >= IDLE_SECONDS and not link.lost.done():
                link.submit(_pack(("PING",)), None)

    def _explain(self, error: Exception) -> str:
        """One sentence about a failed attempt, without the password (old servers quote the HELLO they do not know)."""
        if isinstance(error, ValkeyError) and "unknown command" in error.detail:
            return "the server is too old: RESP3 needs Redis 6 or later, or Valkey"
        if isinstance(error, ValkeyAway):
            return "the server closed the connection at once"
        if isinstance(error, TimeoutError):
            return f"no answer within {self._overdue_seconds:g} s"
        text = str(error) or type(error).__name__
        password = self.address.password
        return text.replace(password, "***") if password else text


def _name(channel: bytes | str) -> bytes:
    return channel if isinstance(channel, bytes) else channel.encode()
