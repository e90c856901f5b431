"""The event stream: whole and in order, whatever is cut, emptied or restarted on the way."""

import asyncio
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from typing import Any

import httpx
import orjson
import pytest
import redis
from api_service import JOBS, Event, Json, Service, eventually

from patience import PATIENCE_SECONDS
from safelight.api import events as api_events
from safelight.jobs import JobEvent
from safelight.watch import Message
from servers import ValkeyServer


def states(events: list[Event]) -> list[tuple[str, int]]:
    return [(event.type, event.data["version"]) for event in events if event.is_state]


def test_the_whole_story_of_a_job(service: Service) -> None:
    job_id = service.hold(seconds=1.2, width=128)
    with service.events(job_id) as stream:
        assert stream.status == 200
        assert stream.response.headers["content-type"].startswith("text/event-stream")
        assert stream.response.headers["cache-control"] == "no-store"
        assert stream.response.headers["x-accel-buffering"] == "no"
        events = stream.all(after_first=lambda: service.let_go(job_id))
        assert stream.retry == 2000
    first, *rest = events
    assert (first.type, first.id, first.data["status"], first.data["version"]) == ("job.snapshot", "1", "pending", 1)
    assert states(rest) == [("job.started", 2), ("job.completed", 3)]
    assert rest[-1].type == "job.completed"
    assert {event.type for event in rest} >= {"job.progress", "job.preview", "job.output"}
    for event in events:
        assert set(event.data) == {field.name for field in fields(JobEvent)}
        assert event.data["type"] == event.type
        assert event.data["job_id"] == event.data["task_id"] == job_id
        assert event.has_own_id == (event.is_state or event is first)
        assert not event.is_state or event.id == str(event.data["version"])
        assert event.data["is_terminal"] == (event is events[-1])
    assert len({event.order for event in events}) == len(events)
    for kind in {event.type for event in events}:
        orders = [event.order for event in events if event.type == kind]
        assert orders == sorted(orders)
    progress = [event.data["progress"] for event in rest]
    assert progress == sorted(progress)
    assert len(set(progress)) > 3
    assert progress[-1] == 100
    assert events[-1].data["artifacts"] == service.look(job_id)["artifacts"]


@pytest.mark.parametrize(
    ("mock", "ends"),
    [
        ({"refuse": True}, [("job.started", 2), ("job.failed", 3)]),
        (
            {"transient_errors": 1},
            [("job.started", 2), ("job.pending", 3), ("job.started", 4), ("job.completed", 5)],
        ),
    ],
)
def test_every_end_and_every_return_is_an_event(service: Service, mock: Json, ends: list[tuple[str, int]]) -> None:
    events = service.watch_held(service.hold(mock=mock))
    assert states(events) == ends
    assert (events[-1].data["error"] is not None) == (events[-1].type == "job.failed")


@pytest.mark.parametrize("processing", [True, False])
def test_a_cancel_is_an_event(service: Service, processing: bool) -> None:
    job_id = service.submit(seconds=60)["id"] if processing else service.hold()
    with service.events(job_id) as stream:
        seen: list[Event] = []
        for event in stream:
            seen.append(event)
            if event.data["status"] == ("processing" if processing else "pending"):
                service.http.post(f"{JOBS}/{job_id}/cancel")
    assert seen[-1].type == "job.cancelled"


def test_cut_at_any_event_a_stream_resumes_without_loss_or_double(service: Service) -> None:
    job_id = service.hold(seconds=0.9, mock={"transient_errors": 1})
    all_watch = threading.Barrier(14, action=lambda: service.let_go(job_id), timeout=PATIENCE_SECONDS)
    expected = [("job.started", 2), ("job.pending", 3), ("job.started", 4), ("job.completed", 5)]

    def watch(cut: int) -> tuple[list[Event], list[Event], int]:
        before: list[Event] = []
        with service.events(job_id) as stream:
            if cut == 0:
                all_watch.wait()
            else:
                for event in stream:
                    before.append(event)
                    if len(before) == 1:
                        all_watch.wait()
                    if len(before) == cut:
                        break
            last_id = before[-1].id if before else None
        with service.events(job_id, last_id=last_id, by="query" if cut % 2 else "header") as stream:
            return before, stream.all(), stream.status

    with ThreadPoolExecutor(14) as pool:
        watches = list(pool.map(watch, range(14)))
    assert {len(before) for before, _, _ in watches} >= set(range(7))
    for before, after, status in watches:
        if before:
            assert states(before + after) == expected
        else:  # who was told nothing yet has nothing to resume: a fresh watcher
            assert states(after)[-1] == expected[-1]
        if before and before[-1].data["is_terminal"]:
            assert (status, after) == (204, [])
        elif before:
            assert (status, after[0].type, after[-1].type) == (200, "job.snapshot", "job.completed")
    for last_id in range(5):  # and long after the end
        with service.events(job_id, last_id=str(last_id)) as stream:
            told = stream.all()
        assert states(told) == [("job.pending", 1), *expected][last_id:]
        assert told[0].type == "job.snapshot"


def test_what_is_told_again_is_what_was_told_live(service: Service) -> None:
    job_id = service.hold(seconds=0.1, mock={"transient_errors": 1})
    live = {event.data["version"]: event for event in service.watch_held(job_id) if event.is_state}
    with service.events(job_id, last_id="1") as stream:
        again = {event.data["version"]: event for event in stream if event.is_state}
    assert live.keys() == again.keys()
    for version, event in live.items():
        told = again[version]
        assert (told.type, told.id) == (event.type, event.id)
        for name in ("status", "is_terminal", "stage", "attempt", "retry_count", "artifacts", "seq"):
            assert told.data[name] == event.data[name], (event.type, name)
        assert (told.data["error"] or {}).get("code") == (event.data["error"] or {}).get("code")


def test_after_the_end_there_is_nothing_to_reconnect_for(service: Service) -> None:
    job = service.make()
    for by in ("header", "query"):
        with service.events(job["id"], last_id=str(job["version"]), by=by) as stream:
            assert (stream.status, stream.all()) == (204, [])


def test_a_fresh_watcher_of_an_ended_job_is_told_the_end(service: Service) -> None:
    job = service.make()
    with service.events(job["id"]) as stream:
        snapshot, end = stream.all()
    assert (snapshot.type, end.type) == ("job.snapshot", "job.completed")
    assert snapshot.data["artifacts"] == end.data["artifacts"] == job["artifacts"]
    with service.events(job["id"], last_id=snapshot.id) as stream:  # cut between the two
        assert states(stream.all()) == [("job.completed", 3)]


def test_an_id_from_elsewhere_hides_nothing(service: Service) -> None:
    job = service.make()
    with service.events(job["id"], last_id="999") as stream:
        assert states(stream.all()) == [("job.completed", 3)]
    held = service.hold()
    with service.events(held, last_id="999") as stream:
        events = stream.all(after_first=lambda: service.let_go(held))
    assert (events[0].id, states(events)) == ("1", [("job.started", 2), ("job.completed", 3)])


@pytest.mark.parametrize("last_id", ["x", "-1", "1.5", "1 2", "9" * 10])
def test_garbage_is_no_event_id(service: Service, last_id: str) -> None:
    url = f"{JOBS}/{service.submit()['id']}/events"
    for answer in (
        service.http.get(url, headers={"Last-Event-ID": last_id}),
        service.http.get(url, params={"last_event_id": last_id}),
    ):
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_header")


def test_unknown_jobs_have_no_events(service: Service) -> None:
    assert service.http.get(f"{JOBS}/{uuid.uuid4()}/events").json()["code"] == "job_not_found"
    assert service.http.get(f"{JOBS}/7/events").json()["code"] == "invalid_id"


def test_comments_keep_a_silent_stream_open(idle: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    assert api_events.KEEPALIVE_SECONDS == 15
    monkeypatch.setattr(api_events, "KEEPALIVE_SECONDS", 0.1)
    with idle.events(idle.submit()["id"]) as stream:
        lines = stream.response.iter_lines()
        eventually(lambda: next(lines) == ": keep-alive", "a comment")
        assert (next(lines), next(lines)) == ("", ": keep-alive")


def test_two_hundred_watchers_of_one_job(service: Service) -> None:
    job_id = service.hold(seconds=0.5)
    watching = 0

    async def watch(client: httpx.AsyncClient) -> list[str]:
        nonlocal watching
        lines: list[str] = []
        async with client.stream("GET", f"{JOBS}/{job_id}/events") as response:
            async for line in response.aiter_lines():
                if not lines:
                    watching += 1
                    if watching == 200:
                        await asyncio.to_thread(service.let_go, job_id)
                lines.append(line)
        return lines

    async def watch_all() -> list[list[str]]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=service.api.url, timeout=PATIENCE_SECONDS, limits=limits) as client:
            return await asyncio.gather(*(watch(client) for _ in range(200)))

    for lines in asyncio.run(watch_all()):
        assert [line for line in lines if line.startswith("id: ")] == ["id: 1", "id: 2", "id: 3"]
        assert [line for line in lines if line.startswith("event: ")][-1] == "event: job.completed"
    stream = service.api.app.state.safelight.stream
    eventually(lambda: stream.watched == 0, "all watches are given up")


# --- slow clients -----------------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_what_a_full_connection_took_comes_before_the_rest() -> None:
    sent: list[bytes] = []
    has_room = asyncio.Event()
    has_room.set()

    async def send(message: Any) -> None:
        await has_room.wait()
        sent.append(message["body"])

    wire = api_events.Wire(send)
    assert wire.pass_on(b"1")
    has_room.clear()
    assert not wire.pass_on(b"2")
    writing = asyncio.ensure_future(wire.write(b"3"))
    await asyncio.sleep(0)
    assert sent == [b"1"]
    has_room.set()
    await writing
    assert sent == [b"1", b"2", b"3"]
    assert wire.pass_on(b"4") and sent[3:] == [b"4"]


@pytest.mark.anyio
async def test_a_connection_that_breaks_fails_its_own_stream_alone() -> None:
    async def send(message: Any) -> None:
        raise OSError("gone")

    wire = api_events.Wire(send)
    assert not wire.pass_on(b"1")
    with pytest.raises(OSError, match="gone"):
        await wire.write(b"")


def test_a_client_that_does_not_read_is_told_the_latest_alone(service: Service) -> None:
    job_id, count = service.hold(), 1500
    channel = f"{service.settings.redis_ns}:job:{job_id}"
    with service.events(job_id) as reads, service.events(job_id) as sleeps:
        told, late = iter(reads), iter(sleeps)
        known = next(told).data["seq"]
        assert next(late).data["seq"] == known
        with redis.Redis(unix_socket_path=str(service.valkey.socket_path)) as client:
            for seq in range(known + 1, known + 1 + count):
                data = orjson.dumps({"version": 1, "seq": seq, "is_terminal": False, "filler": "x" * 16_000})
                frame = b"event: job.progress\ndata: " + data + b"\n\n"
                client.publish(channel, Message(1, seq, False, False, "job.progress", frame).pack())
        for event in told:
            if event.data["seq"] == known + count:
                break
        service.let_go(job_id)
        *seen, _, last = (event for event in late if event.is_state or "filler" in event.data)
    seqs = [event.data["seq"] for event in seen if not event.is_state]
    assert seqs == sorted(set(seqs)) and seqs[-1] == known + count
    assert len(seqs) < count
    assert last.type == "job.completed"


# --- trouble on the way -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trouble", ["flushed", "restarted", "gone"])
def test_the_end_is_told_whatever_happens_to_redis(
    valkey_server: Callable[..., ValkeyServer], make_service: Callable[..., Service], trouble: str
) -> None:
    valkey = valkey_server()
    service = make_service(valkey=valkey)
    job = service.submit(seconds=1)
    seen: list[Event] = []
    with service.events(job["id"]) as stream:
        for event in stream:
            if event.type == "job.progress" and not any(one.type == "job.progress" for one in seen):
                if trouble == "flushed":
                    valkey.flush()
                else:
                    valkey.kill()
                if trouble == "restarted":
                    valkey.start()
            seen.append(event)
    assert seen[-1].type == "job.completed"
    assert [version for _, version in states(seen)] == sorted({version for _, version in states(seen)})
    if trouble == "gone":
        valkey.start()


def test_a_restart_of_the_api_does_not_break_the_story(make_service: Callable[..., Service]) -> None:
    service = make_service()
    job_id = service.hold(seconds=1, mock={"rate_limit": {"times": 1, "retry_after": 0.6}})
    seen: list[Event] = []
    last_id: str | None = None
    restarting: threading.Thread | None = None
    while not (seen and seen[-1].data["is_terminal"]):
        try:
            with service.events(job_id, last_id=last_id) as stream:
                for event in stream:
                    seen.append(event)
                    last_id = event.id
                    if len(seen) == 1:
                        service.let_go(job_id)
                    if event.type == "job.pending" and restarting is None:
                        restarting = threading.Thread(target=service.restart_api)
                        restarting.start()
        except httpx.TransportError:
            pass
        if restarting is not None:
            restarting.join()
    assert restarting is not None
    assert states(seen) == [("job.started", 2), ("job.pending", 3), ("job.started", 4), ("job.completed", 5)]
    assert [event.type for event in seen].count("job.snapshot") >= 2  # one for each time that it was connected
    with service.events(job_id, last_id=last_id) as stream:
        assert stream.status == 204


def test_events_reach_a_watcher_at_another_api(make_service: Callable[..., Service]) -> None:
    service = make_service()
    job_id = service.hold(seconds=0.3)
    service.restart_api()
    assert states(service.watch_held(job_id)) == [("job.started", 2), ("job.completed", 3)]


# --- the public channel -----------------------------------------------------------------------------------------------


def test_the_channel_of_a_task_tells_the_same(service: Service) -> None:
    job_id = service.hold(seconds=0.3)
    client = redis.Redis(unix_socket_path=str(service.valkey.socket_path), db=service.settings.redis_database)
    with client, client.pubsub(ignore_subscribe_messages=True) as channel:
        channel.subscribe(f"task_updates:{job_id}")
        service.let_go(job_id)
        told: list[Json] = []
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not (told and told[-1]["is_terminal"]) and time.monotonic() < deadline:
            message: Any = channel.get_message(timeout=0.2)
            if message is not None:
                told.append(orjson.loads(message["data"]))
        assert [event["status"] for event in told if event["type"] in ("job.started", "job.completed")] == [
            "processing",
            "completed",
        ]
        assert told[-1]["progress"] == 100
        assert all({"status", "progress", "message"} <= event.keys() for event in told)
        result: Json = orjson.loads(str(client.get(f"celery-task-meta-{job_id}"), "utf-8"))  # pyright: ignore[reportArgumentType]
        assert (result["status"], result["task_id"]) == ("SUCCESS", job_id)
