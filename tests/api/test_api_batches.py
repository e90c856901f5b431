"""Batches over HTTP: all or nothing, counted, listed, cancelled, retried."""

import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import orjson
import pytest
from api_service import BATCHES, JOBS, Json, Service, assert_shape, order
from watchdog import MOST_SECONDS, watched

from safelight.api.batches.view import BatchList
from safelight.providers.base import InvalidParameters, Parameters
from safelight.providers.mock import MockProvider


def pointers(answer: httpx.Response) -> list[str]:
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request"), answer.text
    return [error["pointer"] for error in answer.json()["errors"]]


def count_of(service: Service) -> int:
    return len(service.http.get(BATCHES, params={"limit": 100}).json()["items"])


# Submit and look


def test_a_batch_is_carried_out_in_one_go(service: Service) -> None:
    jobs = [order(prompt=f"scene {n}", scene_number=n, chapter_id="a") for n in range(3)]
    batch = service.submit_batch(*jobs, name="chapter 1", metadata={"user": "42"})
    assert (batch["total"], batch["name"], batch["metadata"]) == (3, "chapter 1", {"user": "42"})
    assert (batch["status"], batch["progress"], batch["finished_at"]) == ("pending", 0, None)
    ended = service.end_of_batch(batch["id"])
    assert (ended["status"], ended["progress"], ended["eta"]) == ("completed", 100, None)
    assert ended["counts"] == {"pending": 0, "processing": 0, "completed": 3, "failed": 0, "cancelled": 0}
    looks = [service.look(job_id) for job_id in batch["job_ids"]]
    assert [job["prompt"] for job in looks] == ["scene 0", "scene 1", "scene 2"]
    assert {job["batch_id"] for job in looks} == {batch["id"]}
    assert ended["finished_at"] == max(job["finished_at"] for job in looks)
    assert [job["id"] for job in service.jobs(batch_id=batch["id"])] == batch["job_ids"][::-1]
    assert service.jobs(batch_id=batch["id"], status="failed") == []
    assert len(service.http.get(ended["urls"]["jobs"]).json()["items"]) == 3
    answer = service.http.get(ended["urls"]["self"])
    again = service.http.get(ended["urls"]["self"], headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_what_fails_is_counted_and_fails_the_batch(service: Service) -> None:
    batch = service.submit_batch(order(), order(mock={"refuse": True}))
    ended = service.end_of_batch(batch["id"])
    assert (ended["status"], ended["counts"]["completed"], ended["counts"]["failed"]) == ("failed", 1, 1)


def test_each_job_of_a_batch_may_wait_for_its_own_time(service: Service) -> None:
    batch = service.hold_batch(order(), order())
    service.let_go(batch["job_ids"][1])
    service.end_of(batch["job_ids"][1])
    view = service.look_at_batch(batch["id"])
    assert (view["status"], view["progress"], view["counts"]["pending"]) == ("processing", 50, 1)


def test_a_thousand_jobs_at_once_hold_up_nobody(idle: Service) -> None:
    jobs = [order(prompt=f"scene {n}", metadata={"n": str(n)}) for n in range(1000)]
    with watched(idle.api) as watchdog, ThreadPoolExecutor(1) as pool, httpx.Client(base_url=idle.api.url) as other:
        watchdog.read()
        submitting = pool.submit(idle.http.post, BATCHES, json={"jobs": jobs})
        meanwhile = 0
        while not submitting.done():
            assert other.get("/health/live", timeout=60).is_success
            meanwhile += 1
        answer = submitting.result()
        assert watchdog.read() < MOST_SECONDS
    assert answer.status_code == 202, answer.text
    assert meanwhile > 3
    view = idle.look_at_batch(answer.json()["id"])
    assert (view["counts"]["pending"], len(view["job_ids"])) == (1000, 1000)
    assert idle.http.post(f"{BATCHES}/{view['id']}/cancel").json()["counts"]["cancelled"] == 1000


def test_lists_are_paged_newest_first(idle: Service) -> None:
    made = [idle.submit_batch(order(), name=f"batch {n}")["id"] for n in range(5)]
    seen: list[str] = []
    query: dict[str, Any] = {"limit": 2}
    for size in (2, 2, 1):
        page = idle.http.get(BATCHES, params=query).json()
        assert_shape(BatchList, page)
        assert len(page["items"]) == size
        seen += [item["id"] for item in page["items"]]
        query["cursor"] = page["next_cursor"]
    assert (seen, query["cursor"]) == (made[::-1], None)
    answer = idle.http.get(BATCHES, params={"cursor": "x"})
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_cursor")


def test_an_estimate_is_learnt_and_not_invented(service: Service) -> None:
    size: Json = {"width": 72, "height": 80, "seconds": 0.3}
    assert service.hold_batch(order(width=80, height=72))["eta"] is None
    for _ in range(2):
        service.http.post(JOBS, json=order(**size), headers={"Prefer": "wait=60"})
    told = service.hold_batch(order(**size), order(**size))
    assert 3500 < service.look_at_batch(told["id"])["eta"]["seconds"] < 3700
    mixed = service.hold_batch(order(**size), order(width=88, height=72))
    assert service.look_at_batch(mixed["id"])["eta"] is None


def test_what_is_not_there_is_not_found(service: Service) -> None:
    for method, path in (("GET", ""), ("GET", "/events"), ("POST", "/cancel"), ("POST", "/retry")):
        for batch_id, status, code in ((str(uuid.uuid4()), 404, "batch_not_found"), ("7", 400, "invalid_id")):
            answer = service.http.request(method, f"{BATCHES}/{batch_id}{path}")
            assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert service.jobs(batch_id=str(uuid.uuid4())) == []
    assert service.http.get(JOBS, params={"batch_id": "x"}).json()["code"] == "invalid_id"


# Refusals


def test_one_wrong_job_refuses_all_and_every_fault_has_its_place(service: Service) -> None:
    before = count_of(service)
    jobs: list[Any] = [
        order(),
        order(prompt=""),
        order(width=7, colour="red"),
        "a lighthouse",
        order(provider="nobody"),
        order(kind="video.dream"),
        order(mock={"no such": "thing"}),
        order(sampler_params={"steps": -1}),
    ]
    answer = service.http.post(BATCHES, json={"jobs": jobs})
    assert pointers(answer) == [
        "#/jobs/1/prompt",
        "#/jobs/2/width",
        "#/jobs/2/colour",
        "#/jobs/3",
        "#/jobs/4/provider",
        "#/jobs/5/kind",
        "#/jobs/6/provider_options/mock/no such",
        "#/jobs/7/sampler_params/steps",
    ]
    assert answer.json()["detail"].startswith("jobs/1/prompt: ")
    assert count_of(service) == before


BODIES: list[tuple[Any, list[str]]] = [
    ({}, ["#/jobs"]),
    ({"jobs": []}, ["#/jobs"]),
    ({"jobs": {}}, ["#/jobs"]),
    ({"jobs": [{"prompt": "x"}] * 1001}, ["#/jobs"]),
    ({"jobs": [{"prompt": "x"}], "name": "", "metadata": {"a": 1}, "x": 1}, ["#/name", "#/metadata/a", "#/x"]),
    ({"jobs": [{"prompt": "x"}], "name": "\0"}, ["#/name"]),
    ({"jobs": [{"prompt": "x"}], "metadata": {"\0": "a"}}, ["#/metadata"]),
    ({"jobs": [{"prompt": "x", "input_images": [str(uuid.UUID(int=0))]}]}, ["#/jobs/0/input_images"]),
]


@pytest.mark.parametrize(("body", "wrong"), BODIES)
def test_a_body_of_another_shape_is_refused(service: Service, body: Any, wrong: list[str]) -> None:
    assert pointers(service.http.post(BATCHES, json=body)) == wrong


def test_of_many_faults_the_first_are_told(service: Service) -> None:
    answer = service.http.post(BATCHES, json={"jobs": [{"prompt": " "}] * 1000})
    assert pointers(answer) == [f"#/jobs/{n}/prompt" for n in range(50)]


def test_a_batch_may_be_larger_than_other_bodies(make_service: Callable[..., Service]) -> None:
    service = make_service(worker=False, max_body_bytes=2000, max_batch_bytes=200_000)
    jobs = [order(prompt="x" * 1000) for _ in range(100)]
    assert service.http.post(JOBS, json=order(prompt="x" * 2000)).status_code == 413
    assert service.submit_batch(*jobs)["total"] == 100
    answer = service.http.post(BATCHES, json={"jobs": jobs * 2})
    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")
    chunks = (orjson.dumps({"jobs": jobs * 2}) for _ in range(1))
    assert service.http.post(BATCHES, content=chunks).status_code == 413
    assert count_of(service) == 1


def test_servers_are_asked_once_about_jobs_alike(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Parameters] = []

    async def verify(self: MockProvider, parameters: Parameters) -> None:
        asked.append(parameters)
        if parameters.width == 72:
            raise InvalidParameters("No server is that wide.", field="width")

    monkeypatch.setattr(MockProvider, "verify", verify)
    alike = [order(prompt=f"scene {n}", seed=n) for n in range(5)]
    service.submit_batch(*alike, order(width=80))
    assert len(asked) == 2
    wide = [order(prompt=f"scene {n}", width=72) for n in range(2)]
    answer = service.http.post(BATCHES, json={"jobs": [*alike, *wide]})
    assert pointers(answer) == ["#/jobs/5/width", "#/jobs/6/width"]
    assert len(asked) == 4


# Idempotency


def test_the_same_key_gives_the_first_batch_again(service: Service) -> None:
    headers = {"Idempotency-Key": str(uuid.uuid4())}
    body = {"jobs": [order(seed=1), order(seed=2)], "name": "x"}
    answers = [service.http.post(BATCHES, json=body, headers=headers) for _ in range(2)]
    assert [answer.headers.get("idempotency-replayed") for answer in answers] == [None, "true"]
    assert answers[0].json()["id"] == answers[1].json()["id"]
    assert answers[0].json()["job_ids"] == answers[1].json()["job_ids"]
    assert {answer.headers["location"] for answer in answers} == {f"{BATCHES}/{answers[0].json()['id']}"}
    other = service.http.post(BATCHES, json=body | {"name": "y"}, headers=headers)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
    single = service.http.post(JOBS, json=order(), headers=headers)
    assert (single.status_code, single.json()["code"]) == (422, "idempotency_key_reused")


def test_many_at_once_with_one_key_make_one_batch(service: Service) -> None:
    headers = {"Idempotency-Key": str(uuid.uuid4())}
    body = {"jobs": [order(seed=n) for n in range(20)]}
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: service.http.post(BATCHES, json=body, headers=headers), range(6)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert [answer.headers.get("idempotency-replayed") for answer in answers].count(None) == 1


# Cancel


def test_a_cancelled_batch_ends_whole(make_service: Callable[..., Service]) -> None:
    service = make_service(slots=2)
    batch = service.submit_batch(order(), *(order(seconds=60) for _ in range(4)))
    service.end_of(batch["job_ids"][0])
    service.when(batch["job_ids"][1], lambda job: job["status"] == "processing", "it runs")
    answer = service.http.post(f"{BATCHES}/{batch['id']}/cancel")
    assert (answer.status_code, answer.json()["counts"]["pending"]) == (200, 0)
    ended = service.end_of_batch(batch["id"])
    assert (ended["status"], ended["counts"]["completed"], ended["counts"]["cancelled"]) == ("cancelled", 1, 4)
    again = service.http.post(f"{BATCHES}/{batch['id']}/cancel")
    assert (again.status_code, again.json()) == (200, ended)


def test_a_large_batch_is_cancelled_by_one_call(idle: Service) -> None:
    batch = idle.submit_batch(*(order() for _ in range(350)))
    answer = idle.http.post(f"{BATCHES}/{batch['id']}/cancel").json()
    assert (answer["status"], answer["counts"]["cancelled"]) == ("cancelled", 350)


def test_what_has_ended_otherwise_cannot_be_cancelled(service: Service) -> None:
    batch = service.submit_batch(order())
    service.end_of_batch(batch["id"])
    answer = service.http.post(f"{BATCHES}/{batch['id']}/cancel")
    assert (answer.status_code, answer.json()["code"]) == (409, "batch_ended")


# Retry


def test_what_failed_or_was_cancelled_is_run_again(service: Service) -> None:
    held: Json = order(prompt="held", seed=3)
    batch = service.hold_batch(order(prompt="good"), order(prompt="bad", seed=7, mock={"refuse": True}), held)
    early = service.http.post(f"{BATCHES}/{batch['id']}/retry")
    assert (early.status_code, early.json()["code"]) == (409, "batch_not_ended")
    service.let_go(*batch["job_ids"][:2])
    for job_id in batch["job_ids"][:2]:
        service.end_of(job_id)
    service.http.post(f"{BATCHES}/{batch['id']}/cancel")
    headers = {"Idempotency-Key": str(uuid.uuid4())}
    answers = [service.http.post(f"{BATCHES}/{batch['id']}/retry", headers=headers) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [202, 202]
    again, replayed = (answer.json() for answer in answers)
    assert (again["total"], again["origin_batch_id"], again["id"]) == (2, batch["id"], replayed["id"])
    ended = service.end_of_batch(again["id"])
    assert (ended["status"], ended["counts"]["completed"]) == ("failed", 1)
    looks = [service.look(job_id) for job_id in again["job_ids"]]
    assert [(job["prompt"], job["seed"]) for job in looks] == [("bad", 7), ("held", 3)]
    assert [job["origin_job_id"] for job in looks] == batch["job_ids"][1:]


def test_where_nothing_failed_there_is_nothing_to_retry(service: Service) -> None:
    batch = service.submit_batch(order())
    service.end_of_batch(batch["id"])
    answer = service.http.post(f"{BATCHES}/{batch['id']}/retry")
    assert (answer.status_code, answer.json()["code"]) == (409, "nothing_to_retry")


def test_deleted_jobs_are_not_run_again(service: Service) -> None:
    batch = service.hold_batch(order(), order())
    service.http.post(f"{BATCHES}/{batch['id']}/cancel")
    assert service.http.delete(f"{JOBS}/{batch['job_ids'][0]}").status_code == 204
    again = service.http.post(f"{BATCHES}/{batch['id']}/retry").json()
    assert (again["total"], service.look(again["job_ids"][0])["origin_job_id"]) == (1, batch["job_ids"][1])
    assert service.http.delete(f"{JOBS}/{batch['job_ids'][1]}").status_code == 204
    assert service.http.get(f"{BATCHES}/{batch['id']}").status_code == 404


# Whose it is


def test_a_batch_is_its_owners_own(guarded: Any) -> None:
    batch = guarded.ada.post(BATCHES, json={"jobs": [order()]}).json()
    for method, path in (("GET", ""), ("GET", "/events"), ("POST", "/cancel"), ("POST", "/retry")):
        answer = guarded.bob.request(method, f"{BATCHES}/{batch['id']}{path}")
        assert (answer.status_code, answer.json()["code"]) == (404, "batch_not_found")
    assert all(item["id"] != batch["id"] for item in guarded.bob.get(BATCHES).json()["items"])


def test_a_batch_counts_as_many_submits_as_it_has_jobs(guarded: Any) -> None:
    slow = guarded.client(guarded.key(str(uuid.uuid4()), tier="slow"))  # three a minute
    two = {"jobs": [order()] * 2}
    accepted = slow.post(BATCHES, json=two)
    assert (accepted.status_code, accepted.headers["ratelimit"].split(";t=")[0]) == (202, '"submit";r=1')
    refused = slow.post(BATCHES, json=two)
    assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
    assert 15 <= int(refused.headers["retry-after"]) <= 20
    assert slow.post(JOBS, json=order()).status_code == 202  # the refusal took nothing
    large = slow.post(BATCHES, json={"jobs": [order()] * 9})
    assert (large.status_code, 55 <= int(large.headers["retry-after"]) <= 60) == (429, True)


def test_a_batch_larger_than_a_minutes_worth_takes_all_of_it(guarded: Any) -> None:
    slow = guarded.client(guarded.key(str(uuid.uuid4()), tier="slow"))
    assert slow.post(BATCHES, json={"jobs": [order()] * 9}).status_code == 202
    assert slow.post(JOBS, json=order()).status_code == 429
