"""A tiny HTTP server that answers what a test wrote down, and remembers what it was asked."""

import json
import threading
from collections import defaultdict, deque
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from patience import PATIENCE_SECONDS

JOB_ID = "0199f1c2-7d2e-7a55-b5d4-6f1f7f0c2b11"
JOB_PATH = f"/api/v1/generation-jobs/{JOB_ID}"
PNG = b"\x89PNG\r\n\x1a\npicture"


@dataclass(frozen=True)
class Answer:
    """One answer. `drops` ends the connection instead of answering, or in the middle of the body."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    drops: bool = False
    waits_for: threading.Event | None = None  # before the end of the body


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: Mapping[str, str]
    body: dict[str, Any]


class ScriptedApi:
    """Answers by method and path, in the order given; the last answer of a path stays. Unknown paths are 404."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self._answers: defaultdict[tuple[str, str], deque[Answer]] = defaultdict(deque)
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                api.handle(self)

            def do_POST(self) -> None:
                api.handle(self)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def answer(self, method: str, path: str, *answers: Answer) -> None:
        self._answers[method, path].extend(answers)

    def asked(self, method: str, path: str) -> list[Request]:
        return [each for each in self.requests if (each.method, each.path.split("?")[0]) == (method, path)]

    @contextmanager
    def serving(self) -> Generator["ScriptedApi"]:
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()

    def handle(self, handler: BaseHTTPRequestHandler) -> None:
        length = int(handler.headers.get("Content-Length") or 0)
        body = json.loads(handler.rfile.read(length)) if length else {}
        self.requests.append(Request(handler.command, handler.path, dict(handler.headers), body))
        answers = self._answers[handler.command, handler.path.split("?")[0]]
        answer = (answers.popleft() if len(answers) > 1 else answers[0]) if answers else problem(404, "not_found")
        handler.close_connection = True
        if answer.drops and not answer.body:
            handler.connection.close()
            return
        handler.send_response(answer.status)
        handler.send_header("Connection", "close")
        for name, value in answer.headers.items():
            handler.send_header(name, value)
        if answer.status != 204:
            handler.send_header("Content-Length", str(len(answer.body) + (1 if answer.drops else 0)))
        handler.end_headers()
        handler.wfile.write(answer.body)
        handler.wfile.flush()
        if answer.waits_for is not None:
            answer.waits_for.wait(PATIENCE_SECONDS)


def document(body: Mapping[str, Any], status: int = 200, **headers: str) -> Answer:
    return Answer(status, json.dumps(body).encode(), {"Content-Type": "application/json", **headers})


def problem(status: int, code: str, **more: Any) -> Answer:
    retry_after = more.pop("retry_after", None)
    headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
    body = {"status": status, "code": code, "detail": f"It is {code}.", "retryable": status in (429, 503), **more}
    return document(body, status, **headers)


def stream(*events: str, **options: Any) -> Answer:
    return Answer(200, "".join(events).encode(), {"Content-Type": "text/event-stream"}, **options)


def event(kind: str, version: int, **data: Any) -> str:
    is_terminal = kind in ("job.completed", "job.failed", "job.cancelled") or data.get("is_terminal", False)
    content = {"type": kind, "job_id": JOB_ID, "version": version, "seq": 0, **data, "is_terminal": is_terminal}
    return f"id: {version}\nevent: {kind}\ndata: {json.dumps(content, ensure_ascii=False)}\n\n"


def job(status: str = "pending", **more: Any) -> dict[str, Any]:
    is_terminal = status in ("completed", "failed", "cancelled")
    eta = {"wait_seconds": None, "run_seconds": None}
    return {
        "id": JOB_ID,
        "status": status,
        "is_terminal": is_terminal,
        "progress": None,
        "artifacts": [],
        "error": None,
        "eta": eta,
        **more,
    }
