"""Owners, keys, another database and another place for files, with real processes and servers throughout."""

import hashlib
import urllib.request
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import httpx
import pytest
from installation import Installation, client_of, make_key
from running_stack import Stack, run

from object_stores import Place, Rclone, server
from patience import PATIENCE_SECONDS, await_true
from safelight_client.event import EventReader

JOBS, UPLOADS, KEYS = "/api/v1/generation-jobs", "/api/v1/artifacts", "/api/v1/keys"
Json = dict[str, Any]


def order(seconds: float = 0.0, **fields: Any) -> Json:
    return {"prompt": "x", "width": 64, "height": 64, "provider_options": {"duration_seconds": seconds}} | fields


def items_of(client: httpx.Client, **query: Any) -> list[Json]:
    """Every page of a list of jobs."""
    found: list[Json] = []
    cursor: dict[str, str] = {}
    while True:
        page = client.get(JOBS, params={"limit": 100, **query, **cursor}).json()
        found += page["items"]
        if page["next_cursor"] is None:
            return found
        cursor = {"cursor": page["next_cursor"]}


def status_of(url: str) -> int:
    """Of a GET by somebody without any credentials."""
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE_SECONDS) as answer:  # noqa: S310
            return answer.status
    except HTTPError as error:
        return error.code


def test_neither_of_two_users_meets_what_is_the_others(installation: Installation) -> None:
    with (
        installation.client("ada", "--scope", "admin", "--tier", "pro") as ada,
        installation.client("bob", "--scope", "admin", "--tier", "pro") as bob,
    ):
        done = ada.post(JOBS, json=order(), headers={"Prefer": "wait=60"}).json()
        assert done["status"] == "completed", done
        artifact = done["artifacts"][0]
        key = ada.post(KEYS, json={"name": "another"}).json()
        slow = ada.post(JOBS, json=order(60)).json()
        await_true(lambda: ada.get(f"{JOBS}/{slow['id']}").json()["status"] == "processing")
        bobs = bob.post(JOBS, json=order(), headers={"Prefer": "wait=60"}).json()
        hers = {done["id"], slow["id"], artifact["id"], key["id"]}

        with ada.stream("GET", f"{JOBS}/{slow['id']}/events") as stream:
            lines = stream.iter_lines()
            assert "event: job.snapshot" in (next(lines) for _ in range(5))
            # Every operation there is, on everything of hers.
            tried = 0
            for path, operations in ada.get("/api/v1/openapi.json").json()["paths"].items():
                things = {UPLOADS: [artifact["id"]], KEYS: [key["id"]], JOBS: [done["id"], slow["id"]]}
                prefix = next((prefix for prefix in things if path.startswith(f"{prefix}/{{id}}")), None)
                for thing in things[prefix] if prefix else []:
                    where = path.replace("{id}", thing).replace("{width}", "256").replace("{name}", "none")
                    for method in operations:
                        answer = bob.request(method, where)
                        assert answer.status_code == 404, (method, where, answer.text)
                        tried += 1
            assert tried >= 18
            both = items_of(bob, ids=f"{done['id']},{slow['id']}")
            for listing in (items_of(bob), both, bob.get(KEYS).json()["items"]):
                assert not {item["id"] for item in listing} & hers
            assert [job["id"] for job in items_of(bob)] == [bobs["id"]]

            # Nothing of it did anything.
            assert ada.get(f"{JOBS}/{slow['id']}").json()["status"] == "processing"
            assert hashlib.sha256(ada.get(artifact["url"]).content).hexdigest() == artifact["sha256"]
            assert ada.post(f"{JOBS}/{slow['id']}/cancel").status_code == 200
            told = [line for line in lines if line.startswith("event: job.")]
        assert told[-1] == "event: job.cancelled"
        assert bobs["id"] not in str(told)

        # A link is a key by itself; nobody can make one, or bend one.
        url = ada.post(f"{UPLOADS}/{artifact['id']}/link").json()["url"]
        assert url.startswith("http") and "X-Amz-Signature=" in url  # the store's own
        assert status_of(url) == 200
        assert status_of(url[:-4] + "0000") == 403
        assert status_of(url.partition("?")[0]) in (400, 403)  # rclone calls a request without keys malformed
        other = bob.post(f"{UPLOADS}/{bobs['artifacts'][0]['id']}/link").json()["url"]
        mixed = other.partition("?")[0].replace(bobs["id"], done["id"]) + "?" + other.partition("?")[2]
        assert status_of(mixed) == 403


@pytest.mark.long
def test_two_run_and_eight_wait_for_a_free_key(installation: Installation) -> None:
    with installation.client("carol", "--tier", "free") as carol:
        ids = {carol.post(JOBS, json=order(0.8)).json()["id"] for _ in range(10)}

        def standing() -> list[tuple[str, str | None]]:
            jobs = items_of(carol)
            assert {job["id"] for job in jobs} == ids
            assert sum(job["status"] == "processing" for job in jobs) <= 2
            return sorted(((job["status"], job["blocked_reason"]) for job in jobs), key=str)

        await_true(lambda: standing() == [("pending", "owner_limit")] * 8 + [("processing", None)] * 2)
        waiting = next(job for job in items_of(carol) if job["blocked_reason"])
        assert "owner" in waiting["blocked_reason"] and waiting["message"]
        await_true(lambda: {status for status, _ in standing()} == {"completed"})


@pytest.mark.long
def test_an_installation_moves_to_postgresql_and_s3(postgres_url: str, tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    accounts = {"SAFELIGHT_AUTH": "required"}
    first = Stack(data_dir, accounts)
    try:
        secret = make_key(accounts, data_dir, "ada", "--scope", "admin", "--tier", "pro")
        with client_of(first, secret) as ada:
            for number in range(100):
                assert ada.post(JOBS, json=order(metadata={"n": str(number)})).status_code == 202
            await_true(lambda: not items_of(ada, status=["pending", "processing"]))
            picture = ada.get(items_of(ada)[0]["artifacts"][0]["url"]).content
            upload = ada.post(UPLOADS, content=picture, headers={"Content-Type": "image/png"}).json()
            later = (datetime.now(UTC) + timedelta(seconds=8)).isoformat()
            unfinished = ada.post(JOBS, json=order(run_at=later)).json()
            before = standing(ada)
            watched = events(first, secret, unfinished["id"], None, at_most=1)
        first.stop()
    finally:
        first.close()

    place = server(Rclone).place()
    move(data_dir, postgres_url, place)
    second = Stack(data_dir, accounts | {"SAFELIGHT_DATABASE_URL": postgres_url, **place.environment})
    try:
        with client_of(second, secret) as ada:
            await_true(lambda: ada.get(f"{JOBS}/{unfinished['id']}").json()["is_terminal"])
            after = standing(ada)
            assert after["keys"] == before["keys"]
            for kind in ("jobs", "attempts", "hashes"):
                ended = {job_id: value for job_id, value in after[kind].items() if job_id != unfinished["id"]}
                old = {job_id: value for job_id, value in before[kind].items() if job_id != unfinished["id"]}
                assert len(old) == 100
                assert ended == old, kind
            assert ada.get(f"{UPLOADS}/{upload['id']}").json() == upload
            content = ada.get(upload["url"])
            assert hashlib.sha256(content.content).hexdigest() == upload["sha256"]

        # Who watched before goes on after the last event it had.
        assert watched == [("job.snapshot", 1)]
        resumed = events(second, secret, unfinished["id"], "1")
        assert resumed[0][0] == "job.snapshot"
        assert [event for event in resumed if event[0] in ("job.started", "job.completed")] == [
            ("job.started", 2),
            ("job.completed", 3),
        ]
        an_old_one = next(iter(before["jobs"]))
        assert events(second, secret, an_old_one, "2")[-1] == ("job.completed", 3)
        assert events(second, secret, an_old_one, "3") == []  # everything was told before
    finally:
        second.close()


def standing(ada: httpx.Client) -> dict[str, Any]:
    """Everything that must be the same on another database and in another place, by job."""
    jobs = {job["id"]: job for job in items_of(ada)}
    hashes: dict[str, list[str]] = {}
    for number, (job_id, job) in enumerate(jobs.items()):
        for artifact in job["artifacts"]:
            content = ada.get(artifact["url"]).content
            assert hashlib.sha256(content).hexdigest() == artifact["sha256"]
            if number < 10:
                assert ada.get(artifact["thumbnails"][0]["url"]).status_code == 200
        hashes[job_id] = [artifact["sha256"] for artifact in job["artifacts"]]
    return {
        "jobs": {job_id: {name: value for name, value in job.items() if name != "eta"} for job_id, job in jobs.items()},
        "attempts": {job_id: ada.get(f"{JOBS}/{job_id}/attempts").json() for job_id in jobs},
        "hashes": hashes,
        "keys": [{**key, "last_used_at": None} for key in ada.get(KEYS).json()["items"]],
    }


def move(data_dir: Path, database_url: str, place: Place) -> None:
    """With the commands that the documents name, the service being stopped."""
    sqlite = f"sqlite:///{data_dir / 'safelight.db'}"
    # A worker that had to be killed at the stop, on a busy machine, is believed alive for half a minute.
    await_true(lambda: run(data_dir, "db", "copy", sqlite, database_url)[0] == 0)
    keys = {name: value for name, value in place.environment.items() if name.endswith("_KEY")}
    code, _, words = run(data_dir, "storage", "migrate", "current", place.url, **keys)
    assert code == 0, words
    assert "Everything is there" in words
    for path in (data_dir / "safelight.db", data_dir / "files"):
        path.rename(path.with_name(f"{path.name}.old"))  # nothing can still come from there


def events(stack: Stack, secret: str, job_id: str, last_id: str | None, at_most: int = 99) -> list[tuple[str, int]]:
    """What a watcher is told until the stream ends, as (type, version); without news."""
    told: list[tuple[str, int]] = []
    headers = {} if last_id is None else {"Last-Event-ID": last_id}
    with (
        client_of(stack, secret) as client,
        client.stream("GET", f"{JOBS}/{job_id}/events", headers=headers) as stream,
    ):
        assert stream.status_code in (200, 204)
        for event in EventReader().read(stream.iter_raw()):
            if event.type not in ("job.progress", "job.preview", "job.output"):
                told.append((event.type, event.data["version"]))
            if len(told) >= at_most:
                break
    return told
