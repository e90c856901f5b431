"""With a part away, the API says what it cannot do, does what it can, and recovers by itself."""

import contextlib
import faulthandler
import io
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from api_service import JOBS, Service, eventually, order

from safelight.migrations import migrate
from servers import PostgresServer, ValkeyServer


def assert_unavailable(response: httpx.Response, code: str = "database_unavailable") -> None:
    assert (response.status_code, response.json()["code"], response.json()["retryable"]) == (503, code, True)
    assert int(response.headers["retry-after"]) >= 1


def submits(service: Service) -> bool:
    return service.http.post(JOBS, json=order()).status_code == 202


# --- Redis ------------------------------------------------------------------------------------------------------------


def test_without_redis_jobs_are_accepted_and_start_when_it_is_back(
    valkey_server: Callable[..., ValkeyServer], make_service: Callable[..., Service]
) -> None:
    valkey = valkey_server()
    service = make_service(valkey=valkey)
    running = service.submit(seconds=0.5)
    service.when(running["id"], lambda job: job["status"] == "processing", "it runs")
    valkey.kill()
    jobs = [service.submit()["id"] for _ in range(5)]
    assert service.look(jobs[0])["status"] == "pending"
    assert len(service.jobs()) == 6
    assert service.http.post(f"{JOBS}/{jobs[4]}/cancel").json()["status"] == "cancelled"
    ready = service.http.get("/health/ready")
    assert (ready.status_code, ready.json()["status"]) == (200, "degraded")
    assert ready.json()["parts"]["redis"]["state"] == "unavailable"
    assert service.end_of(running["id"])["status"] == "completed"
    waited = service.http.get(f"{JOBS}/{jobs[0]}", params={"wait": 1})
    assert (waited.status_code, waited.json()["status"]) == (200, "pending")
    valkey.start()
    for job_id in jobs[:4]:
        assert service.end_of(job_id)["status"] == "completed"


def test_a_frozen_redis_holds_nothing_up(
    valkey_server: Callable[..., ValkeyServer], make_service: Callable[..., Service]
) -> None:
    valkey = valkey_server()
    service = make_service(valkey=valkey)
    valkey.freeze()
    try:
        job = service.submit()
        assert service.look(job["id"])["status"] == "pending"
    finally:
        valkey.thaw()
    assert service.end_of(job["id"])["status"] == "completed"


def test_hints_lost_in_an_emptied_redis_are_sent_again(
    valkey_server: Callable[..., ValkeyServer], make_service: Callable[..., Service]
) -> None:
    valkey = valkey_server()
    service = make_service(valkey=valkey, slots=1)
    jobs = [service.submit(seconds=0.3)["id"] for _ in range(3)]
    valkey.flush()
    for job_id in jobs:
        assert service.end_of(job_id)["attempt"] == 1


# --- the database -----------------------------------------------------------------------------------------------------


def test_without_postgresql_it_says_so_and_goes_on_when_it_is_back(
    postgres_server: Callable[[], PostgresServer], make_service: Callable[..., Service]
) -> None:
    postgres = postgres_server()
    postgres.make_template(migrate)
    service = make_service(database_url=postgres.url(postgres.template_name))
    done, running = service.make(), service.submit(seconds=0.5)
    service.when(running["id"], lambda job: job["status"] == "processing", "it runs")
    postgres.stop()
    for answer in (
        service.http.post(JOBS, json=order()),
        service.http.get(JOBS),
        service.http.get(f"{JOBS}/{done['id']}"),
        service.http.get(f"{JOBS}/{done['id']}/events"),
        service.http.get(done["artifacts"][0]["url"]),
    ):
        assert_unavailable(answer)
    ready = service.http.get("/health/ready")
    assert (ready.status_code, ready.json()["status"], ready.headers["retry-after"]) == (503, "unavailable", "2")
    assert ready.json()["parts"]["database"]["state"] == "unavailable"
    assert ready.json()["parts"]["redis"]["state"] == "ok"
    assert service.http.get("/health/live").status_code == 200
    postgres.start()
    eventually(lambda: submits(service), "submits are accepted again")
    eventually(lambda: all(service.http.get(JOBS).status_code == 200 for _ in range(8)), "lists are read again")
    assert service.end_of(running["id"])["status"] == "completed"
    assert service.make()["status"] == "completed"


def test_a_locked_sqlite_is_waited_for_and_then_reported(idle: Service) -> None:
    path = idle.settings.database_url.removeprefix("sqlite:///")
    job = idle.submit()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        refused = idle.http.post(JOBS, json=order())
        assert_unavailable(refused)
        assert "locked" in refused.json()["detail"]
        assert idle.look(job["id"])["status"] == "pending"  # reading goes on
        other.execute("ROLLBACK")
    eventually(lambda: submits(idle), "submits are accepted again")


def test_a_database_without_its_schema_is_reported_until_it_has_one(
    make_service: Callable[..., Service], tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path / 'empty.db'}"
    service = make_service(worker=False, database_url=url)
    refused = service.http.post(JOBS, json=order())
    assert_unavailable(refused)
    assert "safelight migrate" in refused.json()["detail"]
    assert service.http.get("/health/ready").status_code == 503
    migrate(url)
    eventually(lambda: submits(service), "submits are accepted")
    service.start_worker()
    assert service.make()["status"] == "completed"


def test_a_sqlite_file_that_is_gone_is_reported_until_there_is_one(idle: Service) -> None:
    path = Path(idle.settings.database_url.removeprefix("sqlite:///"))
    idle.submit()
    for part in ("", "-wal", "-shm"):
        path.with_name(path.name + part).unlink(missing_ok=True)
    assert_unavailable(idle.http.post(JOBS, json=order()))
    assert_unavailable(idle.http.get(JOBS))
    migrate(idle.settings.database_url)
    eventually(lambda: submits(idle), "submits are accepted again")


# --- storage ----------------------------------------------------------------------------------------------------------


def test_a_storage_that_cannot_be_read_is_reported(service: Service) -> None:
    job = service.make()
    folder = (service.settings.data_dir / "files" / job["output_paths"][0]).parent
    moved = folder.with_name("moved")
    folder.rename(moved)
    folder.write_bytes(b"a file where a folder should be")
    try:
        answer = service.http.get(job["artifacts"][0]["url"])
        assert answer.status_code in (404, 503)
    finally:
        folder.unlink()
        moved.rename(folder)
    assert service.http.get(job["artifacts"][0]["url"]).status_code == 200


def test_the_watchdog_is_armed_again_whatever_stands_for_standard_error(
    make_service: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    armed: list[Any] = []

    def arm(seconds: float, **options: Any) -> None:
        options["file"].fileno()
        armed.append((seconds, options["exit"]))

    monkeypatch.setattr(faulthandler, "dump_traceback_later", arm)
    make_service(stuck_loop_seconds=0.4)
    eventually(lambda: armed.count((0.4, True)) >= 3, "the watchdog is armed again and again")
