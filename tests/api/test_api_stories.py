"""Stories over HTTP: projects, chapters, scenes, characters, and the pictures drawn of them."""

import time
from io import BytesIO
from typing import Any

import pytest
from api_service import JOBS, Json, Service, eventually, order
from PIL import Image

from safelight_client import ApiError, Client

API = "/api/v1"


class Story:
    """A project of a service, in the words of a test."""

    def __init__(self, service: Service, **project: Any) -> None:
        self.service = service
        self.http = service.http
        self.id: str = self.make("projects", title="The keeper", **project)["id"]

    def make(self, path: str, **body: Any) -> Json:
        answer = self.http.post(f"{API}/{path}", json=body)
        assert answer.status_code == 201, answer.text
        assert self.http.get(answer.headers["location"]).json() == answer.json()
        return answer.json()

    def chapter(self, title: str = "One", **body: Any) -> str:
        return self.make(f"projects/{self.id}/chapters", title=title, **body)["id"]

    def scene(self, chapter_id: str, **body: Any) -> Json:
        return self.make(f"chapters/{chapter_id}/scenes", **({"description": "dusk"} | body))

    def character(self, name: str = "Ada", **body: Any) -> Json:
        return self.make(f"projects/{self.id}/characters", **({"name": name, "description": "tall"} | body))

    def get(self, path: str, **query: Any) -> Json:
        answer = self.http.get(f"{API}/{path}", params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def draw(self, path: str, *, key: str | None = None, **fields: Any) -> Json:
        """A small picture of a scene or character, for which a job is accepted."""
        body = order(**fields)
        if "prompt" not in fields:
            del body["prompt"]
        answer = self.http.post(f"{API}/{path}", json=body, headers={"Idempotency-Key": key} if key else {})
        assert answer.status_code == 202, answer.text
        assert answer.headers["location"].endswith("/status")
        return answer.json()

    def draw_scene(self, chapter_id: str, number: int, **fields: Any) -> Json:
        return self.draw(f"chapters/{chapter_id}/images/scenes/{number}", **fields)

    def drawn_scene(self, chapter_id: str, number: int, **fields: Any) -> Json:
        """The scene's picture as the status tells it at the end."""
        self.service.end_of(self.draw_scene(chapter_id, number, **fields)["job_id"])
        return self.get(f"chapters/{chapter_id}/images/scenes/{number}/status")

    def portrait(self, character_id: str, **fields: Any) -> Json:
        return self.draw(f"characters/{character_id}/image", **fields)

    def refused(self, method: str, path: str, body: Any = None) -> tuple[int, str]:
        answer = self.http.request(method, f"{API}/{path}", json=body)
        return answer.status_code, answer.json()["code"]


@pytest.fixture
def story(service: Service) -> Story:
    return Story(service, style="ink and wash")


def pages(story: Story, path: str) -> list[Json]:
    """Every item of a list, two at a time."""
    found: list[Json] = []
    query: Json = {"limit": 2}
    while True:
        page = story.get(path, **query)
        assert len(page["items"]) <= 2
        found += page["items"]
        if page["next_cursor"] is None:
            return found
        query["cursor"] = page["next_cursor"]


# --- what there is ----------------------------------------------------------------------------------------------------


def test_projects_are_made_read_changed_listed_and_deleted(story: Story) -> None:
    whole = story.get(f"projects/{story.id}")
    assert (whole["title"], whole["style"]) == ("The keeper", "ink and wash")
    changed = story.http.patch(f"{API}/projects/{story.id}", json={"style": "oil"}).json()
    assert (changed["title"], changed["style"]) == ("The keeper", "oil")
    assert changed["updated_at"] >= whole["updated_at"]
    others = [story.make("projects", title=f"P{number}")["id"] for number in range(3)]
    listed = [project["id"] for project in pages(story, "projects")]
    assert listed[:4] == [*reversed(others), story.id]
    assert story.http.delete(f"{API}/projects/{others[0]}").status_code == 204
    assert story.refused("GET", f"projects/{others[0]}") == (404, "project_not_found")
    assert story.refused("DELETE", f"projects/{others[0]}") == (404, "project_not_found")


def test_chapters_have_an_order(story: Story) -> None:
    ids = [story.chapter(f"C{number}", script="EXT. LIGHTHOUSE") for number in range(5)]

    def standing() -> list[tuple[str, int]]:
        return [(chapter["id"], chapter["position"]) for chapter in pages(story, f"projects/{story.id}/chapters")]

    assert standing() == [(chapter_id, place) for place, chapter_id in enumerate(ids, 1)]
    moved = story.http.patch(f"{API}/chapters/{ids[3]}", json={"position": 1, "title": "First"}).json()
    assert (moved["position"], moved["title"], moved["script"]) == (1, "First", "EXT. LIGHTHOUSE")
    assert standing() == [(ids[place], n) for n, place in enumerate((3, 0, 1, 2, 4), 1)]
    assert story.http.patch(f"{API}/chapters/{ids[0]}", json={"position": 99}).json()["position"] == 5
    assert story.http.patch(f"{API}/chapters/{ids[0]}", json={"script": None}).json()["script"] is None
    assert story.http.delete(f"{API}/chapters/{ids[1]}").status_code == 204
    assert standing() == [(ids[place], n) for n, place in enumerate((3, 2, 4, 0), 1)]
    assert story.refused("PATCH", f"chapters/{ids[1]}", {"title": "x"}) == (404, "chapter_not_found")


def test_scenes_have_numbers_and_characters(story: Story) -> None:
    chapter = story.chapter()
    ada, bob = story.character("Ada"), story.character("Bob")
    first = story.scene(chapter, character_ids=[bob["id"], ada["id"]])
    assert (first["scene_number"], first["character_ids"]) == (1, [bob["id"], ada["id"]])
    assert (first["image_status"], first["image_url"], first["image_job_id"], first["media_status"]) == (None,) * 4
    tenth = story.scene(chapter, scene_number=10, description="")
    assert story.scene(chapter)["scene_number"] == 11
    assert story.refused("POST", f"chapters/{chapter}/scenes", {"scene_number": 10}) == (409, "scene_number_taken")
    assert story.refused("PATCH", f"scenes/{tenth['id']}", {"scene_number": 1, "character_ids": [ada["id"]]}) == (
        409,
        "scene_number_taken",
    )
    assert story.get(f"scenes/{tenth['id']}") == tenth  # nothing of it was changed
    stranger = Story(story.service).character("Eve")
    wrong = story.http.post(f"{API}/chapters/{chapter}/scenes", json={"character_ids": [ada["id"], stranger["id"]]})
    assert (wrong.status_code, wrong.json()["code"]) == (422, "character_unknown")
    assert wrong.json()["errors"][0]["pointer"] == "#/character_ids/1"
    changed = story.http.patch(
        f"{API}/scenes/{tenth['id']}", json={"scene_number": 2, "description": "night", "character_ids": [ada["id"]]}
    ).json()
    assert (changed["scene_number"], changed["description"], changed["character_ids"]) == (2, "night", [ada["id"]])
    assert [scene["scene_number"] for scene in pages(story, f"chapters/{chapter}/scenes")] == [1, 2, 11]
    assert story.http.delete(f"{API}/characters/{ada['id']}").status_code == 204
    assert story.get(f"scenes/{first['id']}")["character_ids"] == [bob["id"]]
    assert [one["name"] for one in pages(story, f"projects/{story.id}/characters")] == ["Bob"]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "projects", {}),
        ("POST", "projects", {"title": "  "}),
        ("POST", "projects", {"title": "x\0"}),
        ("POST", "projects", {"title": "x", "owner": "me"}),
        ("PATCH", "projects/{id}", {"title": None}),
        ("POST", "projects/{id}/chapters", {"title": "x", "script": "x" * 100_001}),
        ("POST", "projects/{id}/characters", {"name": ""}),
    ],
)
def test_what_cannot_be_taken_names_its_field(story: Story, method: str, path: str, body: Json) -> None:
    answer = story.http.request(method, f"{API}/{path.replace('{id}', story.id)}", json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert answer.json()["errors"][0]["pointer"].startswith("#/")


def test_a_cursor_of_something_else_is_refused(story: Story) -> None:
    chapter = story.chapter()
    for path in (
        "projects",
        f"projects/{story.id}/chapters",
        f"chapters/{chapter}/scenes",
        f"chapters/{chapter}/images",
    ):
        answer = story.http.get(f"{API}/{path}", params={"cursor": "bm90aGluZw=="})
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_cursor")


# --- scenes drawn -----------------------------------------------------------------------------------------------------


def test_a_scene_is_drawn_from_its_story(story: Story) -> None:
    chapter, ada = story.chapter(), story.character("Ada", description="tall, red hair")
    scene = story.scene(chapter, description="She lights the lamp", character_ids=[ada["id"]])
    asked = story.draw_scene(chapter, 1, script_id="script-9", seed=7, negative_prompt="people")
    assert (asked["status"], asked["retry_count"], asked["scene_number"]) == ("pending", 0, 1)
    assert (asked["script_id"], asked["image_type"], asked["task_id"]) == ("script-9", "scene", asked["job_id"])
    assert asked["prompt"] == "She lights the lamp\nAda: tall, red hair\nink and wash"
    assert story.get(f"scenes/{scene['id']}")["image_job_id"] == asked["job_id"]
    job = story.service.end_of(asked["job_id"])
    assert (job["chapter_id"], job["scene_number"], job["project_id"]) == (chapter, 1, story.id)
    assert (job["seed"], job["negative_prompt"]) == (7, "people")
    told = story.http.get(asked["urls"]["status"]).json()
    assert (told["status"], told["progress"], told["error"], told["error_message"]) == ("completed", 100, None, None)
    assert story.http.get(told["image_url"]).headers["content-type"] == "image/png"
    scene = story.get(f"scenes/{scene['id']}")
    assert (scene["image_status"], scene["image_url"]) == ("completed", told["image_url"])
    assert story.http.get(asked["urls"]["job"]).json()["id"] == asked["job_id"]
    listed = story.get(f"chapters/{chapter}/images")["items"]
    assert [(item["url"], item["scene_number"], item["job_id"]) for item in listed] == [
        (told["image_url"], 1, asked["job_id"])
    ]


def test_a_chapter_kept_elsewhere_needs_a_prompt_and_nothing_else(story: Story) -> None:
    elsewhere = f"their chapter {time.monotonic_ns()}?"
    where = f"chapters/{elsewhere.replace('?', '%3F')}"
    assert story.refused("POST", f"{where}/images/scenes/4") == (422, "prompt_missing")
    assert story.refused("GET", f"{where}/images/scenes/4/status") == (404, "scene_image_not_found")
    assert story.get(f"{where}/images")["items"] == []
    asked = story.draw(f"{where}/images/scenes/4", prompt="a lamp", image_type="cover")
    assert (asked["chapter_id"], asked["image_type"]) == (elsewhere, "cover")
    story.service.end_of(asked["job_id"])
    told = story.http.get(asked["urls"]["status"]).json()
    assert told["status"] == "completed"
    assert [item["url"] for item in story.get(f"{where}/images")["items"]] == [told["image_url"]]


def test_bad_requests_for_pictures_change_nothing(story: Story) -> None:
    chapter = story.chapter()
    story.scene(chapter, description="  ")
    before = len(story.service.jobs(chapter_id=chapter))
    assert story.refused("POST", f"chapters/{chapter}/images/scenes/2", {"prompt": "x"}) == (404, "scene_not_found")
    assert story.refused("POST", f"chapters/{chapter}/images/scenes/1") == (422, "scene_empty")
    assert story.refused("POST", f"chapters/{chapter}/images/scenes/1", {"prompt": " "}) == (422, "invalid_request")
    assert story.refused("POST", f"chapters/{chapter}/images/scenes/1", {"width": 3}) == (422, "invalid_request")
    assert story.refused("POST", f"chapters/{chapter}/images/scenes/1", {"chapter_id": "x", "prompt": "x"})[0] == 422
    story.scene(chapter, scene_number=3, description="x" * 2000, character_ids=[
        story.character(f"C{number}", description="y" * 2000)["id"] for number in range(2)
    ])  # fmt: skip
    assert story.refused("POST", f"chapters/{chapter}/images/scenes/3") == (422, "prompt_too_long")
    assert len(story.service.jobs(chapter_id=chapter)) == before == 0
    assert story.get(f"chapters/{chapter}/scenes")["items"][0]["image_status"] is None


def test_the_newest_job_of_a_scene_counts_however_it_came(story: Story) -> None:
    chapter = story.chapter()
    scene = story.scene(chapter)
    first = story.drawn_scene(chapter, 1)
    other = story.service.submit(chapter_id=chapter, scene_number=1, mock={"refuse": "no storms"})
    assert story.get(f"scenes/{scene['id']}")["image_job_id"] == other["id"]
    story.service.end_of(other["id"])
    told = story.get(f"chapters/{chapter}/images/scenes/1/status")
    assert (told["job_id"], told["status"], told["image_url"]) == (other["id"], "failed", None)
    assert told["error"]["code"] == "content_rejected" and told["error_message"] == "no storms"
    row = story.get(f"scenes/{scene['id']}")
    assert (row["image_status"], row["image_error"]["message"]) == ("failed", "no storms")
    assert row["image_url"] == first["image_url"]  # what there was stays
    retried = story.http.post(f"{JOBS}/{other['id']}/retry", json={"provider_options": {"duration_seconds": 0}}).json()
    assert story.service.end_of(retried["id"])["status"] == "completed"
    row = story.get(f"scenes/{scene['id']}")
    assert (row["image_status"], row["image_error"], row["image_job_id"]) == ("completed", None, retried["id"])
    assert row["image_url"] != first["image_url"]


def test_a_row_tells_that_its_job_runs(story: Story) -> None:
    chapter = story.chapter()
    scene = story.scene(chapter)
    asked = story.draw_scene(chapter, 1, seconds=30)
    running = eventually(
        lambda: (row := story.get(f"scenes/{scene['id']}"))["image_status"] == "processing" and row, "it runs"
    )
    assert running["image_job_id"] == asked["job_id"]
    assert story.http.post(asked["urls"]["cancel"]).status_code == 200
    story.service.end_of(asked["job_id"])
    assert story.get(f"scenes/{scene['id']}")["image_status"] == "cancelled"


def test_an_idempotency_key_stands_for_what_was_sent(story: Story) -> None:
    chapter = story.chapter()
    scene = story.scene(chapter)
    story.scene(chapter)
    key = f"key-{scene['id']}"
    first = story.draw_scene(chapter, 1, key=key)
    story.http.patch(f"{API}/scenes/{scene['id']}", json={"description": "another"})
    assert story.draw_scene(chapter, 1, key=key)["job_id"] == first["job_id"]
    answer = story.http.post(f"{API}/chapters/{chapter}/images/scenes/2", json={}, headers={"Idempotency-Key": key})
    assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_key_reused")


def test_pictures_go_with_their_scenes(story: Story) -> None:
    chapter = story.chapter()
    rows = [story.scene(chapter) for _ in range(3)]
    urls = [story.drawn_scene(chapter, number)["image_url"] for number in (1, 2, 3)]
    wanted = {"scene_ids": [rows[2]["id"], rows[0]["id"], rows[1]["id"]]}
    assert story.http.post(f"{API}/chapters/{chapter}/scenes/order", json=wanted).status_code == 204
    listed = story.get(f"chapters/{chapter}/scenes")["items"]
    assert [(row["scene_number"], row["image_url"]) for row in listed] == [(1, urls[2]), (2, urls[0]), (3, urls[1])]
    for number, url in ((1, urls[2]), (2, urls[0]), (3, urls[1])):
        assert story.get(f"chapters/{chapter}/images/scenes/{number}/status")["image_url"] == url
        of_scene = story.get(f"chapters/{chapter}/images", scene_number=number)["items"]
        assert [item["url"] for item in of_scene] == [url]
    story.http.patch(f"{API}/scenes/{rows[0]['id']}", json={"scene_number": 20})
    assert story.get(f"chapters/{chapter}/images/scenes/20/status")["image_url"] == urls[0]
    for bad in ([], wanted["scene_ids"][:2], [*wanted["scene_ids"][:2], story.id], [rows[0]["id"]] * 3):
        body = {"scene_ids": bad}
        assert story.refused("POST", f"chapters/{chapter}/scenes/order", body) == (422, "order_incomplete")
    assert [row["scene_number"] for row in story.get(f"chapters/{chapter}/scenes")["items"]] == [1, 3, 20]


def test_another_picture_can_be_chosen(story: Story) -> None:
    chapter = story.chapter()
    scene, _ = story.scene(chapter), story.scene(chapter)
    old = story.drawn_scene(chapter, 1)["image"]
    new = story.drawn_scene(chapter, 1)["image"]
    other = story.drawn_scene(chapter, 2)["image"]
    where = f"{API}/scenes/{scene['id']}/image"
    chosen = story.http.put(where, json={"artifact_id": old["id"]}).json()
    assert (chosen["image_url"], chosen["image_status"]) == (old["url"], "completed")
    for wrong in (other["id"], story.id):
        assert story.refused("PUT", f"scenes/{scene['id']}/image", {"artifact_id": wrong}) == (422, "not_its_picture")
    story.http.delete(f"{API}/artifacts/{new['id']}")
    assert story.refused("PUT", f"scenes/{scene['id']}/image", {"artifact_id": new["id"]}) == (422, "not_its_picture")
    # What was asked for before the choice replaces nothing, what is asked for after it does.
    early = story.draw_scene(chapter, 1, seconds=0.5)
    story.http.put(where, json={"artifact_id": old["id"]})
    assert story.service.end_of(early["job_id"])["status"] == "completed"
    assert story.get(f"scenes/{scene['id']}")["image_url"] == old["url"]
    late = story.drawn_scene(chapter, 1)
    assert story.get(f"scenes/{scene['id']}")["image_url"] == late["image_url"]


def test_a_deleted_picture_is_shown_nowhere(story: Story) -> None:
    chapter = story.chapter()
    scene = story.scene(chapter)
    picture = story.drawn_scene(chapter, 1)
    assert story.http.delete(f"{API}/artifacts/{picture['image']['id']}").status_code == 204
    row = story.get(f"scenes/{scene['id']}")
    assert (row["image_url"], row["image"], row["image_status"]) == (None, None, None)
    assert story.get(f"chapters/{chapter}/images")["items"] == []
    assert story.http.delete(f"{JOBS}/{picture['job_id']}").status_code == 204
    assert story.refused("GET", f"chapters/{chapter}/images/scenes/1/status") == (404, "scene_image_not_found")


@pytest.mark.parametrize("what", ["scene", "chapter", "project"])
@pytest.mark.parametrize("images", ["keep", "delete"])
def test_deleting_keeps_or_deletes_pictures_and_cancels_jobs(story: Story, what: str, images: str) -> None:
    chapter = story.chapter()
    scene = story.scene(chapter)
    picture = story.drawn_scene(chapter, 1)
    running = story.draw_scene(chapter, 1, seconds=60)
    story.service.when(running["job_id"], lambda job: job["status"] == "processing", "it runs")
    where = {"scene": f"scenes/{scene['id']}", "chapter": f"chapters/{chapter}", "project": f"projects/{story.id}"}
    assert story.http.delete(f"{API}/{where[what]}", params={"images": images}).status_code == 204
    assert story.refused("GET", f"scenes/{scene['id']}") == (404, "scene_not_found")
    assert story.service.end_of(running["job_id"])["status"] == "cancelled"
    kept = images == "keep"
    assert story.http.get(picture["image_url"]).status_code == (200 if kept else 410)
    listed = story.http.get(f"{API}/chapters/{chapter}/images").json()["items"]
    assert [item["url"] for item in listed] == ([picture["image_url"]] if kept else [])
    if what == "scene":  # another scene with its number begins without a past
        assert story.scene(chapter)["scene_number"] == 1
        assert story.refused("GET", f"chapters/{chapter}/images/scenes/1/status") == (404, "scene_image_not_found")


def test_a_whole_chapter_is_drawn_as_one_batch(story: Story) -> None:
    chapter = story.chapter()
    rows = [story.scene(chapter, description=f"scene {number}") for number in range(4)]
    story.drawn_scene(chapter, 2)
    running = story.draw_scene(chapter, 4, seconds=60)
    where = f"{API}/chapters/{chapter}/images"
    body = {"width": 64, "height": 64, "provider_options": {"duration_seconds": 0}}
    answer = story.http.post(where, json=body, headers={"Idempotency-Key": chapter})
    assert answer.status_code == 202, answer.text
    batch = answer.json()
    assert batch["total"] == 2
    jobs = story.service.jobs(ids=",".join(batch["job_ids"]))
    assert sorted((job["scene_number"], job["prompt"]) for job in jobs) == [
        (1, "scene 0\nink and wash"), (3, "scene 2\nink and wash"),
    ]  # fmt: skip
    assert {job["project_id"] for job in jobs} == {story.id}
    assert story.get(f"scenes/{rows[0]['id']}")["image_job_id"] == batch["job_ids"][0]
    again = story.http.post(where, json=body, headers={"Idempotency-Key": chapter})
    assert (again.json()["id"], again.headers["idempotency-replayed"]) == (batch["id"], "true")
    story.service.end_of_batch(batch["id"])
    listed = story.get(f"chapters/{chapter}/scenes")["items"]
    assert [row["image_status"] for row in listed][:3] == ["completed"] * 3
    answer = story.http.post(where, json=body)
    assert (answer.status_code, answer.json()["code"]) == (409, "nothing_to_draw")
    story.http.post(running["urls"]["cancel"])
    story.service.end_of(running["job_id"])
    assert story.http.post(where, json=body).json()["total"] == 1


def test_bad_requests_for_a_chapter_change_nothing(story: Story) -> None:
    chapter = story.chapter()
    assert story.refused("POST", f"chapters/{chapter}/images") == (409, "nothing_to_draw")
    for key in ({}, {"Idempotency-Key": f"n-{chapter}"}) * 2:
        answer = story.http.post(f"{API}/chapters/{chapter}/images", headers=key)
        assert (answer.status_code, answer.json()["code"]) == (409, "nothing_to_draw")
    story.scene(chapter)
    assert story.refused("POST", "chapters/their own/images") == (404, "chapter_not_found")
    wrong = story.http.post(f"{API}/chapters/{chapter}/images", json={"model": "no such"})
    assert (wrong.status_code, [error["pointer"] for error in wrong.json()["errors"]]) == (422, ["#/model"])
    assert story.refused("POST", f"chapters/{chapter}/images", {"prompt": "x"}) == (422, "invalid_request")
    story.scene(chapter, description="")
    assert story.refused("POST", f"chapters/{chapter}/images") == (422, "scene_empty")
    assert story.service.jobs(chapter_id=chapter) == []


# --- characters drawn -------------------------------------------------------------------------------------------------


def test_a_portrait_replaces_the_last_one_when_it_is_stored(story: Story) -> None:
    ada = story.character("Ada", description="tall, red hair")
    nothing = story.get(f"characters/{ada['id']}/image/status")
    assert (nothing["status"], nothing["task_id"], nothing["metadata"]) == (None, None, None)
    first = story.portrait(ada["id"], seed=3, metadata={"page": "cast"})
    assert (first["character_id"], first["status"], first["image_url"]) == (ada["id"], "pending", None)
    assert first["metadata"]["prompt"] == "Portrait of Ada: tall, red hair\nink and wash"
    assert (first["metadata"]["seed"], first["metadata"]["notes"]) == (3, {"page": "cast"})
    job = story.service.end_of(first["job_id"])
    assert (job["image_type"], job["character_id"], job["project_id"]) == ("portrait", ada["id"], story.id)
    shown = story.http.get(first["urls"]["status"]).json()
    assert (shown["status"], shown["error"], shown["task_id"]) == ("completed", None, first["task_id"])
    assert story.http.get(shown["image_url"]).status_code == 200

    second = story.portrait(ada["id"], seconds=60)
    story.service.when(second["job_id"], lambda job: job["status"] == "processing", "it runs")
    row = story.get(f"characters/{ada['id']}")
    assert (row["image_status"], row["image_url"], row["image_job_id"]) == (
        "processing", shown["image_url"], second["job_id"],
    )  # fmt: skip
    assert set(story.get(f"characters/{ada['id']}/image/status")["eta"]) == {"wait_seconds", "run_seconds"}
    story.http.post(second["urls"]["cancel"])
    story.service.end_of(second["job_id"])

    failing = story.portrait(ada["id"], mock={"refuse": "no faces"})
    story.service.end_of(failing["job_id"])
    told = story.get(f"characters/{ada['id']}/image/status")
    assert (told["status"], told["error"]["message"], told["image_url"]) == ("failed", "no faces", shown["image_url"])

    third = story.portrait(ada["id"], seed=4)
    story.service.end_of(third["job_id"])
    row = story.get(f"characters/{ada['id']}")
    assert row["image_status"] == "completed" and row["image_url"] != shown["image_url"] and row["image_error"] is None
    history = story.get(f"characters/{ada['id']}/images")["items"]
    assert [item["url"] for item in history] == [row["image_url"], shown["image_url"]]


def test_of_two_portraits_at_once_the_one_asked_for_last_is_shown(story: Story) -> None:
    ada = story.character()
    older, newer = story.portrait(ada["id"], seconds=1.0), story.portrait(ada["id"], seconds=0.0)
    end = story.service.end_of(newer["job_id"])
    row = story.get(f"characters/{ada['id']}")
    assert (row["image_status"], row["image"]["id"]) == ("completed", end["artifacts"][0]["id"])
    assert story.service.end_of(older["job_id"])["status"] == "completed"
    assert story.get(f"characters/{ada['id']}") | {"updated_at": None} == row | {"updated_at": None}
    assert len(story.get(f"characters/{ada['id']}/images")["items"]) == 2
    # If the last fails, the one before is shown, and its reason told.
    older, newer = story.portrait(ada["id"], seconds=0.7), story.portrait(ada["id"], mock={"refuse": "no"})
    story.service.end_of(newer["job_id"])
    made = story.service.end_of(older["job_id"])["artifacts"][0]
    row = story.get(f"characters/{ada['id']}")
    assert (row["image_status"], row["image_error"]["message"], row["image_url"]) == ("failed", "no", made["url"])


def test_portraits_that_cannot_be_drawn(story: Story) -> None:
    empty = story.character(description=" ")
    assert story.refused("POST", f"characters/{empty['id']}/image") == (422, "character_empty")
    assert story.refused("POST", f"characters/{story.id}/image", {"prompt": "x"}) == (404, "character_not_found")
    assert story.refused("GET", f"characters/{story.id}/image/status") == (404, "character_not_found")
    assert story.service.end_of(story.portrait(empty["id"], prompt="a keeper")["job_id"])["status"] == "completed"


def picture() -> bytes:
    data = BytesIO()
    Image.linear_gradient("L").resize((64, 64)).convert("RGB").save(data, "PNG")
    return data.getvalue()


def test_a_reference_picture_is_used_where_it_is_taken(story: Story) -> None:
    ada = story.character()
    where = f"{API}/characters/{ada['id']}/reference"
    given = story.http.put(where, content=picture(), headers={"Content-Type": "image/png"})
    assert given.status_code == 200, given.text
    reference = given.json()["reference"]
    assert story.http.get(reference["url"]).status_code == 200
    plain = story.portrait(ada["id"])["metadata"]
    assert (plain["reference_used"], "mock" in plain["reference_note"]) == (False, True)
    drawn = story.portrait(ada["id"], provider="comfyui")  # played by the mock, and takes pictures
    assert (drawn["metadata"]["reference_used"], drawn["metadata"]["reference_note"]) == (True, None)
    assert story.service.look(drawn["job_id"])["input_images"] == [reference["id"]]
    own = story.service.make()["artifacts"][0]["id"]
    changed = story.http.patch(
        f"{API}/characters/{ada['id']}", json={"reference_artifact_id": own, "name": "Eve"}
    ).json()
    assert (changed["reference"]["id"], changed["name"]) == (own, "Eve")
    changed = story.http.patch(f"{API}/characters/{ada['id']}", json={"reference_artifact_id": None}).json()
    assert changed["reference"] is None
    assert story.portrait(ada["id"])["metadata"]["reference_note"] is None


def test_what_cannot_be_a_reference(story: Story) -> None:
    ada = story.character()
    where = f"{API}/characters/{ada['id']}/reference"
    big = b"\0" * (story.service.settings.max_upload_bytes + 1)
    for content, kind, status, code in (
        (b"no picture", "image/png", 422, "upload_unreadable"),
        (picture(), "image/jpeg", 422, "upload_mismatch"),
        (b"{}", "application/json", 415, "unsupported_media_type"),
        (big, "image/png", 413, "upload_too_large"),
    ):
        answer = story.http.put(where, content=content, headers={"Content-Type": kind})
        assert (answer.status_code, answer.json()["code"]) == (status, code)
    for path in (f"characters/{story.id}",):
        answer = story.http.put(f"{API}/{path}/reference", content=picture(), headers={"Content-Type": "image/png"})
        assert (answer.status_code, answer.json()["code"]) == (404, "character_not_found")
    wrong = story.http.patch(f"{API}/characters/{ada['id']}", json={"reference_artifact_id": story.id, "name": "x"})
    assert (wrong.status_code, wrong.json()["code"]) == (422, "reference_unknown")
    assert story.get(f"characters/{ada['id']}") == ada


def test_another_portrait_can_be_chosen(story: Story) -> None:
    ada, bob = story.character(), story.character("Bob")
    made = [story.service.end_of(story.portrait(one["id"])["job_id"])["artifacts"][0] for one in (ada, ada, bob)]
    chosen = story.http.put(f"{API}/characters/{ada['id']}/image", json={"artifact_id": made[0]["id"]}).json()
    assert chosen["image_url"] == made[0]["url"]
    wrong = story.refused("PUT", f"characters/{ada['id']}/image", {"artifact_id": made[2]["id"]})
    assert wrong == (422, "not_its_picture")


@pytest.mark.parametrize("images", ["keep", "delete"])
def test_deleting_a_character_takes_its_portraits_or_leaves_them(story: Story, images: str) -> None:
    chapter, ada = story.chapter(), story.character()
    story.scene(chapter, character_ids=[ada["id"]])
    scene = story.drawn_scene(chapter, 1)
    portrait = story.service.end_of(story.portrait(ada["id"])["job_id"])
    assert story.http.delete(f"{API}/characters/{ada['id']}", params={"images": images}).status_code == 204
    assert story.refused("GET", f"characters/{ada['id']}/images") == (404, "character_not_found")
    assert story.http.get(portrait["artifacts"][0]["url"]).status_code == (200 if images == "keep" else 410)
    assert story.http.get(scene["image_url"]).status_code == 200


def test_what_is_anothers_does_not_exist(guarded: Any, adas: dict[str, str]) -> None:
    """Every operation on every thing: see the tests of authentication. What takes a body, and ids within it:"""
    bob = guarded.client(guarded.key("stranger", "write"))
    drawn = bob.post(f"{API}/chapters/{adas['chapter']}/images/scenes/1", json=order())
    assert (drawn.status_code, drawn.json()["code"]) == (404, "chapter_not_found")
    project = bob.post(f"{API}/projects", json={"title": "His"}).json()["id"]
    chapter = bob.post(f"{API}/projects/{project}/chapters", json={"title": "One"}).json()["id"]
    wrong = bob.post(f"{API}/chapters/{chapter}/scenes", json={"character_ids": [adas["character"]]})
    assert (wrong.status_code, wrong.json()["code"]) == (422, "character_unknown")
    his = bob.post(f"{API}/projects/{project}/characters", json={"name": "X"}).json()["id"]
    wrong = bob.patch(f"{API}/characters/{his}", json={"reference_artifact_id": adas["artifact"]})
    assert (wrong.status_code, wrong.json()["code"]) == (422, "reference_unknown")
    wrong = bob.put(f"{API}/characters/{his}/image", json={"artifact_id": adas["artifact"]})
    assert (wrong.status_code, wrong.json()["code"]) == (422, "not_its_picture")
    # A job of his that bears the ids of her chapter is his alone.
    job = bob.post(JOBS, json=order(chapter_id=adas["chapter"], scene_number=1)).json()["id"]
    assert bob.get(f"{JOBS}/{job}", params={"wait": 60}).json()["status"] == "completed"
    assert guarded.ada.get(f"{API}/scenes/{adas['scene']}").json()["image_job_id"] == adas["job"]
    # An id of his own that is no story of anybody's is his.
    assert bob.post(f"{API}/chapters/mine/images/scenes/1", json=order()).status_code == 202
    assert guarded.ada.get(f"{API}/chapters/mine/images/scenes/1/status").status_code == 404


def test_jobs_that_wait_are_cancelled_with_their_story(idle: Service) -> None:
    story = Story(idle)
    chapter = story.chapter()
    scene = story.scene(chapter)
    asked = story.draw_scene(chapter, 1)
    assert story.get(f"scenes/{scene['id']}")["image_status"] == "pending"
    story.http.delete(f"{API}/chapters/{chapter}")
    assert idle.look(asked["job_id"])["status"] == "cancelled"


def test_the_python_client_tells_the_same_story(service: Service) -> None:
    with Client(service.api.url) as client:
        stories = client.stories
        project = stories.projects.create("By hand", style="ink")["id"]
        chapter = stories.chapters.create(project, "One")["id"]
        ada = stories.characters.create(project, "Ada", description="tall")["id"]
        first, second = [stories.scenes.create(chapter, description="dusk", character_ids=[ada]) for _ in range(2)]
        assert stories.projects.change(project, style="oil")["style"] == "oil"
        small: Json = {"width": 64, "height": 64, "provider_options": {"duration_seconds": 0}}
        old = service.end_of(stories.chapters.draw(chapter, 1, **small)["job_id"])["artifacts"][0]
        batch = stories.chapters.draw_missing(chapter, **small)
        service.end_of_batch(batch["id"])
        assert stories.chapters.status(chapter, 2)["job_id"] == batch["job_ids"][0]
        service.end_of(stories.chapters.draw(chapter, 1, **small)["job_id"])
        assert len(list(stories.chapters.images(chapter))) == 3
        assert stories.scenes.choose(first["id"], old["id"])["image_url"] == old["url"]
        stories.scenes.order(chapter, [second["id"], first["id"]])
        assert [scene["id"] for scene in stories.scenes.list(chapter)] == [second["id"], first["id"]]
        assert stories.characters.set_reference(ada, picture(), "image/png")["reference"]["width"] == 64
        face = service.end_of(stories.characters.draw(ada, **small)["job_id"])["artifacts"][0]
        assert stories.characters.status(ada)["image_url"] == face["url"]
        assert [image["id"] for image in stories.characters.images(ada)] == [face["id"]]
        assert stories.characters.choose(ada, face["id"])["image"]["id"] == face["id"]
        assert next(stories.projects.list())["id"] == project
        assert [one["id"] for one in stories.chapters.list(project)] == [chapter]
        assert [one["id"] for one in stories.characters.list(project)] == [ada]
        stories.projects.delete(project, images="delete")
        assert service.http.get(face["url"]).status_code == 410
        with pytest.raises(ApiError):
            stories.scenes.get(first["id"])
