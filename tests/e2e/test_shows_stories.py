"""A storyboard and a cast through the real stack, on both kinds of ground."""

import hashlib
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from installation import Ground

from patience import await_true
from safelight_client.event import EventReader

API = "/api/v1"
Json = dict[str, Any]


@pytest.fixture
def http(ground: Ground) -> Iterator[httpx.Client]:
    with ground.http(base_url=ground.stack.url) as client:
        yield client


def make(http: httpx.Client, path: str, **body: Any) -> str:
    answer = http.post(f"{API}/{path}", json=body)
    assert answer.status_code == 201, answer.text
    return answer.json()["id"]


def drawing(seconds: float, **mock: Any) -> Json:
    options: Json = {"duration_seconds": seconds, **({"mock": mock} if mock else {})}
    return {"width": 64, "height": 64, "provider_options": options}


def assert_is_there(http: httpx.Client, image: Json) -> None:
    content = http.get(image["url"], follow_redirects=True).content
    assert hashlib.sha256(content).hexdigest() == image["sha256"]


def test_a_storyboard_of_three_scenes(http: httpx.Client) -> None:
    project = make(http, "projects", title="The keeper", style="ink and watercolour")
    chapter = make(http, f"projects/{project}/chapters", title="The storm", script="EXT. LIGHTHOUSE. DUSK.")
    ada = make(http, f"projects/{project}/characters", name="Ada", description="tall, red hair")
    bob = make(http, f"projects/{project}/characters", name="Bob", description="old, a grey beard")
    for number, cast in enumerate(([ada], [ada, bob], []), 1):
        make(
            http,
            f"chapters/{chapter}/scenes",
            scene_number=number,
            description=f"What happens in scene {number}",
            character_ids=cast,
        )
    answer = http.post(f"{API}/chapters/{chapter}/images", json=drawing(0.5))
    assert answer.status_code == 202, answer.text
    batch = answer.json()

    told: list[str] = []
    ends: dict[str, int] = {}
    with http.stream("GET", batch["urls"]["events"]) as stream:
        for event in EventReader().read(stream.iter_raw()):
            told.append(event.type)
            if event.type == "job.completed":
                ends[event.data["job_id"]] = event.data["scene_number"]
    assert sorted(ends.values()) == [1, 2, 3]
    assert told[-1].startswith("batch.")

    # A page that is loaded anew.
    scenes = http.get(f"{API}/chapters/{chapter}/scenes").json()["items"]
    assert [scene["image_status"] for scene in scenes] == ["completed"] * 3
    for scene in scenes:
        assert_is_there(http, scene["image"])
        status = http.get(f"{API}/chapters/{chapter}/images/scenes/{scene['scene_number']}/status").json()
        assert (status["status"], status["image_url"]) == ("completed", scene["image_url"])
        assert ends[scene["image_job_id"]] == scene["scene_number"]
    listed = http.get(f"{API}/chapters/{chapter}/images").json()["items"]
    assert {image["url"] for image in listed} == {scene["image_url"] for scene in scenes}
    second = http.get(f"{API}/generation-jobs/{scenes[1]['image_job_id']}").json()
    assert second["prompt"] == (
        "What happens in scene 2\nAda: tall, red hair; Bob: old, a grey beard\nink and watercolour"
    )
    assert http.post(f"{API}/chapters/{chapter}/images").json()["code"] == "nothing_to_draw"


def test_six_portraits_at_once_of_which_one_fails(http: httpx.Client) -> None:
    project = make(http, "projects", title="The cast")
    names = ["Ada", "Bob", "Cyd", "Dee", "Eve", "Fay"]
    cast = [make(http, f"projects/{project}/characters", name=name, description="tall") for name in names]
    unlucky = cast[-1]
    first = http.post(f"{API}/characters/{unlucky}/image", json=drawing(0.0)).json()
    http.get(first["urls"]["job"], params={"wait": 60})
    old = http.get(f"{API}/characters/{unlucky}").json()
    assert old["image_status"] == "completed"

    for character in cast:
        script = {"refuse": "no portraits today"} if character == unlucky else {}
        answer = http.post(f"{API}/characters/{character}/image", json=drawing(0.5, **script))
        assert (answer.status_code, answer.json()["character_id"]) == (202, character), answer.text

    def rows() -> list[Json]:
        return http.get(f"{API}/projects/{project}/characters").json()["items"]

    await_true(lambda: all(row["image_status"] in ("completed", "failed") for row in rows()))
    *lucky, last = rows()
    assert [row["image_status"] for row in lucky] == ["completed"] * 5
    for row in lucky:
        assert_is_there(http, row["image"])
    assert len({row["image_url"] for row in lucky}) == 5
    assert (last["image_status"], last["image_url"]) == ("failed", old["image_url"])
    assert last["image_error"]["message"] == "no portraits today"
    assert_is_there(http, last["image"])
    status = http.get(f"{API}/characters/{unlucky}/image/status").json()
    assert (status["status"], status["error"]["code"], status["image_url"]) == (
        "failed",
        "content_rejected",
        old["image_url"],
    )
