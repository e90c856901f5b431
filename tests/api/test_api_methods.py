"""HTTP as its users know it: HEAD and OPTIONS everywhere, complete `Allow`, paths with and without a slash, `Host`."""

import socket
import uuid
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from api_service import BATCHES, JOBS, Service
from guarded_service import Guarded, served

from servers import ValkeyServer

HEALTH = ("/health/live", "/health/ready", "/api/v1/health/live", "/api/v1/health/ready")


@pytest.fixture(scope="module")
def guarded(
    api_valkey: ValkeyServer, tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path
) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("guarded")
    database = folder / "safelight.db"
    database.write_bytes(sqlite_template.read_bytes())
    with served(folder, api_valkey, f"sqlite:///{database}") as running:
        yield running


def raw(service: Service, *lines: str) -> str:
    """What is answered to a request written by hand."""
    with socket.create_connection(("127.0.0.1", service.api.port), timeout=60) as connection:
        connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        answer = b""
        while part := connection.recv(65536):
            answer += part
    return answer.decode()


# --- HEAD -------------------------------------------------------------------------------------------------------------


def test_head_is_possible_wherever_get_is(service: Service) -> None:
    job = service.make()
    batch = service.submit_batch({"prompt": "a lighthouse", "width": 64, "height": 64})
    values = {"{id}": job["id"], "{name}": "mock", "{width}": "256"}
    document = service.http.get("/api/v1/openapi.json").json()
    seen = 0
    for path, operations in document["paths"].items():
        if "get" not in operations or "{token}" in path:
            continue
        url = path.replace("{id}", batch["id"]) if path.startswith(BATCHES) else path
        for name, value in values.items():
            url = url.replace(name, value)
        if "/artifacts/" in url:
            url = url.replace(job["id"], job["artifacts"][0]["id"])
        with service.http.stream("GET", url) as got:
            head = service.http.head(url)
            assert (head.status_code, head.content) == (got.status_code, b""), url
            assert head.headers.get("content-type") == got.headers.get("content-type"), url
        seen += 1
    assert seen > 20


@pytest.mark.parametrize("kind", ["job", "batch", "ended job"])
def test_head_of_a_stream_ends_at_once(idle: Service, service: Service, kind: str) -> None:
    if kind == "job":
        response = idle.http.head(f"{JOBS}/{idle.hold()}/events")
    elif kind == "batch":
        response = idle.http.head(f"{BATCHES}/{idle.hold_batch({'prompt': 'a'})['id']}/events")
    else:
        response = service.http.head(f"{JOBS}/{service.make()['id']}/events")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.content == b""


def test_head_tells_what_is_missing(service: Service) -> None:
    missing = f"{JOBS}/{uuid.UUID(int=7)}"
    for url in (missing, f"{missing}/events", "/api/v1/nothing"):
        assert service.http.head(url).status_code == service.http.get(url).status_code == 404
    assert service.http.head(f"{missing}/cancel").status_code == 405


def test_head_of_a_file_that_is_gone_is_that_of_its_get(service: Service) -> None:
    artifact = service.make()["artifacts"][0]
    link = service.http.post(f"/api/v1/artifacts/{artifact['id']}/link").json()["url"]
    assert service.http.head(link).headers["content-length"] == str(artifact["size_bytes"])
    service.http.delete(f"/api/v1/artifacts/{artifact['id']}")
    assert service.http.head(link).status_code == service.http.get(link).status_code == 404


# --- Allow, OPTIONS, slashes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        (JOBS, {"GET", "HEAD", "POST", "OPTIONS"}),
        (f"{JOBS}/{uuid.UUID(int=7)}", {"GET", "HEAD", "DELETE", "OPTIONS"}),
        ("/api/v1/projects/x", {"GET", "HEAD", "PATCH", "DELETE", "OPTIONS"}),
        ("/api/v1/templates/x", {"GET", "HEAD", "PUT", "DELETE", "OPTIONS"}),
        ("/health/live", {"GET", "HEAD", "OPTIONS"}),
        ("/", {"GET", "HEAD", "OPTIONS"}),
        (f"{JOBS}/x/cancel", {"POST", "OPTIONS"}),
    ],
)
def test_a_method_that_is_not_possible_is_told_which_are(service: Service, path: str, allowed: set[str]) -> None:
    refused = service.http.request("TRACE", path)
    assert refused.status_code == 405
    assert set(refused.headers["allow"].split(", ")) == allowed
    asked = service.http.options(path)
    assert (asked.status_code, asked.content) == (204, b"")
    assert set(asked.headers["allow"].split(", ")) == allowed


def test_options_of_nothing(service: Service) -> None:
    assert service.http.options("/api/v1/nothing").status_code == 404


def test_a_slash_at_the_end_makes_no_difference(service: Service) -> None:
    job_id = service.make()["id"]
    for path in (JOBS, f"{JOBS}/{job_id}", f"{JOBS}/{job_id}/attempts", "/health/live", "/api/v1/docs", "/api/v1/keys"):
        with_slash, without = service.http.get(f"{path}/"), service.http.get(path)
        assert with_slash.status_code == without.status_code == 200, path
        if with_slash.headers["content-type"] == "application/json" and path != JOBS:
            assert with_slash.json() == without.json(), path
    created = service.http.post(f"{JOBS}/", json={"prompt": "a", "width": 64, "height": 64})
    assert created.status_code == 202
    assert created.headers["location"] == f"{JOBS}/{created.json()['id']}"
    assert service.http.post("/api/v1/projects/", json={"title": "x"}).status_code == 201
    assert service.http.get(f"{JOBS}//").status_code == 404


def test_a_slash_lets_nobody_in(guarded: Guarded) -> None:
    for path in (f"{JOBS}/", "/api/v1/keys/", "/api/v1/nothing/"):
        assert guarded.nobody.get(path).status_code == 401
    for path in ("/health/ready/", "/api/v1/docs/", "/api/v1/openapi.json/"):
        assert guarded.nobody.get(path).status_code == 200


# --- Host -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", HEALTH)
@pytest.mark.parametrize("host", ["10.244.0.5:8080", "evil.example", "[fd00::7]", ""])
def test_a_probe_may_call_us_anything(service: Service, path: str, host: str) -> None:
    response = httpx.get(service.api.url + path, headers={"Host": host}, timeout=60)
    assert response.status_code == 200
    assert set(response.json()) == {"status"}  # no part, no queue, no error of ours
    assert service.http.get(JOBS, headers={"Host": host}).status_code == 421


@pytest.mark.parametrize("path", HEALTH)
def test_a_probe_may_be_as_old_as_http_1_0(service: Service, path: str) -> None:
    answer = raw(service, f"GET {path} HTTP/1.0")
    assert answer.startswith("HTTP/1.1 200")
    assert "parts" not in answer
    assert raw(service, f"GET {JOBS} HTTP/1.0").startswith("HTTP/1.1 421")
    assert raw(service, f"GET {JOBS} HTTP/1.1", "Connection: close").startswith("HTTP/1.1 400")


@pytest.mark.parametrize("path", ["/health/live", JOBS, "/"])
def test_two_hosts_are_refused(service: Service, path: str) -> None:
    for first, second in (("localhost", "evil.example"), ("localhost", "localhost")):
        answer = raw(service, f"GET {path} HTTP/1.1", f"Host: {first}", f"Host: {second}", "Connection: close")
        assert answer.startswith("HTTP/1.1 400")
        assert '"code":"invalid_host"' in answer


def test_health_tells_nothing_secret_to_whoever_has_no_key(guarded: Guarded) -> None:
    for path in HEALTH:
        assert set(guarded.nobody.get(path, headers={"Host": "10.0.0.7"}).json()) == {"status"}
    assert "parts" in guarded.ada.get("/health/ready").json()
