"""The largest and the ugliest bodies that are let in: for every operation that takes one, in every way that is allowed.

`bodies` names the operations one by one, so that a new one without a body here fails its test.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from api_service import JOBS, Json, Service

KIB = 1024
MIB = KIB * KIB
GRIN = "\N{GRINNING FACE}"  # four bytes, and two units of UTF-16
NOBODY = "http://127.0.0.1:1"  # where no server is
SECRET = "0123456789abcdef0123456789abcdef"  # of the webhooks

# Right in form, and as large as may be.
WORKFLOW: Json = {
    f"{n:04}": {"class_type": "Lüster", "inputs": {"near": [f"{n - 1:04}", 0] if n else 1, "text": "é" * 15}}
    for n in range(5000)
}
METADATA = {f"{n:02}" + "n" * 90: "é" * 600 for n in range(50)}
INPUTS = {f"input-{n:04}": "x" * 46 for n in range(1000)}
PROMPTS = {"prompt": GRIN * 100_000, "negative_prompt": GRIN * 100_000}
TEMPLATE: Json = {
    "title": "é" * 200,
    "description": GRIN * 4000,
    "workflow": {f"{n:04}": {"class_type": "Lüster", "inputs": {"near": 0, "input": 0}} for n in range(1900)},
    "inputs": {
        f"input-{n:04}": {"node": f"{n:04}", "input": "input", "type": "string", "description": "é" * 15}
        for n in range(1000)
    },
}
# Wrong in as many ways as they can be.
KEYS = {f"k{n}": 0 for n in range(45_000)}
NEAR = {f"input-{n:04}x": n for n in range(1000)}  # each nearly the name of one that is there
LINKS_NOWHERE = {key: node | {"inputs": {"near": [f"{key}x", 0]}} for key, node in WORKFLOW.items()}
CIRCLE = WORKFLOW | {"0000": {"class_type": "Lüster", "inputs": {"near": ["4999", 0]}}}
STRANGE_NODES = TEMPLATE | {
    "inputs": {name: each | {"node": f"{each['node']}x"} for name, each in TEMPLATE["inputs"].items()}
}
KINDS = (KEYS, [{}] * 90_000, [1.2345678901234567e-300] * 40_000, GRIN * 80_000, "\\" * 500_000)


@dataclass(frozen=True)
class Stage:
    """What there is for operations to be about."""

    ids: Mapping[str, str]
    failed: str

    @classmethod
    def of(cls, service: Service) -> "Stage":
        project = _made(service, "/api/v1/projects", {"title": "x"})
        chapter = _made(service, f"/api/v1/projects/{project}/chapters", {"title": "x"})
        scene = _made(service, f"/api/v1/chapters/{chapter}/scenes", {"scene_number": 1, "description": "x"})
        character = _made(service, f"/api/v1/projects/{project}/characters", {"name": "x", "description": "x"})
        _made(service, f"/api/v1/chapters/{chapter}/scenes", {"scene_number": 2, "description": "x"})
        _made(service, "/api/v1/templates/ugly", TEMPLATE, "PUT")
        job = service.hold()
        assert service.http.post(f"{JOBS}/{job}/cancel").status_code == 200
        batch = service.submit_batch({"prompt": "x"})["id"]
        nouns = {
            "projects": project,
            "chapters": chapter,
            "scenes": scene,
            "characters": character,
            "generation-jobs": job,
            "batches": batch,
        }
        return cls(nouns, job)

    def address(self, path: str) -> str:
        """The path with something there that it leads to."""
        noun = path.split("/")[3] if path.startswith("/api/") else ""
        known = self.ids.get(noun, "00000000-0000-7000-8000-000000000000")
        values = {"id": known, "chapter_id": known, "scene_number": "1", "name": "ugly", "secret": SECRET}
        for name, value in (values | {"width": "512", "token": "x"}).items():
            path = path.replace(f"{{{name}}}", value)
        return path


def _made(service: Service, path: str, body: Json, method: str = "POST") -> str:
    answer = service.http.request(method, path, json=body)
    assert answer.status_code == 201, answer.text
    return answer.json().get("id", "")


def bodies() -> dict[str, list[tuple[Any, int]]]:
    """For each operation that takes JSON what is sent to it, and the status of its answer: first the largest that is
    taken, then what is wrong in its own ways."""
    noted = {"metadata": METADATA}
    drawn = noted | {"provider": "comfyui", "workflow": WORKFLOW}
    picture: list[tuple[Any, int]] = [
        (drawn, 202),
        (drawn | {"workflow": LINKS_NOWHERE}, 422),
        (drawn | {"workflow": CIRCLE}, 422),
        ({"provider": "comfyui", "template": "ugly", "inputs": NEAR}, 422),
    ]
    plain = {"width": None, "height": None, "model": None, "provider_options": {}}  # a workflow takes none of them
    ids = [f"00000000-0000-7000-8000-{n:012}" for n in range(1000)]
    title, name = {"title": GRIN * 300}, {"name": GRIN * 200}
    url = "https://example.com/" + "%C3%A9" * 330
    return {
        "submitJob": [
            (PROMPTS | noted, 202),
            ({"prompt": "x", "provider": "comfyui", "template": "ugly", "inputs": INPUTS}, 202),
            *(({"prompt": "x"} | body, status) for body, status in picture),
        ],
        "retryJob": [(PROMPTS | noted, 202), *((body | plain, status) for body, status in picture)],
        "submitBatch": [
            ({"metadata": METADATA, "jobs": [{"prompt": GRIN * 2000}] * 1000}, 202),
            ({"jobs": [{"prompt": "x"} | drawn] + [{"prompt": GRIN * 1900}] * 990}, 202),
            ({"jobs": [{"prompt": "x", "provider": "comfyui", "template": "ugly"}] * 100}, 202),
            ({"jobs": [{"prompt": "x", "provider": "comfyui", "template": "ugly"}] * 1000}, 413),
            ({"jobs": [{"prompt": "x", "provider": "comfyui", "template": "ugly", "inputs": NEAR}] * 45}, 422),
            ({"jobs": [{"prompt": "x"} | drawn | {"workflow": CIRCLE}]}, 422),
            ({"jobs": [{"prompt": "x", "metadata": KEYS}]}, 422),
        ],
        "createProject": [(title | {"style": GRIN * 1000}, 201)],
        "changeProject": [(title | {"style": GRIN * 1000}, 200)],
        "createChapter": [(title | {"script": GRIN * 100_000}, 201)],
        "changeChapter": [(title | {"script": GRIN * 100_000}, 200)],
        "createCharacter": [(name | {"description": GRIN * 2000}, 201)],
        "changeCharacter": [(name | {"description": GRIN * 2000}, 200)],
        "createScene": [({"description": GRIN * 2000}, 201), ({"character_ids": ids}, 422)],
        "changeScene": [({"description": GRIN * 2000}, 200), ({"character_ids": ids}, 422)],
        "orderScenes": [({"scene_ids": ids}, 422), ({"scene_ids": ids * 26}, 422)],
        "drawScene": [(PROMPTS | noted, 202), *picture],
        "drawCharacter": [(PROMPTS | noted, 202), *picture],
        "drawChapter": picture[::-1],  # the first one that is taken leaves nothing to draw
        "chooseSceneImage": [({"artifact_id": ids[0]}, 422)],
        "chooseCharacterImage": [({"artifact_id": ids[0]}, 422)],
        "createKey": [({"name": GRIN * 200, "scopes": ["read"] * 90_000}, 201)],
        "addTemplate": [
            (TEMPLATE | {"name": "new"}, 201),
            (STRANGE_NODES | {"name": "strange"}, 422),
            (TEMPLATE | {"name": "strange", "inputs": {f"{n}": 0 for n in range(9000)}}, 422),
        ],
        "putTemplate": [(TEMPLATE, 200), (STRANGE_NODES, 422), (TEMPLATE | {"workflow": CIRCLE}, 422)],
        "importMedia": [({"url": url, "metadata": METADATA}, 202)],
        "probeMedia": [({"url": url.replace("example.com", "127.0.0.1")}, 422)],
        "reportComfyuiPrompt": [({"prompt_id": "x" * 1_000_000}, 400)],
    }
