"""What one watcher sees of jobs: state events in order without gaps, and of the news only the latest."""

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from operator import attrgetter
from typing import NamedTuple

NEWS_OF_BATCHES = "job.progress"  # previews and outputs are told to those who watch the job itself


class Message(NamedTuple):
    """One event on its way to watchers: `frame` is the finished SSE frame, the rest is what routing needs."""

    version: int
    seq: int
    is_state: bool
    is_terminal: bool
    topic: str
    frame: bytes

    @property
    def frame_without_id(self) -> bytes:
        """The frame for a stream of many jobs, which has ids of its own."""
        return self.frame.partition(b"\n")[2] if self.is_state else self.frame

    def pack(self) -> bytes:
        flags = ("s" if self.is_state else "n") + ("t" if self.is_terminal else "-")
        return f"{self.version} {self.seq} {flags} {self.topic}\n".encode() + self.frame

    @classmethod
    def unpack(cls, data: bytes) -> "Message":
        head, _, frame = data.partition(b"\n")
        version, seq, flags, topic = head.decode().split(" ")
        return cls(int(version), int(seq), flags[0] == "s", flags[1] == "t", topic, frame)


_seq = attrgetter("seq")


class Bell:
    """Wakes a reader: a bare future, and one timer that outlives many of them (a timer for each event costs half of
    sending it).
    """

    __slots__ = ("_timer", "_waiting", "_waits_until")

    def __init__(self) -> None:
        self._waiting: asyncio.Future[None] | None = None
        self._waits_until = 0.0
        self._timer: asyncio.TimerHandle | None = None

    async def wait(self, timeout: float) -> None:
        """Until it rings, or for `timeout` seconds."""
        loop = asyncio.get_running_loop()
        self._waiting = loop.create_future()
        self._waits_until = loop.time() + timeout
        if self._timer is None or self._timer.when() > self._waits_until:
            self.close()
            self._timer = loop.call_at(self._waits_until, self._time_out)
        await self._waiting

    def ring(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def close(self) -> None:
        """Nobody will wait again."""
        if self._timer is not None:
            self._timer.cancel()

    def _time_out(self) -> None:
        loop = asyncio.get_running_loop()
        if loop.time() < self._waits_until:
            self._timer = loop.call_at(self._waits_until, self._time_out)
        else:
            self._timer = None
            self.ring()


class Watch:
    """One watcher's view of one job: state events in order without gaps, of the news only the latest of each topic."""

    __slots__ = (
        "_bell", "_early", "_messages", "_news", "_on_gap", "_on_heard", "_pass_on", "_seq",
        "ended", "job_id", "reason", "version",
    )  # fmt: skip

    def __init__(self, job_id: str, on_gap: Callable[[], None], on_heard: Callable[[bool], None] | None = None) -> None:
        """`on_heard`, if somebody else waits than `next`, is told of all that is kept and whether it is a state."""
        self.job_id = job_id
        self.version = 0
        self._early: list[Message] | None = []  # what came before the reader knew where it stands
        self._seq = 0
        self._on_gap = on_gap
        self._messages: list[Message] = []  # states, and the news that came before the last of them
        self._news: dict[str, Message] = {}
        self._bell = Bell()
        self._on_heard = on_heard or self._ring
        self._pass_on: Callable[[bytes], bool] | None = None  # only while the reader waits, when nothing is kept
        self.reason: str | None = None  # why it waits, as the reader was told: that comes and goes without a state
        self.ended = False

    def start(self, version: int, seq: int = 0, reason: str | None = None) -> None:
        """From here on: what is newer than the state the reader has been told."""
        early, self._early = self._early or [], None
        self.version, self._seq, self.reason = version, seq, reason
        for message in early:
            self.offer(message)

    @property
    def is_told(self) -> bool:
        """Whether nothing is left to fetch with `next`."""
        return not self._messages and not self._news

    def offer(self, message: Message) -> None:
        """Keep it if it is newer than what was kept; a gap is reported and filled from the rows."""
        if self._early is not None:
            self._early.append(message)
            return
        if self.ended:
            return
        if message.is_state:
            if message.version <= self.version:
                return
            if message.version > self.version + 1:
                self._on_gap()
                return
            self.version, self._seq = message.version, 0
            self.ended = message.is_terminal
        else:
            if message.version > self.version:
                self._on_gap()
                return
            if message.version < self.version or message.seq <= self._seq:
                return
            self._seq = message.seq
        if self._pass_on is None:
            self._keep(message)
        elif not self._pass_on(message.frame) or self.ended:
            self._pass_on = None
            self._bell.ring()

    def _keep(self, message: Message) -> None:
        if message.is_state:
            self._messages += self._take_news()
            self._messages.append(message)
        else:
            self._news[message.topic] = message
        self._on_heard(message.is_state)

    def _ring(self, is_state: bool) -> None:
        self._bell.ring()

    async def next(self, timeout: float, pass_on: Callable[[bytes], bool] | None = None) -> list[Message]:
        """Everything new, in order; empty after `timeout` seconds without anything, or once all has been told.

        With `pass_on`, what comes during the wait is told to it, frame by frame, and ends the wait only if it was the
        end of the job or `pass_on` returned False: then it takes no more for now.
        """
        if not self._messages and not self._news and not self.ended:
            self._pass_on = pass_on
            try:
                await self._bell.wait(timeout)
            finally:
                self._pass_on = None
        return self.take()

    def take(self) -> list[Message]:
        """What `next` would tell now, without waiting."""
        messages = self._messages + self._take_news()
        self._messages = []
        return messages

    def close(self) -> None:
        """Nobody will ask again."""
        self._bell.close()

    def _take_news(self) -> list[Message]:
        if not self._news:
            return []
        news = list(self._news.values())
        self._news.clear()
        return news if len(news) == 1 else sorted(news, key=_seq)


class BatchWatch:
    """One watcher's view of a batch: a view of each of its jobs, and one ear for all of them.

    States wake the reader at once, progress does not: of that only the latest is told, as often as the reader asks.
    """

    def __init__(self, batch_id: str, on_gap: Callable[[str], None]) -> None:
        self.batch_id = batch_id
        self._on_gap = on_gap
        self._early: list[tuple[str, Message]] | None = []  # what came before the reader knew where it stands
        self._open: dict[str, Watch] = {}
        self._heard: dict[str, Watch] = {}  # those with something to tell, in the order in which they were heard
        self._has_state = False
        self._bell = Bell()

    def start(self, versions: Mapping[str, int]) -> None:
        """From here on: what is newer than the versions the reader has been told, of the jobs that have not ended."""
        early, self._early = self._early or [], None
        for job_id, version in versions.items():
            watch = Watch(job_id, partial(self._on_gap, job_id), partial(self._hear, job_id))
            watch.start(version)
            self._open[job_id] = watch
        for job_id, message in early:
            self.offer(job_id, message)

    @property
    def versions(self) -> dict[str, int]:
        """What the reader knows of the jobs whose end it has not been told."""
        return {job_id: watch.version for job_id, watch in self._open.items()}

    def offer(self, job_id: str, message: Message) -> None:
        """Keep it if it is newer than what was kept of its job; a gap is reported and filled from the rows."""
        if not message.is_state and message.topic != NEWS_OF_BATCHES:
            return
        if self._early is not None:
            self._early.append((job_id, message))
        elif (watch := self._open.get(job_id)) is not None:
            watch.offer(message)

    async def next(self, timeout: float) -> list[tuple[str, Message]]:
        """Everything new with its job, as soon as there is a state among it or `timeout` seconds have passed."""
        if not self._has_state:
            await self._bell.wait(timeout)
        heard, self._heard, self._has_state = self._heard, {}, False
        for job_id, watch in heard.items():
            if watch.ended:
                self._open.pop(job_id, None)
        return [(job_id, message) for job_id, watch in heard.items() for message in watch.take()]

    def close(self) -> None:
        """Nobody will ask again."""
        self._bell.close()

    def _hear(self, job_id: str, is_state: bool) -> None:
        self._heard[job_id] = self._open[job_id]
        if is_state:
            self._has_state = True
            self._bell.ring()
