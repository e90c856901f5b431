"""A stand-in for OpenAI's image interface: draws, streams partial pictures, keeps a ledger, misbehaves as told."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from email.parser import BytesParser
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from stand_ins.serve import Served, base_of, picture

KEY = "sk-0123456789abcdef"
USAGE = {"input_tokens": 11, "output_tokens": 4160, "total_tokens": 4171, "input_tokens_details": {"text_tokens": 11}}

Act = Callable[[dict[str, Any], str], "Response | Awaitable[Response | None] | None"]


class OpenAIStandIn:
    """`acts` holds what to do with the next requests instead, in order; None: as usual.

    An act is given the order (fields and, under `files`, the pictures sent) and this server's address.
    """

    def __init__(self) -> None:
        self.seconds = 0.02  # of drawing
        self.streams = True
        self.listed: dict[str, str | None] = {"gpt-image-2": None}  # models, and when they are shut down
        self.acts: list[Act | None] = []
        self.on_file: Callable[[], None] | None = None  # called before a file is sent
        self.ledger: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.file_headers: list[dict[str, str]] = []
        self._served = Served(
            Starlette(
                routes=[
                    Route("/v1/images/generations", self._make, methods=["POST"]),
                    Route("/v1/images/edits", self._make, methods=["POST"]),
                    Route("/v1/models", self._models),
                    Route("/files/{width:int}x{height:int}.png", self._file),
                ]
            )
        )
        self.host = self._served.host
        self.url = f"{self._served.url}/v1"

    def close(self) -> None:
        self._served.close()

    async def _make(self, request: Request) -> Response:
        order = await _read(request)
        self.ledger.append(order)
        self.paths.append(request.url.path)
        if request.headers.get("authorization") != f"Bearer {KEY}":
            return refusal(401, f"Incorrect API key: {request.headers.get('authorization')}", "invalid_api_key")
        act = self.acts.pop(0) if self.acts else None
        told = act(order, base_of(request)) if act is not None else None
        told = await told if isinstance(told, Awaitable) else told
        if told is not None:
            return told
        await asyncio.sleep(self.seconds)
        if order.get("stream") in {True, "true"} and self.streams:
            kind = "image_edit" if request.url.path.endswith("edits") else "image_generation"
            return stream(self.events(order, kind))
        return JSONResponse(
            {"created": 1, "data": [{"b64_json": drawn(order)} for _ in range(int(order["n"]))], "usage": USAGE}
        )

    def events(self, order: dict[str, Any], kind: str = "image_generation") -> list[dict[str, Any]]:
        """What is streamed for an order."""
        partials = [
            {"type": f"{kind}.partial_image", "partial_image_index": index, "b64_json": drawn(order, f"half {index}")}
            for index in range(int(order["partial_images"]))
        ]
        return [*partials, {"type": f"{kind}.completed", "b64_json": drawn(order), "usage": USAGE}]

    async def _models(self, request: Request) -> Response:
        if request.headers.get("authorization") != f"Bearer {KEY}":
            return refusal(401, "Incorrect API key.", "invalid_api_key")
        data = [{"id": name, "object": "model", "shutdown_date": date} for name, date in self.listed.items()]
        return JSONResponse({"object": "list", "data": data})

    async def _file(self, request: Request) -> Response:
        self.file_headers.append(dict(request.headers))
        if self.on_file is not None:
            self.on_file()
        return Response(picture(request.path_params["width"], request.path_params["height"]), media_type="image/png")


def refusal(status: int, message: str, code: str | None = None, *, headers: dict[str, str] | None = None, **more: Any):
    error = {"message": message, "type": "image_generation_user_error", "code": code, "param": None, **more}
    return JSONResponse({"error": error}, status, headers)


def drawn(order: dict[str, Any], text: str = "") -> str:
    """The picture of an order as base64."""
    width, height = (int(side) for side in order.get("size", "1024x1024").split("x"))
    return base64.b64encode(picture(width, height, order["prompt"] + text)).decode()


def stream(events: list[dict[str, Any]], *, after: Callable[[], Awaitable[Any]] | None = None) -> Response:
    """The events as OpenAI sends them; `after` runs before the end."""

    async def lines() -> AsyncIterator[str]:
        for event in events:
            yield f"event: {event['type']}\ndata: {json.dumps(event)}\n\n"
            await asyncio.sleep(0)
        if after is not None:
            await after()
        yield "data: [DONE]\n\n"

    return StreamingResponse(lines(), media_type="text/event-stream")


async def _read(request: Request) -> dict[str, Any]:
    content_type = request.headers["content-type"]
    body = await request.body()
    if content_type == "application/json":
        return json.loads(body)
    message = BytesParser().parsebytes(f"Content-Type: {content_type}\r\n\r\n".encode() + body)
    order: dict[str, Any] = {"files": []}
    parts: list[Any] = list(message.walk())[1:]
    for part in parts:
        name = part.get_param("name", header="content-disposition")
        data: bytes = part.get_payload(decode=True)
        if part.get_filename() is None:
            order[name] = data.decode()
        else:
            order["files"].append((name, part.get_filename(), part.get_content_type(), data))
    return order
