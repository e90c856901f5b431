"""A stand-in for ModelsLab's v7 interface: takes orders, keeps a ledger of them, and misbehaves as it is told."""

import base64
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from io import BytesIO
from itertools import count
from typing import Any

from PIL import Image
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from stand_ins.serve import Served, base_of, picture

KEY = "ml-0123456789abcdef"


@dataclass
class Job:
    """An order that was taken."""

    id: int
    order: dict[str, Any]
    ready_at: float
    looks: int = 0

    def links(self, base: str) -> list[str]:
        return [f"{base}/files/{self.id}-{number}.png" for number in range(int(self.order.get("samples", 1)))]


Act = Callable[[Job, str], "Response | Awaitable[Response | None] | None"]


class ModelsLabStandIn:
    """`on_submit`, `on_fetch` and `on_file` hold what to do instead, once each, in order; None: as usual.

    An act is given the job and this server's address.
    """

    def __init__(self) -> None:
        self.seconds = 0.03  # until a picture is ready
        self.takes_v7_fetch = True
        self.on_submit: list[Act | None] = []
        self.on_fetch: list[Act | None] = []
        self.on_file: list[Act | None] = []
        self.ledger: list[dict[str, Any]] = []  # the body of every submit
        self.fetched: list[str] = []  # the path of every look
        self.bodies: list[dict[str, Any]] = []  # and its body
        self.jobs: dict[int, Job] = {}
        self.uploads: list[bytes] = []
        self._ids = count(70_001)
        self._served = Served(
            Starlette(
                routes=[
                    Route("/api/v7/images/{way}-to-image", self._submit, methods=["POST"]),
                    Route("/api/v6/base64_to_url", self._upload, methods=["POST"]),
                    Route("/api/{version}/images/fetch/{id}", self._fetch, methods=["POST"]),
                    Route("/api/v6/wallet_balance", self._balance, methods=["POST"]),
                    Route("/files/{name}", self._file),
                ]
            )
        )
        self.host = self._served.host
        self.url = f"{self._served.url}/api"

    def close(self) -> None:
        self._served.close()

    async def _submit(self, request: Request) -> Response:
        order = await request.json()
        self.ledger.append(order)
        if ("init_image" in order) != (request.path_params["way"] == "image"):
            return says(400, status="error", message={"init_image": ["The init image field is wrong."]})
        job = Job(next(self._ids), order, time.monotonic() + self.seconds)
        self.jobs[job.id] = job
        refused = self._refused(order)
        if refused is not None:
            return refused
        told = await _act(self.on_submit, job, base_of(request))
        return told or self.processing(job, base_of(request))

    async def _upload(self, request: Request) -> Response:
        body = await request.json()
        refused = self._refused(body)
        if refused is not None:
            return refused
        head, _, data = body["base64_string"].partition(",")
        self.uploads.append(base64.b64decode(data))
        assert head == f"data:{Image.MIME[Image.open(BytesIO(self.uploads[-1])).format or '']};base64"
        link = f"{base_of(request)}/uploads/{len(self.uploads) - 1}"
        return JSONResponse({"status": "success", "id": 1, "output": [link]})

    async def _fetch(self, request: Request) -> Response:
        self.fetched.append(request.url.path)
        self.bodies.append(await request.json())
        refused = self._refused(self.bodies[-1])
        if refused is not None:
            return refused
        number = request.path_params["id"]
        job = self.jobs.get(int(number)) if number.isdigit() else None
        if job is None or (request.path_params["version"] == "v7" and not self.takes_v7_fetch):
            return JSONResponse({"status": "error", "message": "Not found"}, 404)
        job.looks += 1
        told = await _act(self.on_fetch, job, base_of(request))
        if told is not None:
            return told
        if time.monotonic() < job.ready_at:
            return JSONResponse({"status": "processing", "id": job.id, "output": [], "eta": 1})
        return self.success(job, base_of(request))

    async def _file(self, request: Request) -> Response:
        number = int(request.path_params["name"].partition("-")[0])
        job = self.jobs[number]
        told = await _act(self.on_file, job, base_of(request))
        if told is not None:
            return told
        width, height = int(job.order.get("width", 64)), int(job.order.get("height", 64))
        if "width" not in job.order and isinstance(job.order.get("init_image"), str):
            upload = self.uploads[int(job.order["init_image"].rpartition("/")[2])]
            width, height = Image.open(BytesIO(upload)).size
        return Response(picture(width, height, job.order["prompt"]), media_type="binary/octet-stream")

    async def _balance(self, request: Request) -> Response:
        return self._refused(await request.json()) or JSONResponse({"status": "success", "balance": 12.5})

    def _refused(self, body: dict[str, Any]) -> Response | None:
        if body.get("key") == KEY:
            return None
        return JSONResponse({"status": "error", "message": f"Invalid API key: {body.get('key')}"}, 401)

    def processing(self, job: Job, base: str, **changes: Any) -> Response:
        body: dict[str, Any] = {
            "status": "processing",
            "id": job.id,
            "eta": 1,
            "message": "Try to fetch the request after the eta",
            "fetch_result": f"{base}/api/v7/images/fetch/{job.id}",
            "output": [],
            "future_links": job.links(base),
            "proxy_links": [],
            "meta": {},
        }
        return says(**(body | changes))

    def success(self, job: Job, base: str, **changes: Any) -> Response:
        body: dict[str, Any] = {
            "status": "success",
            "generationTime": 1.5,
            "id": job.id,
            "output": job.links(base),
            "proxy_links": job.links(base),
            "meta": {"seed": str(job.order.get("seed", 4711))},
        }
        return says(**(body | changes))


def says(http_status: int = 200, **body: Any) -> Response:
    """A JSON answer; a value of None leaves a field out."""
    return JSONResponse({name: value for name, value in body.items() if value is not None}, http_status)


async def _act(acts: list[Act | None], job: Job, base: str) -> Response | None:
    act = acts.pop(0) if acts else None
    told = act(job, base) if act is not None else None
    return await told if isinstance(told, Awaitable) else told
