"""What no schema can say: which things this one service has, and what its provider draws.

schemathesis loads this file (`schemathesis.toml`). Right requests are made to name things that exist, in place of those
it made up; wrong ones are sent as they are. Whoever waits for an answer waits a second.
"""

import json
import os
from base64 import b64decode
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import schemathesis

Json = dict[str, Any]
Case = Any  # schemathesis.Case, whose body is whatever the operation takes

KNOWN: Json = json.loads(os.environ.get("SAFELIGHT_TEST_KNOWN", "{}"))  # ids and addresses, by what they are of
SIDE = 64  # pixels: small pictures are soon drawn


@schemathesis.hook
def before_call(context: Any, case: Case, kwargs: Json) -> None:  # pyright: ignore[reportUnusedFunction]
    """Fill in what exists."""
    if case.meta is None or not case.meta.generation.mode.is_positive:
        return
    if isinstance(case.query.get("wait"), int):
        case.query["wait"] = 1
    if "wait" in str(case.headers.get("Prefer", "")):
        case.headers["Prefer"] = "wait=1"
    if "Idempotency-Key" in case.headers:
        case.headers["Idempotency-Key"] = str(uuid4())  # each request is another one
    fill = FILLED.get(case.operation.label)
    if fill is not None:
        fill(case)


def _picture(body: Any) -> None:
    """A picture that the provider takes: here one whose every field the mock plays."""
    if not isinstance(body, dict):
        return
    order: Json = body
    order["provider"] = ["comfyui"] if isinstance(order.get("provider"), list) else "comfyui"
    order |= {name: SIDE for name in ("width", "height") if order.get(name) is not None}
    order["provider_options"] = {"duration_seconds": 0}
    order |= {name: {} for name in ("inputs", "workflow") if order.get(name) is not None}
    if "batch_size" in order:
        order["batch_size"] = 1
    if order.get("run_at") is not None:
        order["run_at"] = (datetime.now(UTC) + timedelta(seconds=5)).isoformat()
        order.pop("start_within_seconds", None)
    if order.get("input_images"):
        order["input_images"] = [KNOWN["artifact"]]
    if order.get("seed") is not None and isinstance(order.get("sampler_params"), dict):
        order["sampler_params"].pop("seed", None)


def _video(body: Any) -> None:
    """A video that is there, for a scene that is there."""
    if isinstance(body, dict):
        body["url"] = KNOWN["video"]
        if body.get("scene_id") is not None:
            body["scene_id"] = KNOWN["scene"]


def _batch(case: Case) -> None:
    for job in case.body["jobs"]:
        _video(job) if job.get("kind") == "media.import" else _picture(job)


def _scene_picture(case: Case) -> None:
    """With a prompt, which is needed where the chapter is none of ours."""
    if not isinstance(case.body, dict):  # null, or none at all
        case.body, case.media_type = {}, "application/json"
    _picture(case.body)
    if case.body.get("prompt") is None:
        case.body["prompt"] = "a lighthouse"


def _retry(case: Case) -> None:
    """Of a picture that failed, or of an import if fields of one are changed."""
    if isinstance(case.body, dict) and case.body.keys() & {"url", "scene_id", "max_height", "audio_only"}:
        case.path_parameters["id"] = KNOWN["failed_import"]
        _video(case.body)
    else:
        case.path_parameters["id"] = KNOWN["failed"]
        _picture(case.body)


def _upload(case: Case) -> None:
    if case.media_type == "application/octet-stream":  # else it is one already
        case.body = b64decode(KNOWN["png"])


def _link(case: Case) -> None:
    case.path_parameters["token"] = KNOWN["link"]


def _stream(noun: str) -> Callable[[Case], None]:
    """One that ends."""

    def fill(case: Case) -> None:
        case.path_parameters["id"] = KNOWN[noun]

    return fill


def _template(case: Case) -> None:
    """Of a workflow that is one, whose inputs are there; under the name in the path."""
    case.body |= {name: KNOWN["template"][name] for name in ("workflow", "inputs")}
    if "name" in case.path_parameters:
        case.path_parameters["name"] = "mine"
        case.body.pop("name", None)


def _cast(case: Case) -> None:
    """Of the scene's own project."""
    case.path_parameters["id"] = KNOWN["chapter" if "chapters" in case.operation.path else "scene"]
    if case.body.get("character_ids"):
        case.body["character_ids"] = [KNOWN["character"]]
    if not case.body.get("description", "").strip():  # of nothing no picture of the chapter could be drawn
        case.body["description"] = "dusk"


def _scenes(case: Case) -> None:
    """All of a chapter's."""
    case.path_parameters["id"] = KNOWN["ordered"]
    case.body["scene_ids"] = KNOWN["scenes"]


def _reference(case: Case) -> None:
    if case.body.get("reference_artifact_id") is not None:
        case.body["reference_artifact_id"] = KNOWN["artifact"]


def _choice_of(noun: str) -> Callable[[Case], None]:
    """One of its own pictures."""

    def fill(case: Case) -> None:
        case.path_parameters["id"] = KNOWN[noun]
        case.body["artifact_id"] = KNOWN[f"{noun}_picture"]

    return fill


API = "/api/v1"
FILLED: dict[str, Callable[[Case], None]] = {
    f"POST {API}/generation-jobs": lambda case: _picture(case.body),
    f"POST {API}/generation-jobs/{{id}}/retry": _retry,
    f"POST {API}/batches": _batch,
    f"POST {API}/media/probe": lambda case: _video(case.body),
    f"POST {API}/media/store": lambda case: _video(case.body),
    f"GET {API}/generation-jobs/{{id}}/events": _stream("failed"),
    f"GET {API}/batches/{{id}}/events": _stream("batch"),
    f"GET {API}/files/{{token}}": _link,
    f"POST {API}/artifacts": _upload,
    f"PUT {API}/characters/{{id}}/reference": _upload,
    f"POST {API}/templates": _template,
    f"PUT {API}/templates/{{name}}": _template,
    f"POST {API}/chapters/{{id}}/scenes": _cast,
    f"PATCH {API}/scenes/{{id}}": _cast,
    f"POST {API}/chapters/{{id}}/scenes/order": _scenes,
    f"PATCH {API}/characters/{{id}}": _reference,
    f"PUT {API}/scenes/{{id}}/image": _choice_of("scene"),
    f"PUT {API}/characters/{{id}}/image": _choice_of("character"),
    f"POST {API}/chapters/{{chapter_id}}/images": lambda case: _picture(case.body),
    f"POST {API}/chapters/{{chapter_id}}/images/scenes/{{scene_number}}": _scene_picture,
    f"POST {API}/characters/{{id}}/image": lambda case: _picture(case.body),
}
