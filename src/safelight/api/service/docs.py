"""The page of the API at `/api/v1/docs`: Swagger UI, served by ourselves, so that it works without any other host."""

import asyncio
import gzip
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from safelight.api.deps import json_response
from safelight.api.page import Asset, page
from safelight.api.prefix import current_prefix

URL = "/api/v1/docs"
OPENAPI_URL = "/api/v1/openapi.json"
SWAGGER_UI = Path(__file__).parent / "swagger_ui"
POLICY = "script-src 'self'; connect-src 'self'"  # which sends the requests that are tried out
PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Safelight: the API</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="{at}/swagger-ui.css">
<div id="swagger-ui" data-document="{document}"></div>
<script src="{at}/swagger-ui.js"></script>
<script src="{at}/start.js"></script>
</html>
"""
START = b"""const place = document.getElementById("swagger-ui");
SwaggerUIBundle({
  url: place.dataset.document, domNode: place, deepLinking: true, layout: "BaseLayout", tryItOutEnabled: false,
  presets: [SwaggerUIBundle.presets.apis], validatorUrl: null,
});
"""

ASSETS = {
    "swagger-ui.js": Asset.of((SWAGGER_UI / "swagger-ui-bundle.js.gz").read_bytes(), "text/javascript"),
    "swagger-ui.css": Asset.of((SWAGGER_UI / "swagger-ui.css.gz").read_bytes(), "text/css"),
    "start.js": Asset.of(gzip.compress(START, mtime=0), "text/javascript"),
}

router = APIRouter(include_in_schema=False)


@router.get(URL)
async def show() -> Response:
    """The page."""
    prefix = current_prefix()
    return page(PAGE.format(at=prefix + URL, document=prefix + OPENAPI_URL), POLICY)


@router.get(URL + "/{name}")
async def load(name: str, request: Request) -> Response:
    """What the page loads."""
    if name not in ASSETS:
        raise HTTPException(404)
    return ASSETS[name].answer(request)


@router.get(OPENAPI_URL)
async def describe(request: Request) -> Response:
    """The OpenAPI document; below a path it says so."""
    document = await asyncio.to_thread(request.app.openapi)  # made at the first time
    prefix = current_prefix()
    return json_response(document | {"servers": [{"url": prefix}]} if prefix else document)
