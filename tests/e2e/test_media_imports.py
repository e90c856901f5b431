"""Imports through the real stack: a scene's video, a cancel, and workers that are killed; on both kinds of ground."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from installation import Ground
from running_stack import Stack, run

from media import media
from patience import PATIENCE_SECONDS, await_true
from safelight_client import Client
from stand_ins.media_host import MediaHost


@pytest.fixture(scope="module")
def shared_host() -> Iterator[MediaHost]:
    host = MediaHost()
    yield host
    host.close()


@pytest.fixture
def host(shared_host: MediaHost) -> MediaHost:
    shared_host.reset()
    return shared_host


@pytest.fixture
def stack(ground: Ground) -> Stack:
    return ground.stack


@pytest.fixture
def client(ground: Ground) -> Iterator[Client]:
    with ground.client() as client:
        yield client


def unfinished(stack: Stack) -> list[Path]:
    """The folders of imports that have not ended."""
    return list((stack.data_dir / "imports").glob("*"))


def programs_of(stack: Stack) -> list[int]:
    """The processes that work in one of them."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if str(stack.data_dir / "imports") in str((entry / "cwd").readlink()):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def ended(client: Client, job: dict[str, Any]) -> dict[str, Any]:
    await_true(lambda: client.get(job["id"], wait=5)["is_terminal"])
    return client.get(job["id"])


def a_scene(ground: Ground) -> str:
    """The id of a new scene."""
    with ground.http(base_url=f"{ground.stack.url}/api/v1") as http:
        project = http.post("/projects", json={"title": "The coast"}).json()
        chapter = http.post(f"/projects/{project['id']}/chapters", json={"title": "Night"}).json()
        scene = {"scene_number": 1, "description": "A lighthouse"}
        return http.post(f"/chapters/{chapter['id']}/scenes", json=scene).json()["id"]


def test_a_video_for_a_scene(ground: Ground, stack: Stack, client: Client, host: MediaHost, tmp_path: Path) -> None:
    """By the command, in bytes that are those of its source; a page by yt-dlp."""
    target = tmp_path / "lighthouse.mp4"
    entry = {} if ground.key is None else {"SAFELIGHT_API_KEY": ground.key}
    code, output, words = run(stack.data_dir, "import", f"{host.url}/lighthouse.mp4", "-o", str(target), **entry)
    assert (code, output) == (0, f"{target}\n"), words
    assert target.read_bytes() == media("mp4")
    scene = a_scene(ground)
    job = ended(client, client.media.store(f"{host.url}/page.html", scene_id=scene))
    [made] = job["artifacts"]
    with ground.http() as http:
        shown = http.get(f"{stack.url}/api/v1/scenes/{scene}").json()
    assert (shown["media_status"], shown["media_job_id"], shown["media_url"]) == ("completed", job["id"], made["url"])
    assert (made["kind"], made["duration_seconds"], made["height"]) == ("video", 2.0, 72)
    assert client.download(made["url"]) == media("mp4")
    assert client.download(made["thumbnails"][-1]["url"])
    assert client.media.probe(f"{host.url}/lighthouse.mp4")["heights"] == [72]
    assert not unfinished(stack)


def test_cancelled_halfway_it_leaves_nothing(stack: Stack, client: Client, host: MediaHost) -> None:
    job = client.media.store(f"{host.url}/slow.html")
    assert host.dripping.wait(PATIENCE_SECONDS)
    assert programs_of(stack)
    client.cancel(job["id"])
    assert ended(client, job)["status"] == "cancelled"
    await_true(lambda: not unfinished(stack) and not programs_of(stack))


@pytest.mark.long
def test_imports_and_suspects_do_not_wait_for_each_other(stack: Stack, client: Client, host: MediaHost) -> None:
    """Every slot for imports is held while a job that kills its processes is isolated and convicted."""
    held = [client.media.store(f"{host.url}/slow.mp4") for _ in range(3)]
    await_true(lambda: [client.get(job["id"])["status"] for job in held].count("processing") == 2, 60)
    poison = client.submit(prompt="a lighthouse", provider_options={"mock": {"crash": True}})
    await_true(lambda: client.get(poison["id"])["is_terminal"], 100)
    assert client.get(poison["id"])["error"]["code"] == "worker_lost"
    assert sorted(client.get(job["id"])["status"] for job in held) == ["pending", "processing", "processing"]
    host.released.set()
    assert [ended(client, job)["status"] for job in held] == ["completed"] * 3


@pytest.mark.long
@pytest.mark.parametrize("path", ["/slow.mp4", "/slow.html"])
def test_a_killed_worker_starts_it_again(stack: Stack, client: Client, host: MediaHost, path: str) -> None:
    job = client.media.store(host.url + path)
    assert host.dripping.wait(PATIENCE_SECONDS)
    [attempt] = json.loads(client.download(job["urls"]["attempts"]))["items"]
    os.kill(int(attempt["worker"].rpartition(".")[2]), signal.SIGKILL)
    if path == "/slow.html":
        await_true(lambda: not programs_of(stack))  # long before anybody knows that the worker died
    host.released.set()
    done = ended(client, job)
    assert (done["status"], done["attempt"]) == ("completed", 2), done["error"]
    assert client.download(done["artifacts"][0]["url"]) == media("mp4")
    assert not unfinished(stack)
