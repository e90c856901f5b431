"""Bad credentials, uploads and buckets: each has its own clear problem, is logged without secrets, changes nothing."""

import base64
import contextlib
import json
import logging
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
from api_service import JOBS, Service, order
from guarded_service import ACCOUNTS, KEYS, SESSION, in_database, make_key
from PIL import Image
from pydantic import SecretStr
from sqlalchemy import create_engine, func, select

from accounts.identity_provider import IdentityProvider, shared_token
from object_stores import Rclone, server
from patience import PATIENCE_SECONDS
from safelight import log
from safelight.accounts import revoke_key
from safelight.api import events
from safelight.api.authentication import SESSION_COOKIE
from safelight.db import metadata

UPLOADS = "/api/v1/artifacts"


@pytest.fixture(scope="module")
def provider() -> Iterator[IdentityProvider]:
    made = IdentityProvider()
    made.add("known")
    yield made
    made.close()


@pytest.fixture
def strict(make_service: Callable[..., Service], provider: IdentityProvider) -> Service:
    """Keys, a shared secret and published keys; nobody works."""
    service = make_service(worker=False, jwt_jwks_url=provider.url, max_upload_bytes=200_000, **ACCOUNTS)
    service.http.headers["Authorization"] = f"Bearer {make_key(service.settings.database_url, 'ada', 'admin')[0]}"
    return service


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Every line as it would go to standard error, at the level that is the default."""
    written: list[str] = []
    monkeypatch.setattr(log, "_write", written.append)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    log.configure("info", "json")
    structlog.configure(cache_logger_on_first_use=False)
    yield written
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    root.handlers[:] = handlers
    root.setLevel(level)


def everything(service: Service) -> tuple[dict[str, int], list[str]]:
    """How many rows each table has, and the files."""
    engine = create_engine(service.settings.database_url)
    with engine.connect() as connection:
        rows = {
            table.name: connection.execute(select(func.count()).select_from(table)).scalar_one()
            for table in metadata.sorted_tables
            if table.name != "leases"
        }
    engine.dispose()
    folder = service.settings.data_dir / "files"
    return rows, sorted(str(path) for path in folder.rglob("*") if path.is_file())


@contextlib.contextmanager
def unchanged(service: Service) -> Generator[None]:
    before = everything(service)
    yield
    assert everything(service) == before


@dataclass
class Refusal:
    """What is sent, and how it must be refused; `secrets` must not be logged, nor sent back."""

    status: int
    code: str
    words: str
    headers: Mapping[str, str]
    secrets: list[str]
    content: bytes = field(default_factory=lambda: json.dumps(order()).encode())
    path: str = JOBS


def bearer(status: int, code: str, words: str, credential: str, path: str = JOBS) -> Refusal:
    # Of a token neither its claims nor its signature; every one begins with the same letters.
    parts = [part for part in credential.split(".") if len(part) > 20]
    return Refusal(status, code, words, {"Authorization": f"Bearer {credential}"}, [credential, *parts[1:]], path=path)


def unsigned_token() -> str:
    head, claims, _ = shared_token().split(".")
    head = base64.urlsafe_b64encode(b'{"alg":"none","typ":"JWT"}').rstrip(b"=").decode()
    return f"{head}.{claims}."


def key_of(service: Service, *scopes: Any, **options: Any) -> str:
    return make_key(service.settings.database_url, "ada", *scopes, **options)[0]


def revoked(service: Service) -> str:
    secret, key = make_key(service.settings.database_url, "ada")
    in_database(service.settings.database_url, revoke_key, key.id)
    return secret


def without_csrf(service: Service) -> Refusal:
    cookie = service.http.post(SESSION).cookies[SESSION_COOKIE]
    service.http.cookies.clear()
    return Refusal(403, "csrf_missing", "X-CSRF-Token", {"Cookie": f"{SESSION_COOKIE}={cookie}"}, [cookie])


def picture(size: tuple[int, int], **options: Any) -> bytes:
    data = BytesIO()
    Image.new("RGB", size).save(data, "PNG", **options)
    return data.getvalue()


def upload(status: int, code: str, words: str, content: bytes, content_type: str = "image/png") -> Refusal:
    return Refusal(status, code, words, {"Content-Type": content_type}, [], content, UPLOADS)


BAD: dict[str, Callable[[Service, IdentityProvider], Refusal]] = {
    "nobody": lambda s, p: Refusal(401, "unauthenticated", "Authorization: Bearer", {}, []),
    "a wrong key": lambda s, p: bearer(401, "key_invalid", "not a key of this", "sl_" + "A" * 43),
    "an expired key": lambda s, p: bearer(401, "key_expired", "Make another", key_of(s, "write", seconds=-1.0)),
    "a revoked key": lambda s, p: bearer(401, "key_revoked", "revoked", revoked(s)),
    "an under-scoped key": lambda s, p: bearer(403, "scope_missing", "needs the scope `write`", key_of(s, "read")),
    "a key that may not make keys": lambda s, p: bearer(
        403, "scope_missing", "needs the scope `admin`", key_of(s, "write"), KEYS
    ),
    "alg none": lambda s, p: bearer(401, "token_algorithm", "accepted is HS256", unsigned_token()),
    "another audience": lambda s, p: bearer(
        401, "token_wrong_audience", "another service", shared_token(aud="elsewhere")
    ),
    "another issuer": lambda s, p: bearer(401, "token_wrong_issuer", "somebody else", shared_token(iss="elsewhere")),
    "a future nbf": lambda s, p: bearer(
        401, "token_not_yet_valid", "not valid yet", shared_token(nbf=time.time() + 600)
    ),
    "an expired token": lambda s, p: bearer(401, "token_expired", "expired", shared_token(exp=time.time() - 600)),
    "a wrong signature": lambda s, p: bearer(401, "token_invalid", "signature", shared_token(secret="x" * 40)),
    "an unknown kid": lambda s, p: bearer(
        401, "token_unknown_key", "does not publish", p.token("known", header={"kid": "made-up"})
    ),
    "a cookie without its header": lambda s, p: without_csrf(s),
    "not what it says": lambda s, p: upload(422, "upload_mismatch", "image/png", picture((8, 8)), "image/jpeg"),
    "no picture": lambda s, p: upload(422, "upload_unreadable", "picture", b"<script>alert(1)</script>"),
    "too large": lambda s, p: upload(413, "upload_too_large", "200000 bytes", b"\0" * 200_001),
    "a decompression bomb": lambda s, p: upload(
        422, "upload_too_many_pixels", "64,000,000 pixels", picture((8_100, 8_000))
    ),
    "another type": lambda s, p: upload(415, "unsupported_media_type", "image/png", b"x", "application/zip"),
}


@pytest.mark.parametrize("bad", BAD)
def test_what_is_refused(bad: str, strict: Service, provider: IdentityProvider, lines: list[str]) -> None:
    refusal = BAD[bad](strict, provider)
    own = {"Authorization": strict.http.headers["Authorization"]} if refusal.path == UPLOADS else {}
    headers = {"Content-Type": "application/json", **own, **refusal.headers}
    with unchanged(strict), httpx.Client(base_url=strict.api.url, timeout=PATIENCE_SECONDS) as stranger:
        response = stranger.post(refusal.path, content=refusal.content, headers=headers)
    problem = response.json()
    assert (response.status_code, problem["code"], problem["retryable"]) == (refusal.status, refusal.code, False)
    assert refusal.words in problem["detail"]
    told = [line for line in map(json.loads, lines) if line["event"] == "request.refused"]
    assert [(line["code"], line["status"], line["level"]) for line in told] == [(refusal.code, refusal.status, "info")]
    assert told[0]["request_id"] == problem["request_id"]
    for secret in [*refusal.secrets, *(value.removeprefix("Bearer ") for value in own.values())]:
        assert secret not in "\n".join(lines) + response.text


def test_a_bucket_without_permission(make_service: Callable[..., Service], lines: list[str]) -> None:
    place, wrong = server(Rclone).place(), "another-secret-of-forty-characters-xxxxx"
    service = make_service(
        storage_url=place.url,
        storage_access_key=SecretStr(place.access_key),
        storage_secret_key=SecretStr(wrong),
    )
    with unchanged(service):
        response = service.http.post(UPLOADS, content=picture((8, 8)), headers={"Content-Type": "image/png"})
    assert (response.status_code, response.json()["code"]) == (500, "storage_refused")
    assert "Are access key and secret key right?" in response.json()["detail"]
    assert response.json()["retryable"] is False
    job = service.make(width=64, height=64)
    assert (job["status"], job["error"]["code"], job["error"]["retryable"]) == ("failed", "storage_refused", False)
    assert (job["attempt"], job["artifacts"]) == (1, [])
    told = "\n".join(lines)
    assert '"request.failed"' in told and "storage_refused" in told
    for secret in (wrong, place.access_key, "X-Amz", "Signature="):
        assert secret not in told + response.text + str(job)


def test_hostile_names_come_nowhere_near_the_files(strict: Service) -> None:
    names = {"Content-Disposition": 'attachment; filename="../../../etc/passwd"', "X-Filename": "/etc/passwd"}
    response = strict.http.post(UPLOADS, content=picture((8, 8)), headers={"Content-Type": "image/png", **names})
    assert response.status_code == 201
    _, stored = everything(strict)
    folder = strict.settings.data_dir / "files" / "inputs" / response.json()["id"]
    assert {Path(path).parent for path in stored} == {folder}


# Streams that outlive their key


def test_a_stream_ends_soon_after_its_key(
    make_service: Callable[..., Service], monkeypatch: pytest.MonkeyPatch, lines: list[str]
) -> None:

    assert events.LOOK_AGAIN_SECONDS <= 60
    monkeypatch.setattr(events, "LOOK_AGAIN_SECONDS", 0.2)
    monkeypatch.setattr(events, "KEEPALIVE_SECONDS", 0.1)
    service = make_service(worker=False, **ACCOUNTS)
    secret, key = make_key(service.settings.database_url, "ada", "write")
    service.http.headers["Authorization"] = f"Bearer {secret}"
    monkeypatch.setattr(service.api.app.state.safelight.authenticator, "_known_seconds", 0.1)
    job = service.http.post(JOBS, json=order()).json()
    with service.http.stream("GET", f"{JOBS}/{job['id']}/events") as stream:
        lines_of = stream.iter_lines()
        for _ in range(20):  # it is looked at again and again, and stays
            next(lines_of)
        in_database(service.settings.database_url, revoke_key, key.id)
        assert "job.completed" not in "".join(lines_of)  # which ends
    assert service.http.get(f"{JOBS}/{job['id']}/events").json()["code"] == "key_revoked"
    assert any('"watcher.put_out"' in line for line in lines)
