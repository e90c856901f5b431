"""A whole Safelight in one process, for tests: the real server on a real port, and the real engine fed by real hints.

Only Celery is left out: a thread takes the hints from Valkey and hands them to the engine, as Celery's pool would.
"""

import base64
import contextlib
import itertools
import os
import re
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import UnionType
from typing import Any, Self, TypeVar, cast

import httpx
import orjson
import redis
from fastapi import FastAPI
from pydantic import BaseModel, SecretStr, TypeAdapter

from patience import PATIENCE_SECONDS
from safelight.api.batches.view import BatchList, BatchView
from safelight.api.job_view import ArtifactView, AttemptList, JobList, JobView
from safelight.api.problems import Problem
from safelight.api.server import server_of
from safelight.api.service.health import BriefView, ReadyView
from safelight.api.service.providers import ProviderList, ProviderView
from safelight.api.stories.view import (
    ChapterList,
    ChapterView,
    CharacterList,
    CharacterView,
    ImageList,
    PortraitView,
    ProjectList,
    ProjectView,
    SceneImageView,
    SceneList,
    SceneView,
)
from safelight.config import Settings
from safelight.providers.fetch import shared_tls
from safelight.queue import DEFAULT, IMAGE_GENERATION, IMPORTS, ISOLATED, LOCAL
from safelight.worker.engine import Engine
from servers import ValkeyServer

JOBS = "/api/v1/generation-jobs"
BATCHES = "/api/v1/batches"
QUEUES = (IMAGE_GENERATION, DEFAULT, LOCAL, ISOLATED, IMPORTS)
T = TypeVar("T")
_numbers = itertools.count()
Json = dict[str, Any]


def eventually(look: Callable[[], T | bool | None], what: str, seconds: float = PATIENCE_SECONDS) -> T:
    """Look again and again until there is something to see; return it."""
    deadline = time.monotonic() + seconds
    while True:
        found = look()
        if found:
            return found  # pyright: ignore[reportReturnType]
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.01)


def settings_for(folder: Path, valkey: ValkeyServer, database_url: str, **changes: Any) -> Settings:
    """Everything quick, in a namespace of its own."""
    values: dict[str, Any] = {
        "env": "test",
        "mock_mode": True,
        "data_dir": folder,
        "database_url": database_url,
        "redis_url": SecretStr(valkey.url),
        "redis_ns": f"api-{os.getpid()}-{next(_numbers)}",
        "beat_seconds": 1,  # a process that had to wait for its turn is not to be taken for dead
        "lease_seconds": 10,
        "rehint_seconds": 0.5,
        "retry_seconds": 0.05,
        "breaker_failures": 0,  # scripted failures of one test are not to hold up the next
        "drain_seconds": 0.2,
        "log_format": "json",
    }
    return Settings(**(values | changes))


# --- the parts --------------------------------------------------------------------------------------------------------


class Api:
    """The HTTP server in a thread of its own."""

    def __init__(self, settings: Settings) -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind((settings.host, 0))
        self.port = int(self._socket.getsockname()[1])
        self.url = f"http://{settings.host}:{self.port}"
        self.server = server_of(settings, ws="none", loop="uvloop")
        self.app = cast(FastAPI, self.server.config.app)
        self._thread = threading.Thread(target=self.server.run, args=([self._socket],), name="api", daemon=True)
        self._thread.start()
        eventually(lambda: self.server.started or not self._thread.is_alive(), "the API starts")
        assert self._thread.is_alive(), "the API did not start"

    def close(self) -> None:
        self.server.should_exit = True
        self._thread.join(PATIENCE_SECONDS)
        assert not self._thread.is_alive(), "the API did not stop"
        self._socket.close()


class Worker:
    """The engine, and the thread that feeds it."""

    def __init__(self, settings: Settings, valkey: ValkeyServer, slots: int) -> None:
        self._engine = Engine(settings, name="test", queues=QUEUES, slots=slots, dispatches=True)
        self._prefix = f"{settings.redis_ns}:"
        self._slots = threading.Semaphore(slots)
        self._leaving = threading.Event()
        self._redis = redis.Redis(unix_socket_path=str(valkey.socket_path), db=settings.redis_database)
        self._engine.start()
        self._thread = threading.Thread(target=self._consume, name="hints", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._leaving.set()
        self._thread.join(PATIENCE_SECONDS)
        self._engine.stop()
        self._redis.close()

    def _consume(self) -> None:
        keys = [self._prefix + queue for queue in QUEUES]
        while not self._leaving.is_set():
            if not self._slots.acquire(timeout=0.2):
                continue
            try:
                found: Any = self._redis.brpop(keys, timeout=0.1)
            except redis.RedisError:
                found = None
                self._leaving.wait(0.05)
            if found is None:
                self._slots.release()
                continue
            arguments, _, _ = orjson.loads(base64.b64decode(orjson.loads(found[1])["body"]))
            job_id, queue = arguments
            assert found[0].decode() == self._prefix + queue
            self._engine.spawn(job_id, queue, self._slots.release)


class Service:
    """An API, a worker if wanted, and a client that checks the shape of every answer."""

    def __init__(self, settings: Settings, valkey: ValkeyServer, *, slots: int = 50, worker: bool = True) -> None:
        self.settings = settings
        self.valkey = valkey
        self._slots = slots
        self.worker: Worker | None = None
        self.api = Api(settings)
        self.http = open_client(self.api)
        if worker:
            self.start_worker()
            eventually(lambda: self.ready()["queues"][IMAGE_GENERATION]["workers"], "the worker is heard from")

    def start_worker(self) -> None:
        self.worker = Worker(self.settings, self.valkey, self._slots)

    def stop_worker(self) -> None:
        if self.worker is not None:
            self.worker.close()
            self.worker = None

    def restart_api(self) -> None:
        """End the server and start another on the same database; its port is another one."""
        self.stop_api()
        self.api = Api(self.settings)
        self.http = open_client(self.api)

    def stop_api(self) -> None:
        self.http.close()
        self.api.close()

    def close(self) -> None:
        self.stop_worker()
        self.stop_api()

    # --- what tests do ------------------------------------------------------------------------------------------------

    def ready(self) -> Json:
        return self.http.get("/health/ready").json()

    def submit(self, **fields: Any) -> Json:
        """Submit a small job; fields go over the body of `order`."""
        response = self.http.post(JOBS, json=order(**fields))
        assert response.status_code == 202, response.text
        return response.json()

    def look(self, job_id: str) -> Json:
        response = self.http.get(f"{JOBS}/{job_id}")
        assert response.status_code == 200, response.text
        return response.json()

    def jobs(self, **query: Any) -> list[Json]:
        response = self.http.get(JOBS, params=query)
        assert response.status_code == 200, response.text
        return response.json()["items"]

    def attempts(self, job_id: str) -> list[Json]:
        return self.http.get(f"{JOBS}/{job_id}/attempts").json()["items"]

    def when(self, job_id: str, is_so: Callable[[Json], Any], what: str, seconds: float = PATIENCE_SECONDS) -> Json:
        """The job as soon as something is true of it."""

        def see() -> Json | None:
            job = self.look(job_id)
            return job if is_so(job) else None

        return eventually(see, f"{what}; the job is {self.look(job_id)['status']}", seconds)

    def submit_batch(self, *jobs: Json, **fields: Any) -> Json:
        """Submit a batch of these jobs."""
        response = self.http.post(BATCHES, json={"jobs": list(jobs), **fields})
        assert response.status_code == 202, response.text
        return response.json()

    def hold_batch(self, *jobs: Json) -> Json:
        """A batch of jobs that wait until each is let go."""
        later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
        return self.submit_batch(*(job | {"run_at": later} for job in jobs))

    def look_at_batch(self, batch_id: str) -> Json:
        response = self.http.get(f"{BATCHES}/{batch_id}")
        assert response.status_code == 200, response.text
        return response.json()

    def end_of_batch(self, batch_id: str, seconds: float = PATIENCE_SECONDS) -> Json:
        """The batch as soon as it has ended."""

        def see() -> Json | None:
            batch = self.look_at_batch(batch_id)
            return batch if batch["is_terminal"] else None

        return eventually(see, f"the batch ends; it is {self.look_at_batch(batch_id)['counts']}", seconds)

    def end_of(self, job_id: str, seconds: float = PATIENCE_SECONDS) -> Json:
        """The job as soon as it has ended."""
        return self.when(job_id, lambda job: job["is_terminal"], "the job ends", seconds)

    def make(self, **fields: Any) -> Json:
        """A job carried out to its end."""
        return self.end_of(self.submit(**fields)["id"])

    def hold(self, **fields: Any) -> str:
        """A job that waits until `let_go`, so that it can be watched from its beginning; its id."""
        return self.submit(run_at=(datetime.now(UTC) + timedelta(hours=1)).isoformat(), **fields)["id"]

    def let_go(self, *job_ids: str) -> None:
        """Let jobs that are held start now (SQLite only)."""
        path = self.settings.database_url.removeprefix("sqlite:///")
        with contextlib.closing(sqlite3.connect(path)) as connection, connection:
            connection.executemany("UPDATE jobs SET run_at = created_at WHERE id = ?", [(each,) for each in job_ids])

    def events(self, job_id: str, *, last_id: str | None = None, by: str = "header") -> "Events":
        """Open a job's event stream."""
        return Events(f"{self.api.url}{JOBS}/{job_id}/events", last_id=last_id, by=by)

    def batch_events(self, batch_id: str, *, last_id: str | None = None, by: str = "header") -> "Events":
        """Open a batch's event stream."""
        return Events(f"{self.api.url}{BATCHES}/{batch_id}/events", last_id=last_id, by=by)

    def watch_held(self, job_id: str) -> "list[Event]":
        """Every event of a job that is held, which is let go once it is watched."""
        with self.events(job_id) as stream:
            return stream.all(after_first=lambda: self.let_go(job_id))


def order(*, seconds: float = 0.0, mock: Json | None = None, **fields: Any) -> Json:
    """The body of a submit: a small picture that takes `seconds`, and the mock's script."""
    options: Json = {"duration_seconds": seconds}
    if mock is not None:
        options["mock"] = mock
    return {"prompt": "a lighthouse", "width": 64, "height": 64, "provider_options": options} | fields


# --- the shape of answers ---------------------------------------------------------------------------------------------


def open_client(api: Api) -> httpx.Client:
    """A client that fails the test at an answer of the wrong shape."""
    return httpx.Client(
        base_url=api.url, timeout=PATIENCE_SECONDS, verify=shared_tls(), event_hooks={"response": [check_answer]}
    )


def check_answer(response: httpx.Response) -> None:
    assert re.fullmatch(r"[\w.:-]{1,128}", response.headers["x-request-id"])
    if response.headers.get("content-type", "").startswith("text/event-stream"):
        return
    response.read()
    if response.status_code >= 400 and "/health/" not in response.url.path and response.request.method != "HEAD":
        assert response.headers["content-type"] == "application/problem+json"
        body = response.json()
        assert_shape(Problem, body)
        assert body["status"] == response.status_code
        assert body["request_id"] == response.headers["x-request-id"]
        assert body["type"] == f"urn:safelight:problem:{body['code']}"
        assert body["detail"]
        return
    if response.headers.get("content-type") != "application/json" or not response.content:
        return
    for pattern, model in SHAPES:
        if re.fullmatch(pattern, response.url.path):
            assert_shape(model, response.json())


SHAPES: tuple[tuple[str, type[BaseModel] | UnionType], ...] = (
    (rf"{JOBS}/[^/]+(/cancel|/retry)?", JobView),
    (rf"{JOBS}/[^/]+/attempts", AttemptList),
    (rf"{BATCHES}/[^/]+(/cancel|/retry)?", BatchView),
    (BATCHES, BatchView | BatchList),
    (r"/api/v1/projects", ProjectView | ProjectList),
    (r"/api/v1/projects/[^/]+", ProjectView),
    (r"/api/v1/projects/[^/]+/chapters", ChapterView | ChapterList),
    (r"/api/v1/projects/[^/]+/characters", CharacterView | CharacterList),
    (r"/api/v1/chapters/[^/]+", ChapterView),
    (r"/api/v1/chapters/[^/]+/scenes", SceneView | SceneList),
    (r"/api/v1/chapters/[^/]+/images", ImageList | BatchView),
    (r"/api/v1/chapters/[^/]+/images/scenes/\d+(/status)?", SceneImageView),
    (r"/api/v1/scenes/[^/]+(/image)?", SceneView),
    (r"/api/v1/characters/[^/]+(/reference)?", CharacterView),
    (r"/api/v1/characters/[^/]+/image", CharacterView | PortraitView),
    (r"/api/v1/characters/[^/]+/image/status", PortraitView),
    (r"/api/v1/characters/[^/]+/images", ImageList),
    (r"/api/v1/artifacts/[^/]+", ArtifactView),
    (r"(/api/v1)?/health/ready", ReadyView | BriefView),
    (r"/api/v1/providers", ProviderList),
    (r"/api/v1/providers/[^/]+", ProviderView),
)


def assert_shape(model: type[BaseModel] | UnionType, value: Any) -> None:
    """It is the model's JSON, with exactly its keys at every depth."""
    adapter: TypeAdapter[Any] = TypeAdapter(cast(Any, model))
    same_keys(adapter.dump_python(adapter.validate_python(value), mode="json"), value, str(model))


def same_keys(expected: Any, given: Any, where: str) -> None:
    if isinstance(expected, Mapping):
        assert isinstance(given, Mapping)
        assert set(expected) == set(given), where
        for key in expected:
            same_keys(expected[key], given[key], f"{where}.{key}")
    elif isinstance(expected, list):
        assert isinstance(given, list)
        for index, (one, other) in enumerate(zip(expected, given, strict=True)):
            same_keys(one, other, f"{where}[{index}]")


def check_list(response: httpx.Response) -> Json:
    """The body of a list, checked."""
    assert response.status_code == 200, response.text
    assert_shape(JobList, response.json())
    return response.json()


# --- events -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Event:
    """One server-sent event; `id` is what the client would send to resume after it."""

    type: str
    id: str
    has_own_id: bool
    data: Json

    @property
    def is_state(self) -> bool:
        return self.type in ("job.pending", "job.started", "job.completed", "job.failed", "job.cancelled")

    @property
    def order(self) -> tuple[int, int]:
        return self.data["version"], self.data["seq"]


class Events:
    """An event stream as a browser reads it: remembers the last id, counts comments, yields events."""

    def __init__(self, url: str, *, last_id: str | None = None, by: str = "header") -> None:
        headers = {"Accept": "text/event-stream"}
        query: dict[str, str] = {}
        if last_id is not None:
            if by == "header":
                headers["Last-Event-ID"] = last_id
            else:
                query["last_event_id"] = last_id
        self.last_id = last_id or ""
        self.retry: int | None = None
        self.comments: list[str] = []
        self._stack = contextlib.ExitStack()
        client = self._stack.enter_context(httpx.Client(timeout=PATIENCE_SECONDS, verify=shared_tls()))
        self.response = self._stack.enter_context(client.stream("GET", url, params=query, headers=headers))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def status(self) -> int:
        return self.response.status_code

    def __iter__(self) -> Iterator[Event]:
        """Events until the server ends the stream."""
        kind, data, own_id = "message", "", False
        for line in self.response.iter_lines():
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if not line:
                if data:
                    yield Event(kind, self.last_id, own_id, orjson.loads(data))
                kind, data, own_id = "message", "", False
            elif not name:
                self.comments.append(value)
            elif name == "event":
                kind = value
            elif name == "data":
                data += value
            elif name == "id":
                self.last_id, own_id = value, True
            elif name == "retry":
                self.retry = int(value)

    def all(self, after_first: Callable[[], object] = lambda: None) -> list[Event]:
        """Every event until the server ends the stream."""
        events: list[Event] = []
        for event in self:
            events.append(event)
            if len(events) == 1:
                after_first()
        return events
