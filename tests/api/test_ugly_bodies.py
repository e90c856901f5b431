"""The largest and ugliest body that is let in, sent to every operation of the OpenAPI document.

However it is answered, the loop does not stand still meanwhile. That is measured by the processor time of the loop's
own thread between two of its turns, so a busy machine changes nothing.
"""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from api_service import Json, Service
from watchdog import MOST_SECONDS, Watchdog, watched

MOST_BYTES = 1024 * 1024
ID = "00000000-0000-7000-8000-000000000000"
KEYS = {f"k{n}": 0 for n in range(45_000)}
TEMPLATE: dict[str, Any] = {
    "title": "T",
    "workflow": {str(n): {"class_type": "A" * 20, "inputs": {"i": 0}} for n in range(3500)},
    "inputs": {f"i{n}": {"node": str(n), "input": "i", "type": "integer"} for n in range(990)},
}
# Beyond what is made of the schema: right in form, and as large as can be.
MORE: dict[str, list[Any]] = {
    "submitJob": [
        {"prompt": "x", "provider": "comfyui", "workflow": TEMPLATE["workflow"] | {"4000": {"class_type": "A"}}},
        {"prompt": "x", "provider": "comfyui", "workflow": TEMPLATE["workflow"]},
        {"prompt": "x", "template": "txt2img", "provider": "comfyui", "inputs": {f"n{n}": n for n in range(1000)}},
    ],
    "addTemplate": [TEMPLATE | {"name": "ugly"}, {"name": "ugly", "title": "x", "workflow": {"1": {}}, "inputs": KEYS}],
    "putTemplate": [TEMPLATE | {"name": "ugly"}],
    "submitBatch": [{"jobs": [{"prompt": "é" * 3900}] * 1000}, {"jobs": [{"prompt": "x", "metadata": KEYS}] * 2}],
}


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


def ugly_values(document: Json, schema: Json) -> Iterator[Any]:
    """Bodies that are wrong in as many ways as a body can be."""
    yield KEYS
    yield [{}] * 90_000
    kinds = (KEYS, [{}] * 90_000, [1.2345678901234567e-300] * 40_000, "\N{GRINNING FACE}" * 80_000, "\\" * 500_000)
    for number, name in enumerate(resolved(document, schema).get("properties", {})):
        yield {name: kinds[number % len(kinds)]}


def test_the_loop_goes_on_whatever_is_sent(service: Service) -> None:
    with watched(service.api) as watchdog:
        walk(service, watchdog)


def walk(service: Service, watchdog: Watchdog) -> None:
    document = service.http.get("/api/v1/openapi.json").json()
    slow: list[tuple[str, int, int, float]] = []
    known: set[str] = set()
    for method, path, operation in operations(document):
        name = operation["operationId"]
        known.add(name)
        address = path
        for parameter in operation.get("parameters", ()):
            if parameter["in"] == "path":
                address = address.replace(f"{{{parameter['name']}}}", ID)
        query = {each["name"]: "a," * 1000 for each in operation.get("parameters", ()) if each["in"] == "query"}
        contents = operation.get("requestBody", {}).get("content", {})
        bodies: list[tuple[str, bytes]] = [("application/json", b"")]
        for kind, content in contents.items():
            if kind == "application/json":
                values = [*ugly_values(document, content["schema"]), *MORE.get(name, ())]
                bodies += [(kind, json.dumps(value).encode()) for value in values]
            else:
                bodies.append((kind, b"\xff" * (MOST_BYTES - 1)))
        for kind, body in bodies:
            if len(body) > MOST_BYTES and name != "submitBatch":
                body = body[:MOST_BYTES]
            headers = {"Content-Type": kind, "X-Many": "a," * 8000, "If-None-Match": '"a",' * 2000}
            watchdog.read()
            answer = send(service, method, address, query if not body else {}, headers, body)
            worst = watchdog.read()
            assert answer < 500 or answer == 503, (name, answer)
            if worst > MOST_SECONDS:
                slow.append((name, len(body), answer, worst))
    assert not slow
    assert set(MORE) <= known


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
    body = json.dumps({"prompt": "x", "metadata": {"a": "b" * 150_000}}).encode()
    answer: httpx.Response = service.http.post(
        "/api/v1/generation-jobs", content=body, headers={"Content-Type": "application/json"}
    )
    assert (answer.status_code, answer.json()["code"]) == (503, "bodies_held")
    assert answer.headers["Retry-After"]
    assert service.http.post("/api/v1/generation-jobs", json={"prompt": "x"}).status_code == 202
