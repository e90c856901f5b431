"""The Python client against a server that misbehaves on purpose."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from patience import PATIENCE_SECONDS
from safelight_client import ApiError, Client, Unreachable
from scripted_api import JOB_ID, JOB_PATH, PNG, Answer, ScriptedApi, document, event, job, problem, stream

JOBS = "/api/v1/generation-jobs"
EVENTS = f"{JOB_PATH}/events"
DROPPED = Answer(drops=True)


@pytest.fixture
def api() -> Iterator[ScriptedApi]:
    with ScriptedApi().serving() as api:
        yield api


@pytest.fixture
def client(api: ScriptedApi) -> Iterator[Client]:
    with Client(api.url, timeout=PATIENCE_SECONDS, retry_seconds=0.01) as client:
        yield client


def test_submit_sends_what_is_set(api: ScriptedApi, client: Client) -> None:
    api.answer("POST", JOBS, document(job(), 202))
    assert client.submit(prompt="a lighthouse", width=64, seed=None, wait=5)["id"] == JOB_ID
    [request] = api.requests
    assert request.body == {"prompt": "a lighthouse", "width": 64}
    assert request.headers["Prefer"] == "wait=5"
    assert len(request.headers["Idempotency-Key"]) >= 32


def test_submit_retries_under_one_key(api: ScriptedApi, client: Client) -> None:
    api.answer("POST", JOBS, DROPPED, problem(503, "unavailable", retry_after=0), DROPPED, document(job(), 202))
    assert client.submit(prompt="x")["id"] == JOB_ID
    assert len({request.headers["Idempotency-Key"] for request in api.requests}) == 1
    assert len(api.requests) == 4


def test_retries_are_bounded(api: ScriptedApi) -> None:
    api.answer("POST", JOBS, problem(429, "rate_limited", retry_after=0))
    with Client(api.url, retries=2, retry_seconds=0.01) as client, pytest.raises(ApiError) as raised:
        client.submit(prompt="x")
    assert (raised.value.status, raised.value.code, raised.value.retryable) == (429, "rate_limited", True)
    assert len(api.requests) == 3


def test_a_long_retry_after_is_left_to_the_caller(api: ScriptedApi, client: Client) -> None:
    api.answer("POST", JOBS, problem(503, "unavailable", retry_after=3600))
    with pytest.raises(ApiError) as raised:
        client.submit(prompt="x")
    assert raised.value.retry_after == 3600
    assert len(api.requests) == 1


def test_a_refusal_tells_everything(api: ScriptedApi, client: Client) -> None:
    errors = [{"pointer": "#/width", "detail": "must be at least 64"}]
    api.answer("POST", JOBS, problem(422, "invalid_request", errors=errors, request_id="r-1"))
    with pytest.raises(ApiError) as raised:
        client.submit(prompt="x", width=1)
    error = raised.value
    assert (error.status, error.code, error.detail) == (422, "invalid_request", "It is invalid_request.")
    assert (list(error.errors), error.request_id, error.retryable) == (errors, "r-1", False)
    assert "#/width: must be at least 64" in str(error)
    assert len(api.requests) == 1


def test_an_error_that_is_no_problem_document(api: ScriptedApi, client: Client) -> None:
    api.answer("GET", JOB_PATH, Answer(502, b"<html>proxy</html>"))
    with pytest.raises(ApiError, match="502 Bad Gateway") as raised:
        client.get(JOB_ID)
    assert raised.value.code == "http_502"


def test_nobody_there() -> None:
    with Client("http://127.0.0.1:9", retries=1, retry_seconds=0.01) as client:
        with pytest.raises(Unreachable, match=r"does not answer at http://127\.0\.0\.1:9"):
            client.get(JOB_ID)
        with pytest.raises(Unreachable):
            list(client.events(JOB_ID, patience=0.05))
        assert not client.is_live()


def test_events_end_with_the_job(api: ScriptedApi, client: Client) -> None:
    api.answer("GET", EVENTS, stream(event("job.snapshot", 1), ": hello\n\n", event("job.completed", 4), event("x", 5)))
    events = list(client.events(JOB_ID))
    assert [(each.id, each.type) for each in events] == [("1", "job.snapshot"), ("4", "job.completed")]
    assert events[-1].is_terminal


def test_a_broken_stream_is_resumed_after_its_last_whole_event(api: ScriptedApi, client: Client) -> None:
    torn = event("job.progress", 3, progress=50)[:-20]
    api.answer(
        "GET",
        EVENTS,
        stream(event("job.snapshot", 1), event("job.started", 2), torn, drops=True),
        DROPPED,
        problem(503, "unavailable"),
        stream(event("job.snapshot", 3), event("job.completed", 4)),
    )
    types = [each.type for each in client.events(JOB_ID)]
    assert types == ["job.snapshot", "job.started", "job.snapshot", "job.completed"]
    assert [each.headers.get("Last-Event-ID") for each in api.requests] == [None, "2", "2", "2"]


def test_older_events_are_dropped(api: ScriptedApi, client: Client) -> None:
    api.answer("GET", EVENTS, stream(event("job.progress", 3), event("job.started", 2), event("job.failed", 4)))
    assert [each.type for each in client.events(JOB_ID)] == ["job.progress", "job.failed"]


def test_no_content_means_that_everything_was_told(api: ScriptedApi, client: Client) -> None:
    api.answer("GET", EVENTS, Answer(204))
    assert list(client.events(JOB_ID, last_event_id="9")) == []
    assert api.requests[0].headers["Last-Event-ID"] == "9"


def test_events_of_an_unknown_job(api: ScriptedApi, client: Client) -> None:
    with pytest.raises(ApiError) as raised:
        list(client.events(JOB_ID))
    assert raised.value.code == "not_found"


def test_line_separators_inside_the_data_do_not_break_an_event(api: ScriptedApi, client: Client) -> None:
    message = "one\u2028two\x0bthree"
    data = event("job.completed", 1, message=message).replace("\n", "\r\n")
    api.answer("GET", EVENTS, stream(data))
    [only] = client.events(JOB_ID)
    assert only.data["message"] == message


def test_download_as_bytes_and_as_a_file(api: ScriptedApi, client: Client, tmp_path: Path) -> None:
    path = "/api/v1/artifacts/a/content"
    api.answer("GET", path, Answer(body=PNG), Answer(body=b"half", drops=True), Answer(body=PNG))
    assert client.download(path) == PNG
    assert client.download(path, to=tmp_path / "x.png") == tmp_path / "x.png"
    assert [each.read_bytes() for each in tmp_path.iterdir()] == [PNG]


def test_a_failed_download_leaves_nothing(api: ScriptedApi, client: Client, tmp_path: Path) -> None:
    with pytest.raises(ApiError):
        client.download("/api/v1/artifacts/a/content", to=tmp_path / "x.png")
    assert list(tmp_path.iterdir()) == []


def test_health(api: ScriptedApi, client: Client) -> None:
    api.answer("GET", "/api/v1/health/ready", document({"status": "unavailable"}, 503))
    api.answer("GET", "/api/v1/health/live", document({}))
    assert client.ready() == {"status": "unavailable"}
    assert client.is_live()
    assert len(api.requests) == 2


def test_a_kept_connection_that_was_closed_does_not_count_as_dead(api: ScriptedApi, client: Client) -> None:
    api.answer("GET", "/api/v1/health/live", DROPPED, document({}), DROPPED, DROPPED)
    assert client.is_live()
    assert not client.is_live()


def test_cancel_and_long_poll(api: ScriptedApi, client: Client) -> None:
    api.answer("POST", f"{JOB_PATH}/cancel", document(job("cancelled")))
    api.answer("GET", JOB_PATH, document(job("cancelled")))
    assert client.cancel(JOB_ID)["status"] == "cancelled"
    assert client.get(JOB_ID, wait=3)["is_terminal"]
    assert api.requests[-1].path == f"{JOB_PATH}?wait=3"


def test_a_batch_is_submitted_followed_and_retried(api: ScriptedApi, client: Client) -> None:
    batch = "/api/v1/batches/b"
    api.answer("POST", "/api/v1/batches", problem(503, "unavailable"), document({"id": "b"}, 202))
    api.answer("GET", batch, document({"id": "b", "progress": 50}))
    api.answer("POST", f"{batch}/cancel", document({"id": "b"}))
    api.answer("POST", f"{batch}/retry", document({"id": "c"}, 202))
    assert client.batches.submit([{"prompt": "a"}, {"prompt": "b"}], name="x")["id"] == "b"
    first, second = api.requests
    assert first.headers["Idempotency-Key"] == second.headers["Idempotency-Key"]
    assert second.body == {"jobs": [{"prompt": "a"}, {"prompt": "b"}], "name": "x"}
    assert client.batches.get("b")["progress"] == 50
    assert client.batches.cancel("b")["id"] == "b"
    assert client.batches.retry("b", idempotency_key="k")["id"] == "c"
    assert api.requests[-1].headers["Idempotency-Key"] == "k"


def test_the_events_of_a_batch_end_with_it_and_not_with_a_job(api: ScriptedApi, client: Client) -> None:
    def of_batch(kind: str, event_id: str, **data: object) -> str:
        return f"id: {event_id}\nevent: {kind}\ndata: {json.dumps(data)}\n\n"

    path = "/api/v1/batches/b/events"
    end = of_batch("job.completed", "3.1", job_id="one", is_terminal=True, version=3)
    last = of_batch("job.completed", "3x2", job_id="two", is_terminal=True, version=3)
    api.answer(
        "GET",
        path,
        stream(of_batch("batch.snapshot", "1x2", is_terminal=False), end, drops=True),
        stream(last, of_batch("batch.failed", "end", is_terminal=True)),
    )
    types = [each.type for each in client.batches.events("b")]
    assert types == ["batch.snapshot", "job.completed", "job.completed", "batch.failed"]
    assert [each.headers.get("Last-Event-ID") for each in api.requests] == [None, "3.1"]


def test_the_jobs_of_a_batch_over_all_pages(api: ScriptedApi, client: Client) -> None:
    pages = [{"items": [{"id": "3"}, {"id": "2"}], "next_cursor": "x"}, {"items": [{"id": "1"}], "next_cursor": None}]
    api.answer("GET", "/api/v1/generation-jobs", *map(document, pages))
    assert [job["id"] for job in client.batches.jobs("b")] == ["3", "2", "1"]
    assert api.requests[1].path.endswith("batch_id=b&limit=100&cursor=x")


def test_media_is_stored_once_and_looked_at(api: ScriptedApi, client: Client) -> None:
    api.answer("POST", "/api/v1/media/store", DROPPED, document(job(), 202))
    api.answer("POST", "/api/v1/media/probe", document({"title": "A lighthouse"}))
    assert client.media.store("https://example.com/a.mp4", scene_id=None, audio_only=True)["id"] == JOB_ID
    first, second = api.asked("POST", "/api/v1/media/store")
    assert first.body == second.body == {"url": "https://example.com/a.mp4", "audio_only": True}
    assert first.headers["Idempotency-Key"] == second.headers["Idempotency-Key"]
    assert client.media.probe("https://example.com/a.mp4") == {"title": "A lighthouse"}
