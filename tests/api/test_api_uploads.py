"""Uploads over HTTP: what comes in, what is refused, and that nothing of what is refused stays."""

import hashlib
import http.client
import socket
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from typing import Any

import pytest
from api_service import Service
from PIL import ExifTags, Image

from patience import PATIENCE_SECONDS

UPLOADS = "/api/v1/artifacts"


def picture(name: str = "PNG", size: tuple[int, int] = (640, 320), **options: Any) -> bytes:
    data = BytesIO()
    Image.linear_gradient("L").resize(size).convert("RGB").save(data, name, **options)
    return data.getvalue()


def files(service: Service) -> list[str]:
    folder = service.settings.data_dir / "files"
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def nothing_stays(service: Service) -> Iterator[None]:
    """A refused upload leaves no file."""
    before = files(service)
    yield
    assert files(service) == before


@pytest.mark.parametrize(("name", "ending"), [("PNG", "png"), ("JPEG", "jpg"), ("WEBP", "webp")])
def test_an_upload_becomes_an_artifact(service: Service, name: str, ending: str) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Artist] = "Baker Street 221b"
    exif.get_ifd(ExifTags.IFD.GPSInfo).update({1: "N", 2: (51.0, 31.0, 25.6)})
    response = service.http.post(
        UPLOADS, content=picture(name, exif=exif), headers={"Content-Type": f"image/{name.lower()}"}
    )
    assert response.status_code == 201, response.text
    artifact = response.json()
    assert response.headers["location"] == f"{UPLOADS}/{artifact['id']}"
    assert service.http.get(response.headers["location"]).json() == artifact
    assert (artifact["width"], artifact["height"], artifact["seed"]) == (640, 320, None)
    content = service.http.get(artifact["url"])
    assert content.headers["content-type"] == artifact["content_type"] == f"image/{name.lower()}"
    assert content.headers["content-disposition"] == f'inline; filename="{artifact["id"]}.{ending}"'
    assert hashlib.sha256(content.content).hexdigest() == artifact["sha256"]
    assert len(content.content) == artifact["size_bytes"]
    assert b"Baker Street" not in content.content
    assert not Image.open(BytesIO(content.content)).getexif()
    for thumbnail in artifact["thumbnails"]:
        assert Image.open(BytesIO(service.http.get(thumbnail["url"]).content)).width == thumbnail["width"]
    stored = [path for path in files(service) if artifact["id"] in path]
    assert stored == [f"inputs/{artifact['id']}/0{rest}" for rest in sorted([f".{ending}", "_256.webp", "_512.webp"])]


@pytest.mark.parametrize(
    ("name", "size", "thumbnail"),
    [
        ("JPEG", (790, 36_861), (351, 16_383)),
        ("PNG", (2, 20_000), (2, 16_383)),
        ("JPEG", (20_000, 2), (512, 1)),
    ],
)
def test_a_strip_of_any_length_is_taken(
    service: Service, name: str, size: tuple[int, int], thumbnail: tuple[int, int]
) -> None:
    data = picture(name, size, quality=50)
    response = service.http.post(UPLOADS, content=data, headers={"Content-Type": f"image/{name.lower()}"})
    assert response.status_code == 201, response.text
    artifact = response.json()
    assert (artifact["width"], artifact["height"], artifact["thumbnail_error"]) == (*size, None)
    largest = artifact["thumbnails"][-1]
    assert (largest["width"], largest["height"]) == thumbnail
    assert Image.open(BytesIO(service.http.get(largest["url"]).content)).size == thumbnail


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "..\\..\\x", "a\0b.png", "/etc/passwd", "x" * 3000, "<script>.png"]
)
def test_a_hostile_name_is_not_taken(service: Service, name: str) -> None:
    headers = {
        "Content-Type": "image/png",
        "Content-Disposition": f'attachment; filename="{name}"'.replace("\0", "%00"),
    }
    refused = service.http.post(UPLOADS, params={"name": name}, content=picture(size=(8, 8)), headers=headers)
    assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (400, "name")
    response = service.http.post(UPLOADS, content=picture(size=(8, 8)), headers=headers)
    assert response.status_code == 201
    artifact = response.json()
    content = service.http.get(artifact["url"])
    assert content.headers["content-disposition"] == f'inline; filename="{artifact["id"]}.png"'
    assert not [path for path in files(service) if "passwd" in path or "script" in path]


@pytest.mark.usefixtures("nothing_stays")
@pytest.mark.parametrize(
    ("content_type", "body", "status", "code"),
    [
        ("", picture(), 415, "unsupported_media_type"),
        ("application/json", b"{}", 415, "unsupported_media_type"),
        ("application/pdf", picture(), 415, "unsupported_media_type"),
        ("multipart/form-data; boundary=x", b"--x--", 415, "unsupported_media_type"),
        ("image/svg+xml", b"<svg/>", 415, "unsupported_media_type"),
        ("image/gif", b"GIF89a", 415, "unsupported_media_type"),
        ("text/html", b"<script>", 415, "unsupported_media_type"),
        ("image/png", b"", 422, "upload_unreadable"),
        ("image/png", b"<script>alert(1)</script>", 422, "upload_unreadable"),
        ("image/jpeg", picture()[:300], 422, "upload_mismatch"),
        ("image/png", picture()[:-30], 422, "upload_unreadable"),
        ("image/png", picture("JPEG"), 422, "upload_mismatch"),
        ("image/webp", picture("GIF"), 422, "upload_mismatch"),
        ("image/png", picture("PNG", size=(8_100, 8_000)), 422, "upload_too_many_pixels"),
    ],
)
def test_what_is_refused(service: Service, content_type: str, body: bytes, status: int, code: str) -> None:
    response = service.http.post(UPLOADS, content=body, headers={"Content-Type": content_type})
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert response.json()["retryable"] is False


def test_the_json_limit_is_not_the_upload_limit(service: Service) -> None:
    large = picture(size=(1100, 1100), compress_level=0)
    assert len(large) > 2 * service.settings.max_body_bytes
    response = service.http.post(UPLOADS, content=large, headers={"Content-Type": "image/png"})
    assert response.status_code == 201, response.text
    response = service.http.post("/api/v1/generation-jobs", content=large, headers={"Content-Type": "image/png"})
    assert (response.status_code, response.json()["code"]) == (413, "body_too_large")


def test_too_much_is_refused_with_a_length_and_without(make_service: Callable[..., Service]) -> None:
    service = make_service(worker=False, max_upload_bytes=100_000)
    body = picture(size=(300, 300), compress_level=0)
    assert len(body) > 100_000
    headers = {"Content-Type": "image/png"}

    def in_pieces() -> Iterator[bytes]:
        for begin in range(0, len(body), 10_000):
            yield body[begin : begin + 10_000]

    for content in (body, in_pieces()):
        response = service.http.post(UPLOADS, content=content, headers=headers)
        assert (response.status_code, response.json()["code"]) == (413, "upload_too_large")
        assert "100000 bytes" in response.json()["detail"]
    assert files(service) == []
    response = service.http.post(UPLOADS, content=picture(size=(90, 90)), headers=headers)
    assert response.status_code == 201


def test_ten_gigabytes_are_refused_before_they_are_sent(service: Service) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", service.api.port, timeout=PATIENCE_SECONDS)
    connection.putrequest("POST", UPLOADS)
    connection.putheader("Content-Type", "image/png")
    connection.putheader("Content-Length", str(10 * 1024**3))
    connection.endheaders()
    response = connection.getresponse()  # comes, or times out: nothing of the body was sent
    assert (response.status, b"upload_too_large" in response.read()) == (413, True)
    connection.close()


@pytest.mark.usefixtures("nothing_stays")
def test_an_upload_that_is_broken_off_leaves_nothing(service: Service) -> None:
    body = picture()
    with socket.create_connection(("127.0.0.1", service.api.port)) as client:
        headers = ["Host: 127.0.0.1", "Content-Type: image/png", f"Content-Length: {len(body)}"]
        head = "\r\n".join([f"POST {UPLOADS} HTTP/1.1", *headers, "", ""])
        client.sendall(head.encode() + body[: len(body) // 2])
    time.sleep(0.2)
    assert service.http.get("/health/live").status_code == 200


def test_a_storage_that_refuses_is_told_and_nothing_is_recorded(make_service: Callable[..., Service]) -> None:
    service = make_service(worker=False)
    folder = service.settings.data_dir / "files"
    folder.rmdir()
    folder.write_text("not a folder")
    response = service.http.post(UPLOADS, content=picture(), headers={"Content-Type": "image/png"})
    assert (response.status_code, response.json()["code"]) == (503, "storage_unavailable")
