"""On a full or read-only disk, whoever asks is told so, nothing accepted is lost, and all goes on afterwards."""

import shutil
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import httpx
import pytest
from api_service import JOBS, Json, Service, eventually, order, settings_for
from PIL import Image

from faults.mounts import SmallDisk
from servers import ValkeyServer


@pytest.fixture
def disk() -> Iterator[SmallDisk]:
    with SmallDisk.mounted() as disk:
        if disk is None:
            pytest.skip("a small disk cannot be mounted here (needs root)")
        yield disk


def upload(service: Service) -> httpx.Response:
    picture = BytesIO()
    Image.effect_noise((64, 64), 80).save(picture, "PNG")
    return service.http.post("/api/v1/artifacts", content=picture.getvalue(), headers={"Content-Type": "image/png"})


def assert_refused(response: httpx.Response, code: str, words: str) -> None:
    problem = response.json()
    assert (response.status_code, problem["code"], problem["retryable"]) == (503, code, True)
    assert words in problem["detail"] and response.headers["Retry-After"]


def parts(service: Service) -> Json:
    response = service.http.get("/health/ready")
    assert (response.status_code, response.json()["status"]) == (200, "degraded")
    return response.json()["parts"]


def test_with_the_database_on_a_full_disk_nothing_is_accepted_and_nothing_lost(
    disk: SmallDisk, api_valkey: ValkeyServer, sqlite_template: Path
) -> None:
    url = f"sqlite:///{shutil.copy(sqlite_template, disk.path / 'safelight.db')}"
    service = Service(settings_for(disk.path, api_valkey, url), api_valkey)
    try:
        running = service.submit(seconds=1)
        service.when(running["id"], lambda job: job["status"] == "processing", "it runs")
        disk.fill()
        eventually(lambda: service.http.post(JOBS, json=order()).status_code == 503, "nothing more can be written")
        assert_refused(service.http.post(JOBS, json=order()), "database_unavailable", "database is full")
        assert_refused(upload(service), "storage_unavailable", "files is full")
        assert (parts(service)["database"]["state"], parts(service)["storage"]["state"]) == ("degraded", "unavailable")
        assert "its disk is full" in parts(service)["database"]["detail"]
        assert service.look(running["id"])["status"] == "processing"  # what is there can be read
        disk.free()
        eventually(lambda: upload(service).status_code == 201, "files are taken again")
        assert all(service.end_of(job["id"])["status"] == "completed" for job in service.jobs())
        assert service.end_of(service.submit()["id"])["status"] == "completed"
    finally:
        service.close()


def test_a_job_whose_picture_cannot_be_kept_fails_with_the_reason(
    disk: SmallDisk, api_valkey: ValkeyServer, sqlite_template: Path, tmp_path: Path
) -> None:
    url = f"sqlite:///{shutil.copy(sqlite_template, tmp_path / 'safelight.db')}"
    changed = settings_for(tmp_path, api_valkey, url, storage_url=f"file://{disk.path}/files")
    service = Service(changed, api_valkey)
    try:
        for hinder, release, health, words in (
            (disk.fill, disk.free, "its disk is full", "disk that holds the files is full"),
            (disk.freeze, disk.thaw, "read-only", "may not be written"),
        ):
            hinder()
            ended = service.end_of(service.submit(max_retries=0)["id"])
            assert (ended["status"], ended["error"]["code"]) == ("failed", "storage_unavailable")
            assert words in ended["error"]["message"] and ended["error"]["retryable"]
            assert_refused(upload(service), "storage_unavailable", words)
            assert health in parts(service)["storage"]["detail"]
            release()
            again = service.http.post(ended["urls"]["retry"]).json()
            assert service.end_of(again["id"])["status"] == "completed"
    finally:
        service.close()
