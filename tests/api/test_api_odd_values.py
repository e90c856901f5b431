"""Odd dates, claims, cursors and texts on both databases: a success, or a problem that names what is wrong."""

import shutil
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from api_service import JOBS, check_answer, order
from guarded_service import SESSION, Guarded, served

from accounts.identity_provider import shared_token
from servers import ValkeyServer

API = "/api/v1"
DATES = ["0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "50000-01-01T00:00:00Z", "2100-12-31T23:59:60Z"]


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def guarded(
    request: pytest.FixtureRequest, api_valkey: ValkeyServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("odd")
    if request.param == "sqlite":
        url = f"sqlite:///{shutil.copy(request.getfixturevalue('sqlite_template'), folder / 'safelight.db')}"
    else:
        url = request.getfixturevalue("postgres").database(folder.name)
    with served(folder, api_valkey, url) as running:
        yield running


def answer(client: httpx.Client, method: str, path: str, **more: Any) -> httpx.Response:
    """Checked; of a stream of events nothing more than its beginning."""
    response = client.send(client.build_request(method.upper(), path, **more), stream=True)
    assert response.status_code < 500, ascii((method, path, more))[:500]
    check_answer(response)
    response.close()
    return response


def names(response: httpx.Response) -> list[str]:
    """What a refusal names."""
    return [error["pointer"] for error in response.json()["errors"]]


@pytest.mark.parametrize("text", ["👩‍🚀 \u202egnp.exe\u202c", "\ufeffa\u2028b\u0085", "e\u0301 \U0001d518\x7f\x1b[31m"])
def test_text_comes_back_as_it_was_sent(guarded: Guarded, text: str) -> None:
    metadata = {text: text}
    job = guarded.ada.post(JOBS, json=order(prompt=text, metadata=metadata, chapter_id=text)).json()
    seen = guarded.ada.get(JOBS, params={"text": text, "chapter_id": text}).json()["items"]
    assert [(each["id"], each["prompt"], each["metadata"]) for each in seen] == [(job["id"], text, metadata)]
    project = guarded.ada.post(f"{API}/projects", json={"title": text}).json()
    assert guarded.ada.get(f"{API}/projects/{project['id']}").json()["title"] == text


def test_cursors_of_other_lists(guarded: Guarded) -> None:
    def cursor(path: str) -> str:
        return answer(guarded.ada, "get", path, params={"limit": 1}).json()["next_cursor"]

    project = guarded.ada.post(f"{API}/projects", json={"title": "x"}).json()["id"]
    chapters = f"{API}/projects/{project}/chapters"
    for _ in range(2):
        guarded.ada.post(JOBS, json=order())
        guarded.ada.post(chapters, json={"title": "x"})
    for path in (JOBS, chapters):
        for given in (cursor(JOBS), cursor(chapters)):
            told = answer(guarded.ada, "get", path, params={"cursor": given})
            assert told.status_code == 200 or names(told) == ["cursor"]


@pytest.mark.parametrize("claim", ["exp", "nbf", "iat"])
def test_claims_of_tokens(guarded: Guarded, claim: str) -> None:
    odd: list[Any] = [
        *(0, -1, -0.0, 1e308, -1e308, 10**400, 2**63, -(2**63), 253402300799, 253402300800, -62135596801),
        *(float("nan"), float("inf"), "", "7", "\u0667", "1e9", "2100-01-01", [], [1], {}, True, "\ud800", "a\0b"),
    ]
    for value in odd:
        client = guarded.client(shared_token(**{claim: value}))
        for method, path in (("get", JOBS), ("post", SESSION)):
            told = answer(client, method, path)
            assert told.status_code in (200, 201, 401), (value, told.text)


@pytest.mark.parametrize(
    ("moment", "words"),
    [
        (DATES[0], "must not be in the past"),
        (DATES[1], "within a year"),
        *(
            (each, "for example 2027-01-31T18:00:00Z")
            for each in (*DATES[2:], "", "tomorrow", "1e9", 1_900_000_000, [])
        ),
        ("2100-02-30T00:00:00Z", "day value is outside"),
        ("2100-01-01T00:00:00+24:00", "valid datetime"),
        ("2100-01-01T00:00:00", "timezone"),
    ],
)
def test_moments(guarded: Guarded, moment: Any, words: str) -> None:
    told = answer(guarded.ada, "post", JOBS, json=order(run_at=moment))
    assert (told.status_code, names(told)) == (422, ["#/run_at"])
    assert words in told.json()["errors"][0]["detail"]
