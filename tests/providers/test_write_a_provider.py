"""The page that shows how to write a provider is true: its package is made, found, checked and tested as it says."""

import re
import sys
import time
import tomllib
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from safelight.providers.base import Parameters
from safelight.providers.registry import GROUP, Registry
from stand_ins.serve import Served, base_of, picture

PAGE = (Path(__file__).parents[2] / "docs/how-to/write-a-provider.md").read_text()
TOML, MODULE, TEST = re.findall(r"```(?:toml|python)\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def easel() -> Iterator[Served]:
    """The imaginary service of the page."""
    ids = count(1)
    pictures: dict[str, tuple[float, bytes]] = {}

    async def take(request: Request) -> Response:
        order = await request.json()
        name = f"p{next(ids)}"
        pictures[name] = time.monotonic() + 0.1, picture(order["size"][0], order["size"][1], order["text"])
        return JSONResponse({"id": name}, 202)

    async def look(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in pictures:
            return JSONResponse({"error": "unknown"}, 404)
        is_ready = time.monotonic() >= pictures[name][0]
        link = f"{base_of(request)}/files/{name}.png" if is_ready else None
        return JSONResponse({"percent": 100 if is_ready else 40, "link": link})

    async def file(request: Request) -> Response:
        return Response(pictures[request.path_params["name"]][1])

    served = Served(
        Starlette(
            routes=[
                Route("/pictures", take, methods=["POST"]),
                Route("/pictures/{name}", look),
                Route("/files/{name}.png", file),
            ]
        )
    )
    yield served
    served.close()


@pytest.fixture
def package(tmp_path: Path, easel: Served, monkeypatch: pytest.MonkeyPatch) -> Iterator[EntryPoint]:
    """What the page's files become when they are installed."""
    entry_points = tomllib.loads(TOML)["project"]["entry-points"][GROUP]
    [(name, value)] = entry_points.items()
    (tmp_path / "safelight_easel.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("EASEL_URL", easel.url)
    yield EntryPoint(name, value, GROUP)
    sys.modules.pop("safelight_easel", None)


@pytest.mark.anyio
async def test_the_plug_in_of_the_page_is_found_and_passes_its_own_test(package: EntryPoint) -> None:
    registry = Registry(False, "mock", {}, [package])
    name, provider, mocked = registry.resolve("easel")
    assert (name, mocked, registry.problems) == ("easel", False, {})
    assert provider.check(Parameters("image.generate", "a lighthouse")).model == "oil"
    await registry.close()

    page: dict[str, Any] = {}
    exec(compile(TEST, "the page's test", "exec"), page)  # noqa: S102 - the page is ours
    await page["test_easel"]()


def test_it_is_as_short_as_it_says() -> None:
    assert len(MODULE.splitlines()) < 60
