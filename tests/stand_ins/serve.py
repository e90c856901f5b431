"""An ASGI application on a real socket, in a thread of this process."""

import socket
import threading
from io import BytesIO
from typing import Any

import uvicorn
from PIL import Image
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from patience import PATIENCE_SECONDS


class Served:
    """Listens from the moment it is made; `url` has no slash at its end."""

    def __init__(self, app: ASGIApp) -> None:
        async def with_transport(scope: Scope, receive: Receive, send: Any) -> None:
            scope["transport"] = send.__self__.transport
            await app(scope, receive, send)

        self._socket = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self.url = f"http://{self.host}"
        config = uvicorn.Config(with_transport, log_config=None, lifespan="off", ws="none", timeout_keep_alive=30)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(PATIENCE_SECONDS)
        self._socket.close()


class Dropped(Response):
    """Closes the connection instead of an answer."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["transport"].abort()


class Half(Response):
    """Promises the whole content, sends half of it, and closes the connection."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        half = bytes(self.body)[: len(self.body) // 2]
        await send({"type": "http.response.body", "body": half, "more_body": True})
        scope["transport"].close()


def picture(width: int, height: int, text: str = "", format: str = "PNG") -> bytes:
    """A small file of any size, its colour chosen by the text."""
    colour = sum(text.encode()) % 256, len(text) % 256, width % 256
    data = BytesIO()
    Image.new("RGB", (width, height), colour).save(data, format)
    return data.getvalue()


def base_of(request: Request) -> str:
    """The address that this request was sent to, for links."""
    return f"http://{request.headers['host']}"
