"""What writes rows or bytes takes a token of its owner's bucket, whatever it writes; what reads does not."""

import uuid
from collections.abc import Iterator
from contextlib import closing
from io import BytesIO
from typing import Any

import httpx
import pytest
from api_service import JOBS, order
from guarded_service import Guarded, problem_of
from PIL import Image

PROJECTS, KEYS, TEMPLATES, UPLOADS = "/api/v1/projects", "/api/v1/keys", "/api/v1/templates", "/api/v1/artifacts"
A_MINUTE = 3  # of the tier `slow`
TEMPLATE = {"title": "A", "workflow": {"1": {"class_type": "SaveImage", "inputs": {}}}}


def picture() -> bytes:
    data = BytesIO()
    Image.new("RGB", (64, 64)).save(data, "PNG")
    return data.getvalue()


WRITES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "a job": ("POST", JOBS, {"json": order()}),
    "a project": ("POST", PROJECTS, {"json": {"title": "A"}}),
    "a template": ("PUT", f"{TEMPLATES}/a", {"json": TEMPLATE}),
    "a picture": ("POST", UPLOADS, {"content": picture(), "headers": {"Content-Type": "image/png"}}),
    "a key": ("POST", KEYS, {"json": {"name": "a"}}),
}


@pytest.fixture
def slow(guarded: Guarded) -> Iterator[httpx.Client]:
    """Somebody who may write three things a minute."""
    with closing(guarded.client(guarded.key(str(uuid.uuid4()), "admin", tier="slow"))) as client:
        yield client


@pytest.mark.parametrize("what", WRITES)
def test_the_fourth_of_a_minute_is_too_quick(slow: httpx.Client, what: str) -> None:
    method, path, body = WRITES[what]
    for _ in range(A_MINUTE):
        assert slow.request(method, path, **body).status_code in (200, 201, 202)
    refused = slow.request(method, path, **body)
    assert problem_of(refused, 429) == "rate_limited"
    assert 1 <= int(refused.headers["Retry-After"]) <= 20
    assert slow.get(JOBS).status_code == 200


def test_all_writes_of_an_owner_share_their_tokens(slow: httpx.Client, guarded: Guarded) -> None:
    taken = [slow.request(method, path, **body).status_code for method, path, body in WRITES.values()]
    assert [status == 429 for status in taken] == [False] * A_MINUTE + [True] * (len(WRITES) - A_MINUTE)
    assert guarded.ada.post(PROJECTS, json={"title": "A"}).status_code == 201


def test_a_wrong_submit_costs_nothing_and_another_wrong_write_its_token(slow: httpx.Client) -> None:
    for _ in range(A_MINUTE + 1):
        assert slow.post(JOBS, json={"prompt": ""}).status_code == 422
    for _ in range(A_MINUTE):
        assert slow.post(PROJECTS, json={"title": ""}).status_code == 422
    assert problem_of(slow.post(PROJECTS, json={"title": ""}), 429) == "rate_limited"
