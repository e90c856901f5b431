"""What the log tells of a job: its story, every line of it findable by the job's ids, and no secret."""

import json
import logging
from collections.abc import Callable, Iterator

import pytest
import structlog
from api_service import BATCHES, JOBS, Json, Service, eventually, order
from guarded_service import Guarded

from safelight import log
from servers import ValkeyServer

PASSWORD = "hunter2-and-more"


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Every line as it would go to standard error."""
    written: list[str] = []
    monkeypatch.setattr(log, "_write", written.append)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    log.configure("debug", "json")
    structlog.configure(cache_logger_on_first_use=False)
    yield written
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


def test_the_story_of_a_job_is_in_the_log(lines: list[str], make_service: Callable[..., Service]) -> None:
    service = make_service()
    body = order(seconds=0.2, seed=7, mock={"transient_errors": 1}, prompt="a lighthouse of note")
    job = service.http.post(JOBS, json=body, headers={"X-Request-Id": "request-1"}).json()
    service.end_of(job["id"])
    service.stop_worker()
    told: list[Json] = [json.loads(line) for line in lines]
    story = [line for line in told if line.get("job_id") == job["id"]]
    assert all({"timestamp", "level", "event"} <= line.keys() for line in told)
    assert all(line["task_id"] == job["task_id"] for line in story)
    [received] = [line for line in story if line["event"] == "job.received"]  # the API's: a worker may be quicker
    events = [line["event"] for line in story if line["level"] != "debug" and line is not received]
    assert events == [
        "job.status_changed",
        "job.started",
        "job.status_changed",
        "attempt.settled",
        "job.status_changed",
        "job.started",
        "provider.accepted",
        "artifact.stored",
        "job.status_changed",
        "attempt.settled",
    ]
    first = next(line for line in story if line["event"] == "job.started")
    assert received["request_id"] == "request-1"
    assert (first["prompt"], first["seed"], first["width"], first["provider"], first["model"], first["attempt"]) == (
        "a lighthouse of note", 7, 64, "mock", "darkroom", 1,
    )  # fmt: skip
    assert first["queued_seconds"] >= 0
    changes = [line["status"] for line in story if line["event"] == "job.status_changed"]
    assert changes == ["processing", "pending", "processing", "completed"]
    assert [line["attempt"] for line in story if line["event"] == "job.started"] == [1, 2]
    settled = [line for line in story if line["event"] == "attempt.settled"]
    assert [(line["status"], line["retry_count"], line["attempt"]) for line in settled] == [
        ("pending", 1, 1),
        ("completed", 1, 2),
    ]
    assert settled[1]["seconds"] >= 0.2
    stored = next(line for line in story if line["event"] == "artifact.stored")
    assert (stored["storage_key"], stored["attempt"]) == (f"jobs/{job['id']}/2/0.png", 2)
    assert all("attempt" in line for line in story if line["event"] != "job.received" and line["level"] != "debug")


def test_lines_tell_whose_a_job_is_what_it_is_about_and_where_its_pictures_are(
    lines: list[str], service: Service
) -> None:
    made = service.http.post("/api/v1/chapters/seven/images/scenes/3", json=order(batch_size=2)).json()
    job = service.end_of(made["job_id"])
    story = [line for line in map(json.loads, lines) if line.get("job_id") == job["id"] and line["level"] != "debug"]
    assert {(line["chapter_id"], line["scene_number"]) for line in story} == {("seven", 3)}
    assert {(line["owner_id"], line["tier"]) for line in story} == {("local", None)}
    [settled] = [line for line in story if line["event"] == "attempt.settled"]
    assert settled["urls"] == [artifact["url"] for artifact in job["artifacts"]]


def test_every_line_of_a_job_bears_the_tier_it_was_submitted_with(lines: list[str], guarded: Guarded) -> None:
    client = guarded.client(guarded.key("logged-tier", tier="free"))
    one = client.post(JOBS, json=order(mock={"transient_errors": 1})).json()["id"]
    [other] = client.post(BATCHES, json={"jobs": [order()]}).json()["job_ids"]
    eventually(lambda: all(job["is_terminal"] for job in client.get(JOBS).json()["items"]), "both end")
    eventually(lambda: "".join(lines).count('"attempt.settled"') == 3, "all is told")
    for job_id in (one, other):
        story = [line for line in map(json.loads, lines) if line.get("job_id") == job_id and line["level"] != "debug"]
        assert {line["event"] for line in story} >= {"job.status_changed", "job.started", "attempt.settled"}
        assert {(line["owner_id"], line["tier"]) for line in story} == {("logged-tier", "free")}


def test_what_is_asked_of_a_job_is_told_with_its_ids(lines: list[str], service: Service) -> None:
    job = service.make()
    service.http.post(f"{JOBS}/{job['id']}/cancel", headers={"X-Request-Id": "request-9"})
    told = [line for line in map(json.loads, lines) if line.get("request_id") == "request-9"]
    assert told and {(line["job_id"], line["task_id"]) for line in told} == {(job["id"], job["id"])}


def test_every_line_of_a_job_bears_the_request_that_made_it(lines: list[str], service: Service) -> None:
    job = service.http.post(JOBS, json=order(), headers={"X-Request-Id": "request-2"}).json()
    service.end_of(job["id"])
    story = [line for line in map(json.loads, lines) if line.get("job_id") == job["id"] and line["level"] != "debug"]
    assert {line.get("request_id") for line in story} == {"request-2"}


def test_requests_are_told_with_their_id_and_time(lines: list[str], service: Service) -> None:
    service.http.get("/nothing", headers={"X-Request-Id": "request-3"})
    (line,) = [line for line in map(json.loads, lines) if line.get("request_id") == "request-3"]
    assert (line["event"], line["method"], line["path"], line["status"]) == (
        "request.answered", "GET", "/nothing", 404,
    )  # fmt: skip
    assert line["milliseconds"] >= 0


def test_no_secret_stands_in_the_log(
    lines: list[str], valkey_server: Callable[..., ValkeyServer], make_service: Callable[..., Service]
) -> None:
    valkey = valkey_server(password=PASSWORD)
    service = make_service(valkey=valkey, worker=False)
    valkey.kill()
    headers = {"Authorization": f"Bearer {PASSWORD}"}
    service.http.post(JOBS, json=order(), headers=headers)
    service.http.get(f"{JOBS}?key={PASSWORD}", headers=headers)
    service.http.get("/health/ready")
    assert lines
    assert PASSWORD not in "\n".join(lines)
