"""Lists: filters, batched polling, pages."""

import uuid
from typing import Any

import pytest
from api_service import JOBS, Json, Service, check_list


@pytest.fixture(scope="module")
def chapter(service: Service) -> str:
    """Six jobs in one chapter, of which one failed; oldest first."""
    chapter = uuid.uuid4().hex
    one = {"chapter_id": chapter}
    service.make(prompt="A Lighthouse at 100% dusk", scene_number=1, character_id="ann", project_id="p", **one)
    service.make(prompt="a lighthouse at 100 dusks", scene_number=2, provider="comfyui", **one)
    service.make(prompt="a_garden", scene_number=2, mock={"refuse": True}, character_id="bob", **one)
    for number in range(3):
        job = service.submit(prompt=f"agarden {number}", **one)
        service.end_of(job["id"])
    return chapter


def prompts(service: Service, **query: Any) -> list[str]:
    return [job["prompt"] for job in check_list(service.http.get(JOBS, params=query))["items"]]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"text": "garden"}, ["agarden 2", "agarden 1", "agarden 0", "a_garden"]),
        ({"status": "failed"}, ["a_garden"]),
        ({"status": "pending"}, []),
        ({"scene_number": 2}, ["a_garden", "a lighthouse at 100 dusks"]),
        ({"scene_number": 2, "status": "completed"}, ["a lighthouse at 100 dusks"]),
        ({"character_id": "bob"}, ["a_garden"]),
        ({"project_id": "p"}, ["A Lighthouse at 100% dusk"]),
        ({"provider": "comfyui"}, ["a lighthouse at 100 dusks"]),
        ({"kind": "image.generate", "character_id": "ann"}, ["A Lighthouse at 100% dusk"]),
        ({"kind": "video.import"}, []),
        ({"text": "LIGHTHOUSE"}, ["a lighthouse at 100 dusks", "A Lighthouse at 100% dusk"]),
        ({"text": "100%"}, ["A Lighthouse at 100% dusk"]),
        ({"text": "a_g"}, ["a_garden"]),
        ({"text": "/"}, []),
        ({"younger_than_seconds": 600, "text": "a_g"}, ["a_garden"]),
        ({"younger_than_seconds": 0}, []),
        ({"older_than_seconds": 600}, []),
        ({"older_than_seconds": 0, "text": "a_g"}, ["a_garden"]),
    ],
)  # fmt: skip
def test_filters(service: Service, chapter: str, query: Json, expected: list[str]) -> None:
    assert prompts(service, chapter_id=chapter, **query) == expected


def test_a_status_may_be_repeated(service: Service, chapter: str) -> None:
    items = service.jobs(chapter_id=chapter, status=["failed", "completed"])
    assert {job["status"] for job in items} == {"failed", "completed"}


def test_the_path_may_end_in_a_slash(service: Service, chapter: str) -> None:
    assert service.http.get(f"{JOBS}/", params={"chapter_id": chapter}).json()["items"]


def test_a_list_shows_what_looking_shows(service: Service, chapter: str) -> None:
    for job in service.jobs(chapter_id=chapter):
        assert job == service.look(job["id"])


def test_many_jobs_are_polled_by_their_ids(service: Service, chapter: str) -> None:
    ids = [job["id"] for job in service.jobs(chapter_id=chapter)]
    asked = ", ".join([ids[3], ids[0], str(uuid.uuid4()), ids[0].upper()])
    page = check_list(service.http.get(JOBS, params={"ids": asked}))
    assert [job["id"] for job in page["items"]] == [ids[0], ids[3]]
    assert page["next_cursor"] is None
    assert check_list(service.http.get(JOBS, params={"ids": ""}))["items"] == []


def test_pages_are_complete_and_without_doubles(service: Service, chapter: str) -> None:
    whole = [job["id"] for job in service.jobs(chapter_id=chapter)]
    for limit in (1, 2, 3, 5, 6, 7):
        query: Json = {"chapter_id": chapter, "limit": limit}
        seen: list[str] = []
        while True:
            page = check_list(service.http.get(JOBS, params=query))
            assert 1 <= len(page["items"]) <= limit
            seen += [job["id"] for job in page["items"]]
            if page["next_cursor"] is None:
                break
            query["cursor"] = page["next_cursor"]
        assert seen == whole


def test_a_job_made_meanwhile_does_not_shift_the_pages(service: Service) -> None:
    chapter = uuid.uuid4().hex
    ids = [service.submit(chapter_id=chapter)["id"] for _ in range(3)]
    first = check_list(service.http.get(JOBS, params={"chapter_id": chapter, "limit": 2}))
    service.submit(chapter_id=chapter)
    query = {"chapter_id": chapter, "limit": 2, "cursor": first["next_cursor"]}
    second = check_list(service.http.get(JOBS, params=query))
    assert [job["id"] for job in first["items"] + second["items"]] == ids[::-1]
    assert second["next_cursor"] is None


@pytest.mark.parametrize(
    ("query", "code", "pointer"),
    [
        ({"cursor": "nonsense"}, "invalid_cursor", "cursor"),
        ({"cursor": "ü"}, "invalid_cursor", "cursor"),
        ({"cursor": ""}, "invalid_cursor", "cursor"),
        ({"ids": "1,2"}, "invalid_id", "ids"),
        ({"ids": ",".join([str(uuid.uuid4())] * 101)}, "invalid_id", None),
        ({"status": "done"}, "invalid_request", "status/0"),
        ({"limit": 0}, "invalid_request", "limit"),
        ({"limit": 101}, "invalid_request", "limit"),
        ({"limit": "many"}, "invalid_request", "limit"),
        ({"scene_number": "first"}, "invalid_request", "scene_number"),
        ({"scene_number": 2**70}, "invalid_request", "scene_number"),
        ({"younger_than_seconds": "nan"}, "invalid_request", "younger_than_seconds"),
        ({"older_than_seconds": -1}, "invalid_request", "older_than_seconds"),
        ({"text": "x" * 201}, "invalid_request", "text"),
        ({"text": "\0"}, "invalid_request", "text"),
        ({"chapter_id": "\0"}, "invalid_request", "chapter_id"),
    ],
)
def test_a_wrong_query_is_refused(service: Service, query: Json, code: str, pointer: str | None) -> None:
    response = service.http.get(JOBS, params=query)
    assert (response.status_code, response.json()["code"]) == (400, code)
    assert [error["pointer"] for error in response.json()["errors"]] == ([] if pointer is None else [pointer])
