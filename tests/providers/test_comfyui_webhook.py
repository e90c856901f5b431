"""The custom node for ComfyUI, in a fake ComfyUI: it tells of our prompts alone, and never stands in the way."""

import importlib.util
import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from patience import PATIENCE_SECONDS

FILE = Path(__file__).parents[2] / "integrations/comfyui_safelight_webhook/__init__.py"


class PromptQueue:
    """What the node touches of ComfyUI."""

    def __init__(self) -> None:
        self.currently_running: dict[int, tuple[Any, ...]] = {}
        self.history: list[str] = []

    def task_done(self, item_id: int, history_result: Any, status: Any, process_item: Any = None) -> None:
        self.history.append(self.currently_running.pop(item_id)[1])


class Safelight:
    """A server that notes what it is told; the first `failures` calls are answered with 503."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.failures = 0
        self.arrived = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if outer.failures:
                    outer.failures -= 1
                    self.send_error(503)
                    return
                outer.told.append((self.path, body))
                self.send_response(204)
                self.end_headers()
                outer.arrived.set()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()


@pytest.fixture
def safelight() -> Iterator[Safelight]:
    made = Safelight()
    yield made
    made.server.shutdown()
    made.server.server_close()


def load(monkeypatch: pytest.MonkeyPatch, url: str | None) -> type[PromptQueue]:
    """The custom node as ComfyUI loads it; the queue class it found."""

    class Queue(PromptQueue):
        pass

    execution = ModuleType("execution")
    vars(execution)["PromptQueue"] = Queue
    monkeypatch.setitem(sys.modules, "execution", execution)
    if url is None:
        monkeypatch.delenv("SAFELIGHT_WEBHOOK_URL", raising=False)
    else:
        monkeypatch.setenv("SAFELIGHT_WEBHOOK_URL", url)
    spec = importlib.util.spec_from_file_location("comfyui_safelight_webhook", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.NODE_CLASS_MAPPINGS == {}
    vars(module)["PAUSE_SECONDS"] = 0
    return Queue


def test_our_prompts_are_told_and_no_others(monkeypatch: pytest.MonkeyPatch, safelight: Safelight) -> None:
    safelight.failures = 1
    url = f"http://127.0.0.1:{safelight.server.server_port}/webhooks/comfyui/secret"
    running = load(monkeypatch, url)()
    running.currently_running = {
        1: (0, "theirs", {}, {"client_id": "x"}, ["9"]),
        2: (1, "ours", {}, {"safelight": {"job_id": "7"}}, ["9"]),
    }
    running.task_done(1, {}, status=None)
    running.task_done(2, {}, status=None, process_item=None)
    assert running.history == ["theirs", "ours"]
    assert safelight.arrived.wait(PATIENCE_SECONDS)
    assert safelight.told == [("/webhooks/comfyui/secret", {"prompt_id": "ours"})]


def test_without_an_address_nothing_is_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(monkeypatch, None).task_done is PromptQueue.task_done


def test_an_item_it_does_not_know_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    running = load(monkeypatch, "http://127.0.0.1:9/x")()
    with pytest.raises(KeyError):  # ComfyUI's own error, not one of ours
        running.task_done(5, {}, status=None)
