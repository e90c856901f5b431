"""Characters over HTTP: their portraits, and the reference pictures that they are drawn from."""

import pytest
from story import API, Story, picture


def test_a_portrait_replaces_the_last_one_when_it_is_stored(story: Story) -> None:
    ada = story.character("Ada", description="tall, red hair")
    nothing = story.get(f"characters/{ada['id']}/image/status")
    assert (nothing["status"], nothing["task_id"], nothing["metadata"]) == (None, None, None)
    first = story.portrait(ada["id"], seed=3, metadata={"page": "cast"})
    assert (first["character_id"], first["image_url"]) == (ada["id"], None)
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
