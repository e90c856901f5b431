"""Deletion over HTTP: what goes, what stays known, what is refused. And a service on a schema that is not its own."""

import contextlib
import shutil
import sqlite3
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from api_service import JOBS, Json, Service, eventually, order

from safelight.schema import REVISIONS


def stored(service: Service, job: Json) -> list[Path]:
    folder = service.settings.data_dir / "files"
    return [folder / path for path in {*job["output_paths"], *job["thumbnail_paths"]}]


def code_of(service: Service, method: str, url: str, **options: object) -> tuple[int, str]:
    response = service.http.request(method, url, **options)  # pyright: ignore[reportArgumentType]
    return response.status_code, response.json()["code"]


def test_a_deleted_job_is_gone_for_everyone(service: Service) -> None:
    job = service.make(width=640, height=320, prompt="to be deleted")
    url, artifact = f"{JOBS}/{job['id']}", job["artifacts"][0]
    files = stored(service, job)
    assert len(files) == 3 and all(path.exists() for path in files)
    response = service.http.delete(url)
    assert (response.status_code, response.content) == (204, b"")
    assert not any(path.exists() for path in files)
    for method, path in (
        ("GET", url),
        ("GET", f"{url}?wait=1"),
        ("GET", f"{url}/attempts"),
        ("GET", f"{url}/events"),
        ("GET", f"{url}/previews/1"),
        ("POST", f"{url}/cancel"),
        ("POST", f"{url}/retry"),
    ):
        assert code_of(service, method, path) == (410, "job_deleted"), path
    for part in ("", "/content", "/thumbnails/256"):
        assert code_of(service, "GET", f"/api/v1/artifacts/{artifact['id']}{part}") == (410, "artifact_deleted")
    assert service.jobs(ids=job["id"]) == []
    assert service.jobs(text="to be deleted") == []
    assert service.http.delete(url).status_code == 204


def test_a_deleted_artifact_leaves_its_job(service: Service) -> None:
    job = service.make(batch_size=2)
    first, second = job["artifacts"]
    url = f"/api/v1/artifacts/{first['id']}"
    assert service.http.delete(url).status_code == 204
    assert service.http.delete(url).status_code == 204
    assert code_of(service, "GET", url) == (410, "artifact_deleted")
    after = service.look(job["id"])
    assert [artifact["id"] for artifact in after["artifacts"]] == [second["id"]]
    assert (after["status"], after["version"]) == ("completed", job["version"])
    assert service.http.get(second["url"]).status_code == 200
    left = [path.exists() for path in stored(service, job)]
    assert (left.count(True), left.count(False)) == (2, 2)
    with service.events(job["id"]) as stream:
        assert [len(event.data["artifacts"]) for event in stream.all()] == [1, 1]


def test_a_job_that_has_not_ended_is_cancelled_first(service: Service) -> None:
    job_id = service.hold()
    url = f"{JOBS}/{job_id}"
    assert code_of(service, "DELETE", url) == (409, "job_active")
    assert service.look(job_id)["status"] == "pending"
    running = service.submit(seconds=20)["id"]
    service.when(running, lambda job: job["status"] == "processing", "it runs")
    assert code_of(service, "DELETE", f"{JOBS}/{running}") == (409, "job_active")
    for one in (job_id, running):
        service.http.post(f"{JOBS}/{one}/cancel")
        assert service.end_of(one)["status"] == "cancelled"
        assert service.http.delete(f"{JOBS}/{one}").status_code == 204
        assert code_of(service, "GET", f"{JOBS}/{one}") == (410, "job_deleted")


def test_what_is_not_there_cannot_be_deleted(service: Service) -> None:
    assert code_of(service, "DELETE", f"{JOBS}/{uuid.uuid4()}") == (404, "job_not_found")
    assert code_of(service, "DELETE", f"/api/v1/artifacts/{uuid.uuid4()}") == (404, "artifact_not_found")
    for url in (f"{JOBS}/7", "/api/v1/artifacts/7"):
        assert code_of(service, "DELETE", url) == (400, "invalid_id")


def test_the_key_of_a_deleted_job_makes_no_second_one(service: Service) -> None:
    headers = {"Idempotency-Key": str(uuid.uuid4())}
    job = service.http.post(JOBS, json=order(), headers=headers).json()
    service.end_of(job["id"])
    service.http.delete(f"{JOBS}/{job['id']}")
    assert code_of(service, "POST", JOBS, json=order(), headers=headers) == (410, "job_deleted")


def test_what_was_kept_long_enough_is_deleted_by_itself(make_service: Callable[..., Service]) -> None:
    service = make_service(retention_days=0)
    job = service.make()
    dispatcher = service.api.app.state.safelight.dispatcher
    worker = service.worker
    assert worker is not None
    for each in (dispatcher, worker._engine._dispatcher):  # whichever of the two dispatches
        each._housekeeping_at = 0.0

    def is_gone() -> bool:
        return service.http.get(f"{JOBS}/{job['id']}").status_code == 410

    eventually(is_gone, "the job is deleted")
    eventually(lambda: not any(path.exists() for path in stored(service, job)), "its files are deleted")


@pytest.mark.parametrize(("revision", "code"), [("0001_core", "schema_outdated"), ("9999_future", "schema_too_new")])
def test_on_another_schema_nothing_is_accepted_until_it_is_ours(
    make_service: Callable[..., Service], sqlite_template: Path, tmp_path: Path, revision: str, code: str
) -> None:
    """The database is away at the start, and comes back as another one."""
    path = tmp_path / "late.db"
    service = make_service(worker=False, database_url=f"sqlite:///{path}")
    assert code_of(service, "POST", JOBS, json=order()) == (503, "database_unavailable")

    def put(version: str) -> None:
        fresh = shutil.copy(sqlite_template, tmp_path / "fresh.db")
        with contextlib.closing(sqlite3.connect(fresh)) as connection:
            connection.execute("UPDATE alembic_version SET version_num = ?", (version,))
            connection.commit()
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        Path(fresh).replace(path)

    put(revision)
    assert code_of(service, "POST", JOBS, json=order()) == (503, code)
    health = service.http.get("/health/ready")
    assert (health.status_code, health.json()["status"]) == (503, "unavailable")
    assert revision in health.json()["parts"]["database"]["detail"]
    put(REVISIONS[-1])
    assert service.http.post(JOBS, json=order()).status_code == 202
    assert service.http.get("/health/ready").status_code == 200
