"""Pages of other sites: those that are allowed may use the API from a browser, the others can change nothing."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from api_service import JOBS, Service, order, settings_for
from guarded_service import served
from pydantic import ValidationError

from safelight.config import Settings
from servers import ValkeyServer

APP = "http://localhost:3000"
OTHER = "https://evil.example"
TEST: dict[str, Any] = {"env": "test"}
PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type,idempotency-key"}


@pytest.fixture(scope="module")
def allowing(
    api_valkey: ValkeyServer, tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path
) -> Iterator[Service]:
    """A service that lets the pages of one origin in."""
    folder = tmp_path_factory.mktemp("origins")
    database = folder / "safelight.db"
    database.write_bytes(sqlite_template.read_bytes())
    settings = settings_for(folder, api_valkey, f"sqlite:///{database}", cors_origins=[APP], max_body_bytes=2000)
    running = Service(settings, api_valkey)
    yield running
    running.close()


def may_read(response: httpx.Response) -> bool:
    if "access-control-allow-origin" not in response.headers:
        return False
    assert response.headers["access-control-allow-origin"] == APP
    assert response.headers["access-control-allow-credentials"] == "true"
    exposed = set(response.headers["access-control-expose-headers"].lower().split(", "))
    assert exposed >= {"location", "retry-after", "etag", "x-request-id", "idempotency-replayed"}
    return True


def test_a_preflight_is_answered(allowing: Service) -> None:
    response = allowing.http.options(JOBS, headers={"Origin": APP, **PREFLIGHT})
    assert response.status_code == 204
    assert may_read(response)
    assert "POST" in response.headers["access-control-allow-methods"].split(", ")
    assert response.headers["access-control-allow-headers"] == "content-type,idempotency-key"
    assert int(response.headers["access-control-max-age"]) > 0


@pytest.mark.parametrize(
    "origin", [OTHER, "null", "http://localhost:3001", "https://localhost:3000", f"{APP}.evil.example"]
)
def test_the_preflight_of_another_page_is_refused(allowing: Service, service: Service, origin: str) -> None:
    for one in (allowing, service):
        response = one.http.options(JOBS, headers={"Origin": origin, **PREFLIGHT})
        assert (response.status_code, response.json()["code"]) == (403, "origin_forbidden")
        assert "SAFELIGHT_CORS_ORIGINS" in response.json()["detail"]
        assert not may_read(response)


def test_every_answer_may_be_read(allowing: Service) -> None:
    http, mine = allowing.http, {"Origin": APP}
    job = allowing.make()
    picture = job["artifacts"][0]["url"]
    answers = [
        http.get(JOBS, headers=mine),
        http.get("/api/v1/nothing", headers=mine),
        http.post(JOBS, json={}, headers=mine),
        http.post(JOBS, content=b"x" * 5000, headers=mine),
        http.get(picture, headers=mine),
        http.get(picture, headers={**mine, "Range": "bytes=0-3"}),
        http.get(picture, headers={**mine, "If-None-Match": "*"}),
        http.get(f"{JOBS}/{job['id']}/events", headers=mine),
        http.put(JOBS, headers=mine),
        http.get("/health/ready", headers=mine),
    ]
    assert [answer.status_code for answer in answers] == [200, 404, 422, 413, 200, 206, 304, 200, 405, 200]
    assert all(may_read(answer) for answer in answers)


def test_what_is_kept_for_one_page_is_not_given_to_another(allowing: Service, service: Service) -> None:
    for headers in ({}, {"Origin": APP}, {"Origin": OTHER}):
        response = allowing.http.get(JOBS, headers=headers)
        assert "Origin" in response.headers["vary"]
        assert may_read(response) == (headers.get("Origin") == APP)
    assert "vary" not in service.http.get(JOBS, headers={"Origin": APP}).headers


def test_who_is_not_let_in_is_told_so(api_valkey: ValkeyServer, tmp_path: Path, sqlite_template: Path) -> None:
    database = tmp_path / "safelight.db"
    database.write_bytes(sqlite_template.read_bytes())
    with served(tmp_path, api_valkey, f"sqlite:///{database}", cors_origins=[APP]) as guarded:
        assert guarded.nobody.options(JOBS, headers={"Origin": APP, **PREFLIGHT}).status_code == 204
        refused = guarded.nobody.get(JOBS, headers={"Origin": APP})
        assert refused.status_code == 401
        assert may_read(refused)
        # A key in a header cannot have been sent behind its owner's back; a cookie can.
        page = {"Origin": OTHER, "Sec-Fetch-Site": "cross-site"}
        assert guarded.ada.post(JOBS, json=order(), headers=page).status_code == 202
        opened = guarded.ada.post("/api/v1/session")
        cookie = {"Cookie": f"safelight_session={opened.cookies['safelight_session']}"}
        cookie["X-CSRF-Token"] = opened.json()["csrf_token"]
        for origin, status in ((OTHER, 403), ("null", 403), (APP, 202), (guarded.service.api.url, 202)):
            sent = guarded.nobody.post(JOBS, json=order(), headers={**cookie, "Origin": origin})
            assert sent.status_code == status, origin


# --- what a page of another site can do without any of this -----------------------------------------------------------


@pytest.mark.parametrize(
    "page",
    [
        {"Origin": OTHER},
        {"Origin": "null"},
        {"Origin": "http://localhost:3000", "Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Origin": OTHER, "Sec-Fetch-Site": "cross-site"},
    ],
)
@pytest.mark.parametrize("action", ["cancel", "retry", "delete", "submit"])
def test_a_page_of_another_site_can_change_nothing(idle: Service, page: dict[str, str], action: str) -> None:
    job_id = idle.hold()
    calls: dict[str, Callable[[], httpx.Response]] = {
        "cancel": lambda: idle.http.post(f"{JOBS}/{job_id}/cancel", content=b"x", headers=plain),
        "retry": lambda: idle.http.post(f"{JOBS}/{job_id}/retry", content=b"{}", headers=plain),
        "delete": lambda: idle.http.delete(f"{JOBS}/{job_id}", headers=plain),
        "submit": lambda: idle.http.post(f"{JOBS}/", json=order(), headers=page),
    }
    plain = page | {"Content-Type": "text/plain"}
    refused = calls[action]()
    assert (refused.status_code, refused.json()["code"]) == (403, "origin_forbidden")
    assert idle.look(job_id)["status"] == "pending"


def test_programs_and_our_own_pages_are_let_through(idle: Service, allowing: Service) -> None:
    own: list[dict[str, str]] = [
        {},
        {"Origin": idle.api.url},
        {"Origin": idle.api.url.upper().replace("HTTP", "http")},
        {"Origin": idle.api.url, "Sec-Fetch-Site": "same-origin"},
        {"Sec-Fetch-Site": "none"},
    ]
    for headers in own:
        assert idle.http.post(JOBS, json=order(), headers=headers).status_code == 202
    for site in ("same-site", "cross-site"):
        headers = {"Origin": APP, "Sec-Fetch-Site": site}
        assert allowing.http.post(JOBS, json=order(), headers=headers).status_code == 202
    assert idle.http.get(JOBS, headers={"Origin": OTHER, "Sec-Fetch-Site": "cross-site"}).status_code == 200


# --- the setting ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        "*",
        "null",
        "app.example.com",
        "https://app.example.com/",
        "https://app.example.com/x",
        "https://*.example.com",
        "https://App.example.com",
        "https://app.example.com:443",
        "ftp://app.example.com",
    ],
)
def test_what_is_no_origin_is_told_at_the_start(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFELIGHT_CORS_ORIGINS", wrong)
    with pytest.raises(ValidationError, match="cors_origins"):
        Settings(**TEST)


def test_origins_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFELIGHT_CORS_ORIGINS", f"https://app.example.com, {APP}")
    assert Settings(**TEST).cors_origins == ["https://app.example.com", APP]
