"""Files are somebody else's work: they are shown, can run nothing, and what goes wrong with them tells no key."""

import asyncio
import shutil
from io import BytesIO
from pathlib import Path

import pytest
from api_service import JOBS, Json, Service
from PIL import Image

from safelight.artifacts import Links, StoredFile


def upload(service: Service) -> tuple[Json, str]:
    """An uploaded picture and a signed link to it."""
    data = BytesIO()
    Image.linear_gradient("L").resize((640, 320)).save(data, "PNG")
    sent = service.http.post("/api/v1/artifacts", content=data.getvalue(), headers={"Content-Type": "image/png"})
    assert sent.status_code == 201, sent.text
    artifact = sent.json()
    return artifact, service.http.post(f"/api/v1/artifacts/{artifact['id']}/link").json()["url"]


def stored(service: Service, artifact: Json) -> list[Path]:
    """The artifact's files in the storage."""
    folder = service.settings.data_dir / "files"
    return [path for path in folder.rglob("*") if path.is_file() and artifact["id"] in str(path)]


def test_a_file_can_run_nothing(service: Service) -> None:
    artifact, link = upload(service)
    for url in (artifact["url"], artifact["thumbnails"][0]["url"], link):
        for headers, status in (({}, 200), ({"Range": "bytes=0-9"}, 206), ({"If-None-Match": "*"}, 304)):
            response = service.http.get(url, headers=headers)
            if "thumbnails" in url and status == 206:
                continue
            assert response.status_code == status
            assert response.headers.get_list("x-content-type-options") == ["nosniff"]
            policy = response.headers["content-security-policy"].split("; ")
            assert {"sandbox", "default-src 'none'"} <= set(policy)
            assert not any(part.startswith("script-src") for part in policy)
            assert response.headers["content-disposition"].startswith(f'inline; filename="{artifact["id"]}')


def test_a_preview_can_run_nothing(service: Service) -> None:
    events = service.watch_held(service.hold(seconds=0.6, width=256, height=256))
    url = next(event.data["preview_url"] for event in events if event.data.get("preview_url"))
    response = service.http.get(url)
    assert response.status_code == 200
    assert "sandbox" in response.headers["content-security-policy"]


def test_no_answer_is_taken_for_another_type(service: Service) -> None:
    for path in (JOBS, "/api/v1/nothing", "/health/live", "/api/v1/openapi.json", f"{JOBS}/x"):
        assert service.http.get(path).headers["x-content-type-options"] == "nosniff"
    assert service.http.post(JOBS, content=b"x" * 2_000_000).headers["x-content-type-options"] == "nosniff"


def test_an_odd_name_in_a_link_is_told_safely(service: Service) -> None:
    artifact, _ = upload(service)
    key = str(stored(service, artifact)[0].relative_to(service.settings.data_dir / "files"))
    links: Links = service.api.app.state.safelight.links
    file = StoredFile(key, "image/png", "phare \u00e0 l'aube\"\r\nX-Evil: 1.png", 10, '"x"')
    link = asyncio.run(links.make(file, 600)).url
    response = service.http.get(link, headers={"Range": "bytes=0-3"})
    assert response.status_code == 206
    assert "x-evil" not in response.headers
    assert response.headers["content-disposition"].startswith('inline; filename="phare a l\'aube-X-Evil- 1.png"; ')


@pytest.mark.parametrize("trouble", ["deleted", "lost", "a folder"])
def test_no_error_of_a_file_tells_where_it_lies(service: Service, trouble: str) -> None:
    artifact, link = upload(service)
    paths = stored(service, artifact)
    urls = [artifact["url"], artifact["thumbnails"][0]["url"], link]
    if trouble == "deleted":
        assert service.http.delete(f"/api/v1/artifacts/{artifact['id']}").status_code == 204
    else:
        for path in paths:
            path.unlink()
            if trouble == "a folder":
                path.mkdir()
    for url in urls:
        response = service.http.get(url)
        assert response.status_code >= 400, url
        assert "inputs/" not in response.text
        assert str(service.settings.data_dir) not in response.text
        assert artifact["id"] not in response.json()["detail"]
        assert service.http.head(url).status_code == response.status_code
    for path in paths:
        shutil.rmtree(path, ignore_errors=True)
