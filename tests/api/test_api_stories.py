"""Stories over HTTP: projects, chapters, scenes, characters, and the pictures drawn of them."""

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from api_service import JOBS, Json, Service, eventually, order
from story import API, Story, picture

from safelight_client import ApiError, Client


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


def test_a_picture_may_be_drawn_later(story: Story) -> None:
    later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    chapter = story.chapter()
    story.scene(chapter)
    for path in (f"chapters/{chapter}/images/scenes/1", f"characters/{story.character()['id']}/image"):
        asked = story.draw(path, run_at=later)
        assert datetime.fromisoformat(story.service.look(asked["job_id"])["run_at"]) == datetime.fromisoformat(later)


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


# --- whose they are, and who tells them -------------------------------------------------------------------------------


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
