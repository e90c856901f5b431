"""A service with accounts for tests, and clients for whoever is wanted."""

import asyncio
import contextlib
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

import httpx
from api_service import Service, order, settings_for

from accounts.identity_provider import AUDIENCE, ISSUER, SECRET
from patience import PATIENCE_SECONDS
from safelight.accounts import (
    SHOWN,
    Key,
    NewKey,
    Scope,
    create_key,
    hash_of,
    new_secret,
)
from safelight.db import Database, new_id
from safelight.providers.fetch import shared_tls
from servers import ValkeyServer

METHODS = ("get", "post", "put", "patch", "delete")
SAFE = ("get",)
OPEN = {
    "/webhooks/comfyui/{secret}",
    "/webhooks/modelslab/{secret}",
    "/health/live",
    "/health/ready",
    "/api/v1/files/{token}",
}
SESSION, KEYS = "/api/v1/session", "/api/v1/keys"
PROVIDERS, TEMPLATES = "/api/v1/providers", "/api/v1/templates"  # nobody's own
NOUNS = {
    "artifacts": "artifact",
    "batches": "batch",
    "keys": "key",
    "projects": "project",
    "chapters": "chapter",
    "scenes": "scene",
    "characters": "character",
}
BODIES: dict[str, Any] = {
    "post generation-jobs": order(),
    "post batches": {"jobs": [order()]},
    "post keys": {"name": "x"},
    "post projects": {"title": "x"},
    "post chapters": {"title": "x"},
    "post scenes": {},
    "post order": {"scene_ids": []},
    "post characters": {"name": "x"},
    "put image": {"artifact_id": "00000000-0000-7000-8000-000000000000"},
}
ACCOUNTS: dict[str, Any] = {
    "auth": "required",
    "jwt_secret": SECRET,
    "jwt_issuer": ISSUER,
    "jwt_audience": AUDIENCE,
    "tiers": {
        "free": {"jobs_at_once": 2},
        "pro": {"models": {"mock": "darkroom-fast"}},
        "slow": {"submits_per_minute": 3},
    },
}


def make_key(url: str, owner: str, *scopes: Scope, tier: str = "pro", seconds: float | None = None) -> tuple[str, Key]:
    """A key as `safelight keys create` makes it: straight in the database."""
    secret = new_secret()
    new = NewKey(new_id(), owner, "test", hash_of(secret), secret[:SHOWN], scopes or ("write",), tier, seconds)
    return secret, in_database(url, create_key, new)


def in_database(url: str, fn: Callable[..., Any], *args: Any) -> Any:
    database = Database(url, readers=1)
    try:
        return asyncio.run(database.write(lambda tx: fn(tx, *args)))
    finally:
        database.close()


class Guarded:
    """A service with accounts, and clients for whoever is wanted."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.url = service.settings.database_url
        self._stack = contextlib.ExitStack()
        self.ada = self.client(self.key("ada", "admin"))
        self.bob = self.client(self.key("bob", "admin"))
        self.nobody = self.client()

    def key(self, owner: str, *scopes: Scope, tier: str = "pro", seconds: float | None = None) -> str:
        return make_key(self.url, owner, *scopes, tier=tier, seconds=seconds)[0]

    def client(self, credential: str | None = None, **headers: str) -> httpx.Client:
        if credential is not None:
            headers["Authorization"] = f"Bearer {credential}"
        client = httpx.Client(
            base_url=self.service.api.url, headers=headers, timeout=PATIENCE_SECONDS, verify=shared_tls()
        )
        return self._stack.enter_context(client)

    def operations(self) -> list[tuple[str, str]]:
        """Every method and path of the OpenAPI document."""
        document = self.nobody.get("/api/v1/openapi.json").json()
        return [
            (method, path)
            for path, operations in document["paths"].items()
            for method in operations
            if method in METHODS
        ]

    def close(self) -> None:
        self._stack.close()


@contextlib.contextmanager
def served(folder: Path, valkey: ValkeyServer, database_url: str, **changes: Any) -> Generator[Guarded]:
    """Such a service, running."""
    service = AccountsService(settings_for(folder, valkey, database_url, **ACCOUNTS, **changes), valkey)
    guarded = Guarded(service)
    yield guarded
    guarded.close()
    service.close()


class AccountsService(Service):
    """A service that is looked after by a key of its own."""

    def ready(self) -> Any:
        if "Authorization" not in self.http.headers:
            self.http.headers["Authorization"] = f"Bearer {make_key(self.settings.database_url, 'tests', 'admin')[0]}"
        return super().ready()


def problem_of(response: httpx.Response, status: int) -> str:
    """The code of a problem."""
    assert response.status_code == status, (response.request.method, response.url, response.text)
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert body["status"] == status
    if status == 401:
        assert response.headers["www-authenticate"].startswith("Bearer")
    return body["code"]


def filled(path: str, adas: Mapping[str, str]) -> str:
    """A path with the ids of real things of Ada's."""
    noun = path.removeprefix("/api/v1/").partition("/")[0]
    item = adas[NOUNS.get(noun, "job")]
    name = "mock" if path.startswith(PROVIDERS) else "txt2img" if path.startswith(TEMPLATES) else "none"
    values = {"id": item, "name": name, "width": "256", "chapter_id": adas["chapter"], "scene_number": "1"}
    for parameter, value in values.items():
        path = path.replace("{" + parameter + "}", value)
    return path


def send(client: httpx.Client, method: str, path: str) -> httpx.Response:
    """With the least body that can be read, if there must be one."""
    end = path.rpartition("/")[2]
    noun = path.removeprefix("/api/v1/").partition("/")[0]
    body = BODIES.get(f"{method} {end}", {} if method == "patch" and noun in NOUNS else None)
    return client.request(method.upper(), path, json=body)
