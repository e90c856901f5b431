"""How jobs end when the provider, the limits or the schedule do not let them run smoothly."""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from api_service import JOBS, Service, eventually, order

from safelight.providers.parameters import MAX_SEED
from safelight.storage import Storage, StorageUnavailable


def test_transient_failures_are_retried(service: Service) -> None:
    job = service.make(mock={"transient_errors": 2})
    assert (job["status"], job["retry_count"], job["attempt"], job["error"]) == ("completed", 2, 3, None)


def test_a_waiting_retry_says_why(make_service: Callable[..., Service]) -> None:
    service = make_service(retry_seconds=30)
    job = service.submit(mock={"transient_errors": 1})
    waiting = service.when(job["id"], lambda job: job["retry_count"] == 1, "the retry waits")
    assert (waiting["status"], waiting["stage"], waiting["blocked_reason"]) == ("pending", "waiting", None)
    assert waiting["error"]["code"] == "provider_unavailable"
    assert (waiting["error"]["retryable"], waiting["error"]["provider"], waiting["error"]["attempt"]) == (
        True,
        "mock",
        1,
    )
    until = datetime.fromisoformat(waiting["run_at"]) - datetime.now(UTC)
    assert timedelta(seconds=20) < until <= timedelta(seconds=36)
    assert service.http.post(f"{JOBS}/{job['id']}/cancel").json()["status"] == "cancelled"


def test_retries_come_to_an_end(service: Service) -> None:
    job = service.make(mock={"transient_errors": 9}, max_retries=1)
    assert (job["status"], job["retry_count"], job["attempt"]) == ("failed", 1, 2)
    assert (job["error"]["code"], job["error"]["attempt"]) == ("provider_unavailable", 2)
    assert job["message"] == job["error"]["message"]
    assert service.make(mock={"transient_errors": 1}, max_retries=0)["attempt"] == 1


def test_a_providers_own_delay_wins(make_service: Callable[..., Service]) -> None:
    service = make_service(retry_seconds=1000)
    job = service.make(mock={"rate_limit": {"times": 1, "retry_after": 0.5}})
    assert (job["status"], job["retry_count"]) == ("completed", 0)
    first, second = service.attempts(job["id"])
    assert (first["error"]["code"], first["outcome"]) == ("rate_limited", "deferred")
    waited = datetime.fromisoformat(second["started_at"]) - datetime.fromisoformat(first["finished_at"])
    assert timedelta(seconds=0.49) <= waited < timedelta(seconds=800)


def test_refused_content_is_never_tried_again(service: Service) -> None:
    job = service.make(mock={"refuse": "no lighthouses"})
    assert (job["status"], job["attempt"], job["retry_count"]) == ("failed", 1, 0)
    error = job["error"]
    assert (error["code"], error["message"], error["retryable"]) == ("content_rejected", "no lighthouses", False)


@pytest.mark.parametrize("how", ["truncated", "empty"])
def test_a_corrupt_picture_is_no_result(service: Service, how: str) -> None:
    job = service.make(mock={"corrupt": how}, max_retries=1)
    assert (job["status"], job["error"]["code"], job["attempt"]) == ("failed", "bad_output", 2)
    assert (job["artifacts"], job["output_paths"]) == ([], [])


def test_the_soft_limit_ends_a_hanging_attempt(service: Service) -> None:
    job = service.make(mock={"hang": True}, timeout_seconds=1)
    assert (job["status"], job["error"]["code"], job["retry_count"]) == ("failed", "time_limit_exceeded", 0)
    ran = datetime.fromisoformat(job["finished_at"]) - datetime.fromisoformat(job["started_at"])
    assert ran > timedelta(seconds=0.95)
    assert service.attempts(job["id"])[0]["outcome"] == "failed"


def test_code_that_swallows_its_cancellation_holds_nothing_up(service: Service) -> None:
    deaf = 60
    script = {"hang": True, "swallow_cancel": deaf}
    limited = service.submit(mock=script, timeout_seconds=1)
    cancelled = service.submit(mock=script)
    service.when(cancelled["id"], lambda job: job["provider_job_id"], "it hangs")
    service.http.post(f"{JOBS}/{cancelled['id']}/cancel")
    assert service.end_of(cancelled["id"], deaf)["status"] == "cancelled"
    ended = service.end_of(limited["id"], deaf)
    assert ended["error"]["code"] == "time_limit_exceeded"
    ran = datetime.fromisoformat(ended["finished_at"]) - datetime.fromisoformat(ended["started_at"])
    assert ran < timedelta(seconds=deaf)


def test_a_job_that_cannot_start_in_time_fails(idle: Service) -> None:
    began = time.monotonic()
    job = idle.make(start_within_seconds=0.3)
    assert (job["status"], job["error"]["code"], job["attempt"]) == ("failed", "start_deadline_exceeded", 0)
    assert time.monotonic() - began > 0.25
    assert idle.attempts(job["id"]) == []


def test_a_start_that_must_be_over_before_it_may_begin_is_refused(idle: Service) -> None:
    run_at = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    refused = idle.http.post(JOBS, json=order(run_at=run_at, start_within_seconds=60))
    assert refused.status_code == 422
    assert [error["pointer"] for error in refused.json()["errors"]] == ["#/start_within_seconds"]
    assert idle.http.post(JOBS, json=order(run_at=run_at, start_within_seconds=7200)).status_code == 202


def test_a_job_that_starts_in_time_is_not_failed(service: Service) -> None:
    assert service.make(seconds=1.2, start_within_seconds=1)["status"] == "completed"


def test_a_job_waits_for_its_time(service: Service) -> None:
    run_at = datetime.now(UTC) + timedelta(seconds=1)
    job = service.submit(run_at=run_at.isoformat())
    assert (job["status"], job["blocked_reason"]) == ("pending", None)
    ended = service.end_of(job["id"])
    started = datetime.fromisoformat(ended["started_at"])
    assert started - run_at >= timedelta(seconds=-0.002)


def test_higher_priorities_run_first(make_service: Callable[..., Service]) -> None:
    service = make_service(slots=1, worker=False)
    jobs = {priority: service.submit(priority=priority, seconds=0.05)["id"] for priority in (0, -10, 10, 5)}
    service.start_worker()
    started = {priority: service.end_of(job_id)["started_at"] for priority, job_id in jobs.items()}
    assert sorted(started, key=lambda priority: started[priority]) == [10, 5, 0, -10]


def test_without_a_worker_a_job_says_so_and_starts_when_one_comes(idle: Service) -> None:
    job = idle.submit()
    blocked = idle.when(job["id"], lambda job: job["blocked_reason"], "a reason is given")
    assert (blocked["status"], blocked["blocked_reason"], blocked["error"]) == ("pending", "no_worker", None)
    assert "worker" in blocked["message"]
    idle.start_worker()
    ended = idle.end_of(job["id"])
    assert (ended["status"], ended["blocked_reason"]) == ("completed", None)


def test_a_scene_and_a_portrait_say_why_they_do_not_begin(idle: Service) -> None:
    api = "/api/v1"
    project = idle.http.post(f"{api}/projects", json={"title": "x"}).json()["id"]
    character = idle.http.post(f"{api}/projects/{project}/characters", json={"name": "Ada"}).json()["id"]
    scene, portrait = f"{api}/chapters/one/images/scenes/1", f"{api}/characters/{character}/image"
    for asked in (scene, portrait):
        assert idle.http.post(asked, json=order()).status_code == 202
    for asked in (scene, portrait):
        eventually(lambda asked=asked: reason_of(idle, asked) == "no_worker", "a reason is given")
    idle.start_worker()
    for asked in (scene, portrait):
        ended = eventually(
            lambda asked=asked: (now := idle.http.get(f"{asked}/status").json())["status"] == "completed" and now, "end"
        )
        assert ended["blocked_reason"] is None


def reason_of(service: Service, asked: str) -> str | None:
    return service.http.get(f"{asked}/status").json()["blocked_reason"]


def test_a_leaving_worker_hands_its_jobs_back(make_service: Callable[..., Service]) -> None:
    service = make_service(drain_seconds=0)
    job = service.submit(seconds=1)
    running = service.when(job["id"], lambda job: job["provider_job_id"], "it runs")
    service.stop_worker()
    back = service.look(job["id"])
    assert (back["status"], back["retry_count"], back["crash_count"]) == ("pending", 0, 0)
    service.start_worker()
    ended = service.end_of(job["id"])
    assert (ended["status"], ended["attempt"], ended["retry_count"]) == ("completed", 2, 0)
    assert ended["provider_job_id"] == running["provider_job_id"]  # adopted, not made again
    assert [attempt["outcome"] for attempt in service.attempts(job["id"])] == ["handed_back", "completed"]


def break_storage(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """As if the disk that holds the files were full, for so many files."""
    put = Storage.put
    left = times

    async def full(self: Storage, key: str, data: bytes, content_type: str) -> Any:
        nonlocal left
        if left > 0:
            left -= 1
            raise StorageUnavailable("The disk that holds the files is full.", retry_after=0.1)
        return await put(self, key, data, content_type)

    monkeypatch.setattr(Storage, "put", full)


def test_a_full_disk_is_waited_for(make_service: Callable[..., Service], monkeypatch: pytest.MonkeyPatch) -> None:
    service = make_service()
    break_storage(monkeypatch, 2)
    job = service.make()
    assert (job["status"], job["retry_count"]) == ("completed", 2)
    assert {attempt["error"]["code"] for attempt in service.attempts(job["id"])[:2]} == {"storage_unavailable"}
    assert service.http.get(job["artifacts"][0]["url"]).status_code == 200


def test_a_disk_that_stays_full_fails_the_job_honestly(
    make_service: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    service = make_service()
    break_storage(monkeypatch, 1000)
    job = service.make(max_retries=1)
    assert (job["status"], job["artifacts"]) == ("failed", [])
    assert (job["error"]["code"], job["error"]["retryable"]) == ("storage_unavailable", True)
    assert "full" in job["error"]["message"]


def test_the_highest_seed_is_no_trouble(service: Service) -> None:
    job = service.make(seed=MAX_SEED, batch_size=16)
    assert (job["status"], job["attempt"]) == ("completed", 1)
    assert job["artifacts"][-1]["seed"] == MAX_SEED + 15
