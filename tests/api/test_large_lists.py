"""Long lists are shown in pieces: the loop goes on. And the watchdog that says so bites."""

import json
import sqlite3
import time
import uuid
from contextlib import closing
from typing import Any

import httpx
from api_service import JOBS, Json, Service
from watchdog import MOST_SECONDS, watched

TEMPLATES = "/api/v1/templates"
WORKFLOW: Json = {str(n): {"class_type": "A" * 40, "inputs": {"i": 0}} for n in range(5000)}


def one_node(names: list[str], **described: Any) -> Json:
    """A template that takes these inputs."""
    inputs = {name: {"node": "1", "input": f"i{n}", "type": "integer", **described} for n, name in enumerate(names)}
    settable = {f"i{n}": 0 for n in range(len(names))}
    return {"title": "T", "workflow": {"1": {"class_type": "A", "inputs": settable}}, "inputs": inputs}


def test_the_loop_goes_on_while_large_lists_are_shown(idle: Service) -> None:
    """A hundred templates of 250 KiB, and a hundred jobs with workflows of 500 KiB."""
    added = idle.http.put(f"{TEMPLATES}/t0", json=one_node([f"i{n}" for n in range(800)], description="x" * 200))
    assert added.status_code == 201, added.text[:500]
    job = {"prompt": "x", "provider": "mock", "run_at": "2027-11-01T00:00:00Z"}
    assert idle.http.post(JOBS, json=job).status_code == 202
    path = idle.settings.database_url.removeprefix("sqlite:///")
    with closing(sqlite3.connect(path, timeout=60)) as database, database:
        database.execute("UPDATE jobs SET workflow = ?", [json.dumps(WORKFLOW | {"x": "x" * 100_000})])
        for table, column, values in (
            ("jobs", "id", [str(uuid.uuid4()) for _ in range(99)]),
            ("workflow_templates", "name", [f"t{n}" for n in range(1, 100)]),
        ):
            columns = [row[1] for row in database.execute(f"PRAGMA table_info({table})")]
            chosen = ", ".join("?" if each == column else each for each in columns)
            copy = f"INSERT INTO {table} ({', '.join(columns)}) SELECT {chosen} FROM {table} LIMIT 1"  # noqa: S608
            database.executemany(copy, [(value,) for value in values])
    with watched(idle.api) as watchdog:
        for address, least_bytes in ((TEMPLATES, 20_000_000), (f"{JOBS}?limit=100", 40_000_000)):
            watchdog.read()
            answer = httpx.get(f"{idle.api.url}{address}", timeout=60)
            assert watchdog.read() < MOST_SECONDS
            assert len(answer.content) > least_bytes
            assert len(answer.json()["items"]) >= 100


def test_the_watchdog_bites(service: Service) -> None:
    def stand_still() -> None:
        begun = time.thread_time()
        while time.thread_time() - begun < 0.15:
            pass

    with watched(service.api) as watchdog:
        assert watchdog.read() < MOST_SECONDS
        watchdog.loop.call_soon_threadsafe(stand_still)
        assert watchdog.read() >= 0.15
