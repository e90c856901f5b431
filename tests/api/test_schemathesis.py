"""schemathesis over the OpenAPI document: nothing right is refused, nothing wrong is taken, every answer is as the
document tells, and none is a fault of ours (5xx).

The short form tries every operation's examples, and every bound of what is changed; the long form tries all bounds, and
sends requests made at random. The summary (cases, failures, 5xx) is printed with `-rP`.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from base64 import b64encode
from collections import Counter
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from api_service import JOBS, Json, order
from guarded_service import Guarded, served
from PIL import Image

from safelight.api.service.templates import EXAMPLE
from servers import ValkeyServer
from stand_ins.media_host import MediaHost

API = "/api/v1"
CONFIG = Path(__file__).with_name("schemathesis.toml")
PROGRAM = Path(sys.executable).with_name("schemathesis")


@pytest.fixture(scope="module")
def examined(
    api_valkey: ValkeyServer, sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("examined")
    url = f"sqlite:///{shutil.copy(sqlite_template, folder / 'safelight.db')}"
    with served(folder, api_valkey, url, media_allow_private="127.0.0.1/32", media_keep_free_bytes=0) as guarded:
        yield guarded


@pytest.fixture(scope="module")
def known(examined: Guarded) -> Iterator[Json]:
    """Real things that requests can name: see `schemathesis_hooks`."""

    def make(path: str, body: Any, **headers: str) -> Json:
        answer = examined.ada.post(f"{API}/{path}", json=body, headers=headers)
        assert answer.status_code < 300, answer.text
        return answer.json()

    def drawn(path: str) -> str:
        """The picture of a job."""
        job_id = make(path, order())["job_id"]
        return examined.ada.get(f"{JOBS}/{job_id}", params={"wait": 60}).json()["artifacts"][0]["id"]

    host = MediaHost()
    picture = BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "PNG")
    failed = make("generation-jobs", order(mock={"refuse": "no"}), Prefer="wait=60")
    batch = make("batches", {"jobs": [order(mock={"refuse": "no"})]})
    examined.ada.get(f"{JOBS}/{batch['job_ids'][0]}", params={"wait": 60})
    project = make("projects", {"title": "x"})["id"]
    chapter = make(f"projects/{project}/chapters", {"title": "x"})["id"]
    ordered = make(f"projects/{project}/chapters", {"title": "y"})["id"]
    scene = make(f"chapters/{chapter}/scenes", {"description": "x"})
    character = make(f"projects/{project}/characters", {"name": "x"})["id"]
    upload = examined.ada.post(f"{API}/artifacts", content=picture.getvalue(), headers={"Content-Type": "image/png"})
    missing = make("media/store", {"url": f"{host.url}/nothing.mp4"})["id"]
    examined.ada.get(f"{JOBS}/{missing}", params={"wait": 60})
    yield {
        "failed": failed["id"],
        "failed_import": missing,
        "batch": batch["id"],
        "chapter": chapter,
        "ordered": ordered,
        "scenes": [make(f"chapters/{ordered}/scenes", {"description": "x"})["id"] for _ in range(2)],
        "scene": scene["id"],
        "scene_picture": drawn(f"chapters/{chapter}/images/scenes/{scene['scene_number']}"),
        "character": character,
        "character_picture": drawn(f"characters/{character}/image"),
        "artifact": upload.json()["id"],
        "link": make(f"artifacts/{upload.json()['id']}/link", None)["url"].rpartition("/")[2],
        "template": EXAMPLE,
        "png": b64encode(picture.getvalue()).decode(),
        "video": f"{host.url}/lighthouse.mp4",
    }
    host.close()


def examine(guarded: Guarded, known: Json, report: Path, *options: str) -> None:
    """Run schemathesis; fail with what it found."""
    guarded.ada.get(f"{API}/openapi.json")  # is made once: schemathesis waits ten seconds for it
    answer = subprocess.run(
        [
            *(PROGRAM, "--config-file", CONFIG.name, "run", f"{guarded.service.api.url}{API}/openapi.json"),
            *("--header", f"Authorization: Bearer {guarded.key('ada', 'admin')}", "--no-color"),
            *("--report", "ndjson", "--report-ndjson-path", report, *options),
        ],
        env=os.environ | {"SAFELIGHT_TEST_KNOWN": json.dumps(known)},
        cwd=CONFIG.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert report.exists(), answer.stdout + answer.stderr
    statuses = Counter(re.findall(r'"status_code": ?(\d+)', report.read_text("utf-8")))
    faults = sum(count for status, count in statuses.items() if status >= "500")
    summary = answer.stdout.rpartition("= SUMMARY =")[2]
    sys.stdout.write(f"{summary}\n{statuses.total()} answers, {faults} of them 5xx: {sorted(statuses.items())}\n")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert faults == 0
    assert re.search(r"Tested: (\d+)", summary), summary


def test_examples_do_as_the_document_tells(examined: Guarded, known: Json, tmp_path: Path) -> None:
    examine(examined, known, tmp_path / "report.ndjson", "--phases", "examples")


def test_bounds_are_where_the_document_puts_them(examined: Guarded, known: Json, tmp_path: Path) -> None:
    chosen = [word for method in ("PATCH", "PUT") for word in ("--include-method", method)]
    examine(examined, known, tmp_path / "report.ndjson", "--phases", "coverage", *chosen)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_so_do_all_bounds_and_many_requests_made_at_random(examined: Guarded, known: Json, tmp_path: Path) -> None:
    examine(examined, known, tmp_path / "report.ndjson", "--phases", "coverage,fuzzing", "--max-examples", "20")
