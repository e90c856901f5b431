"""What watchers are told: one watch by itself, and the whole way through a real Valkey."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import orjson
import pytest
from celery import Celery
from celery.result import AsyncResult

from jobs.builders import until
from jobs.streams import JOB, event, housed, read
from safelight import stream as stream_module
from safelight.db import new_id
from safelight.jobs import JobEvent
from safelight.stream import CELERY_RESULT_SECONDS, LATEST_SECONDS, PREVIEW_SECONDS
from safelight.valkey import Valkey
from safelight.watch import Message, Watch
from servers import ValkeyServer

pytestmark = pytest.mark.anyio


def state(version: int, *, end: bool = False) -> Message:
    return Message(version, 0, True, end, "job.completed" if end else "job.started", f"state {version}".encode())


def news(version: int, seq: int, topic: str = "job.progress") -> Message:
    return Message(version, seq, False, False, topic, f"{topic} {version}.{seq}".encode())


class Eye:
    """A watch and how often it found a gap."""

    def __init__(self, version: int | None = 1, seq: int = 0) -> None:
        self.gaps = 0
        self.watch = Watch(JOB, self._gap)
        if version is not None:
            self.watch.start(version, seq)

    def _gap(self) -> None:
        self.gaps += 1

    async def sees(self, *messages: Message) -> list[bytes]:
        for message in messages:
            self.watch.offer(message)
        return await self.told()

    async def told(self, timeout: float = 0) -> list[bytes]:
        return [message.frame for message in await self.watch.next(timeout)]


# One watch


@pytest.mark.parametrize(
    "message",
    [
        state(1),
        state(12, end=True),
        news(3, 99, "job.preview"),
        Message(2, 1, False, False, "job.output", b"event: job.output\ndata: {}\n\n"),
        Message(1, 0, True, False, "job.pending", b""),
    ],
)
def test_messages_travel_whole(message: Message) -> None:
    assert Message.unpack(message.pack()) == message


async def test_states_come_in_order_and_once() -> None:
    eye = Eye()
    assert await eye.sees(state(1), state(2), state(2), state(3), state(1)) == [b"state 2", b"state 3"]
    assert await eye.told() == [] and eye.gaps == 0


async def test_a_gap_is_reported_and_filled_by_what_is_read_again() -> None:
    eye = Eye()
    assert await eye.sees(state(2), state(4)) == [b"state 2"]
    assert eye.gaps == 1
    assert await eye.sees(state(2), state(3), state(4), state(5, end=True)) == [b"state 3", b"state 4", b"state 5"]
    assert eye.gaps == 1 and eye.watch.ended


async def test_news_of_a_state_not_heard_of_is_a_gap() -> None:
    eye = Eye()
    assert await eye.sees(news(2, 1)) == []
    assert eye.gaps == 1


async def test_of_news_only_the_latest_of_each_topic_is_kept() -> None:
    eye = Eye(2)
    told = await eye.sees(news(2, 1), news(2, 2, "job.preview"), news(2, 3), news(2, 4))
    assert told == [b"job.preview 2.2", b"job.progress 2.4"]  # in the order of their seq
    assert await eye.sees(news(2, 4), news(2, 3, "job.preview")) == []
    assert await eye.sees(news(2, 5)) == [b"job.progress 2.5"]


async def test_news_of_a_state_come_before_the_next_or_not_at_all() -> None:
    eye = Eye(2)
    assert await eye.sees(news(2, 7), state(3), news(2, 8)) == [b"job.progress 2.7", b"state 3"]
    assert await eye.sees(state(4), news(4, 1)) == [b"state 4", b"job.progress 4.1"]  # its seq begins anew


async def test_what_comes_before_the_snapshot_waits_for_it() -> None:
    eye = Eye(None)
    assert await eye.sees(state(2), news(2, 4), news(2, 5), state(3)) == []
    assert eye.gaps == 0
    eye.watch.start(2, 4)
    assert await eye.told() == [b"job.progress 2.5", b"state 3"]


async def test_a_snapshot_that_knows_more_makes_early_messages_old() -> None:
    eye = Eye(None)
    await eye.sees(state(2), news(2, 4), news(2, 5))
    eye.watch.start(2, 4)
    assert await eye.told() == [b"job.progress 2.5"]
    eye = Eye(None)
    await eye.sees(state(2), state(5))
    eye.watch.start(2)
    assert (await eye.told(), eye.gaps) == ([], 1)


async def test_nothing_comes_after_the_end() -> None:
    eye = Eye()
    assert not eye.watch.ended
    assert await eye.sees(state(2, end=True), news(2, 1), state(3)) == [b"state 2"]
    assert eye.watch.ended and eye.watch.is_told and eye.gaps == 0
    async with asyncio.timeout(1):
        assert await eye.told(60) == []  # nothing to wait for


async def test_a_reader_is_woken_by_what_comes_and_else_by_time() -> None:
    eye = Eye()
    reading = asyncio.ensure_future(eye.told(60))
    await asyncio.sleep(0)
    eye.watch.offer(state(1))  # old: no reason to wake
    await asyncio.sleep(0.01)
    assert not reading.done()
    eye.watch.offer(state(2))
    async with asyncio.timeout(1):
        assert await reading == [b"state 2"]
    assert await eye.told(0.005) == []


async def test_what_comes_while_a_reader_waits_is_passed_on_without_waking_it() -> None:
    eye, passed = Eye(), list[bytes]()

    def pass_on(frame: bytes) -> bool:
        passed.append(frame)
        return True

    reading = asyncio.ensure_future(eye.watch.next(60, pass_on))
    await asyncio.sleep(0)
    for message in (state(2), state(2), state(1), news(2, 1), state(4), news(2, 1), news(2, 2), state(3)):
        eye.watch.offer(message)
    assert passed == [b"state 2", b"job.progress 2.1", b"job.progress 2.2", b"state 3"] and eye.gaps == 1
    await asyncio.sleep(0.01)
    assert not reading.done()
    for message in (state(4, end=True), state(5)):
        eye.watch.offer(message)
    async with asyncio.timeout(1):
        assert await reading == []  # woken by the end
    assert passed[4:] == [b"state 4"] and eye.watch.ended and eye.watch.is_told


async def test_what_cannot_be_passed_on_is_kept_for_the_reader() -> None:
    eye, passed = Eye(2), list[bytes]()

    def pass_on(frame: bytes) -> bool:
        passed.append(frame)
        return len(passed) < 2

    reading = asyncio.ensure_future(eye.watch.next(60, pass_on))
    await asyncio.sleep(0)
    for message in (news(2, 1), news(2, 2), news(2, 3), news(2, 4), state(3)):
        eye.watch.offer(message)
    async with asyncio.timeout(1):
        assert [message.frame for message in await reading] == [b"job.progress 2.4", b"state 3"]
    assert passed == [b"job.progress 2.1", b"job.progress 2.2"]
    assert await eye.sees(news(3, 1)) == [b"job.progress 3.1"]  # nobody waits: kept
    assert await eye.watch.next(0.005, pass_on) == []


# Through Valkey


REFUSALS: list[tuple[str, Sequence[JobEvent], tuple[int, int]]] = [
    ("an older attempt's news", [event(4, "job.started"), event(2, seq=9)], (4, 0)),
    ("an older state", [event(3, "job.pending"), event(2, "job.started")], (3, 0)),
    ("an equal seq", [event(2, seq=5), event(2, seq=5, progress=99)], (2, 5)),
    ("an older seq", [event(2, seq=10), event(2, seq=9)], (2, 10)),
    ("news after the end", [event(3, "job.completed"), event(3, seq=1)], (3, 0)),
    ("a state after the end", [event(3, "job.failed"), event(4, "job.started")], (3, 0)),
]


@pytest.mark.parametrize(("told", "kept"), [case[1:] for case in REFUSALS], ids=[case[0] for case in REFUSALS])
async def test_redis_refuses_what_is_not_newer(
    valkey: ValkeyServer, told: Sequence[JobEvent], kept: tuple[int, int]
) -> None:
    async with housed(valkey) as house, house.stream.watch(JOB) as watch:
        watch.start(told[0].version - (told[0].seq == 0))
        for each in told:
            assert house.publish(each)
        assert await house.latest() == kept
        result = orjson.loads(valkey.command("GET", f"celery-task-meta-{JOB}"))
        assert result == orjson.loads(told[0].as_celery_result())
        assert await read(watch, 1) == [kept]
        assert watch.is_told


async def test_redis_takes_what_is_newer(valkey: ValkeyServer) -> None:
    async with housed(valkey) as house, house.stream.watch(JOB) as watch:
        watch.start(1)
        for told in (event(2, "job.started"), event(2, seq=9), event(2, seq=10), event(3, "job.pending")):
            house.publish(told)
            assert await house.latest() == (told.version, told.seq)
        house.publish(event(4, "job.started"))
        house.publish(event(4, seq=1))
        house.publish(event(5, "job.completed"))
        assert await house.latest() == (5, 0)
        assert await read(watch, 6) == [(2, 0), (2, 10), (3, 0), (4, 0), (4, 1), (5, 0)]
        assert watch.ended


async def test_what_redis_keeps_it_keeps_for_a_time(valkey: ValkeyServer) -> None:
    async with housed(valkey) as house:
        house.publish(event(2, seq=1))
        house.stream.put_preview(JOB, "1-1", b"\x00\n\xff", "image/webp")
        assert await house.stream.preview(JOB, "1-1") == (b"\x00\n\xff", "image/webp")
        assert await house.stream.preview(JOB, "1-2") is None
        assert await house.stream.latest(new_id()) is None
    ages = {key: valkey.command("TTL", key) for key in valkey.command("KEYS", "*")}
    limits = {
        f"test:latest:{JOB}".encode(): LATEST_SECONDS,
        f"test:preview:{JOB}:1-1".encode(): PREVIEW_SECONDS,
        f"celery-task-meta-{JOB}".encode(): CELERY_RESULT_SECONDS,
    }
    assert ages.keys() == limits.keys()
    assert all(limits[key] - 10 < age <= limits[key] for key, age in ages.items())


async def test_without_redis_nothing_fails_and_nothing_is_promised(
    valkey_server: Callable[..., ValkeyServer],
) -> None:
    server = valkey_server()
    async with housed(server) as house:
        server.kill()
        await until(lambda: not house.stream.is_connected)
        assert not house.publish(event(2, "job.started"))
        house.stream.put_preview(JOB, "1-1", b"x", "image/webp")
        house.stream.nudge(JOB)
        assert await house.stream.latest(JOB) is None
        assert await house.stream.preview(JOB, "1-1") is None
        async with house.stream.watch(JOB) as watch:
            watch.start(1)
            assert await watch.next(0.01) == []


# For hosts that look themselves


CELERY_STATES: list[tuple[JobEvent, str, bool]] = [
    (event(1, "job.pending", progress=None, message="Waiting to start"), "PENDING", False),
    (event(2, seq=3), "PROGRESS", False),
    (event(3, "job.completed", progress=100, message="Completed", artifacts=[{"id": "a"}]), "SUCCESS", True),
    (event(3, "job.failed", error={"code": "content_rejected", "message": "No."}), "FAILURE", True),
    (event(3, "job.cancelled"), "REVOKED", True),
]


@pytest.mark.parametrize(("told", "shown", "ready"), CELERY_STATES, ids=[case[1] for case in CELERY_STATES])
async def test_celery_reads_the_state_of_a_job(valkey: ValkeyServer, told: JobEvent, shown: str, ready: bool) -> None:
    async with housed(valkey) as house:
        house.publish(told)
        await house.latest()  # it was executed
    app = Celery("host", backend=f"{valkey.celery_url}?virtual_host=0", set_as_current=False)
    result = AsyncResult(JOB, app=app)
    try:
        assert (result.state, result.ready()) == (shown, ready)
        assert result.failed() == (shown == "FAILURE") and result.successful() == (shown == "SUCCESS")
        match shown:
            case "FAILURE":
                assert isinstance(result.result, Exception)
                assert type(result.result).__name__ == "JobFailed"
                assert str(result.result) == "content_rejected: No."
            case "REVOKED":
                assert isinstance(result.result, Exception)
            case _:
                assert result.info == {
                    "progress": told.progress,
                    "message": told.message,
                    "artifacts": list(told.artifacts),
                }
        if ready:
            assert result.date_done == told.at
    finally:
        app.backend.client.close()
        app.close()


async def test_the_public_channel_tells_status_progress_and_message(valkey: ValkeyServer) -> None:
    heard: list[dict[str, Any]] = []
    host = Valkey(valkey.url, on_push=lambda push: heard.append({"channel": push[1], **orjson.loads(push[2])}))
    await host.start()
    await host.wait_connected(5)
    host.subscribe(f"task_updates:{JOB}")
    await host.send("PING")
    async with housed(valkey) as house:
        house.publish(event(2, seq=1))
        house.publish(event(3, "job.completed", progress=100, message="Completed"))
        house.publish(event(3, seq=1))  # refused
        await house.latest()
    await host.send("PING")
    await host.close()
    told = [(each["channel"], each["status"], each["progress"], each["message"]) for each in heard]
    channel = f"task_updates:{JOB}".encode()
    assert told == [(channel, "processing", 50, "Rendering..."), (channel, "completed", 100, "Completed")]
    assert heard[0]["job_id"] == heard[0]["task_id"] == JOB and heard[0]["at"] == "2026-03-01T12:00:00.250000Z"


# The hub


async def test_one_process_hears_what_another_publishes(valkey: ValkeyServer) -> None:
    nudged: list[str] = []
    async with housed(valkey) as api, housed(valkey) as worker:
        worker.stream.listen_for_nudges(nudged.append)
        async with api.stream.watch(JOB) as one, api.stream.watch(JOB) as two, api.stream.watch(new_id()) as other:
            assert api.stream.watched == 2
            for watch in (one, two, other):
                watch.start(1)
            worker.publish(event(2, "job.started"))
            worker.publish(event(2, seq=1))
            assert await read(one, 2) == await read(two, 2) == [(2, 0), (2, 1)]
            assert other.is_told
        assert api.stream.watched == 0
        await until(lambda: valkey.command("PUBSUB", "CHANNELS", "test:job:*") == [])
        api.stream.nudge(JOB)
        await until(lambda: bool(nudged))
    assert nudged == [JOB]


async def test_one_reader_leaving_does_not_deafen_the_other(valkey: ValkeyServer) -> None:
    async with housed(valkey) as house, house.stream.watch(JOB) as stays:
        stays.start(1)
        async with house.stream.watch(JOB) as leaves:
            leaves.start(1)
        house.publish(event(2, "job.started"))
        assert await read(stays, 1) == [(2, 0)]


async def test_a_gap_is_filled_from_the_rows_at_once(valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "REREAD_SECONDS", 60.0)
    async with housed(valkey, running=True) as house, house.stream.watch(JOB) as watch:
        watch.start(1)
        house.rows[JOB] = [state(2), state(3), state(4, end=True)]
        house.publish(event(4, "job.completed"))  # 2 and 3 were lost
        assert await read(watch, 3, 2.0) == [(2, 0), (3, 0), (4, 0)]
        assert watch.ended
        assert house.asked[-1] == {JOB: 1}


async def test_what_was_never_published_is_found_in_the_rows(
    valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker died between its commit and the event."""
    monkeypatch.setattr(stream_module, "REREAD_SECONDS", 0.05)
    async with housed(valkey, running=True) as house, house.stream.watch(JOB) as watch:
        watch.start(2)
        house.database_is_there = False
        house.rows[JOB] = [state(3, end=True)]
        await until(lambda: bool(house.asked))
        assert watch.is_told
        house.database_is_there = True
        assert await read(watch, 1) == [(3, 0)]


async def test_an_emptied_redis_costs_no_state(valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "REREAD_SECONDS", 60.0)
    async with housed(valkey, running=True) as house, house.stream.watch(JOB) as watch:
        watch.start(1)
        house.publish(event(2, "job.started"))
        house.publish(event(2, seq=1))
        assert await read(watch, 2) == [(2, 0), (2, 1)]
        valkey.flush()  # forgets the script, too
        house.publish(event(2, seq=2))
        assert await read(watch, 1) == [(2, 2)]
        valkey.flush()
        house.publish(event(2, seq=1))  # Redis knows no better, the watch does
        house.publish(event(3, "job.completed"))
        assert await read(watch, 1) == [(3, 0)]


async def test_what_was_told_during_a_restart_of_redis_is_read_again(
    valkey_server: Callable[..., ValkeyServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "REREAD_SECONDS", 60.0)
    server = valkey_server()
    async with housed(server, running=True) as house, house.stream.watch(JOB) as watch:
        watch.start(1)
        house.publish(event(2, "job.started"))
        assert await read(watch, 1) == [(2, 0)]
        server.kill()
        await until(lambda: not house.stream.is_connected)
        assert not house.publish(event(3, "job.pending"))
        house.rows[JOB] = [state(2), state(3), state(4)]
        server.start()
        assert await read(watch, 2) == [(3, 0), (4, 0)]
        house.publish(event(5, "job.completed"))  # and it hears again
        assert await read(watch, 1) == [(5, 0)]
