"""How files are delivered: through the API, by the store itself behind signed links, or from a public bucket."""

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import httpx
import pytest
from api_service import Json, Service
from pydantic import SecretStr

from object_stores import Place, Rclone, server
from patience import PATIENCE_SECONDS
from safelight.providers.fetch import shared_tls


def with_storage(place: Place) -> dict[str, object]:
    return {
        "storage_url": place.url,
        "storage_access_key": SecretStr(place.access_key),
        "storage_secret_key": SecretStr(place.secret_key),
    }


@pytest.fixture
def stranger() -> Iterator[httpx.Client]:
    """Somebody without any credentials, who follows no redirect."""
    with httpx.Client(timeout=PATIENCE_SECONDS, verify=shared_tls()) as client:
        yield client


@pytest.fixture(scope="module")
def artifact(service: Service) -> Json:
    return service.make(width=640, height=320)["artifacts"][0]


def link_to(service: Service, artifact: Json, **query: int) -> Json:
    response = service.http.post(f"/api/v1/artifacts/{artifact['id']}/link", params=query)
    assert response.status_code == 200, response.text
    assert response.headers["cache-control"] == "no-store"
    assert set(response.json()) == {"url", "expires_at"}
    return response.json()


def test_a_link_to_a_local_file_needs_no_credentials(service: Service, artifact: Json, stranger: httpx.Client) -> None:
    link = link_to(service, artifact, expires_in=120)
    left = datetime.fromisoformat(link["expires_at"]) - datetime.now(UTC)
    assert 115 < left.total_seconds() <= 120
    whole = service.http.get(artifact["url"])
    answer = stranger.get(service.api.url + link["url"])
    assert (answer.status_code, answer.content) == (200, whole.content)
    for name in ("content-type", "content-disposition", "content-length", "etag", "x-content-type-options"):
        assert answer.headers[name] == whole.headers[name]
    part = stranger.get(service.api.url + link["url"], headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, whole.content[10:20])
    assert stranger.head(service.api.url + link["url"]).headers["content-length"] == str(artifact["size_bytes"])
    known = stranger.get(service.api.url + link["url"], headers={"If-None-Match": whole.headers["etag"]})
    assert known.status_code == 304


def test_a_bent_link_and_one_of_elsewhere_are_refused(service: Service, artifact: Json) -> None:
    url = link_to(service, artifact)["url"]
    for bent in (url[:-2] + ("A" if url[-2] != "A" else "B") + url[-1], "/api/v1/files/x", "/api/v1/files/x.y"):
        response = service.http.get(bent)
        assert (response.status_code, response.json()["code"]) == (403, "link_invalid")
        assert response.json()["retryable"] is False


def test_an_expired_link_is_refused(service: Service, artifact: Json, monkeypatch: pytest.MonkeyPatch) -> None:
    url = link_to(service, artifact, expires_in=60)["url"]
    links = service.api.app.state.safelight.links
    monkeypatch.setattr(links, "_now", lambda: datetime.fromtimestamp(time.time() + 61, UTC))
    response = service.http.get(url)
    assert (response.status_code, response.json()["code"]) == (403, "link_expired")


@pytest.mark.parametrize("seconds", ["0", "59", "604801", "-1", "soon"])
def test_a_link_lives_a_minute_to_a_week(service: Service, artifact: Json, seconds: str) -> None:
    response = service.http.post(f"/api/v1/artifacts/{artifact['id']}/link", params={"expires_in": seconds})
    assert (response.status_code, response.json()["code"]) == (400, "invalid_request")


def test_links_outlive_a_restart_and_agree_between_processes(make_service: Callable[..., Service]) -> None:
    service = make_service()
    url = link_to(service, service.make()["artifacts"][0])["url"]
    service.restart_api()
    assert service.http.get(url).status_code == 200
    other = make_service(worker=False, signing_key=SecretStr("another-key-of-more-than-32-characters"))
    assert other.http.get(url).json()["code"] == "link_invalid"


def test_local_files_can_be_delivered_by_links_too(make_service: Callable[..., Service]) -> None:
    service = make_service(storage_delivery="presigned")
    artifact = service.make(width=64, height=64)["artifacts"][0]
    response = service.http.get(artifact["url"])
    assert response.status_code == 307
    assert response.headers["location"].startswith("/api/v1/files/")
    followed = service.http.get(artifact["url"], follow_redirects=True)
    assert (followed.status_code, len(followed.content)) == (200, artifact["size_bytes"])


def test_a_bucket_delivers_by_itself(make_service: Callable[..., Service], stranger: httpx.Client) -> None:
    service = make_service(storage_delivery="presigned", **with_storage(server(Rclone).place()))
    artifact = service.make(width=640, height=320)["artifacts"][0]
    for url, content_type in ((artifact["url"], "image/png"), (artifact["thumbnails"][0]["url"], "image/webp")):
        response = service.http.get(url)
        assert (response.status_code, response.content) == (307, b"")
        assert response.headers["cache-control"] == "private, max-age=1800"
        answer = stranger.get(response.headers["location"])
        assert (answer.status_code, answer.headers["content-type"]) == (200, content_type)
        assert answer.headers["content-disposition"].startswith("inline; filename=")
        known = service.http.get(url, headers={"If-None-Match": response.headers["etag"]})
        assert known.status_code == 304
    head = service.http.head(artifact["url"])
    assert (head.status_code, head.headers["content-length"]) == (200, str(artifact["size_bytes"]))
    link = link_to(service, artifact, expires_in=60)
    assert "X-Amz-Expires=60" in link["url"]
    assert len(stranger.get(link["url"]).content) == artifact["size_bytes"]


def test_a_bucket_behind_the_api(make_service: Callable[..., Service]) -> None:
    service = make_service(**with_storage(server(Rclone).place()))
    artifact = service.make(width=64, height=64)["artifacts"][0]
    response = service.http.get(artifact["url"])
    assert (response.status_code, len(response.content)) == (200, artifact["size_bytes"])
    part = service.http.get(artifact["url"], headers={"Range": "bytes=5-9"})
    assert (part.status_code, part.content) == (206, response.content[5:10])


def test_a_public_bucket_is_pointed_to(make_service: Callable[..., Service]) -> None:
    service = make_service(storage_delivery="public", storage_public_url="https://pictures.example.com/base/")
    job = service.make(width=64, height=64)
    artifact = job["artifacts"][0]
    where = f"https://pictures.example.com/base/{job['output_paths'][0]}"
    response = service.http.get(artifact["url"])
    assert (response.status_code, response.headers["location"]) == (307, where)
    assert link_to(service, artifact) == {"url": where, "expires_at": None}


def test_a_bucket_that_refuses_is_told(make_service: Callable[..., Service]) -> None:
    place = server(Rclone).place()
    wrong = with_storage(place) | {"storage_secret_key": SecretStr("another-secret-of-forty-characters-xxxxx")}
    service = make_service(**wrong)  # fails at once: no retry helps before somebody has seen to it
    job = service.make(width=64, height=64)
    assert (job["status"], job["error"]["code"]) == ("failed", "storage_refused")
    assert "does not accept our keys" in job["error"]["message"]
    assert job["error"]["retryable"] is False
    assert "another-secret" not in str(job)
    assert service.ready()["parts"]["storage"]["state"] == "unavailable"
