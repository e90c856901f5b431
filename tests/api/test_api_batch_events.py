"""The stream of a batch: every state of every job, one progress, one end; whatever is cut, emptied or restarted."""

import itertools
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields

import pytest
from api_service import BATCHES, JOBS, Event, Json, Service, eventually, order

from safelight import stream as stream_module
from safelight.api import events as api_events
from safelight.jobs import BatchEvent, JobEvent
from servers import ValkeyServer

WHOLE = ["job.started", "job.completed"]
ENDS = ("batch.completed", "batch.failed", "batch.cancelled")


def states(events: Iterable[Event]) -> dict[str, list[tuple[str, int]]]:
    """The state events of each job, in the order in which they came."""
    found: dict[str, list[tuple[str, int]]] = {}
    for event in events:
        if event.type.startswith("job."):
            found.setdefault(event.data["job_id"], []).append((event.type, event.data["version"]))
    return found


def kinds(events: Iterable[Event]) -> dict[str, list[str]]:
    return {job_id: [kind for kind, _ in told] for job_id, told in states(events).items()}


def follow(service: Service, batch: Json) -> list[Event]:
    """All events of a batch whose jobs are held, which are let go once it is watched."""
    with service.batch_events(batch["id"]) as stream:
        return stream.all(after_first=lambda: service.let_go(*batch["job_ids"]))


def test_one_stream_tells_the_story_of_all_jobs(service: Service) -> None:
    batch = service.hold_batch(*(order(seconds=1.2) for _ in range(3)))
    with service.batch_events(batch["id"]) as stream:
        assert stream.status == 200
        assert stream.response.headers["content-type"].startswith("text/event-stream")
        assert stream.response.headers["cache-control"] == "no-store"
        events = stream.all(after_first=lambda: service.let_go(*batch["job_ids"]))
        assert stream.retry == 2000
    first, *rest, last = events
    assert (first.type, first.id, first.data["status"]) == ("batch.snapshot", "1x3~0", "pending")
    assert first.data["jobs"] == [
        {"job_id": job_id, "status": "pending", "progress": 0, "version": 1} for job_id in batch["job_ids"]
    ]
    assert kinds(rest) == dict.fromkeys(batch["job_ids"], WHOLE)
    assert (last.type, last.id, last.data["is_terminal"]) == ("batch.completed", "end", True)
    assert (last.data["counts"], last.data["progress"]) == (service.look_at_batch(batch["id"])["counts"], 100)
    for event in events:
        is_job = event.type.startswith("job.")
        assert set(event.data) == {field.name for field in fields(JobEvent if is_job else BatchEvent)}
        assert event.data["batch_id"] == batch["id"]
        assert event.has_own_id
        assert is_job or sum(event.data["counts"].values()) == event.data["total"] == 3
    told = [event for event in rest if event.type == "batch.progress"]
    progress = [event.data["progress"] for event in told]
    assert progress == sorted(progress) and len(set(progress)) >= 2 and progress[-1] < 100
    assert len(told) < 10  # a few a second
    further = [job for event in told for job in event.data["jobs"]]
    assert {job["job_id"] for job in further} == set(batch["job_ids"])
    assert all(0 < job["progress"] <= 100 and job["status"] == "processing" for job in further)
    pictures = {event.data["job_id"]: event.data["artifacts"] for event in rest if event.type == "job.completed"}
    assert pictures == {job_id: service.look(job_id)["artifacts"] for job_id in batch["job_ids"]}


def test_every_end_is_told(service: Service) -> None:
    failing = [order(), order(mock={"refuse": True}), order(mock={"transient_errors": 1})]
    batch = service.hold_batch(*failing)
    events = follow(service, batch)
    again = ["job.started", "job.pending", "job.started", "job.completed"]
    assert list(kinds(events).values()).count(WHOLE) == 1
    assert kinds(events) == dict(zip(batch["job_ids"], [WHOLE, ["job.started", "job.failed"], again], strict=True))
    assert events[-1].type == "batch.failed"
    batch = service.hold_batch(order(), order())
    with service.batch_events(batch["id"]) as stream:
        events = stream.all(after_first=lambda: service.http.post(f"{BATCHES}/{batch['id']}/cancel"))
    assert kinds(events) == {job_id: ["job.cancelled"] for job_id in batch["job_ids"]}
    assert events[-1].type == "batch.cancelled"


def test_cut_at_any_event_a_stream_resumes_without_loss_or_double(service: Service) -> None:
    batch = service.hold_batch(order(seconds=0.4), order(mock={"transient_errors": 1}), order(seconds=0.1), order())
    expected = {
        job_id: [("job.started", 2), ("job.completed", 3)]
        if place != 1
        else [("job.started", 2), ("job.pending", 3), ("job.started", 4), ("job.completed", 5)]
        for place, job_id in enumerate(batch["job_ids"])
    }
    whole = follow(service, batch)
    assert states(whole) == expected
    ids = [event.id for event in whole]
    for cut, event_id in enumerate(ids):
        with service.batch_events(batch["id"], last_id=event_id, by="query" if cut % 2 else "header") as stream:
            after = stream.all()
            if event_id == "end":
                assert (stream.status, after) == (204, [])
                continue
        assert (after[0].type, after[-1].type) == ("batch.snapshot", "batch.completed")
        seen = states(whole[: cut + 1])
        for job_id, told in states(after).items():
            seen[job_id] = seen.get(job_id, []) + told
        assert seen == expected


def test_a_stream_cut_live_goes_on_where_it_was(service: Service) -> None:
    batch = service.hold_batch(*(order(seconds=0.2 * n) for n in range(4)))
    seen: list[Event] = []
    last_id: str | None = None
    while not (seen and seen[-1].type in ENDS):
        with service.batch_events(batch["id"], last_id=last_id) as stream:
            for event in itertools.islice(stream, 3):
                seen.append(event)
                if len(seen) == 1:
                    service.let_go(*batch["job_ids"])
            last_id = stream.last_id
    assert kinds(seen) == dict.fromkeys(batch["job_ids"], WHOLE)
    progress = [event.data["progress"] for event in seen if event.type.startswith("batch.")]
    assert progress == sorted(progress)


def test_whoever_comes_late_is_told_every_end(service: Service) -> None:
    batch = service.submit_batch(order(), order(mock={"refuse": True}), order())
    service.end_of_batch(batch["id"])
    with service.batch_events(batch["id"]) as stream:
        snapshot, *ends, last = stream.all()
    assert (snapshot.data["status"], snapshot.data["progress"], snapshot.id) == ("failed", 100, "2x3~100")
    assert kinds(ends) == {
        job_id: [kind]
        for job_id, kind in zip(batch["job_ids"], ["job.completed", "job.failed", "job.completed"], strict=True)
    }
    assert (ends[-1].id, last.type) == ("3x3~100", "batch.failed")
    with service.batch_events(batch["id"], last_id="3x3~100") as stream:  # cut before the last word
        assert [event.type for event in stream] == ["batch.snapshot", "batch.failed"]
    half = service.hold_batch(order(), order())
    service.let_go(half["job_ids"][0])
    service.end_of(half["job_ids"][0])
    with service.batch_events(half["id"]) as stream:
        events = stream.all(after_first=lambda: service.let_go(half["job_ids"][1]))
    assert kinds(events) == {half["job_ids"][0]: ["job.completed"], half["job_ids"][1]: WHOLE}


@pytest.mark.parametrize("last_id", ["1x2~0", "9x3~0", "1.1.1.1~0", "1x1000.1~1", "end"])
def test_an_id_from_elsewhere_hides_nothing(service: Service, last_id: str) -> None:
    batch = service.hold_batch(order(), order(), order())
    with service.batch_events(batch["id"], last_id=last_id) as stream:
        events = stream.all(after_first=lambda: service.let_go(*batch["job_ids"]))
    assert (events[0].id, kinds(events)) == ("1x3~0", dict.fromkeys(batch["job_ids"], WHOLE))


@pytest.mark.parametrize("last_id", ["x", "-1", "1x~1", "1..2~1", "1x99999~1", "1", "1." * 9000 + "1~1"])
def test_garbage_is_no_event_id(service: Service, last_id: str) -> None:
    url = f"{BATCHES}/{service.submit_batch(order())['id']}/events"
    for answer in (
        service.http.get(url, headers={"Last-Event-ID": last_id}),
        service.http.get(url, params={"last_event_id": last_id}),
    ):
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_header")


def test_comments_keep_a_silent_stream_open(idle: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_events, "KEEPALIVE_SECONDS", 0.1)
    with idle.batch_events(idle.submit_batch(order())["id"]) as stream:
        lines = stream.response.iter_lines()
        eventually(lambda: next(lines) == ": keep-alive", "a comment")
        assert (next(lines), next(lines)) == ("", ": keep-alive")


def test_many_watch_a_large_batch(make_service: Callable[..., Service]) -> None:
    service = make_service()
    batch = service.hold_batch(*(order() for _ in range(60)))

    def watch(_: int) -> list[Event]:
        with service.batch_events(batch["id"]) as stream:
            return stream.all()

    with ThreadPoolExecutor(10) as pool:
        watching = [pool.submit(watch, n) for n in range(10)]
        stream = service.api.app.state.safelight.stream
        eventually(lambda: len(stream._batch_watches.get(batch["id"], ())) == 10, "all watch")
        service.let_go(*batch["job_ids"])
        told = [each.result() for each in watching]
    for events in told:
        assert kinds(events) == dict.fromkeys(batch["job_ids"], WHOLE)
        assert events[-1].type == "batch.completed"
    eventually(lambda: stream.watched == 0, "all watches are given up")


# --- trouble on the way -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trouble", ["flushed", "restarted", "gone"])
def test_the_end_is_told_whatever_happens_to_redis(
    valkey_server: Callable[..., ValkeyServer], make_service: Callable[..., Service], trouble: str
) -> None:
    valkey = valkey_server()
    service = make_service(valkey=valkey)
    batch = service.submit_batch(*(order(seconds=0.8) for _ in range(3)))
    for job_id in batch["job_ids"]:
        service.when(job_id, lambda job: job["status"] == "processing", "it runs")
    seen: list[Event] = []
    with service.batch_events(batch["id"]) as stream:
        for event in stream:
            if not seen:
                if trouble == "flushed":
                    valkey.flush()
                else:
                    valkey.kill()
                if trouble == "restarted":
                    valkey.start()
            seen.append(event)
    assert seen[-1].type == "batch.completed"
    assert {job_id: told[-1] for job_id, told in kinds(seen).items()} == dict.fromkeys(
        batch["job_ids"], "job.completed"
    )
    assert all(len(set(told)) == len(told) for told in states(seen).values())
    if trouble == "gone":
        valkey.start()


def test_what_was_never_published_is_found_in_the_rows(
    make_service: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The workers' events are lost: all of them died between their commit and the event."""
    service = make_service()
    monkeypatch.setattr(stream_module.Stream, "publish", lambda *_: True)
    events = follow(service, batch := service.hold_batch(order(), order()))
    assert kinds(events) == dict.fromkeys(batch["job_ids"], WHOLE)
    assert events[-1].type == "batch.completed"


def test_a_restart_of_the_api_does_not_break_the_story(make_service: Callable[..., Service]) -> None:
    service = make_service()
    batch = service.hold_batch(order(seconds=0.2), order(seconds=1))
    with service.batch_events(batch["id"]) as stream:
        events = iter(stream)
        seen = [next(events)]
        service.let_go(*batch["job_ids"])
        while not any(event.type == "job.completed" for event in seen):
            seen.append(next(events))
        last_id = stream.last_id
    service.restart_api()
    with service.batch_events(batch["id"], last_id=last_id) as stream:
        seen += stream.all()
    assert kinds(seen) == dict.fromkeys(batch["job_ids"], WHOLE)


def test_a_job_of_a_batch_keeps_its_own_stream(service: Service) -> None:
    batch = service.hold_batch(order(seconds=1.2, width=128), order())
    job_id = batch["job_ids"][0]
    with service.events(job_id) as stream:
        events = stream.all(after_first=lambda: service.let_go(job_id))
    assert [event.type for event in events if event.is_state] == WHOLE
    assert {event.data["batch_id"] for event in events} == {batch["id"]}
    assert {event.type for event in events} >= {"job.preview", "job.output"}
    service.http.post(f"{JOBS}/{batch['job_ids'][1]}/cancel")
