"""Below a path, behind real proxies with the configurations that the documentation shows: every path leads there."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from api_service import JOBS, Service, order, settings_for
from guarded_service import served

from proxies import Caddy, Nginx, Proxy, documented
from safelight.providers.fetch import shared_tls
from safelight_client import Client
from servers import ServerMissing, ValkeyServer

BELOW = "/safelight"
LEAST_NGINX = """
events {}
http { server { listen 127.0.0.1:8090; location /safelight/ { proxy_pass http://127.0.0.1:8080/; proxy_set_header Host 127.0.0.1; proxy_set_header X-Forwarded-Prefix /safelight; } } }
""".lstrip()  # noqa: E501 - as it was sent in
PROXIES: dict[str, Callable[[int], Proxy]] = {
    "nginx": lambda port: Nginx(documented("nginx"), port),
    "nginx at the least": lambda port: Nginx(LEAST_NGINX, port),
    "caddy": lambda port: Caddy(documented("caddyfile"), port),
}


@pytest.fixture(scope="module", params=PROXIES)
def base(request: pytest.FixtureRequest, service: Service) -> Iterator[str]:
    """Where the service is reached through a proxy."""
    try:
        proxy = PROXIES[request.param](service.api.port)
    except ServerMissing as reason:
        pytest.skip(str(reason))
    yield proxy.url + BELOW
    proxy.close()


def paths(value: Any) -> list[str]:
    """Every path of ours in an answer, prefixed or not."""
    if isinstance(value, dict):
        return [path for inner in value.values() for path in paths(inner)]
    if isinstance(value, list):
        return [path for inner in value for path in paths(inner)]
    return [value] if isinstance(value, str) and re.match(rf"({BELOW})?/api/v1/", value) else []


def follow(http: httpx.Client, base: str, answer: Any, least: int = 1) -> None:
    """Every path in an answer stands below ours and leads somewhere."""
    found = paths(answer)
    assert len(found) >= least, answer
    for path in found:
        assert path.startswith(f"{BELOW}/api/v1/"), path
        assert http.head(base.removesuffix(BELOW) + path).status_code in (200, 204, 405), path


def test_every_path_leads_back(base: str, service: Service) -> None:
    with httpx.Client(timeout=60, verify=shared_tls()) as http:
        submitted = http.post(f"{base}{JOBS}", json=order(), headers={"Prefer": "wait=60"})
        job = submitted.json()
        assert (submitted.status_code, job["status"]) == (202, "completed")
        assert submitted.headers["location"] == f"{BELOW}{JOBS}/{job['id']}"
        follow(http, base, job, 7)
        follow(http, base, http.get(f"{base}{JOBS}", params={"ids": job["id"]}).json(), 7)
        artifact = f"{base}/api/v1/artifacts/{job['artifacts'][0]['id']}"
        follow(http, base, http.get(artifact).json(), 2)
        link = http.post(f"{artifact}/link").json()["url"]
        follow(http, base, link)
        assert http.get(base.removesuffix(BELOW) + link).content.startswith(b"\x89PNG")
        batch = http.post(f"{base}/api/v1/batches", json={"jobs": [order()]})
        assert batch.headers["location"].startswith(f"{BELOW}/api/v1/batches/")
        follow(http, base, batch.json(), 5)
        project = http.post(f"{base}/api/v1/projects/", json={"title": "/api/v1/is no path of ours"})
        assert project.headers["location"] == f"{BELOW}/api/v1/projects/{project.json()['id']}"
        assert project.json()["title"] == "/api/v1/is no path of ours"
    assert not [path for path in paths(service.look(job["id"])) if path.startswith(BELOW)]


def test_stories_lead_back(base: str) -> None:
    with httpx.Client(timeout=60, verify=shared_tls()) as http:
        project = http.post(f"{base}/api/v1/projects", json={"title": "x"}).json()
        chapter = http.post(f"{base}/api/v1/projects/{project['id']}/chapters", json={"title": "x"}).json()
        scenes = f"{base}/api/v1/chapters/{chapter['id']}/scenes"
        http.post(scenes, json={"description": "a lighthouse"})
        images = f"{base}/api/v1/chapters/{chapter['id']}/images/scenes/1"
        made = http.post(images, json={"prompt": "a lighthouse"})
        assert made.status_code == 202, made.text
        assert made.headers["location"] == f"{images.removeprefix(base.removesuffix(BELOW))}/status"
        follow(http, base, made.json(), 5)
        character = http.post(f"{base}/api/v1/projects/{project['id']}/characters", json={"name": "Ada"}).json()
        portrait = http.post(f"{base}/api/v1/characters/{character['id']}/image", json={"prompt": "a keeper"})
        assert portrait.headers["location"].startswith(f"{BELOW}/api/v1/characters/")
        follow(http, base, http.get(f"{base}/api/v1/characters/{character['id']}/image/status").json(), 5)


def test_events_are_told_as_they_happen_with_paths_that_lead_back(base: str, service: Service) -> None:
    job_id = service.hold(seconds=0.6, width=256, height=256)
    with httpx.Client(timeout=60, verify=shared_tls()) as http:
        with http.stream("GET", f"{base}{JOBS}/{job_id}/events") as response:
            lines = response.iter_lines()
            # Nothing more comes before the job is let go: a proxy that kept events back would wait here for ever.
            assert next(line for line in lines if line.startswith("event:")) == "event: job.snapshot"
            service.let_go(job_id)
            told = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
        assert told[-1]["type"] == "job.completed"
        follow(http, base, [event["artifacts"] for event in told], 2)
        previews = [event["preview_url"] for event in told if event["preview_url"]]
        assert previews
        assert all(url.startswith(f"{BELOW}{JOBS}/{job_id}/previews/") for url in previews)
        batch = service.submit_batch(order(seconds=0.5), order())
        with http.stream("GET", f"{base}/api/v1/batches/{batch['id']}/events") as response:
            text = "".join(response.iter_text())
        assert "event: batch.completed" in text
        follow(http, base, [json.loads(data) for data in re.findall(r"^data: (.*)$", text, re.MULTILINE)], 4)


def test_the_client_works_there(base: str, tmp_path: Path) -> None:
    with Client(base) as client:
        job = client.submit(**order())
        assert [event.type for event in client.events(job["id"])][-1] == "job.completed"
        done = client.get(job["id"])
        url = done["artifacts"][0]["url"]
        assert url.startswith(BELOW)
        assert client.download(url).startswith(b"\x89PNG")
        assert client.download(url, tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
        assert client.download(url.removeprefix(BELOW)).startswith(b"\x89PNG")  # as a server without a path tells it
        assert client.is_live()


def test_the_pages_load_from_there(base: str) -> None:
    with httpx.Client(timeout=60, verify=shared_tls()) as http:
        for page in ("/", "/api/v1/docs", "/api/v1/docs/"):
            html = http.get(f"{base}{page}", headers={"Accept": "text/html"}).text
            loaded = re.findall(r'(?:href|src|data-document)="(/[^"]*)"', html)
            assert len(loaded) >= 4
            for path in loaded:
                assert path.startswith(f"{BELOW}/"), path
                assert http.get(base.removesuffix(BELOW) + path).status_code == 200, path
        document = http.get(f"{base}/api/v1/openapi.json").json()
        assert document["servers"] == [{"url": BELOW}]
        follow(http, base, http.get(f"{base}/").json(), 2)


def test_cookies_are_for_this_path_alone(api_valkey: ValkeyServer, tmp_path: Path, sqlite_template: Path) -> None:
    database = tmp_path / "safelight.db"
    database.write_bytes(sqlite_template.read_bytes())
    with served(tmp_path, api_valkey, f"sqlite:///{database}") as guarded:
        try:
            proxy = Nginx(documented("nginx"), guarded.service.api.port)
        except ServerMissing as reason:
            pytest.skip(str(reason))
        base = proxy.url + BELOW
        with httpx.Client(base_url=base, timeout=60, verify=shared_tls()) as http:
            opened = http.post("/api/v1/session", headers={"Authorization": f"Bearer {guarded.key('ada')}"})
            assert opened.status_code == 201, opened.text
            for cookie in opened.headers.get_list("set-cookie"):
                assert f"Path={BELOW};" in f"{cookie};"
            assert http.get("/api/v1/session").json()["owner_id"] == "ada"
            csrf = {"X-CSRF-Token": opened.json()["csrf_token"]}
            page = {"Origin": proxy.url}  # as a browser sends it from a page behind the proxy
            assert http.post(JOBS, json=order(), headers=csrf | page).status_code == 202
            assert http.delete("/api/v1/session", headers=csrf).status_code == 204
            assert not http.cookies
        proxy.close()


@pytest.mark.parametrize("root", ["/safelight", "/tools/media.v2", "/api"])
def test_a_path_that_is_set_needs_no_header(
    root: str, api_valkey: ValkeyServer, tmp_path: Path, sqlite_template: Path
) -> None:
    database = tmp_path / "safelight.db"
    database.write_bytes(sqlite_template.read_bytes())
    settings = settings_for(tmp_path, api_valkey, f"sqlite:///{database}", root_path=root)
    service = Service(settings, api_valkey, worker=False)
    sent = service.http.post(JOBS, json=order(), headers={"X-Forwarded-Prefix": "/other"})  # the path was taken off
    assert sent.headers["location"] == f"{root}{JOBS}/{sent.json()['id']}"
    assert sent.json()["urls"]["self"] == sent.headers["location"]
    for path in (sent.headers["location"], f"{root}/health/live", f"{root}/", root):  # it was left
        assert service.http.get(path).status_code == 200, path
    assert service.http.get(f"{root}x/health/live").status_code == 404
    service.close()
