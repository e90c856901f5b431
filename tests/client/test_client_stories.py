"""The client's stories: what is sent where, and what is not sent twice."""

from collections.abc import Iterator
from typing import Any

import pytest

from patience import PATIENCE_SECONDS
from safelight_client import Client, Unreachable
from scripted_api import Answer, ScriptedApi, document

API = "/api/v1"
ID = "0199f1c2-7d2e-7a55-b5d4-6f1f7f0c2b11"


@pytest.fixture
def api() -> Iterator[ScriptedApi]:
    with ScriptedApi().serving() as api:
        yield api


@pytest.fixture
def client(api: ScriptedApi) -> Iterator[Client]:
    with Client(api.url, timeout=PATIENCE_SECONDS, retry_seconds=0.01) as client:
        yield client


def test_each_noun_is_made_where_it_belongs(api: ScriptedApi, client: Client) -> None:
    stories = client.stories
    made: list[tuple[Any, str, dict[str, Any]]] = [
        (lambda: stories.projects.create("T", style="ink"), "/projects", {"title": "T", "style": "ink"}),
        (lambda: stories.chapters.create(ID, "One"), f"/projects/{ID}/chapters", {"title": "One"}),
        (lambda: stories.scenes.create(ID, character_ids=[ID]), f"/chapters/{ID}/scenes", {"character_ids": [ID]}),
        (lambda: stories.characters.create(ID, "Ada"), f"/projects/{ID}/characters", {"name": "Ada"}),
        (lambda: stories.chapters.draw("my own/3", 2, seed=7, width=None), "/chapters/my%20own%2F3/images/scenes/2",
         {"seed": 7}),
        (lambda: stories.chapters.draw_missing(ID), f"/chapters/{ID}/images", {}),
        (lambda: stories.characters.draw(ID, prompt="x"), f"/characters/{ID}/image", {"prompt": "x"}),
    ]  # fmt: skip
    for call, path, body in made:
        api.answer("POST", API + path, document({"id": ID}, 202))
        assert call() == {"id": ID}
        assert (api.requests[-1].path, api.requests[-1].body) == (API + path, body)
    assert [bool("Idempotency-Key" in request.headers) for request in api.requests] == [False] * 4 + [True] * 3


def test_what_may_have_been_made_is_not_made_again(api: ScriptedApi, client: Client) -> None:
    api.answer("POST", f"{API}/projects", Answer(drops=True))
    with pytest.raises(Unreachable):
        client.stories.projects.create("T")
    assert len(api.requests) == 1
    api.answer("POST", f"{API}/characters/{ID}/image", Answer(drops=True), document({"status": "pending"}, 202))
    assert client.stories.characters.draw(ID) == {"status": "pending"}
    assert len({request.headers["Idempotency-Key"] for request in api.requests[1:]}) == 1


def test_a_list_goes_on_to_its_last_page(api: ScriptedApi, client: Client) -> None:
    path = f"{API}/chapters/{ID}/images"
    pages = [{"items": [{"id": "1"}], "next_cursor": "abc"}, {"items": [{"id": "2"}], "next_cursor": None}]
    api.answer("GET", path, *(document(page) for page in pages))
    assert [image["id"] for image in client.stories.chapters.images(ID, 3)] == ["1", "2"]
    assert [request.path for request in api.requests] == [
        f"{path}?scene_number=3",
        f"{path}?scene_number=3&cursor=abc",
    ]
