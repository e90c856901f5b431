"""Media imports over HTTP: as jobs like any other, with their scene, and every refusal by its own code."""

import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from api_service import Json, Service, assert_shape, eventually, order, settings_for

from hostile_urls import MALFORMED
from made_pictures import RED_AT, encoded, halves, opened, turned
from media import media
from patience import PATIENCE_SECONDS
from safelight.api.media.imports import MAX_PROBES, ProbeView
from safelight.providers import address
from safelight.providers.fetch import shared_tls
from servers import ValkeyServer
from stand_ins.media_host import MediaHost

STORE, PROBE = "/api/v1/media/store", "/api/v1/media/probe"


@pytest.fixture(scope="module")
def shared_host() -> Iterator[MediaHost]:
    host = MediaHost()
    yield host
    host.close()


@pytest.fixture
def host(shared_host: MediaHost) -> MediaHost:
    shared_host.reset()
    return shared_host


@pytest.fixture(scope="module")
def importer(
    api_valkey: ValkeyServer, sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """One service for all: a test looks only at jobs of its own."""
    folder = tmp_path_factory.mktemp("importer")
    url = f"sqlite:///{shutil.copy(sqlite_template, folder / 'safelight.db')}"
    changes = {
        "media_allow_private": "127.0.0.1/32",
        "media_max_bytes": 20_000_000,
        "media_keep_free_bytes": 0,
        "media_probe_seconds": 100,
    }
    running = Service(settings_for(folder, api_valkey, url, **changes), api_valkey)
    yield running
    running.close()


def store(service: Service, url: str, **fields: Any) -> Json:
    response = service.http.post(STORE, json={"url": url, **fields})
    assert response.status_code == 202, response.text
    return response.json()


def unfinished(service: Service) -> list[Path]:
    """What imports have not finished."""
    return list((service.settings.data_dir / "imports").iterdir())


def newest(service: Service) -> list[str]:
    return [job["id"] for job in service.jobs(limit=3)]


def scene(service: Service) -> str:
    """The id of a new scene."""
    project = service.http.post("/api/v1/projects", json={"title": "The coast"}).json()
    chapter = service.http.post(f"/api/v1/projects/{project['id']}/chapters", json={"title": "Night"}).json()
    made = service.http.post(
        f"/api/v1/chapters/{chapter['id']}/scenes", json={"scene_number": 1, "description": "A lighthouse"}
    )
    assert made.status_code == 201, made.text
    return made.json()["id"]


def test_an_import_is_a_job_and_its_file_an_artifact(importer: Service, host: MediaHost) -> None:
    url = f"{host.url}/lighthouse.mp4"
    response = importer.http.post(STORE, json={"url": url, "project_id": "coast", "metadata": {"user": "42"}})
    job = response.json()
    assert (response.status_code, response.headers["Location"]) == (202, job["urls"]["self"])
    assert (job["kind"], job["provider"], job["mocked"]) == ("media.import", "media", False)
    assert (job["source_url"], job["prompt"], job["project_id"]) == (url, "", "coast")
    assert (job["timeout_seconds"], job["metadata"]) == (3600, {"user": "42"})
    assert job["eta"] == {"wait_seconds": None, "run_seconds": None}
    ended = importer.end_of(job["id"])
    assert ended["status"] == "completed", ended["error"]
    [made] = ended["artifacts"]
    assert (made["kind"], made["content_type"]) == ("video", "video/mp4")
    assert (made["width"], made["height"], made["duration_seconds"]) == (128, 72, 2.0)
    assert made["size_bytes"] == len(media("mp4"))
    assert made["details"]["source_url"] == url
    assert made["details"]["title"] == "lighthouse.mp4"
    assert made["details"]["video_codec"] == "h264"
    assert made["thumbnails"]
    assert importer.http.get(made["url"]).content == media("mp4")
    assert not unfinished(importer)


@pytest.mark.parametrize(("name", "orientation"), [("JPEG", 6), ("PNG", 8), ("WEBP", 3), ("AVIF", 5)])
def test_a_photograph_is_shown_as_it_was_held(importer: Service, host: MediaHost, name: str, orientation: int) -> None:
    data = turned(name, "RGB", orientation)
    host.files["/photo"] = (f"image/{name.lower()}", data)
    ended = importer.end_of(store(importer, f"{host.url}/photo")["id"])
    assert ended["status"] == "completed", ended["error"]
    [made] = ended["artifacts"]
    place = RED_AT[orientation]
    size = (40, 20) if place[1] == 10 else (20, 40)
    assert (made["content_type"], made["width"], made["height"]) == (f"image/{name.lower()}", *size)
    assert importer.http.get(made["url"]).content == data
    for thumbnail in made["thumbnails"]:
        image = opened(importer.http.get(thumbnail["url"]).content).convert("RGB")
        assert image.size == (thumbnail["width"], thumbnail["height"]) == size
        red = image.getpixel(place)
        assert isinstance(red, tuple)
        assert red[0] > 180 > 60 > red[2]


def test_a_phone_picture_of_two_pictures_is_imported_as_a_jpeg(importer: Service, host: MediaHost) -> None:
    data = encoded(halves(), "MPO", save_all=True, append_images=[halves("L")])
    host.files["/phone.jpg"] = ("image/jpeg", data)
    ended = importer.end_of(store(importer, f"{host.url}/phone.jpg")["id"])
    assert ended["status"] == "completed", ended["error"]
    [made] = ended["artifacts"]
    assert (made["content_type"], made["width"], made["height"], made["thumbnail_error"]) == (
        "image/jpeg",
        40,
        20,
        None,
    )
    assert importer.http.get(made["url"]).content == data


def test_its_progress_is_told_in_bytes(importer: Service, host: MediaHost) -> None:
    job = store(importer, f"{host.url}/slow.mp4")
    with importer.events(job["id"]) as stream:
        events: list[Any] = []
        for event in stream:
            events.append(event)
            if "B of" in str(event.data["message"]):
                host.released.set()
    told = [event.data for event in events if event.type == "job.progress" and event.data["stage"] == "downloading"]
    assert all(0 < event["progress"] < 100 for event in told)
    assert events[-1].type == "job.completed"


def test_a_cancelled_import_leaves_nothing(importer: Service, host: MediaHost) -> None:
    job = store(importer, f"{host.url}/slow.html")
    assert host.dripping.wait(PATIENCE_SECONDS)
    importer.http.post(job["urls"]["cancel"])
    assert importer.end_of(job["id"])["status"] == "cancelled"
    eventually(lambda: not unfinished(importer), "the folder is removed")


def test_the_same_key_is_the_same_import(importer: Service, host: MediaHost) -> None:
    body, headers = {"url": f"{host.url}/sea.mp3"}, {"Idempotency-Key": "one"}
    first = importer.http.post(STORE, json=body, headers=headers)
    again = importer.http.post(STORE, json=body, headers=headers)
    assert again.json()["id"] == first.json()["id"]
    assert again.headers["Idempotency-Replayed"] == "true"
    other = importer.http.post(STORE, json=body | {"audio_only": True}, headers=headers)
    assert other.json()["code"] == "idempotency_key_reused"
    assert importer.end_of(first.json()["id"])["artifacts"][0]["kind"] == "audio"


def test_a_failed_import_is_tried_again_as_asked(importer: Service, host: MediaHost) -> None:
    job = store(importer, f"{host.url}/nowhere.mp4", metadata={"user": "42"}, max_height=480)
    ended = importer.end_of(job["id"])
    assert (ended["status"], ended["error"]["code"]) == ("failed", "source_refused")
    again = importer.http.post(job["urls"]["retry"], json={"url": f"{host.url}/lighthouse.webm"})
    assert again.status_code == 202, again.text
    assert again.json()["origin_job_id"] == job["id"]
    assert again.json()["metadata"] == {"user": "42"}
    assert again.json()["provider_options"]["max_height"] == 480
    assert importer.end_of(again.json()["id"])["status"] == "completed"
    refused = importer.http.post(job["urls"]["retry"], json={"prompt": "a lighthouse"})
    assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "#/prompt")


def test_what_may_mend_is_tried_again(importer: Service, host: MediaHost) -> None:
    ended = importer.end_of(store(importer, f"{host.url}/status?code=503", max_retries=2)["id"])
    assert (ended["error"]["code"], ended["retry_count"]) == ("source_unavailable", 2)
    media = importer.http.get("/api/v1/providers/media").json()
    assert (media["breaker"], media["failures"], media["mocked"]) == ("closed", 0, False)  # it is not the provider's


# --- the scene --------------------------------------------------------------------------------------------------------


def test_a_scene_follows_its_import(importer: Service, host: MediaHost) -> None:
    scene_id = scene(importer)
    job = store(importer, f"{host.url}/slow.mp4", scene_id=scene_id)
    assert host.dripping.wait(PATIENCE_SECONDS)
    waiting = importer.http.get(f"/api/v1/scenes/{scene_id}").json()
    assert waiting["media_job_id"] == job["id"]
    assert waiting["media_status"] in ("pending", "processing")
    assert waiting["media_url"] is None
    host.released.set()
    made = importer.end_of(job["id"])["artifacts"][0]
    done = importer.http.get(f"/api/v1/scenes/{scene_id}").json()
    assert (done["media_status"], done["media_url"]) == ("completed", made["url"])


def test_a_scene_keeps_its_media_when_another_import_fails(importer: Service, host: MediaHost) -> None:
    scene_id = scene(importer)
    first = importer.end_of(store(importer, f"{host.url}/lighthouse.mp4", scene_id=scene_id)["id"])
    failed = importer.end_of(store(importer, f"{host.url}/nowhere.mp4", scene_id=scene_id)["id"])
    seen = importer.http.get(f"/api/v1/scenes/{scene_id}").json()
    assert seen["media_status"] == "failed"
    assert seen["media_url"] == first["artifacts"][0]["url"]
    again = importer.http.post(failed["urls"]["retry"], json={"url": f"{host.url}/lighthouse.webm"}).json()
    importer.end_of(again["id"])
    seen = importer.http.get(f"/api/v1/scenes/{scene_id}").json()
    assert (seen["media_status"], seen["media_job_id"]) == ("completed", again["id"])


@pytest.mark.parametrize("scene_id", ["00000000-0000-0000-0000-000000000000", "no id at all"])
def test_an_unknown_scene_stores_nothing(importer: Service, host: MediaHost, scene_id: str) -> None:
    before = newest(importer)
    response = importer.http.post(STORE, json={"url": f"{host.url}/lighthouse.mp4", "scene_id": scene_id})
    assert (response.status_code, response.json()["code"]) == (404, "scene_not_found")
    assert newest(importer) == before


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [STORE, PROBE])
@pytest.mark.parametrize(
    ("body", "pointer", "code"),
    [
        ({"url": "ftp://example.com/a.mp4"}, "#/url", "url_refused"),
        ({"url": "not a url"}, "#/url", "url_refused"),
        ({"url": "http://169.254.169.254/latest/meta-data"}, "#/url", "address_refused"),
        *(({"url": url}, "#/url", code) for url, code in MALFORMED.items()),
        ({"url": ""}, "#/url", "invalid_request"),
        ({"url": "http://example.com/" + "a" * 2000}, "#/url", "invalid_request"),
        ({"url": "http://example.com/\0"}, "#/url", "invalid_request"),
        ({}, "#/url", "invalid_request"),
        ({"url": "http://example.com/a.mp4", "hight": 3}, "#/hight", "invalid_request"),
    ],
)
def test_bad_requests_are_named(importer: Service, path: str, body: Json, pointer: str, code: str) -> None:
    before = newest(importer)
    response = importer.http.post(path, json=body)
    assert (response.status_code, response.json()["code"]) == (422, code)
    assert response.json()["errors"][0]["pointer"] == pointer
    assert newest(importer) == before


@pytest.mark.parametrize("field", [{"max_height": 0}, {"max_height": "720p"}, {"audio_only": "yes"}, {"priority": 99}])
def test_bad_wishes_are_named(importer: Service, field: Json) -> None:
    response = importer.http.post(STORE, json={"url": "http://example.com/a.mp4", **field})
    assert response.status_code == 422
    assert response.json()["errors"][0]["pointer"] == "#/" + next(iter(field))


def test_pictures_are_not_made_by_imports(importer: Service) -> None:
    response = importer.http.post("/api/v1/generation-jobs", json={"prompt": "a lighthouse", "provider": "media"})
    assert (response.status_code, response.json()["errors"][0]["pointer"]) == (422, "#/provider")


# --- looking ----------------------------------------------------------------------------------------------------------


def test_a_look(importer: Service, host: MediaHost) -> None:
    before = newest(importer)
    response = importer.http.post(PROBE, json={"url": f"{host.url}/lighthouse.webm"})
    assert response.status_code == 200, response.text
    seen = response.json()
    assert_shape(ProbeView, seen)
    assert (seen["title"], seen["content_type"], seen["heights"]) == ("lighthouse.webm", "video/webm", [72])
    assert seen["size_bytes"] == len(media("webm"))
    assert seen["duration_seconds"] == pytest.approx(2, abs=0.1)
    assert newest(importer) == before


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/words.html", 422, "no_media"),
        ("/fake.mp4", 422, "not_media"),
        ("/nowhere.mp4", 422, "source_refused"),
        ("/huge.mp4", 422, "media_too_large"),
        ("/status?code=503", 503, "source_unavailable"),
        ("/redirect?to=http://169.254.169.254/", 422, "address_refused"),
    ],
)
def test_a_look_refuses_as_the_import_would(
    importer: Service, host: MediaHost, path: str, status: int, code: str
) -> None:
    response = importer.http.post(PROBE, json={"url": host.url + path})
    assert (response.status_code, response.json()["code"]) == (status, code)


@pytest.mark.parametrize(
    ("failure", "status", "code"),
    [(socket.EAI_NONAME, 422, "host_unknown"), (socket.EAI_AGAIN, 503, "source_unavailable")],
)
def test_a_name_that_nobody_has_is_told_from_one_that_cannot_be_looked_up(
    importer: Service, monkeypatch: pytest.MonkeyPatch, failure: int, status: int, code: str
) -> None:
    async def resolve(host: str) -> list[str]:
        raise socket.gaierror(failure, "as the resolver said")

    monkeypatch.setattr(address, "_resolve", resolve)
    url = "http://films.example/lighthouse.mp4"
    refused = importer.http.post(PROBE, json={"url": url})
    assert (refused.status_code, refused.json()["code"]) == (status, code)
    [error] = refused.json()["errors"]
    assert error["pointer"] == "#/url" and "films.example" in error["detail"]
    ended = importer.end_of(store(importer, url, max_retries=1)["id"])
    assert (ended["error"]["code"], ended["retry_count"]) == (code, int(status == 503))


def test_only_so_many_look_at_once(importer: Service, host: MediaHost) -> None:
    codes: list[int] = []

    def look() -> None:
        with httpx.Client(base_url=importer.api.url, timeout=PATIENCE_SECONDS, verify=shared_tls()) as client:
            codes.append(client.post(PROBE, json={"url": f"{host.url}/stuck"}).status_code)

    lookers = [threading.Thread(target=look) for _ in range(MAX_PROBES)]
    for looker in lookers:
        looker.start()
    eventually(lambda: len(host.asked) == MAX_PROBES, "all of them look")
    busy = importer.http.post(PROBE, json={"url": f"{host.url}/lighthouse.mp4"})
    assert (busy.status_code, busy.json()["code"]) == (503, "probes_busy")
    assert busy.headers["Retry-After"]
    host.released.set()
    for looker in lookers:
        looker.join()
    assert importer.http.post(PROBE, json={"url": f"{host.url}/lighthouse.mp4"}).status_code == 200


# --- batches ----------------------------------------------------------------------------------------------------------


def test_a_batch_holds_imports_and_pictures(importer: Service, host: MediaHost) -> None:
    scene_id = scene(importer)
    imports = [
        {"kind": "media.import", "url": f"{host.url}/sea.mp3", "scene_id": scene_id},
        {"kind": "media.import", "url": f"{host.url}/nowhere.mp4"},
    ]
    batch = importer.http.post("/api/v1/batches", json={"jobs": [*imports, order()]})
    assert batch.status_code == 202, batch.text
    ends = [importer.end_of(job_id) for job_id in batch.json()["job_ids"]]
    assert [(end["kind"], end["status"]) for end in ends] == [
        ("media.import", "completed"),
        ("media.import", "failed"),
        ("image.generate", "completed"),
    ]
    assert importer.http.get(f"/api/v1/scenes/{scene_id}").json()["media_job_id"] == ends[0]["id"]
    again = importer.http.post(f"/api/v1/batches/{batch.json()['id']}/retry")
    [retried] = again.json()["job_ids"]
    assert importer.end_of(retried)["source_url"] == imports[1]["url"]


@pytest.mark.parametrize(
    ("job", "pointer"),
    [
        ({"kind": "media.import", "url": "ftp://example.com/"}, "#/jobs/0/url"),
        ({"kind": "media.import", "url": "http://example.com/", "scene_id": "none"}, "#/jobs/0/scene_id"),
        ({"kind": "media.import", "url": "http://example.com/", "prompt": "x"}, "#/jobs/0/prompt"),
        ({"kind": "media.export", "prompt": "x"}, "#/jobs/0/kind"),
    ],
)
def test_what_is_wrong_in_a_batch_is_told_by_its_place(importer: Service, job: Json, pointer: str) -> None:
    refused = importer.http.post("/api/v1/batches", json={"jobs": [job]})
    assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, pointer)
