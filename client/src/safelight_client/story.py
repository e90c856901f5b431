"""Stories: projects, chapters, scenes and characters, and the pictures drawn of them."""

import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol
from urllib.parse import quote

import httpx

API = "/api/v1"
Json = dict[str, Any]


class StoryCall(Protocol):
    """How the client makes a call. What is not `repeatable` is tried once: a lost answer may hide that it was done."""

    def __call__(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
        json: Json | None = None,
        content: bytes | None = None,
        repeatable: bool = True,
    ) -> httpx.Response: ...


class Stories:
    """The stories of a `Client`, as its `stories`. Each call returns what the API answers."""

    def __init__(self, call: StoryCall) -> None:
        self._call = call
        self.projects = Projects(call, "projects")
        self.chapters = Chapters(call, "chapters")
        self.scenes = Scenes(call, "scenes")
        self.characters = Characters(call, "characters")


class Things:
    """What one noun has in common with the others."""

    def __init__(self, call: StoryCall, noun: str) -> None:
        self._call = call
        self._noun = noun

    def get(self, item_id: str) -> Json:
        """One of them, by its id."""
        return self._call("GET", self._path(item_id)).json()

    def change(self, item_id: str, **fields: Any) -> Json:
        """Set these fields, and return the whole."""
        return self._call("PATCH", self._path(item_id), json=fields).json()

    def delete(self, item_id: str, *, images: Literal["keep", "delete"] = "keep") -> None:
        """Delete it; its pictures are kept, or deleted too. Jobs that have not ended are cancelled."""
        self._call("DELETE", self._path(item_id), params={"images": images}, repeatable=False)

    def _path(self, item_id: str, *rest: str) -> str:
        return "/".join([f"{API}/{self._noun}", quote(item_id, safe=""), *rest])

    def _create(self, path: str, fields: Mapping[str, Any]) -> Json:
        given = {name: value for name, value in fields.items() if value is not None}
        return self._call("POST", path, json=given, repeatable=False).json()

    def _list(self, path: str, **query: str) -> Iterator[Json]:
        while True:
            page = self._call("GET", path, params=query).json()
            yield from page["items"]
            if page["next_cursor"] is None:
                return
            query["cursor"] = page["next_cursor"]

    def _choose(self, item_id: str, artifact_id: str) -> Json:
        return self._call("PUT", self._path(item_id, "image"), json={"artifact_id": artifact_id}).json()

    def _draw(self, path: str, idempotency_key: str | None, fields: Mapping[str, Any]) -> Json:
        headers = {"Idempotency-Key": idempotency_key or str(uuid.uuid4())}
        given = {name: value for name, value in fields.items() if value is not None}
        return self._call("POST", path, headers=headers, json=given).json()


class Projects(Things):
    def create(self, title: str, *, style: str | None = None) -> Json:
        """A new project; `style` goes into the prompt of every picture."""
        return self._create(f"{API}/projects", {"title": title, "style": style})

    def list(self) -> Iterator[Json]:
        """All of yours, newest first."""
        return self._list(f"{API}/projects")


class Chapters(Things):
    def create(self, project_id: str, title: str, *, script: str | None = None) -> Json:
        """A new chapter at the end of a project."""
        return self._create(f"{API}/projects/{project_id}/chapters", {"title": title, "script": script})

    def list(self, project_id: str) -> Iterator[Json]:
        """The chapters of a project, in their order."""
        return self._list(f"{API}/projects/{project_id}/chapters")

    def draw(self, chapter_id: str, scene_number: int, *, idempotency_key: str | None = None, **fields: Any) -> Json:
        """Have a scene drawn. With a `prompt` the chapter may be any id of your own."""
        return self._draw(self._path(chapter_id, "images", "scenes", str(scene_number)), idempotency_key, fields)

    def draw_missing(self, chapter_id: str, *, idempotency_key: str | None = None, **fields: Any) -> Json:
        """Have every scene without a picture drawn, as one batch."""
        return self._draw(self._path(chapter_id, "images"), idempotency_key, fields)

    def status(self, chapter_id: str, scene_number: int) -> Json:
        """The newest job of a scene."""
        return self._call("GET", self._path(chapter_id, "images", "scenes", str(scene_number), "status")).json()

    def images(self, chapter_id: str, scene_number: int | None = None) -> Iterator[Json]:
        """All pictures of a chapter, or of one of its scenes, newest first."""
        query = {} if scene_number is None else {"scene_number": str(scene_number)}
        return self._list(self._path(chapter_id, "images"), **query)


class Scenes(Things):
    def create(
        self,
        chapter_id: str,
        *,
        description: str | None = None,
        scene_number: int | None = None,
        character_ids: Sequence[str] | None = None,
    ) -> Json:
        """A new scene; without a number it becomes the last."""
        fields = {
            "description": description,
            "scene_number": scene_number,
            "character_ids": None if character_ids is None else list(character_ids),
        }
        return self._create(f"{API}/chapters/{chapter_id}/scenes", fields)

    def list(self, chapter_id: str) -> Iterator[Json]:
        """The scenes of a chapter, by number."""
        return self._list(f"{API}/chapters/{chapter_id}/scenes")

    def order(self, chapter_id: str, scene_ids: Sequence[str]) -> None:
        """Number the scenes of a chapter from 1 in this order, which names each of them."""
        self._call("POST", f"{API}/chapters/{chapter_id}/scenes/order", json={"scene_ids": list(scene_ids)})

    def choose(self, scene_id: str, artifact_id: str) -> Json:
        """Show another of its pictures."""
        return self._choose(scene_id, artifact_id)


class Characters(Things):
    def create(self, project_id: str, name: str, *, description: str | None = None) -> Json:
        """A new character of a project; the description is how they look."""
        return self._create(f"{API}/projects/{project_id}/characters", {"name": name, "description": description})

    def list(self, project_id: str) -> Iterator[Json]:
        """The characters of a project."""
        return self._list(f"{API}/projects/{project_id}/characters")

    def draw(self, character_id: str, *, idempotency_key: str | None = None, **fields: Any) -> Json:
        """Have the portrait drawn. The one that is shown stays until the new one is stored."""
        return self._draw(self._path(character_id, "image"), idempotency_key, fields)

    def status(self, character_id: str) -> Json:
        """The newest portrait."""
        return self._call("GET", self._path(character_id, "image", "status")).json()

    def images(self, character_id: str) -> Iterator[Json]:
        """All portraits, newest first."""
        return self._list(self._path(character_id, "images"))

    def choose(self, character_id: str, artifact_id: str) -> Json:
        """Show another portrait."""
        return self._choose(character_id, artifact_id)

    def set_reference(self, character_id: str, picture: bytes, content_type: str) -> Json:
        """Draw portraits from this picture, where the provider takes one."""
        headers = {"Content-Type": content_type}
        return self._call("PUT", self._path(character_id, "reference"), headers=headers, content=picture).json()
