"""Live events: published once, as ready bytes, to any number of watchers.

A worker publishes through one Lua script that refuses an older attempt and anything after the terminal event. An API
process has one connection, subscribed to the jobs and batches somebody watches. What Redis loses is found in the rows:
state events are numbered without gaps, so a watcher that sees a gap, a (re)subscription, or a few seconds of silence
makes the hub read the rows again through the function it was given. A batch has a channel of its own, but no numbers:
whoever watches it keeps the number of each of its jobs.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Set
from typing import Any, NamedTuple, TypeVar

import structlog

from safelight.errors import SafelightError, Unavailable
from safelight.valkey import LuaScript, Valkey
from safelight.watch import NEWS_OF_BATCHES, BatchWatch, Message, Watch

LATEST_SECONDS = 3600
CELERY_RESULT_SECONDS = 3600
PREVIEW_SECONDS = 300
REREAD_SECONDS = 2.0

# KEYS: latest of the job, its channel, Celery's result key. ARGV: version, seq, terminal, public channel, message,
# json, celery result, seconds to keep the latest, and the result, job id, channel of its batch (or nothing).
# Returns 1 if published; 0 if an equal, newer or terminal event has been published before.
PUBLISH = LuaScript(
    """
local latest = redis.call('HMGET', KEYS[1], 'version', 'seq', 'terminal')
local version, seq = tonumber(ARGV[1]), tonumber(ARGV[2])
if latest[1] then
  local known = tonumber(latest[1])
  if latest[3] == '1' or known > version or (known == version and tonumber(latest[2]) >= seq) then return 0 end
end
redis.call('HSET', KEYS[1], 'version', version, 'seq', seq, 'terminal', ARGV[3], 'json', ARGV[6])
redis.call('EXPIRE', KEYS[1], ARGV[8])
redis.call('PUBLISH', KEYS[2], ARGV[5])
if ARGV[11] ~= '' then redis.call('PUBLISH', ARGV[11], ARGV[10] .. ' ' .. ARGV[5]) end
redis.call('PUBLISH', ARGV[4], ARGV[6])
redis.call('SET', KEYS[3], ARGV[7], 'EX', ARGV[9])
redis.call('PUBLISH', KEYS[3], ARGV[7])
return 1
"""
)

log = structlog.get_logger()


class Missed(NamedTuple):
    """What the rows say by job: the messages that its watchers lack, and why it waits, if it does."""

    messages: Mapping[str, list[Message]]
    reasons: Mapping[str, str | None]


# Given the version that watchers know of each job, and the reason to wait that those were told who watch it alone.
Reread = Callable[[Mapping[str, int], Mapping[str, str | None]], Awaitable[Missed]]


AnyWatch = TypeVar("AnyWatch", Watch, BatchWatch)


class Stream:
    """Publishing, watching, latest progress, previews and nudges, under one namespace."""

    def __init__(self, valkey: Valkey, namespace: str) -> None:
        self._valkey = valkey
        self._ns = namespace
        self._job_prefix = f"{namespace}:job:".encode()
        self._batch_prefix = f"{namespace}:batch:".encode()
        self._nudge_channel = f"{namespace}:nudge".encode()
        self._dispatch_channel = f"{namespace}:dispatch".encode()
        self._watches: dict[str, set[Watch]] = {}
        self._batch_watches: dict[str, set[BatchWatch]] = {}
        self._reread_wanted: set[str] = set()
        self._reread_wake = asyncio.Event()
        self._on_nudge: Callable[[str], None] | None = None
        self._on_dispatch: Callable[[], None] | None = None
        self._reconnected: asyncio.Future[None] | None = None

    @property
    def is_connected(self) -> bool:
        return self._valkey.connected

    def publish(
        self,
        job_id: str,
        task_id: str,
        message: Message,
        payload: bytes,
        celery_result: bytes,
        batch_id: str | None = None,
    ) -> bool:
        """Send an event, without waiting; False if Redis is away (watchers will find the state in the rows).

        To the watchers of the job's batch, too, if it has one.
        """
        channel = self._job_prefix + job_id.encode()
        of_batch = b""
        if batch_id is not None and (message.is_state or message.topic == NEWS_OF_BATCHES):
            of_batch = self._batch_prefix + batch_id.encode()
        return self._valkey.post_script(
            PUBLISH,
            [f"{self._ns}:latest:{job_id}", channel, f"celery-task-meta-{task_id}"],
            [
                message.version,
                message.seq,
                int(message.is_terminal),
                f"task_updates:{task_id}",
                message.pack(),
                payload,
                celery_result,
                LATEST_SECONDS,
                CELERY_RESULT_SECONDS,
                job_id,
                of_batch,
            ],
        )

    async def latest(self, job_id: str) -> bytes | None:
        """The JSON of the newest event Redis remembers; None if there is none or Redis is away."""
        try:
            return await self._valkey.send("HGET", f"{self._ns}:latest:{job_id}", "json")
        except SafelightError:
            return None

    def put_preview(self, job_id: str, name: str, data: bytes, content_type: str) -> None:
        """Keep a preview for a few minutes, under a name its event's URL carries."""
        self._valkey.post(
            "SET", f"{self._ns}:preview:{job_id}:{name}", content_type.encode() + b"\n" + data, "EX", PREVIEW_SECONDS
        )

    async def preview(self, job_id: str, name: str) -> tuple[bytes, str] | None:
        """A preview's bytes and content type, while it is kept."""
        try:
            found: bytes | None = await self._valkey.send("GET", f"{self._ns}:preview:{job_id}:{name}")
        except SafelightError:
            return None
        if found is None:
            return None
        content_type, _, data = found.partition(b"\n")
        return data, content_type.decode()

    def nudge(self, job_id: str) -> None:
        """Tell all workers to look at this job's row now rather than at the next heartbeat."""
        self._valkey.post("PUBLISH", self._nudge_channel, job_id)

    def listen_for_nudges(self, on_nudge: Callable[[str], None]) -> None:
        self._on_nudge = on_nudge
        self._valkey.subscribe(self._nudge_channel)

    def wake_dispatch(self) -> None:
        """Tell whoever leads dispatch that something changed."""
        self._valkey.post("PUBLISH", self._dispatch_channel, "")

    def listen_for_dispatch(self, on_dispatch: Callable[[], None]) -> None:
        self._on_dispatch = on_dispatch
        self._valkey.subscribe(self._dispatch_channel)

    # --- watching -----------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def watch(self, job_id: str) -> AsyncGenerator[Watch]:
        """Follow a job. Once entered the subscription stands: read the row, then `start` from its version."""
        watch = Watch(job_id, lambda: self._want_reread(job_id))
        async with self._listening(self._watches, job_id, self._job_prefix + job_id.encode(), watch):
            yield watch

    @contextlib.asynccontextmanager
    async def watch_batch(self, batch_id: str) -> AsyncGenerator[BatchWatch]:
        """Follow all jobs of a batch. Once entered the subscription stands: read the rows, then `start` from them."""
        watch = BatchWatch(batch_id, self._want_reread)
        async with self._listening(self._batch_watches, batch_id, self._batch_prefix + batch_id.encode(), watch):
            yield watch

    @contextlib.asynccontextmanager
    async def _listening(
        self, all_watches: dict[str, set[AnyWatch]], key: str, channel: bytes, watch: AnyWatch
    ) -> AsyncGenerator[None]:
        watches = all_watches.setdefault(key, set())
        if not watches:
            self._valkey.subscribe(channel)
        watches.add(watch)
        try:
            await self._settled_subscriptions()
            yield
        finally:
            watch.close()
            watches.discard(watch)
            if not watches and all_watches.get(key) is watches:
                del all_watches[key]
                self._valkey.unsubscribe(channel)

    @property
    def watched(self) -> int:
        """How many jobs and batches somebody watches in this process."""
        return len(self._watches) + len(self._batch_watches)

    def on_push(self, push: list[Any]) -> None:
        """What the connection hands over: messages, and confirmations of subscriptions."""
        kind, channel = push[0], push[1]
        if kind == b"message":
            if channel == self._nudge_channel:
                if self._on_nudge is not None:
                    self._on_nudge(push[2].decode())
                return
            if channel == self._dispatch_channel:
                if self._on_dispatch is not None:
                    self._on_dispatch()
                return
            if channel.startswith(self._batch_prefix):
                job, _, packed = push[2].partition(b" ")
                message = Message.unpack(packed)
                for batch_watch in list(self._batch_watches.get(channel[len(self._batch_prefix) :].decode(), ())):
                    batch_watch.offer(job.decode(), message)
                return
            job_id = channel[len(self._job_prefix) :].decode()
            message = Message.unpack(push[2])
            for watch in list(self._watches.get(job_id, ())):
                watch.offer(message)

    def on_connect(self) -> None:
        """After a reconnect: what was published meanwhile is in the rows."""
        self._reconnected = asyncio.ensure_future(self._catch_up())

    async def _catch_up(self) -> None:
        await self._settled_subscriptions()
        for job_id in self._known(None):
            self._want_reread(job_id)

    async def _settled_subscriptions(self) -> None:
        """Replies come in order: one that follows a SUBSCRIBE shows that it stands."""
        with contextlib.suppress(SafelightError):
            await self._valkey.send("PING")

    async def run(self, reread: Reread) -> None:
        """Keep the watchers true to the rows, for as long as the process lives."""
        next_round = 0.0
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(next_round):
                    await self._reread_wake.wait()
            now = asyncio.get_running_loop().time()
            versions = self._known(self._reread_wanted if now < next_round else None)
            if now >= next_round:
                next_round = now + REREAD_SECONDS
            self._reread_wake.clear()
            self._reread_wanted.clear()
            if not versions:
                continue
            try:
                missed = await reread(versions, self._reasons(versions))
            except Unavailable as error:
                log.warning("watchers.reread_failed", reason=error.detail, jobs=len(versions))
                continue
            for_batches = [watch for watches in self._batch_watches.values() for watch in watches]
            for job_id, reason in missed.reasons.items():
                for watch in self._watches.get(job_id, ()):
                    watch.reason = reason
            for job_id, messages in missed.messages.items():
                for message in messages:
                    for watch in list(self._watches.get(job_id, ())):
                        watch.offer(message)
                    for batch_watch in for_batches:
                        batch_watch.offer(job_id, message)

    def _known(self, wanted: Set[str] | None) -> dict[str, int]:
        """Of each of these jobs, or of all that are watched, the version of the watcher who knows least."""
        ids = self._watches.keys() if wanted is None else wanted & self._watches.keys()
        known = {job_id: min(watch.version for watch in self._watches[job_id]) for job_id in ids}
        for watches in self._batch_watches.values():
            for watch in watches:
                for job_id, version in watch.versions.items():
                    if wanted is None or job_id in wanted:
                        known[job_id] = min(version, known.get(job_id, version))
        return known

    def _reasons(self, job_ids: Iterable[str]) -> dict[str, str | None]:
        """Why the jobs wait that are watched one by one, as one of the watchers was told."""
        return {job_id: next(iter(self._watches[job_id])).reason for job_id in job_ids if job_id in self._watches}

    def _want_reread(self, job_id: str) -> None:
        self._reread_wanted.add(job_id)
        self._reread_wake.set()
