"""The largest answers there can be: lists, views and histories of what is as large as may be.

They are read to their end while the loop's own thread is watched, as in `test_ugly_bodies`.
"""

import contextlib
import sqlite3
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
import ugly
from api_service import BATCHES, JOBS, Json, Service
from ugly import MIB, NOBODY
from watchdog import MOST_SECONDS, Watchdog, watched

from safelight.providers.comfyui import provider
from safelight.providers.comfyui.template import Template, check_template

NEW_ID = "printf('00000000-0000-7000-8000-%012d', n)"


@pytest.fixture
def large(make_service: Any) -> Service:
    """A service whose ComfyUI checks what it is given, without a server."""
    return make_service(worker=False, mock_mode=False, comfyui_urls=[NOBODY], default_provider="mock")


@pytest.fixture
def watchdog(large: Service) -> Iterator[Watchdog]:
    with watched(large.api) as watchdog:
        yield watchdog


def multiply(service: Service, table: str, count: int, **changes: str) -> None:
    """So many more rows like the first of a table; `changes` are SQL, of a number `n`."""
    path = service.settings.database_url.removeprefix("sqlite:///")
    with contextlib.closing(sqlite3.connect(path, timeout=60)) as connection, connection:
        columns: list[str] = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
        values = ", ".join(changes.get(column, column) for column in columns)
        connection.execute(
            f"WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {count}) "  # noqa: S608 - our own words
            f"INSERT INTO {table} SELECT {values} FROM (SELECT * FROM {table} LIMIT 1), numbers"
        )


def asked(watchdog: Watchdog, service: Service, method: str, path: str, **options: Any) -> bytes:
    """The whole of an answer, which has not held up the loop."""
    watchdog.read()
    answer = service.http.request(method, path, timeout=120, **options)
    worst = watchdog.read()
    assert answer.is_success, answer.text
    assert worst < MOST_SECONDS, f"{path}: {len(answer.content)} bytes, {worst:.3f} s"
    return answer.content


def look(watchdog: Watchdog, service: Service, path: str, **query: Any) -> Json:
    return orjson.loads(asked(watchdog, service, "GET", path, params=query))


def submit(service: Service, path: str, body: Json) -> Json:
    answer = service.http.post(path, json=body, timeout=60)
    assert answer.status_code == 202, answer.text
    return answer.json()


def test_a_hundred_templates(large: Service, watchdog: Watchdog) -> None:
    first = large.http.put("/api/v1/templates/ugly-0", json=ugly.TEMPLATE)
    assert first.status_code == 201
    multiply(
        large, "workflow_templates", 99, name="'ugly-' || n", definition="json_set(definition, '$.name', 'u' || n)"
    )
    listed = look(watchdog, large, "/api/v1/templates")["items"]
    own = [each for each in listed if each["source"] == "own"]
    assert len({each["name"] for each in own}) == 100
    assert all("workflow" not in each and len(each["inputs"]) == 1000 for each in own)


def test_a_hundred_jobs_with_large_workflows_come_in_pages(large: Service, watchdog: Watchdog) -> None:
    workflow = {"prompt": "x", "provider": "comfyui", "workflow": ugly.WORKFLOW, "metadata": ugly.METADATA}
    submitted = submit(large, JOBS, workflow)
    assert submitted["workflow"] == ugly.WORKFLOW
    multiply(large, "jobs", 100, id=NEW_ID, celery_task_id=NEW_ID)
    assert look(watchdog, large, f"{JOBS}/{submitted['id']}")["workflow"] == ugly.WORKFLOW
    seen: list[str] = []
    query: dict[str, Any] = {"limit": 100}
    while True:
        page = asked(watchdog, large, "GET", JOBS, params=query)
        assert len(page) < 16 * MIB
        told = orjson.loads(page)
        assert all(each["workflow"] == ugly.WORKFLOW for each in told["items"])
        seen += [each["id"] for each in told["items"]]
        if told["next_cursor"] is None:
            break
        query["cursor"] = told["next_cursor"]
    assert len(seen) == len(set(seen)) == 101
    named = look(watchdog, large, JOBS, ids=",".join(seen[:100]))
    assert [each["id"] for each in named["items"]] == seen[: len(named["items"])]
    assert named["next_cursor"] == named["items"][-1]["id"]


def test_the_longest_prompts_come_in_pages(large: Service, watchdog: Watchdog) -> None:
    submit(large, JOBS, ugly.PROMPTS)
    multiply(large, "jobs", 100, id=NEW_ID, celery_task_id=NEW_ID)
    page = look(watchdog, large, JOBS, limit=100)
    assert 1 < len(page["items"]) < 100
    assert page["next_cursor"] == page["items"][-1]["id"]


def test_the_largest_batches(large: Service, watchdog: Watchdog) -> None:
    batch = submit(large, BATCHES, {"metadata": ugly.METADATA, "jobs": [{"prompt": ugly.GRIN * 1900}] * 1000})
    path = f"{BATCHES}/{batch['id']}"
    multiply(large, "batches", 99, id=NEW_ID)
    assert len(look(watchdog, large, path)["job_ids"]) == 1000
    assert len(look(watchdog, large, BATCHES, limit=100)["items"]) == 100
    assert len(look(watchdog, large, JOBS, batch_id=batch["id"], limit=100)["items"]) == 100
    asked(watchdog, large, "POST", f"{path}/cancel")
    assert asked(watchdog, large, "GET", f"{path}/events").count(b"event: job.cancelled") == 1000
    asked(watchdog, large, "POST", f"{path}/retry")


def test_a_batch_of_large_templates_run_again(
    large: Service, watchdog: Watchdog, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks: list[Any] = []

    def noted(definition: Any) -> Template:
        checks.append(definition)
        return check_template(definition)

    monkeypatch.setattr(provider, "check_template", noted)
    assert large.http.put("/api/v1/templates/ugly", json=ugly.TEMPLATE).status_code == 201
    batch = submit(large, BATCHES, {"jobs": [{"prompt": "x", "provider": "comfyui", "template": "ugly"}] * 100})
    path = f"{BATCHES}/{batch['id']}"
    asked(watchdog, large, "POST", f"{path}/cancel")
    asked(watchdog, large, "POST", f"{path}/retry")
    assert len(checks) == 1  # for all that name it: checking one takes longer than all else about a job


def test_a_long_history(large: Service, watchdog: Watchdog) -> None:
    job = large.submit()
    path = large.settings.database_url.removeprefix("sqlite:///")
    details = {f"{n}": "é" * 100 for n in range(50)}
    told = {"code": "x", "message": "é" * 1000, "retryable": True, "provider": "mock", "attempt": 1, "details": details}
    error = orjson.dumps(told).decode()
    with contextlib.closing(sqlite3.connect(path, timeout=60)) as connection, connection:
        connection.executemany(
            "INSERT INTO attempts (job_id, number, worker_id, worker_name, queue, provider, started_at, "
            "started_version, outcome, error) "
            "VALUES (?, ?, '00000000-0000-7000-8000-000000000001', 'w', 'q', 'mock', 0, 1, 'retry', ?)",
            [(job["id"], number, error) for number in range(1, 501)],
        )
    asked(watchdog, large, "GET", f"{JOBS}/{job['id']}/attempts")
