"""Results over HTTP: record, bytes, ranges, thumbnails, previews."""

import hashlib
import uuid
from io import BytesIO

import pytest
from api_service import JOBS, Json, Service
from PIL import Image


@pytest.fixture(scope="module")
def job(service: Service) -> Json:
    return service.make(width=640, height=320, seed=7, prompt="a lighthouse ✨", sampler_params={"steps": 3})


@pytest.fixture(scope="module")
def artifact(job: Json) -> Json:
    return job["artifacts"][0]


@pytest.fixture(scope="module")
def whole(service: Service, artifact: Json) -> bytes:
    return service.http.get(artifact["url"]).content


def test_the_record(service: Service, artifact: Json) -> None:
    assert service.http.get(f"/api/v1/artifacts/{artifact['id']}").json() == artifact
    assert (artifact["width"], artifact["height"], artifact["content_type"]) == (640, 320, "image/png")
    assert artifact["url"] == f"/api/v1/artifacts/{artifact['id']}/content"


def test_the_bytes_are_what_the_record_says(service: Service, artifact: Json) -> None:
    response = service.http.get(artifact["url"])
    assert response.status_code == 200
    assert response.headers["content-type"] == "image/png"
    assert int(response.headers["content-length"]) == artifact["size_bytes"] == len(response.content)
    assert hashlib.sha256(response.content).hexdigest() == artifact["sha256"]
    assert response.headers["etag"] == f'"{artifact["sha256"]}"'
    assert "immutable" in response.headers["cache-control"]
    assert response.headers["accept-ranges"] == "bytes"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert f"{artifact['id']}.png" in response.headers["content-disposition"]


def test_the_picture_carries_its_recipe(job: Json, whole: bytes) -> None:
    image = Image.open(BytesIO(whole))
    image.load()
    assert image.size == (640, 320)
    assert image.info["prompt"] == "a lighthouse ✨"
    assert (image.info["seed"], image.info["sampler.steps"], image.info["job_id"]) == ("7", "3", job["id"])


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=10-19", 10, 20),
        ("bytes=100-", 100, None),
        ("bytes=-50", -50, None),
        ("bytes=-99999999", 0, None),
        ("bytes=5-99999999", 5, None),
    ],
)
def test_a_range(service: Service, artifact: Json, whole: bytes, asked: str, start: int, end: int | None) -> None:
    expected = whole[start:end]
    first = start if start >= 0 else len(whole) + start
    for method in ("GET", "HEAD"):
        response = service.http.request(method, artifact["url"], headers={"Range": asked})
        assert response.status_code == 206
        assert response.content == (expected if method == "GET" else b"")
        assert int(response.headers["content-length"]) == len(expected)
        assert response.headers["content-range"] == f"bytes {first}-{first + len(expected) - 1}/{len(whole)}"


@pytest.mark.parametrize("asked", ["bytes=99999999-", "bytes=99999999-99999999", "bytes=-0"])
def test_a_range_beyond_the_end(service: Service, artifact: Json, asked: str) -> None:
    response = service.http.get(artifact["url"], headers={"Range": asked})
    assert (response.status_code, response.json()["code"]) == (416, "range_not_satisfiable")
    assert response.headers["content-range"] == f"bytes */{artifact['size_bytes']}"


@pytest.mark.parametrize("asked", ["bytes=", "bytes=-", "bytes=5-4", "bytes=0-1,3-4", "lines=0-1", "bytes=a-b"])
def test_ranges_we_do_not_serve_give_everything(service: Service, artifact: Json, whole: bytes, asked: str) -> None:
    response = service.http.get(artifact["url"], headers={"Range": asked})
    assert (response.status_code, response.content) == (200, whole)


def test_if_range_serves_the_range_only_of_the_same_file(service: Service, artifact: Json, whole: bytes) -> None:
    for tag, status in ((artifact["sha256"], 206), ("0" * 64, 200)):
        response = service.http.get(artifact["url"], headers={"Range": "bytes=0-9", "If-Range": f'"{tag}"'})
        assert (response.status_code, response.content) == (status, whole[:10] if status == 206 else whole)


def test_what_is_known_is_not_sent_again(service: Service, artifact: Json) -> None:
    for url in (artifact["url"], artifact["thumbnails"][0]["url"]):
        etag = service.http.get(url).headers["etag"]
        for known in (etag, f'W/{etag}, "x"', "*"):
            response = service.http.get(url, headers={"If-None-Match": known})
            assert (response.status_code, response.content) == (304, b"")
            assert response.headers["etag"] == etag
        assert service.http.get(url, headers={"If-None-Match": '"x"'}).status_code == 200


def test_head_tells_without_sending(service: Service, artifact: Json) -> None:
    for url in (artifact["url"], artifact["thumbnails"][0]["url"]):
        head, get = service.http.head(url), service.http.get(url)
        assert (head.status_code, head.content) == (200, b"")
        for name in ("content-length", "content-type", "etag", "cache-control"):
            assert head.headers[name] == get.headers[name]


def test_thumbnails(service: Service, artifact: Json) -> None:
    assert [thumbnail["width"] for thumbnail in artifact["thumbnails"]] == [256, 512]
    for thumbnail in artifact["thumbnails"]:
        response = service.http.get(thumbnail["url"])
        assert response.headers["content-type"] == "image/webp"
        image = Image.open(BytesIO(response.content))
        assert (image.format, image.size) == ("WEBP", (thumbnail["width"], thumbnail["width"] // 2))


def test_a_small_picture_is_not_enlarged(service: Service) -> None:
    artifact = service.make()["artifacts"][0]
    for thumbnail in artifact["thumbnails"]:
        assert Image.open(BytesIO(service.http.get(thumbnail["url"]).content)).size == (64, 64)


def test_there_is_no_other_thumbnail(service: Service, artifact: Json) -> None:
    response = service.http.get(f"/api/v1/artifacts/{artifact['id']}/thumbnails/300")
    assert (response.status_code, response.json()["code"]) == (404, "artifact_not_found")
    assert "256, 512" in response.json()["detail"]
    assert service.http.get(f"/api/v1/artifacts/{artifact['id']}/thumbnails/wide").status_code == 400


@pytest.mark.parametrize("part", ["", "/content", "/thumbnails/256"])
def test_an_unknown_artifact(service: Service, part: str) -> None:
    assert service.http.get(f"/api/v1/artifacts/{uuid.uuid4()}{part}").json()["code"] == "artifact_not_found"
    assert service.http.get(f"/api/v1/artifacts/7{part}").json()["code"] == "invalid_id"


def test_a_lost_file_is_a_problem_and_not_a_broken_body(service: Service) -> None:
    job = service.make()
    (service.settings.data_dir / "files" / job["output_paths"][0]).unlink()
    response = service.http.get(job["artifacts"][0]["url"])
    assert (response.status_code, response.json()["code"]) == (404, "file_missing")


def test_previews_are_reached_through_the_event(service: Service) -> None:
    job = service.submit(seconds=1.2, width=640, height=320)
    with service.events(job["id"]) as events:
        urls = [event.data["preview_url"] for event in events if event.type == "job.preview"]
    assert urls
    for url in urls:
        response = service.http.get(url)
        assert (response.status_code, response.headers["content-type"]) == (200, "image/jpeg")
        assert Image.open(BytesIO(response.content)).size == (256, 128)
    missing = service.http.get(f"{JOBS}/{job['id']}/previews/none")
    assert (missing.status_code, missing.json()["code"]) == (404, "preview_not_found")
    other = service.http.get(urls[0].replace(job["id"], str(uuid.uuid4())))
    assert (other.status_code, other.json()["code"]) == (404, "job_not_found")
