"""The pages for people: `/`, and that of the API. Everything they load is ours, and their policy allows it."""

import re
import tomllib
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import httpx
import pytest
from api_service import Service
from guarded_service import Guarded, served

from servers import ValkeyServer

HTML = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
PAGES = ("/", "/api/v1/docs")
LOADED_BY = {"script": ("src", "script-src"), "link": ("href", "style-src"), "img": ("src", "img-src")}


@pytest.fixture(scope="module")
def guarded(
    api_valkey: ValkeyServer, tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path
) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("pages")
    database = folder / "safelight.db"
    database.write_bytes(sqlite_template.read_bytes())
    with served(folder, api_valkey, f"sqlite:///{database}") as running:
        yield running


class Loads(HTMLParser):
    """What a page loads, each with the part of a policy that must allow it; and what stands inline."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.loads: list[tuple[str, str]] = []
        self.inline: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.inline += [name for name in given if name == "style" or name.startswith("on")]
        if tag == "style" or (tag == "script" and "src" not in given):
            self.inline.append(tag)
        if tag in LOADED_BY and given.get("rel") != "icon":
            attribute, part = LOADED_BY[tag]
            self.loads.append((given[attribute] or "", part))


def policy_of(response: httpx.Response) -> dict[str, set[str]]:
    parts = (part.split() for part in response.headers["content-security-policy"].split(";"))
    return {name: set(sources) for name, *sources in parts}


@pytest.mark.parametrize("page", PAGES)
def test_a_page_loads_only_what_we_serve_and_its_policy_allows(service: Service, guarded: Guarded, page: str) -> None:
    for http in (service.http, guarded.nobody):  # open with accounts, too
        response = http.get(page, headers=HTML)
        assert response.status_code == 200
        assert response.headers["content-type"] == "text/html; charset=utf-8"
        assert response.headers["x-content-type-options"] == "nosniff"
        policy = policy_of(response)
        assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == {"'none'"}
        assert not any("unsafe" in source for sources in policy.values() for source in sources)
        assert not any("http" in source or "*" in source for sources in policy.values() for source in sources)
        found = Loads(response.text)
        assert found.loads
        assert found.inline == []
        for url, part in found.loads:
            assert url.startswith("/") and not url.startswith("//")
            assert policy[part] == {"'self'"}
            loaded = http.get(url)
            assert (loaded.status_code, len(loaded.content) > 100) == (200, True), url
            assert "http://" not in response.text.replace(f"http://{response.url.netloc.decode()}", "")


@pytest.mark.parametrize(
    ("asset", "content_type"),
    [("swagger-ui.js", "text/javascript"), ("swagger-ui.css", "text/css"), ("start.js", "text/javascript")],
)
def test_what_pages_load_is_sent_once(service: Service, asset: str, content_type: str) -> None:
    url = f"/api/v1/docs/{asset}"
    zipped = service.http.get(url, headers={"Accept-Encoding": "gzip"})
    plain = service.http.get(url, headers={"Accept-Encoding": "identity"})
    assert zipped.headers["content-encoding"] == "gzip"
    assert "content-encoding" not in plain.headers
    assert zipped.content == plain.content
    assert plain.headers["content-type"].startswith(content_type)
    assert service.http.get(url, headers={"If-None-Match": plain.headers["etag"]}).status_code == 304
    assert service.http.get("/api/v1/docs/nothing.js").status_code == 404


def test_where_the_files_come_from_stands_beside_them() -> None:
    folder = files("safelight.api.service") / "swagger_ui"
    assert "swagger-ui-dist 5." in (folder / "README").read_text()
    assert "Apache License" in (folder / "LICENSE").read_text()
    assert (folder / "NOTICE").is_file()
    packages = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["tool"]["hatch"]
    assert packages["build"]["targets"]["wheel"]["packages"] == ["src/safelight"]  # all of its files are packed


@pytest.mark.parametrize("accept", ["*/*", "application/json", ""])
def test_programs_are_told_in_json(service: Service, guarded: Guarded, accept: str) -> None:
    for http in (service.http, guarded.nobody):
        response = http.get("/", headers={"Accept": accept})
        assert response.headers["content-type"] == "application/json"
        assert response.headers["vary"] == "Accept"
        told = response.json()
        assert told["name"] == "safelight"
        for name in ("docs", "openapi", "ready"):
            assert http.get(told[name]).status_code == 200


def test_what_a_page_shows_of_a_request_is_no_markup(service: Service) -> None:
    page = service.http.get("/", headers=HTML | {"X-Forwarded-Host": 'localhost:1"><script>'})
    assert page.status_code == 421
    shown = service.http.get("/", headers=HTML).text
    assert re.search(rf"curl {service.api.url}/api/v1/generation-jobs", shown)
