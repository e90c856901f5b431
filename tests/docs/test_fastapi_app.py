"""The app of the page on FastAPI apps, run as it stands beside a real Safelight: its users, streams and files."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from shell_blocks import blocks

from api.api_service import Service, settings_for
from patience import PATIENCE_SECONDS, await_true
from servers import ValkeyServer, free_port

PAGE = "how-to/your-fastapi-app.md"
SECRET = "the page makes one with openssl: 32 bytes at least"


@pytest.fixture(scope="module")
def app_url(
    shared_valkey: ValkeyServer, sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("app")
    database = f"sqlite:///{shutil.copy(sqlite_template, folder / 'safelight.db')}"
    accounts = {"auth": "required", "jwt_secret": SECRET, "jwt_audience": "safelight"}
    service = Service(settings_for(folder, shared_valkey, database, **accounts), shared_valkey, worker=False)
    service.start_worker()  # whether it is heard from, nobody is told without a key
    [(_, program)] = blocks(PAGE, "python")
    # Beside what the page shows, so that the test can see what the app learnt.
    (folder / "app.py").write_text(program + '\n\n@app.get("/learnt")\nasync def learnt():\n    return pictures\n')
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", "app:app", "--port", str(port)],
        cwd=folder,
        env={**os.environ, "SAFELIGHT_JWT_SECRET": SECRET, "SAFELIGHT_URL": service.api.url},
    )
    try:
        url = f"http://127.0.0.1:{port}"
        await_true(lambda: answers(url) or process.poll() is not None)
        assert process.poll() is None
        yield url
    finally:
        process.kill()
        process.wait()
        service.close()


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/learnt", timeout=PATIENCE_SECONDS).is_success
    except httpx.TransportError:
        return False


def test_a_wish_its_events_its_end_and_its_picture(app_url: str) -> None:
    with httpx.Client(base_url=app_url, headers={"X-User": "ada"}, timeout=PATIENCE_SECONDS) as ada:
        asked = ada.post("/pictures", json={"prompt": "a lighthouse at dusk"})
        assert asked.status_code == 202, asked.text
        job_id = asked.json()["id"]
        told = ada.get(f"/pictures/{job_id}/events").text  # to its end
        assert "event: job.snapshot" in told
        job = ada.get(f"/pictures/{job_id}").json()
        assert job["status"] == "completed"
        await_true(lambda: job_id in ada.get("/learnt").json())
        [url] = ada.get("/learnt").json()[job_id]
        assert url == job["artifacts"][0]["url"]
        assert ada.get(url).content.startswith(b"\x89PNG")
        assert ada.get(url, headers={"X-User": "bob"}).status_code == 404
        missed = ada.get(f"/pictures/{job_id}/events", headers={"Last-Event-ID": "2"})
        assert "event: job.completed" in missed.text
        last = re.findall(r"^id: (\d+)$", missed.text, re.MULTILINE)[-1]
        assert ada.get(f"/pictures/{job_id}/events", headers={"Last-Event-ID": last}).status_code == 204


def test_what_belongs_to_one_user_does_not_exist_for_another(app_url: str) -> None:
    with httpx.Client(base_url=app_url, timeout=PATIENCE_SECONDS) as http:
        job_id = http.post("/pictures", json={"prompt": "mine"}, headers={"X-User": "ada"}).json()["id"]
        for path in (f"/pictures/{job_id}", f"/pictures/{job_id}/events"):
            assert http.get(path, headers={"X-User": "bob"}).status_code == 404


def test_what_is_wrong_with_a_wish_is_told_as_safelight_says_it(app_url: str) -> None:
    wrong = httpx.post(f"{app_url}/pictures", json={"prompt": ""}, headers={"X-User": "ada"}, timeout=60)
    assert (wrong.status_code, wrong.headers["content-type"]) == (422, "application/problem+json")
