"""The largest and ugliest body that is let in, sent to every operation of the OpenAPI document: see `ugly`.

In the short form each operation gets the largest body that it takes, and a share of the others.

However it is answered, the loop does not stand still meanwhile. That is measured by the processor time of the loop's
own thread between two of its turns, so a busy machine changes nothing.
"""

from collections.abc import Iterator
from typing import Any

import httpx
import orjson
import pytest
import ugly
from api_service import Json, Service
from ugly import KEYS, KIB, KINDS, MIB, Stage
from watchdog import MOST_SECONDS, watched

JSON = "application/json"
HEADERS = {"X-Many": "a," * 8000, "If-None-Match": '"a",' * 2000}


def operations(document: Json) -> Iterator[tuple[str, str, Json]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if method in ("get", "post", "put", "patch", "delete"):
                yield method, path, operation


def resolved(document: Json, schema: Json) -> Json:
    """The schema itself, of several the first that is an object."""
    while "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    for part in schema.get("anyOf", ()):
        inner = resolved(document, part)
        if inner.get("type") == "object":
            return inner
    return schema


def wrong_everywhere(document: Json, schema: Json) -> Iterator[Any]:
    """Bodies that are wrong in as many ways as a body can be."""
    yield KEYS
    yield [{}] * 90_000
    for number, name in enumerate(resolved(document, schema).get("properties", {})):
        yield {name: KINDS[number % len(KINDS)]}


@pytest.mark.parametrize("share", [6, pytest.param(1, marks=pytest.mark.long, id="everything")])
def test_the_loop_goes_on_whatever_is_sent(make_service: Any, share: int) -> None:
    service: Service = make_service(
        worker=False, webhook_secret=ugly.SECRET, mock_mode=False, comfyui_urls=[ugly.NOBODY], default_provider="mock"
    )
    document = service.http.get("/api/v1/openapi.json").json()
    stage, bodies = Stage.of(service), ugly.bodies()
    taking = {operation["operationId"] for *_, operation in operations(document) if takes_json(operation)}
    assert set(bodies) == taking, "each operation that takes JSON has a body of its own in `ugly`, and no other has"
    slow: list[str] = []
    wrong: list[str] = []
    with watched(service.api) as watchdog:
        for number, (method, path, operation) in enumerate(operations(document)):
            name, address = operation["operationId"], stage.address(path if method != "delete" else "")
            query = {each["name"]: "a," * 1000 for each in operation.get("parameters", ()) if each["in"] == "query"}
            contents = operation.get("requestBody", {}).get("content", {})
            sent: list[tuple[str, Any, int | None]] = [(kind, b"\xff" * 25 * MIB, None) for kind in list(contents)[:1]]
            if not contents and method != "get":  # it takes none, or does not say so
                sent.append((JSON, KEYS, None))
            if JSON in contents:
                sent += [(JSON, value, None) for value in wrong_everywhere(document, contents[JSON]["schema"])]
            own = [(JSON, value, status) for value, status in bodies[name]] if JSON in contents else []
            others = [*sent, *own[1:]]
            for kind, value, expected in [*own[:1], *others[number % share :: share], (JSON, b"", None)]:
                body = value if isinstance(value, bytes) else orjson.dumps(value)
                headers = HEADERS | {"Content-Type": kind}
                watchdog.read()
                answer = send(service, method, address, query if not body else {}, headers, body)
                worst = watchdog.read()
                if worst > MOST_SECONDS:
                    slow.append(f"{name}: {len(body)} bytes, {answer}, {worst:.3f} s")
                if answer != expected if expected else answer >= 500 and answer != 503:
                    wrong.append(f"{name}: {len(body)} bytes, {answer} instead of {expected}")
    assert not slow
    assert not wrong


def test_the_bodies_are_as_large_as_they_may_be() -> None:
    for body, most in (
        (ugly.WORKFLOW, 512 * KIB),
        (ugly.TEMPLATE, 256 * KIB),
        (ugly.METADATA, 64 * KIB),
        (ugly.INPUTS, 64 * KIB),
        (ugly.bodies()["submitBatch"][0][0], 8 * MIB),
        (ugly.bodies()["submitJob"][0][0], MIB),
    ):
        assert 0.8 * most < len(orjson.dumps(body)) <= most
    assert len(ugly.WORKFLOW) == 5000
    assert len(ugly.TEMPLATE["inputs"]) == len(ugly.INPUTS) == len(ugly.bodies()["submitBatch"][0][0]["jobs"]) == 1000


def takes_json(operation: Json) -> bool:
    return JSON in operation.get("requestBody", {}).get("content", {})


def send(service: Service, method: str, path: str, query: Json, headers: dict[str, str], body: bytes) -> int:
    """The status; of a stream that does not end, only its beginning is waited for."""
    with service.http.stream(method, path, params=query, headers=headers, content=body, timeout=60) as response:
        if not response.headers.get("content-type", "").startswith("text/event-stream"):
            response.read()
        return response.status_code


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"[" + b"{}," * 120_000 + b"{}]", "too_many_values"),
        (b'{"a":[' + b"0," * 150_000 + b"0]}", "too_many_values"),
        (b"{" + b",".join(b'"%d":""' % n for n in range(60_000)) + b"}", "too_many_values"),
        (b'["' + b"\\u002c," * 100_000 + b'"]', "invalid_request"),
        (b'["' + b'\\",:[{' * 90_000 + b'"]', "invalid_request"),
    ],
    ids=["objects", "numbers", "members", "commas in a text", "quotes in a text"],
)
def test_values_are_counted_and_texts_are_not(service: Service, body: bytes, code: str) -> None:
    answer = service.http.post(
        "/api/v1/generation-jobs", content=body, headers={"Content-Type": "application/json"}, timeout=60
    )
    assert answer.json()["code"] == code
    assert answer.status_code == (413 if code == "too_many_values" else 422)


def test_not_more_errors_are_told_than_the_bound(service: Service) -> None:
    body = {"prompt": "x", **{f"k{n}": 0 for n in range(90)}}
    assert len(service.http.post("/api/v1/generation-jobs", json=body).json()["errors"]) == 50
    many = service.http.post("/api/v1/generation-jobs", json=body | KEYS, timeout=60)
    assert (many.status_code, len(many.json()["errors"])) == (422, 1)
    assert "at most 100 fields" in many.text


def test_bodies_beyond_what_a_process_holds_wait(make_service: Any) -> None:
    service = make_service(worker=False, max_held_bytes=100_000)
    body = orjson.dumps({"prompt": "x", "metadata": {"a": "b" * 150_000}})
    answer: httpx.Response = service.http.post(
        "/api/v1/generation-jobs", content=body, headers={"Content-Type": "application/json"}
    )
    assert (answer.status_code, answer.json()["code"]) == (503, "bodies_held")
    assert answer.headers["Retry-After"]
    assert service.http.post("/api/v1/generation-jobs", json={"prompt": "x"}).status_code == 202
