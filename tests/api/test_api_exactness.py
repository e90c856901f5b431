"""Refusals say all that is wrong, and say it exactly: parameters, types, sizes, and every fault of a request."""

import json
import socket
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import httpx
import pytest
import requests
from api_service import JOBS, Json, Service, order
from PIL import Image

BATCHES = "/api/v1/batches"
UPLOADS = "/api/v1/artifacts"
MANY_BYTES = 40_000_000


def pointers(response: httpx.Response) -> list[str]:
    return [error["pointer"] for error in response.json()["errors"]]


# --- queries ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "query", "named", "words"),
    [
        (JOBS, "stauts=failed", ["stauts"], "Did you mean status?"),
        (JOBS, "limit=1&limit=2", ["limit"], "once, not 2 times"),
        (JOBS, "colour=red&zzz=1", ["colour", "zzz"], "There are ids"),
        (BATCHES, "status=failed", ["status"], "There are cursor, limit"),
        ("/api/v1/projects", "%00=1", ["\0"], "There are cursor, limit"),
        ("/api/v1/providers", "x=1", ["x"], "This path takes none"),
    ],
)
def test_a_parameter_that_is_not_taken(service: Service, path: str, query: str, named: list[str], words: str) -> None:
    response = service.http.get(f"{path}?{query}")
    assert (response.status_code, response.json()["code"]) == (400, "invalid_request")
    assert pointers(response) == named
    assert words in response.json()["errors"][0]["detail"]


def test_what_may_be_repeated_is(service: Service) -> None:
    assert service.http.get(f"{JOBS}?status=failed&status=completed&limit=1").status_code == 200


# --- bodies -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "content", "status", "code", "words"),
    [
        ({"Content-Type": "text/plain"}, b"{}", 415, "unsupported_media_type", "not 'text/plain'"),
        ({"Content-Type": "text/json"}, b"{}", 415, "unsupported_media_type", "application/json"),
        ({}, b"{}", 400, "not_json", "application/json"),
        ({"Content-Encoding": "gzip"}, b"\x1f\x8b", 415, "unsupported_content_encoding", "'gzip'"),
        ({"Content-Type": "application/json"}, b'{"seed": ' + b"9" * 5000 + b"}", 400, "malformed_json", "1000 digits"),
        ({"Content-Type": "application/json"}, b'{"a": "\xff"}', 400, "malformed_json", "UTF-8"),
        ({"Content-Type": "application/json"}, '{"prompt": "a"}'.encode("utf-16"), 400, "malformed_json", "UTF-8"),
        (
            {"Content-Type": "application/json"},
            b'{"a": {"b": 1, "c": 2, "b": 1}}',
            400,
            "malformed_json",
            "'b' stands twice",
        ),
        ({"Content-Type": "application/json"}, b"[" * 50_000, 400, "malformed_json", "too deeply"),
        ({"Content-Type": "application/vnd.x+json; charset=utf-8"}, b"{}", 422, "invalid_request", "prompt"),
    ],
)
def test_a_body_that_cannot_be_read(
    service: Service, headers: dict[str, str], content: bytes, status: int, code: str, words: str
) -> None:
    response = service.http.post(JOBS, content=content, headers=headers)
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert words in response.json()["detail"]


@pytest.mark.parametrize(
    ("path", "content_type", "status"),
    [(JOBS, "application/json", 413), (UPLOADS, "image/png", 413), (UPLOADS, "image/gif", 415)],
)
def test_clients_see_why_a_large_body_is_refused(service: Service, path: str, content_type: str, status: int) -> None:
    """They send everything before they read: a connection that is closed at once would be a reset to them."""
    url, headers = service.api.url + path, {"Content-Type": content_type}
    content = bytes(MANY_BYTES)
    assert service.http.post(url, content=content, headers=headers).status_code == status
    assert requests.post(url, data=content, headers=headers, timeout=60).status_code == status

    def pieces() -> Iterator[bytes]:
        for _ in range(40):
            yield content[:1_000_000]

    assert requests.post(url, data=pieces(), headers=headers, timeout=60).status_code == status


def test_whoever_asks_first_need_not_send_a_large_body(service: Service) -> None:
    with socket.create_connection(("127.0.0.1", service.api.port), timeout=60) as connection:
        connection.sendall(
            f"POST {JOBS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {MANY_BYTES}\r\nExpect: 100-continue\r\n\r\n".encode()
        )
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"100 Continue" not in answer


# --- all faults -------------------------------------------------------------------------------------------------------

WRONG: list[tuple[Json, list[str]]] = [
    (
        {"width": 17, "height": 17, "model": "darkrom", "template": "x", "provider_options": {"a": 1, "b": 2}},
        ["#/model", "#/width", "#/height", "#/template", "#/provider_options/a", "#/provider_options/b"],
    ),
    ({"provider": ["mokc", "comfi"]}, ["#/provider", "#/provider"]),
    (
        {"provider_options": {"mock": {"hagn": 1, "chrash": 2}}},
        ["#/provider_options/mock/hagn", "#/provider_options/mock/chrash"],
    ),
]


@pytest.mark.parametrize(("fields", "named"), WRONG)
def test_every_fault_is_told_at_once(service: Service, fields: Json, named: list[str]) -> None:
    response = service.http.post(JOBS, json=order() | fields)
    assert (response.status_code, pointers(response)) == (422, named)


def test_of_every_job_of_a_batch(service: Service) -> None:
    jobs: list[Any] = [order() | fields for fields, _ in WRONG]
    response = service.http.post(BATCHES, json={"jobs": [order(), *jobs]})
    named = [f"#/jobs/{place}{each[1:]}" for place, (_, told) in enumerate(WRONG, 1) for each in told]
    assert (response.status_code, pointers(response)) == (422, named)


def test_very_many_faults_are_counted(service: Service) -> None:
    response = service.http.post(JOBS, json=order() | {f"unknown{number}": 1 for number in range(60)})
    assert len(pointers(response)) == 50
    assert "50 of 60 errors" in response.json()["detail"]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400"])
@pytest.mark.parametrize("field", ["workflow", "inputs", "provider_options", "width", "timeout_seconds"])
def test_numbers_that_json_does_not_have(service: Service, field: str, number: str) -> None:
    value = number if field in ("width", "timeout_seconds") else f'{{"a": {{"b": [1, {number}]}}}}'
    rest = {name: given for name, given in order().items() if name != field}
    content = json.dumps(rest)[:-1] + f', "{field}": {value}}}'
    response = service.http.post(JOBS, content=content.encode(), headers={"Content-Type": "application/json"})
    assert response.status_code == 422
    assert pointers(response)[0] == f"#/{field}"


# --- uploads of clients that know no picture types --------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_picture_may_be_sent_as_mere_bytes(service: Service, kind: str) -> None:
    picture = BytesIO()
    Image.new("RGB", (8, 8), "teal").save(picture, kind)
    headers = {"Content-Type": "application/octet-stream"}
    stored = service.http.post(UPLOADS, content=picture.getvalue(), headers=headers)
    assert stored.status_code == 201
    refused = service.http.post(UPLOADS, content=b"no picture", headers=headers)
    assert (refused.status_code, refused.headers["content-type"]) == (422, "application/problem+json")
