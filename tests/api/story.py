"""A project of a service, in the words of a test."""

from io import BytesIO
from typing import Any

from api_service import Json, Service, order
from PIL import Image

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


def picture() -> bytes:
    data = BytesIO()
    Image.linear_gradient("L").resize((64, 64)).convert("RGB").save(data, "PNG")
    return data.getvalue()
