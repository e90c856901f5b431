"""What stands at `/`: what this is, for people, and where everything else is."""

import gzip
from html import escape
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.responses import Response

from safelight.api.page import Asset, page
from safelight.api.prefix import current_prefix, encode
from safelight.api.service import docs
from safelight.artifacts import ApiPath

STYLE_URL = "/front.css"
STYLE = Asset.of(gzip.compress((Path(__file__).parent / "front.css").read_bytes(), mtime=0), "text/css")
ABOUT = "Self-hosted generation jobs: submit a picture, watch it develop, keep it."
PLACES = {
    "docs": (docs.URL, "The API", "every call, to read and to try"),
    "openapi": (docs.OPENAPI_URL, "OpenAPI document", "for generators of clients"),
    "ready": ("/health/ready", "Health", "database, queue, storage and workers"),
}
PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="dark light">
<title>Safelight</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="{style}">
<main>
<h1>Safelight</h1>
<p>{about}</p>
<nav>
{links}
</nav>
<p class="hint">Submit a job:</p>
<pre><code>curl {origin}{prefix}/api/v1/generation-jobs \\
  --json '{{"prompt": "a lighthouse at dusk"}}'</code></pre>
</main>
</html>
"""

router = APIRouter(include_in_schema=False)


@router.get("/")
async def show(request: Request) -> Response:
    """A page for browsers, JSON for everybody else."""
    if "text/html" not in request.headers.get("accept", ""):
        told = {"name": "safelight", "about": ABOUT} | {name: ApiPath(place[0]) for name, place in PLACES.items()}
        return Response(encode(told) + b"\n", 200, {"Vary": "Accept"}, "application/json")
    prefix = current_prefix()
    links = "\n".join(f'<a href="{prefix}{path}">{name}<span>{what}</span></a>' for path, name, what in PLACES.values())
    origin = escape(f"{request.url.scheme}://{request.state.host}")
    return page(PAGE.format(style=prefix + STYLE_URL, about=ABOUT, links=links, prefix=prefix, origin=origin))


@router.get(STYLE_URL)
async def style(request: Request) -> Response:
    """The page's styles."""
    return STYLE.answer(request)
