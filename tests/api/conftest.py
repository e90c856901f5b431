"""Fixtures that run the whole service in this process: see `api_service`."""

import importlib
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from api_service import Service, order, settings_for
from fastapi import FastAPI
from starlette.routing import BaseRoute
from story import Story

from safelight.api import app as app_module
from servers import ServerMissing, ValkeyServer


@pytest.fixture(scope="module", autouse=True)
def hushed() -> Iterator[None]:
    """Only warnings are shown: a service says much."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session", autouse=True)
def routes_made_once() -> Iterator[None]:
    """All services of the session have the routes of the first: making them is most of what a start costs."""
    make, made = app_module._make_routes, list[BaseRoute]()

    def share(app: FastAPI) -> None:
        if made:
            app.router.routes[:] = made
        else:
            make(app)
            made.extend(app.router.routes)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app_module, "_make_routes", share)
        yield


@pytest.fixture(scope="session")
def api_valkey() -> Iterator[ValkeyServer]:
    """The Valkey of these services. Not the one that others share: they empty it and count what it is asked."""
    try:
        server = ValkeyServer()
    except ServerMissing as reason:
        pytest.skip(str(reason))
    yield server
    server.close()


@pytest.fixture(scope="session")
def service(
    api_valkey: ValkeyServer, sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """The service that the session's tests share: leave it running, and look only at jobs of your own."""
    folder = tmp_path_factory.mktemp("service")
    url = f"sqlite:///{shutil.copy(sqlite_template, folder / 'safelight.db')}"
    running = Service(settings_for(folder, api_valkey, url), api_valkey)
    yield running
    running.close()


@pytest.fixture
def story(service: Service) -> Story:
    return Story(service, style="ink and wash")


@pytest.fixture
def make_service(api_valkey: ValkeyServer, sqlite_template: Path, tmp_path: Path) -> Iterator[Callable[..., Service]]:
    """Services that the test may break: `make_service(worker=False, slots=1, valkey=..., database_url=...)`."""
    made: list[Service] = []

    def make(
        *,
        worker: bool = True,
        slots: int = 50,
        valkey: ValkeyServer = api_valkey,
        database_url: str | None = None,
        **changes: Any,
    ) -> Service:
        folder = tmp_path / f"service-{len(made)}"
        folder.mkdir()
        if database_url is None:
            database_url = f"sqlite:///{shutil.copy(sqlite_template, folder / 'safelight.db')}"
        settings = settings_for(folder, valkey, database_url, **changes)
        made.append(Service(settings, valkey, slots=slots, worker=worker))
        return made[-1]

    yield make
    for running in made:
        running.close()


@pytest.fixture
def idle(make_service: Callable[..., Service]) -> Service:
    """A service of the test's own without a worker."""
    return make_service(worker=False)


@pytest.fixture(scope="session")
def guarded(api_valkey: ValkeyServer, sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A service with accounts that the session's tests share, see `guarded_service`: use owners of your own.

    Imported here: few tests need it, and it brings a cryptography library with it.
    """
    folder = tmp_path_factory.mktemp("guarded")
    url = f"sqlite:///{shutil.copy(sqlite_template, folder / 'safelight.db')}"
    with importlib.import_module("guarded_service").served(folder, api_valkey, url) as guarded:
        yield guarded


@pytest.fixture(scope="session")
def adas(guarded: Any) -> dict[str, str]:
    """Things of Ada's: a job with its artifact, a key, a batch, a story whose first scene that job drew."""

    def made(path: str, **body: Any) -> str:
        answer = guarded.ada.post(f"/api/v1/{path}", json=body)
        assert answer.status_code == 201, answer.text
        return answer.json()["id"]

    project = made("projects", title="Hers")
    chapter = made(f"projects/{project}/chapters", title="One")
    story = {
        "project": project,
        "chapter": chapter,
        "scene": made(f"chapters/{chapter}/scenes", description="dusk"),
        "character": made(f"projects/{project}/characters", name="Eve", description="tall"),
    }
    wanted = order(chapter_id=chapter, scene_number=1)
    done = guarded.ada.post("/api/v1/generation-jobs", json=wanted, headers={"Prefer": "wait=60"}).json()
    assert done["status"] == "completed", done
    batch = guarded.ada.post("/api/v1/batches", json={"jobs": [order()]}).json()
    guarded.ada.get(f"/api/v1/generation-jobs/{batch['job_ids'][0]}", params={"wait": 60})
    return story | {
        "job": done["id"],
        "artifact": done["artifacts"][0]["id"],
        "key": made("keys", name="another"),
        "batch": batch["id"],
    }
