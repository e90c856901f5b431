"""Submit, look, wait, cancel, retry: the life of a job as its maker sees it over HTTP."""

import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from api_service import JOBS, Json, Service, eventually, order

from patience import PATIENCE_SECONDS
from safelight.api import job_view
from safelight.api.deps import MAX_WAIT_SECONDS

FIELDS: Json = {
    "prompt": "a lighthouse at dusk, ünïcode ✨",
    "negative_prompt": "fog",
    "provider": "comfyui",
    "model": "some-model",
    "checkpoint_model": "sdxl.safetensors",
    "lora_models": [{"name": "ink", "strength_model": 0.5, "strength_clip": -1.0}],
    "width": 96,
    "height": 64,
    "batch_size": 2,
    "seed": 2**63 - 1024,
    "sampler_params": {"steps": 20, "cfg": 7.5, "sampler": "euler", "scheduler": "karras", "denoise": 1.0},
    "provider_options": {"duration_seconds": 0.0, "anything": {"of": ["the", "provider"]}},
    "image_type": "cover",
    "project_id": "project/1",
    "chapter_id": "chapter 1",
    "script_id": "script-1",
    "scene_number": 3,
    "character_id": "c:1",
    "priority": -10,
    "timeout_seconds": 120.5,
    "max_retries": 0,
    "metadata": {"user": "42", "empty": ""},
}


@pytest.mark.parametrize("path", [JOBS, f"{JOBS}/"])
def test_a_submit_is_accepted_with_its_place_and_its_view(service: Service, path: str) -> None:
    response = service.http.post(path, json=order())
    job = response.json()
    assert response.status_code == 202
    assert response.headers["location"] == f"{JOBS}/{job['id']}" == job["urls"]["self"]
    assert response.headers["retry-after"] == "2"
    assert response.headers["etag"]
    assert uuid.UUID(job["id"]).version == 7
    assert job["task_id"] == job["celery_task_id"] == job["id"]
    assert (job["status"], job["is_terminal"], job["attempt"], job["version"]) == ("pending", False, 0, 1)
    assert job["mocked"] is True
    assert service.http.get(response.headers["location"]).json()["id"] == job["id"]


def test_every_field_of_the_request_is_in_the_view(service: Service) -> None:
    run_at = datetime.now(UTC).replace(microsecond=123456) + timedelta(hours=1)
    fields = FIELDS | {"run_at": run_at.isoformat(), "start_within_seconds": 7200}
    given = service.http.post(JOBS, json=fields).json()
    for job in (given, service.look(given["id"]), service.jobs(ids=given["id"])[0]):
        assert {name: job[name] for name in FIELDS} == FIELDS
        assert datetime.fromisoformat(job["run_at"]) == run_at
        starts_within = datetime.fromisoformat(job["start_deadline_at"]) - datetime.fromisoformat(job["created_at"])
        assert starts_within == timedelta(hours=2)
    assert service.http.post(f"{JOBS}/{given['id']}/cancel").json()["status"] == "cancelled"


def test_defaults_are_filled_in_and_told(service: Service) -> None:
    job = service.http.post(JOBS, json={"prompt": "x", "provider_options": {"duration_seconds": 0}, "width": 64}).json()
    assert (job["provider"], job["model"], job["width"], job["height"]) == ("mock", "darkroom", 64, 1024)
    assert (job["batch_size"], job["priority"], job["max_retries"], job["retry_count"]) == (1, 0, 3, 0)
    assert job["timeout_seconds"] == 300
    assert isinstance(job["seed"], int)
    assert (job["lora_models"], job["sampler_params"], job["metadata"], job["image_type"]) == ([], {}, {}, None)
    assert service.submit()["seed"] != service.submit()["seed"]


@pytest.mark.parametrize(
    ("fields", "image_type"),
    [
        ({"scene_number": 0}, "scene"),
        ({"chapter_id": "a"}, "scene"),
        ({"script_id": "a"}, "scene"),
        ({"character_id": "a", "project_id": "p"}, None),
        ({"chapter_id": "a", "image_type": "cover"}, "cover"),
    ],
)
def test_a_picture_is_a_scene_only_if_scene_fields_are_given(
    service: Service, fields: Json, image_type: str | None
) -> None:
    assert service.submit(**fields)["image_type"] == image_type


def test_a_seed_within_the_sampler_parameters_counts(service: Service) -> None:
    job = service.submit(sampler_params={"seed": 5, "steps": 3})
    assert (job["seed"], job["sampler_params"]) == (5, {"steps": 3})


def test_a_job_is_carried_out(service: Service) -> None:
    job = service.make(seconds=0.1, batch_size=2, seed=7)
    assert (job["status"], job["is_terminal"], job["progress"], job["stage"]) == ("completed", True, 100, "completed")
    assert (job["attempt"], job["retry_count"], job["crash_count"], job["error"]) == (1, 0, 0, None)
    assert job["created_at"] <= job["started_at"] < job["finished_at"] <= job["updated_at"]
    assert job["provider_job_id"].startswith("mock-")
    assert [artifact["seed"] for artifact in job["artifacts"]] == [7, 8]
    assert job["output_paths"] == [f"jobs/{job['id']}/1/{n}.png" for n in (0, 1)]
    assert len(job["thumbnail_paths"]) == 4
    response = service.http.get(f"{JOBS}/{job['id']}")
    assert "retry-after" not in response.headers
    assert job["eta"] == {"wait_seconds": None, "run_seconds": None}


def test_a_played_provider_says_that_it_is_mocked(service: Service) -> None:
    job = service.make(provider="comfyui")
    assert (job["provider"], job["mocked"], job["status"]) == ("comfyui", True, "completed")
    assert job["comfyui_prompt_id"] == job["provider_job_id"]
    assert service.make()["comfyui_prompt_id"] is None


def test_an_estimate_is_learnt_from_what_was_measured(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_view, "LEARNT_FOR_SECONDS", 0)
    size = {"width": 80, "height": 72}  # nobody else's
    first = service.submit(seconds=0.3, **size)
    assert first["eta"]["run_seconds"] is None
    service.end_of(first["id"])
    other = {"width": 80, "height": 71}
    assert service.submit(**other)["eta"]["run_seconds"] is None

    def learnt() -> bool:
        eta = service.submit(**size)["eta"]
        return eta["run_seconds"] is not None and eta["wait_seconds"] is not None

    eventually(learnt, "an estimate")
    ran = [job for job in service.jobs(status="completed", limit=100) if (job["width"], job["height"]) == (80, 72)]
    moments = [[datetime.fromisoformat(job[name]) for name in ("started_at", "finished_at")] for job in ran]
    longest = max((finished - started).total_seconds() for started, finished in moments)
    assert 0 < service.submit(**size)["eta"]["run_seconds"] <= longest + 0.5


# --- waiting ----------------------------------------------------------------------------------------------------------


def test_prefer_wait_holds_the_answer_until_the_end(service: Service) -> None:
    response = service.http.post(JOBS, json=order(seconds=0.2), headers={"Prefer": "respond-async, wait=20"})
    assert response.status_code == 202
    assert response.headers["preference-applied"] == "wait=20"
    assert response.json()["status"] == "completed"
    assert response.json()["artifacts"]
    assert "retry-after" not in response.headers


def test_prefer_wait_answers_after_its_time(service: Service) -> None:
    began = time.monotonic()
    response = service.http.post(JOBS, json=order(seconds=600), headers={"Prefer": "wait=1"})
    assert time.monotonic() - began > 0.9
    assert (response.status_code, response.json()["is_terminal"]) == (202, False)
    assert service.http.post(f"{response.headers['location']}/cancel").status_code == 200


def test_unknown_preferences_are_ignored_and_wrong_ones_refused(service: Service) -> None:
    response = service.http.post(JOBS, json=order(), headers={"Prefer": "return=minimal"})
    assert response.status_code == 202
    assert "preference-applied" not in response.headers
    for wrong in ("wait=0", "wait=soon", "wait=-1"):
        assert service.http.post(JOBS, json=order(), headers={"Prefer": wrong}).json()["code"] == "invalid_header"


def test_a_long_poll_returns_at_the_end(service: Service) -> None:
    job = service.submit(seconds=0.3)
    began = time.monotonic()
    ended = service.http.get(f"{JOBS}/{job['id']}", params={"wait": MAX_WAIT_SECONDS}).json()
    assert ended["status"] == "completed"
    assert time.monotonic() - began < MAX_WAIT_SECONDS


def test_a_long_poll_on_an_ended_job_returns_at_once(service: Service) -> None:
    job = service.make()
    began = time.monotonic()
    ended = service.http.get(f"{JOBS}/{job['id']}", params={"wait": MAX_WAIT_SECONDS})
    assert ended.json()["status"] == "completed"
    assert time.monotonic() - began < MAX_WAIT_SECONDS


def test_a_long_poll_on_no_job_returns_at_once(service: Service) -> None:
    began = time.monotonic()
    response = service.http.get(f"{JOBS}/{uuid.uuid4()}", params={"wait": MAX_WAIT_SECONDS})
    assert (response.status_code, response.json()["code"]) == (404, "job_not_found")
    assert time.monotonic() - began < MAX_WAIT_SECONDS


def test_a_long_poll_gives_up_after_its_time(idle: Service) -> None:
    job = idle.submit()
    began = time.monotonic()
    assert idle.http.get(f"{JOBS}/{job['id']}", params={"wait": 1}).json()["status"] == "pending"
    assert time.monotonic() - began > 0.9


def test_an_etag_saves_the_body_until_something_changes(service: Service) -> None:
    job = service.make()
    url = f"{JOBS}/{job['id']}"
    first = service.http.get(url)
    again = service.http.get(url, headers={"If-None-Match": f'"other", {first.headers["etag"]}'})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == first.headers["etag"]
    assert service.http.get(url, headers={"If-None-Match": "*"}).status_code == 304
    assert service.http.get(url, headers={"If-None-Match": '"other"'}).status_code == 200


def test_an_etag_changes_with_the_progress(service: Service) -> None:
    job = service.submit(seconds=1)
    seen: dict[str, Any] = {}

    def ended() -> bool:
        response = service.http.get(f"{JOBS}/{job['id']}")
        known = seen.setdefault(response.headers["etag"], response.json())
        assert known == response.json()
        return known["is_terminal"]

    eventually(ended, "the job ends")
    progress = [view["progress"] for view in seen.values() if view["status"] == "processing"]
    assert len(set(progress)) >= 3
    assert progress == sorted(progress)


# --- idempotency ------------------------------------------------------------------------------------------------------


def submit_with(service: Service, key: str, **fields: Any) -> httpx.Response:
    return service.http.post(JOBS, json=order(**fields), headers={"Idempotency-Key": key})


def test_the_same_key_and_body_give_the_first_job_again(service: Service) -> None:
    key = uuid.uuid4().hex
    first = submit_with(service, key, seconds=0.1)
    assert (first.status_code, "idempotency-replayed" in first.headers) == (202, False)
    job = service.end_of(first.json()["id"])
    for spelling in (key, f'"{key}"'):
        again = submit_with(service, spelling, seconds=0.1)
        assert (again.status_code, again.headers["idempotency-replayed"]) == (202, "true")
        assert again.headers["location"] == first.headers["location"]
        assert again.json() == job


def test_the_order_of_fields_is_no_other_body(service: Service) -> None:
    key = uuid.uuid4().hex
    first = submit_with(service, key)
    body = dict(reversed(order().items()))
    again = service.http.post(JOBS, json=body, headers={"Idempotency-Key": key})
    assert again.json()["id"] == first.json()["id"]


def test_the_same_key_with_another_body_is_refused(service: Service) -> None:
    key = uuid.uuid4().hex
    submit_with(service, key)
    refused = submit_with(service, key, prompt="another")
    assert (refused.status_code, refused.json()["code"]) == (422, "idempotency_key_reused")


def test_many_at_once_with_one_key_make_one_job(service: Service) -> None:
    key = uuid.uuid4().hex
    chapter = uuid.uuid4().hex
    barrier = threading.Barrier(6)

    def submit(_: int) -> httpx.Response:
        barrier.wait(PATIENCE_SECONDS)
        return submit_with(service, key, chapter_id=chapter)

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(submit, range(6)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert sum("idempotency-replayed" not in answer.headers for answer in answers) == 1
    assert len(service.jobs(chapter_id=chapter)) == 1


@pytest.mark.parametrize("key", ["", '""', "two words", "x" * 256, "ü"])
def test_a_bad_key_is_refused(service: Service, key: str) -> None:
    chapter = uuid.uuid4().hex
    headers = [(b"Idempotency-Key", key.encode("latin-1"))]
    response = service.http.post(JOBS, json=order(chapter_id=chapter), headers=headers)
    assert (response.status_code, response.json()["code"]) == (400, "invalid_header")
    assert service.jobs(chapter_id=chapter) == []


def test_a_refused_submit_does_not_use_up_its_key(service: Service) -> None:
    key = uuid.uuid4().hex
    assert submit_with(service, key, width=1).status_code == 422
    assert submit_with(service, key).status_code == 202


def test_one_key_for_retries_of_two_jobs_does_not_mix_them_up(idle: Service) -> None:
    headers = {"Idempotency-Key": "k"}
    origins = [idle.submit(seed=1)["id"] for _ in range(2)]
    for origin in origins:
        idle.http.post(f"{JOBS}/{origin}/cancel")
    first = idle.http.post(f"{JOBS}/{origins[0]}/retry", headers=headers)
    again = idle.http.post(f"{JOBS}/{origins[0]}/retry", headers=headers)
    other = idle.http.post(f"{JOBS}/{origins[1]}/retry", headers=headers)
    assert first.json()["id"] == again.json()["id"]
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")


# --- cancel -----------------------------------------------------------------------------------------------------------


def test_a_pending_job_is_cancelled_at_once_and_twice_is_harmless(idle: Service) -> None:
    url = f"{JOBS}/{idle.submit()['id']}"
    first = idle.http.post(f"{url}/cancel")
    assert (first.status_code, first.json()["status"], first.json()["is_terminal"]) == (200, "cancelled", True)
    assert first.json()["finished_at"] is not None
    again = idle.http.post(f"{url}/cancel")
    assert (again.status_code, again.json()) == (200, first.json())


def test_a_cancelled_job_never_runs(idle: Service) -> None:
    job = idle.submit()
    idle.http.post(f"{JOBS}/{job['id']}/cancel")
    after = idle.submit()
    idle.start_worker()
    idle.end_of(after["id"])
    assert idle.look(job["id"])["status"] == "cancelled"
    assert idle.attempts(job["id"]) == []


def test_a_processing_job_is_cancelled(service: Service, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = tmp_path / "ledger"
    monkeypatch.setenv("SAFELIGHT_MOCK_LEDGER", str(ledger))
    job = service.submit(seconds=600)
    running = service.when(job["id"], lambda job: job["provider_job_id"], "the provider has it")
    asked = service.http.post(f"{JOBS}/{job['id']}/cancel")
    assert asked.status_code == 200
    assert asked.json()["status"] in ("processing", "cancelled")
    ended = service.end_of(job["id"])
    assert (ended["status"], ended["error"], ended["artifacts"]) == ("cancelled", None, [])
    assert [attempt["outcome"] for attempt in service.attempts(job["id"])] == ["cancelled"]
    eventually(lambda: f"cancel {running['provider_job_id']}" in ledger.read_text(), "the provider is told")


def test_a_completed_or_failed_job_cannot_be_cancelled(service: Service) -> None:
    for job in (service.make(), service.make(mock={"refuse": True})):
        response = service.http.post(f"{JOBS}/{job['id']}/cancel")
        assert (response.status_code, response.json()["code"]) == (409, "job_ended")
        assert job["status"] in response.json()["detail"]
        assert service.look(job["id"]) == job


# --- retry ------------------------------------------------------------------------------------------------------------


def test_a_failed_job_is_retried_as_a_new_job_that_names_its_origin(service: Service) -> None:
    fields = {name: value for name, value in FIELDS.items() if name not in ("provider_options", "priority")}
    origin = service.make(mock={"refuse": "no lighthouses"}, **fields)
    assert origin["status"] == "failed"
    response = service.http.post(f"{JOBS}/{origin['id']}/retry")
    again = response.json()
    assert response.status_code == 202
    assert response.headers["location"] == f"{JOBS}/{again['id']}"
    assert (again["origin_job_id"], again["status"], again["attempt"]) == (origin["id"], "pending", 0)
    assert again["id"] != origin["id"]
    assert {name: again[name] for name in FIELDS} == {name: origin[name] for name in FIELDS}
    assert service.end_of(again["id"])["error"]["code"] == "content_rejected"
    assert service.look(origin["id"]) == origin


def test_a_retry_may_differ(service: Service) -> None:
    origin = service.make(mock={"refuse": True}, seed=7)
    url = f"{JOBS}/{origin['id']}/retry"
    overrides = {"seed": 8, "prompt": "a garden", "provider_options": {"duration_seconds": 0}, "width": None}
    again = service.http.post(url, json=overrides).json()
    assert (again["seed"], again["prompt"], again["width"], again["height"]) == (8, "a garden", 1024, 64)
    assert service.end_of(again["id"])["status"] == "completed"
    assert service.http.post(url, json={"seed": None}).json()["seed"] not in (7, 8)


def test_a_retry_may_differ_in_its_seed_in_either_place(service: Service) -> None:
    failed = service.make(mock={"refuse": "no"}, seed=7)
    for changes in ({"seed": 8}, {"sampler_params": {"seed": 8}}, {"seed": 8, "sampler_params": {"seed": 8}}):
        assert service.http.post(f"{JOBS}/{failed['id']}/retry", json=changes).json()["seed"] == 8
    both = service.http.post(f"{JOBS}/{failed['id']}/retry", json={"seed": 7, "sampler_params": {"seed": 8}})
    assert both.status_code == 422


def test_a_cancelled_job_can_be_retried(idle: Service) -> None:
    job = idle.submit()
    idle.http.post(f"{JOBS}/{job['id']}/cancel")
    assert idle.http.post(f"{JOBS}/{job['id']}/retry", json={}).status_code == 202


def test_only_failed_and_cancelled_jobs_can_be_retried(service: Service, idle: Service) -> None:
    for world, job in ((service, service.make()), (idle, idle.submit())):
        response = world.http.post(f"{JOBS}/{job['id']}/retry")
        assert (response.status_code, response.json()["code"]) == (409, "job_not_ended")


@pytest.mark.parametrize(
    ("overrides", "pointer", "words"),
    [
        ({"width": 1}, "#/width", "16"),
        ({"colour": "red"}, "#/colour", "no such field"),
        ({"prompt": " "}, "#/prompt", "must not be blank"),
        ({"lora_models": [{"name": ""}]}, "#/lora_models/0/name", "1 character"),
        ({"run_at": "2001-01-01T00:00:00Z"}, "#/run_at", "past"),
        ({"provider": "mok"}, "#/provider", "mock"),
    ],
)
def test_bad_overrides_are_refused_as_a_submit_would(
    service: Service, overrides: Json, pointer: str, words: str
) -> None:
    chapter = uuid.uuid4().hex
    origin = service.make(mock={"refuse": True}, chapter_id=chapter)
    response = service.http.post(f"{JOBS}/{origin['id']}/retry", json=overrides)
    assert (response.status_code, response.json()["code"]) == (422, "invalid_request")
    assert [error["pointer"] for error in response.json()["errors"]] == [pointer]
    assert words in response.json()["errors"][0]["detail"]
    assert "Value error" not in response.text
    assert len(service.jobs(chapter_id=chapter)) == 1


def test_overrides_that_are_no_object_are_refused(service: Service) -> None:
    origin = service.make(mock={"refuse": True})
    assert service.http.post(f"{JOBS}/{origin['id']}/retry", json=[1]).status_code == 422


# --- attempts ---------------------------------------------------------------------------------------------------------


def test_every_attempt_is_told(service: Service) -> None:
    job = service.make(seconds=0.1, mock={"transient_errors": 2})
    first, second, third = service.attempts(job["id"])
    assert [attempt["number"] for attempt in (first, second, third)] == [1, 2, 3]
    assert [attempt["outcome"] for attempt in (first, second, third)] == ["retry", "retry", "completed"]
    assert first["error"]["code"] == second["error"]["code"] == "provider_unavailable"
    assert (first["error"]["attempt"], second["error"]["attempt"], third["error"]) == (1, 2, None)
    assert first["finished_at"] <= second["started_at"]
    assert third["provider_job_id"] == job["provider_job_id"]
    assert third["seconds"] >= 0.1
    assert {(attempt["worker"], attempt["queue"], attempt["provider"]) for attempt in (first, second, third)} == {
        ("test", "image_generation", "mock")
    }


def test_an_attempt_under_way_has_no_outcome_yet(service: Service) -> None:
    job = service.submit(seconds=60)
    service.when(job["id"], lambda job: job["status"] == "processing", "it runs")
    (attempt,) = service.attempts(job["id"])
    assert (attempt["outcome"], attempt["finished_at"], attempt["seconds"]) == (None, None, None)
    service.http.post(f"{JOBS}/{job['id']}/cancel")


# --- PostgreSQL -------------------------------------------------------------------------------------------------------


def test_the_same_on_postgresql(postgres_url: str, make_service: Callable[..., Service]) -> None:
    service = make_service(database_url=postgres_url)
    fields = {name: value for name, value in FIELDS.items() if name not in ("provider_options", "max_retries")}
    job = service.make(mock={"transient_errors": 1}, seconds=0.1, **fields)
    assert (job["status"], job["retry_count"]) == ("completed", 1)
    assert {name: job[name] for name in fields} == fields
    with service.events(job["id"], last_id="0") as events:
        assert [event.type for event in events if event.is_state] == [
            "job.pending",
            "job.started",
            "job.pending",
            "job.started",
            "job.completed",
        ]
    assert [found["id"] for found in service.jobs(text="dusk", chapter_id="chapter 1")] == [job["id"]]
    failed = service.make(mock={"refuse": True})
    assert service.http.post(f"{JOBS}/{failed['id']}/retry").status_code == 202
    key = {"Idempotency-Key": "k"}
    ids = {service.http.post(JOBS, json=order(), headers=key).json()["id"] for _ in range(2)}
    assert len(ids) == 1
    running = service.submit(seconds=60)
    service.when(running["id"], lambda job: job["status"] == "processing", "it runs")
    service.http.post(f"{JOBS}/{running['id']}/cancel")
    assert service.end_of(running["id"])["status"] == "cancelled"
    for query in ({"text": "\0"}, {"provider": "\0"}, {"scene_number": 2**70}, {"scene_number": 2**40}):
        assert service.http.get(JOBS, params=query).status_code in (200, 400)
