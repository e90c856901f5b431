"""The plain routes answer as the documented ones do. A query, or a type with a charset, takes the documented way."""

import uuid
from typing import Any

import httpx
import pytest
from api_service import JOBS, Service, order

DOCUMENTED = {"wait": "1"}
WITH_CHARSET = {"Content-Type": "application/json; charset=utf-8"}
JSON = {"Content-Type": "application/json"}


def told(response: httpx.Response) -> tuple[int, Any, dict[str, str]]:
    """What a client may rely on; ids of requests differ, and each look has its own moment."""
    body = response.json() if response.content else None
    if isinstance(body, dict):
        body.pop("request_id", None)
    kept = ("content-type", "etag", "location", "retry-after", "idempotency-replayed", "cache-control")
    return response.status_code, body, {name: response.headers[name] for name in kept if name in response.headers}


def test_a_look(service: Service) -> None:
    url = f"{JOBS}/{service.make()['id']}"
    plain = service.http.get(url)
    assert told(plain) == told(service.http.get(url, params=DOCUMENTED))
    known = {"If-None-Match": plain.headers["etag"]}
    assert service.http.get(url, headers=known).status_code == 304
    assert service.http.get(url.upper().replace(JOBS.upper(), JOBS)).json()["id"] == plain.json()["id"]


@pytest.mark.parametrize("job_id", ["nothing", str(uuid.UUID(int=7))])
def test_a_look_at_nothing(service: Service, job_id: str) -> None:
    url = f"{JOBS}/{job_id}"
    assert told(service.http.get(url)) == told(service.http.get(url, params=DOCUMENTED))


def test_a_submit(service: Service) -> None:
    headers = {"Idempotency-Key": uuid.uuid4().hex, "Prefer": "wait=30"}
    plain = service.http.post(JOBS, json=order(), headers=headers)
    again = service.http.post(JOBS, json=order(), headers=headers | WITH_CHARSET)
    assert plain.status_code == again.status_code == 202
    assert plain.json() == again.json()
    assert plain.headers["location"] == again.headers["location"]
    assert plain.headers["preference-applied"] == "wait=30"
    assert "idempotency-replayed" not in plain.headers and again.headers["idempotency-replayed"] == "true"


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"", JSON),
        (b"{", JSON),
        (b"[]", JSON),
        (b"null", JSON),
        (b'"text"', JSON),
        (b'{"prompt": "\xff"}', JSON),
        (b'{"prompt": " "}', JSON),
        (b'{"prompt": "a", "seed": 1.5}', JSON),
        (b'{"prompt": "a", "seed": 99999999999999999999999}', JSON),
        (b'{"prompt": "a", "width": NaN}', JSON),
        (b'{"prompt": "a", "unknown": 1}', JSON),
        (b'{"prompt": "a", "provider": "nobody"}', JSON),
        (b"[" * 50_000, JSON),
        (b'{"prompt": "a", "prompt": "b"}', JSON),
        ('{"prompt": "a"}'.encode("utf-16"), JSON),
        (b'{"prompt": "a"}', {"Content-Type": "text/plain"}),
        (b'{"prompt": "a"}', {}),
        (b'{"prompt": "a"}', JSON | {"Prefer": "wait=never"}),
        (b'{"prompt": "a"}', JSON | {"Idempotency-Key": "not visible"}),
    ],
)
def test_a_bad_submit(service: Service, body: bytes, headers: dict[str, str]) -> None:
    plain = service.http.post(JOBS, content=body, headers=headers)
    assert plain.status_code >= 400
    documented = headers | WITH_CHARSET if headers.get("Content-Type") == JSON["Content-Type"] else headers
    assert told(plain) == told(service.http.post(JOBS, content=body, headers=documented))


def test_other_methods(service: Service) -> None:
    for method in ("PUT", "DELETE"):
        assert service.http.request(method, JOBS).status_code == 405
    url = f"{JOBS}/{service.make()['id']}"
    plain, documented = service.http.head(url), service.http.head(url, params=DOCUMENTED)
    assert told(plain) == told(documented)
    assert plain.headers["content-length"] == documented.headers["content-length"] != "0"
