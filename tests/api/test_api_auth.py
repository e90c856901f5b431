"""Who may do what over HTTP: every operation of the OpenAPI document, as nobody, as another, with too small a key."""

import logging
import time
import uuid
from pathlib import Path

import pytest
import structlog
from api_service import JOBS, eventually, order
from guarded_service import (
    KEYS,
    OPEN,
    PROVIDERS,
    SAFE,
    SESSION,
    TEMPLATES,
    Guarded,
    filled,
    in_database,
    make_key,
    problem_of,
    send,
    served,
)

from accounts.identity_provider import shared_token
from safelight import log
from safelight.accounts import (
    revoke_key,
)
from servers import ValkeyServer

# Every operation


def test_every_operation_as_nobody(guarded: Guarded, adas: dict[str, str]) -> None:
    checked = 0
    for method, path in guarded.operations():
        if path in OPEN:
            continue
        where = filled(path, adas)
        assert problem_of(send(guarded.nobody, method, where), 401) == "unauthenticated", path
        checked += 1
    assert checked >= 15


@pytest.mark.parametrize("path", ["/nowhere", "/api/v1/nowhere", f"{JOBS}/", "/api/v1/redoc", "/docs"])
def test_what_is_not_there_is_not_told_to_nobody(guarded: Guarded, path: str) -> None:
    assert problem_of(guarded.nobody.get(path), 401) == "unauthenticated"
    assert problem_of(guarded.nobody.post(path, content=b"{not json"), 401) == "unauthenticated"


def test_every_operation_with_bad_credentials(guarded: Guarded, adas: dict[str, str]) -> None:
    secret, key = make_key(guarded.url, "ada")
    in_database(guarded.url, revoke_key, key.id)
    bad = {
        "key_revoked": secret,
        "key_expired": guarded.key("ada", "admin", seconds=-1.0),
        "key_invalid": "sl_" + "A" * 43,
        "token_expired": shared_token(exp=time.time() - 60),
        "token_not_yet_valid": shared_token(nbf=time.time() + 600),
        "token_wrong_audience": shared_token(aud="another"),
        "token_wrong_issuer": shared_token(iss="another"),
        "token_invalid": "not.a.token",
    }
    everywhere = ("key_revoked", "token_expired")  # one of each kind; the others are told apart at the same door
    for code, credential in bad.items():
        client = guarded.client(credential)
        for method, path in guarded.operations()[:: 1 if code in everywhere else 9]:
            if path not in OPEN:
                where = filled(path, adas)
                response = send(client, method, where)
                assert problem_of(response, 401) == code, path
                assert "invalid_token" in response.headers["www-authenticate"]
                assert credential not in response.text
    for value in ("Basic YTpi", "Bearer", "sl_x"):
        assert problem_of(guarded.client(Authorization=value).get(JOBS), 401) == "unauthenticated"


def test_every_operation_as_another_user(guarded: Guarded, adas: dict[str, str]) -> None:
    for method, path in guarded.operations():
        where = filled(path, adas)
        if path in OPEN or path.startswith((PROVIDERS, TEMPLATES)):
            continue
        if "{" not in path:
            if method == "get" and path != SESSION:
                body = send(guarded.bob, method, where).json()
                found = {item["id"] for item in body["items"]}
                assert not found & set(adas.values()), path
            continue
        assert problem_of(send(guarded.bob, method, where), 404), path
        if method == "get":
            guarded.bob.head(where)
    assert guarded.bob.get(JOBS, params={"ids": adas["job"]}).json()["items"] == []
    assert guarded.ada.get(f"{JOBS}/{adas['job']}").json()["status"] == "completed"
    assert adas["key"] in {key["id"] for key in guarded.ada.get(KEYS).json()["items"] if key["revoked_at"] is None}


def test_every_operation_with_a_read_only_key(guarded: Guarded, adas: dict[str, str]) -> None:
    reader = guarded.client(guarded.key("ada", "read"))
    for method, path in guarded.operations():
        if path in OPEN or path == SESSION:
            continue
        where = filled(path, adas)
        response = send(reader, method, where)
        if method not in SAFE or path.startswith(KEYS):
            assert problem_of(response, 403) == "scope_missing", path
        else:
            assert response.status_code in (200, 204) or "previews" in path, (path, response.text)
    writer = guarded.client(guarded.key("ada", "write"))
    assert problem_of(writer.get(KEYS), 403) == "scope_missing"
    assert problem_of(writer.post(KEYS, json={"name": "x", "scopes": ["admin"]}), 403) == "scope_missing"


def test_the_document_says_how_to_authenticate(guarded: Guarded) -> None:
    document = guarded.nobody.get("/api/v1/openapi.json").json()
    assert set(document["components"]["securitySchemes"]) == {"bearer", "session"}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert bool(operation["security"]) == (path not in OPEN)


# Two users


def test_two_users_on_one_service(guarded: Guarded) -> None:
    job_id = guarded.ada.post(JOBS, json=order(seconds=3)).json()["id"]
    eventually(lambda: guarded.ada.get(f"{JOBS}/{job_id}").json()["status"] == "processing", "it runs")
    assert problem_of(guarded.bob.get(f"{JOBS}/{job_id}/events"), 404) == "job_not_found"
    assert problem_of(guarded.bob.post(f"{JOBS}/{job_id}/cancel"), 404) == "job_not_found"
    assert problem_of(guarded.bob.post(f"{JOBS}/{job_id}/retry"), 404) == "job_not_found"
    assert problem_of(guarded.bob.get(f"{JOBS}/{job_id}?wait=1"), 404) == "job_not_found"
    assert guarded.ada.get(f"{JOBS}/{job_id}").json()["status"] == "processing"
    assert guarded.ada.post(f"{JOBS}/{job_id}/cancel").status_code == 200
    job = guarded.ada.get(f"{JOBS}/{job_id}?wait=10").json()
    assert job["status"] == "cancelled"
    with guarded.ada.stream("GET", f"{JOBS}/{job_id}/events") as stream:
        assert stream.status_code == 200


def test_an_idempotency_key_is_ones_own(guarded: Guarded) -> None:
    headers = {"Idempotency-Key": str(uuid.uuid4())}
    ids = {client.post(JOBS, json=order(), headers=headers).json()["id"] for client in (guarded.ada, guarded.bob)}
    assert len(ids) == 2


def test_previews_are_ones_own(guarded: Guarded) -> None:
    job_id = guarded.ada.post(JOBS, json=order(seconds=2, width=512, height=512)).json()["id"]
    with guarded.ada.stream("GET", f"{JOBS}/{job_id}/events") as stream:
        for line in stream.iter_lines():
            if '"preview_url":"' in line:
                url = line.split('"preview_url":"')[1].split('"')[0]
                break
        else:
            raise AssertionError("there was no preview")
    assert guarded.ada.get(url).status_code == 200
    assert problem_of(guarded.bob.get(url), 404) == "job_not_found"
    assert problem_of(guarded.nobody.get(url), 401) == "unauthenticated"


def test_a_user_appears_with_a_token(guarded: Guarded) -> None:
    subject = str(uuid.uuid4())
    carol = guarded.client(shared_token(sub=subject))
    me = carol.get(SESSION).json()
    assert (me["owner_id"], me["scopes"], me["tier"], me["how"]) == (subject, ["read", "write"], "free", "token")
    job = carol.post(JOBS, json=order(), headers={"Prefer": "wait=60"}).json()
    assert job["status"] == "completed"
    assert problem_of(guarded.ada.get(job["artifacts"][0]["url"]), 404) == "artifact_not_found"
    assert carol.get(job["artifacts"][0]["url"]).status_code == 200


# Health


def test_health_tells_strangers_the_status_alone(guarded: Guarded) -> None:
    assert guarded.nobody.get("/health/live").json() == {"status": "ok"}
    for path in ("/health/ready", "/api/v1/health/ready"):
        for stranger in (guarded.nobody, guarded.client("sl_wrong")):
            assert stranger.get(path).json() == {"status": "ok"}
        assert set(guarded.ada.get(path).json()) == {"status", "parts", "queues"}
    assert guarded.nobody.get("/api/v1/docs").status_code == 200


# Limits


def test_the_tiers_model_is_the_default(guarded: Guarded) -> None:
    assert guarded.ada.post(JOBS, json=order()).json()["model"] == "darkroom-fast"
    assert guarded.ada.post(JOBS, json=order(model="darkroom")).json()["model"] == "darkroom"


def test_two_run_and_eight_wait(guarded: Guarded) -> None:
    free = guarded.client(guarded.key(str(uuid.uuid4()), tier="free"))
    ids = [free.post(JOBS, json=order(seconds=600)).json()["id"] for _ in range(10)]

    def standing() -> list[tuple[str, str | None]]:
        jobs = free.get(JOBS, params={"ids": ",".join(ids)}).json()["items"]
        assert sum(job["status"] == "processing" for job in jobs) <= 2
        return sorted(((job["status"], job["blocked_reason"]) for job in jobs), key=str)

    expected = [("pending", "owner_limit")] * 8 + [("processing", None)] * 2
    eventually(lambda: standing() == expected, "two run, eight wait and say why")
    # Others are not held up.
    assert guarded.ada.post(JOBS, json=order(), headers={"Prefer": "wait=60"}).json()["status"] == "completed"
    assert standing() == expected
    for ended in range(2, 12, 2):
        running = [job["id"] for job in free.get(JOBS, params={"status": "processing"}).json()["items"]]
        for job_id in running:
            free.post(f"{JOBS}/{job_id}/cancel")
        next_two = [("cancelled", None)] * ended + expected[ended:]
        eventually(lambda now=next_two: standing() == now, "two others run")


def test_too_many_submits(guarded: Guarded) -> None:
    slow = guarded.client(guarded.key(str(uuid.uuid4()), tier="slow"))
    for left in (2, 1, 0):
        accepted = slow.post(JOBS, json=order())
        assert accepted.status_code == 202
        assert accepted.headers["ratelimit-policy"] == '"submit";q=3;w=60'
        assert accepted.headers["ratelimit"].startswith(f'"submit";r={left};t=')
    refused = slow.post(JOBS, json=order())
    assert problem_of(refused, 429) == "rate_limited"
    wait = int(refused.headers["retry-after"])
    assert 15 <= wait <= 20
    assert refused.headers["ratelimit"] == f'"submit";r=0;t={wait}'
    assert refused.headers["ratelimit-policy"] == '"submit";q=3;w=60'
    assert refused.json()["retryable"] is True
    assert len(slow.get(JOBS).json()["items"]) == 3  # nothing was accepted, and reading is not limited
    assert "ratelimit" not in guarded.ada.post(JOBS, json=order()).headers


# Logs


def test_logs_say_whose_request_it_was_and_never_the_secret(guarded: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(log, "_write", said.append)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    secret = guarded.key("logged-owner", "admin")
    log.configure("debug", "json")
    structlog.configure(cache_logger_on_first_use=False)
    try:
        client = guarded.client(secret)
        made = client.post(KEYS, json={"name": "x"}).json()
        opened = client.post(SESSION)
        client.post(JOBS, json=order(), headers={"Prefer": "wait=60"})
        guarded.client("sl_" + "B" * 43).get(JOBS)
        guarded.client(shared_token(sub="logged-token")).get(JOBS)
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    text = "\n".join(said)
    assert '"owner_id":"logged-owner"' in text
    assert "user.appeared" in text
    for hidden in (secret, made["secret"], opened.cookies["safelight_session"], "B" * 43, "eyJ"):
        assert hidden not in text


# PostgreSQL


def test_on_postgresql(api_valkey: ValkeyServer, postgres_url: str, tmp_path: Path) -> None:
    with served(tmp_path, api_valkey, postgres_url) as guarded:
        free = guarded.client(guarded.key("carol", tier="free"))
        ids = [free.post(JOBS, json=order(seconds=0.3)).json()["id"] for _ in range(5)]
        assert problem_of(guarded.bob.get(f"{JOBS}/{ids[0]}"), 404) == "job_not_found"
        opened = guarded.client(shared_token()).post(SESSION)
        browser = guarded.client()
        browser.cookies.update(opened.cookies)
        assert browser.get(JOBS).json()["items"] == []
        eventually(lambda: "owner_limit" in free.get(JOBS).text, "some wait and say why")
        eventually(lambda: all(job["is_terminal"] for job in free.get(JOBS).json()["items"]), "all end")
        items = free.get(JOBS).json()["items"]
        assert [job["status"] for job in items] == ["completed"] * 5
        assert problem_of(guarded.bob.get(items[0]["artifacts"][0]["url"]), 404) == "artifact_not_found"
