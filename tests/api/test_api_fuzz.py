"""Whatever is sent to any operation of the OpenAPI document, the answer is one that the document tells, and no 5xx.

`SAFELIGHT_TEST_FUZZ=2000` makes it that many requests an operation, other ones at each run.
"""

import os
import shutil
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import httpx
import pytest
from api_service import BATCHES, JOBS, check_answer, order
from from_openapi import Document, Made, Operation, strangers
from guarded_service import KEYS, Guarded, served
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from patience import PATIENCE_SECONDS
from servers import ValkeyServer

LONG = int(os.environ.get("SAFELIGHT_TEST_FUZZ", "0"))
UPLOADS = "/api/v1/artifacts"
STORIES = "/api/v1/"
UNTOLD = {f"GET {noun}/{{id}}": {304} for noun in (JOBS, BATCHES)}  # what the document does not tell yet


@pytest.fixture(scope="module")
def fuzzed(
    api_valkey: ValkeyServer, sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("fuzzed")
    url = f"sqlite:///{shutil.copy(sqlite_template, folder / 'safelight.db')}"
    with served(folder, api_valkey, url) as guarded:
        yield guarded


@pytest.fixture(scope="module")
def sender(fuzzed: Guarded) -> Iterator[httpx.Client]:
    with httpx.Client(
        base_url=fuzzed.service.api.url,
        headers={"Authorization": f"Bearer {fuzzed.key('ada', 'admin')}"},
        event_hooks={"response": [check_answer]},
        timeout=PATIENCE_SECONDS,
    ) as client:
        yield client


@pytest.fixture(scope="module")
def document(fuzzed: Guarded) -> Document:
    """The document, with real things in every state to fill its paths with."""
    done = fuzzed.ada.post(JOBS, json=order(), headers={"Prefer": "wait=60"}).json()
    deleted = fuzzed.ada.post(JOBS, json=order(), headers={"Prefer": "wait=60"}).json()
    assert fuzzed.ada.delete(f"{JOBS}/{deleted['id']}").status_code == 204
    failed = fuzzed.ada.post(JOBS, json=order(mock={"refuse": "no"}), headers={"Prefer": "wait=60"}).json()
    assert failed["status"] == "failed"
    ended = fuzzed.ada.post(BATCHES, json={"jobs": [order(mock={"refuse": "no"})]}).json()
    fuzzed.ada.get(f"{JOBS}/{ended['job_ids'][0]}", params={"wait": 60})
    waiting = fuzzed.ada.post(BATCHES, json={"jobs": [order(seconds=60)]}).json()
    picture = BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "PNG")
    upload = fuzzed.ada.post(UPLOADS, content=picture.getvalue(), headers={"Content-Type": "image/png"}).json()
    link = fuzzed.ada.post(f"{UPLOADS}/{upload['id']}/link").json()["url"].rpartition("/")[2]
    key = fuzzed.ada.post(KEYS, json={"name": "another"}).json()
    project = fuzzed.ada.post(STORIES + "projects", json={"title": "x"}).json()["id"]
    chapter = fuzzed.ada.post(f"{STORIES}projects/{project}/chapters", json={"title": "x"}).json()["id"]
    scene = fuzzed.ada.post(f"{STORIES}chapters/{chapter}/scenes", json={"description": "x"}).json()["id"]
    character = fuzzed.ada.post(f"{STORIES}projects/{project}/characters", json={"name": "x"}).json()["id"]
    fuzzed.ada.post(f"{STORIES}chapters/{chapter}/images/scenes/1", json=order())
    known = {
        STORIES + "projects": [project],
        STORIES + "chapters": [chapter],
        STORIES + "scenes": [scene],
        STORIES + "characters": [character],
        JOBS: [done["id"], failed["id"]],
        UPLOADS: [done["artifacts"][0]["id"], upload["id"]],
        KEYS: [key["id"]],
        BATCHES: [ended["id"], waiting["id"]],
    }
    gone = {JOBS: [deleted["id"]], UPLOADS: [deleted["artifacts"][0]["id"]]}

    def ids(operation: Operation, name: str) -> list[str]:
        if name == "token":
            return [link, link[:-2]]
        if name == "width":
            return ["256", "512", "1"]
        if name == "name":
            return ["none", "mock", "txt2img", "swatch"]
        if name == "chapter_id":
            return [chapter, "theirs"]
        if name == "scene_number":
            return ["1", "2"]
        if name != "id":
            return ["none"]
        slice_of = next((prefix for prefix in known if operation.path.startswith(prefix)), "")
        there = [] if operation.method == "delete" else known.get(slice_of, [])  # the others still need them
        return [*there, *gone.get(slice_of, []), *strangers()]

    return Document(fuzzed.nobody.get("/api/v1/openapi.json").json(), ids)


@settings(
    max_examples=LONG or 12,
    derandomize=not LONG,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
@given(data=st.data())
def ask(operation: Operation, document: Document, sender: httpx.Client, data: st.DataObject) -> None:
    made = data.draw(document.requests(operation))
    status = answer_to(sender, made)
    assert status < 500, made
    assert status in operation.statuses | UNTOLD.get(str(operation), set()), (status, made)


def answer_to(sender: httpx.Client, made: Made) -> int:
    """The status; `check_answer` looks at the rest. Of an event stream nothing more is waited for."""
    headers = {name: value for name, value in made.headers.items() if "wait" not in value}  # which may take 60 s
    request = sender.build_request(
        made.method.upper(), made.url, params=tuple(made.params), headers=headers, content=made.content
    )
    response = sender.send(request, stream=True)
    response.close()
    return response.status_code


@pytest.mark.timeout(0 if LONG else 600)
def test_every_operation_answers_as_the_document_tells(document: Document, sender: httpx.Client) -> None:
    assert len(document.operations) >= 15
    wrong: list[str] = []
    for operation in document.operations:
        try:
            ask(operation, document, sender)
        except AssertionError as error:
            wrong.append(f"{operation}: {error}")
    assert not wrong, "\n\n".join(wrong)
