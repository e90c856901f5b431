"""A ComfyUI server for tests: real sockets, recorded answers, and every misbehaviour on demand.

It runs in a thread of its own, so that a test may block and processes may call it. Only the drawing is imagined: steps
take `step_seconds`, and pictures are plain PNGs, as many and as large as the graph says. `ledger` remembers every
submit over all restarts; the attributes under "misbehaviour", here and in `comfyui_runs.py`, may be set at any time.
"""

import asyncio
import contextlib
import json
import re
import threading
import uuid
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import parse_qs, urlsplit

from websockets.frames import Opcode
from websockets.http11 import Request
from websockets.server import ServerProtocol

from patience import PATIENCE_SECONDS
from stand_ins.comfyui_runs import Prompt, Runs

RECORDED = Path(__file__).parent / "comfyui"
LATENT, IMAGE, MODEL, CLIP, VAE, CONDITIONING = "LATENT", "IMAGE", "MODEL", "CLIP", "VAE", "CONDITIONING"
R = TypeVar("R")


def recorded(name: str) -> Any:
    """A recorded exchange."""
    return json.loads((RECORDED / name).read_text())


def recorded_frames(name: str) -> list[dict[str, Any]]:
    """The text frames of a recorded socket, each `{type, data}`."""
    lines = (json.loads(line) for line in (RECORDED / name).read_text().splitlines())
    return [line["text"] for line in lines if "text" in line]


def _node(inputs: dict[str, Any], outputs: list[str], *, is_output: bool = False) -> dict[str, Any]:
    return {"input": {"required": inputs}, "output": outputs, "output_node": is_output}


NODES: dict[str, Any] = {
    **recorded("object_info_excerpt.json")["body"],
    **recorded("object_info_CheckpointLoaderSimple.json")["body"],
    **recorded("object_info_LoadImage.json")["body"],
    **recorded("object_info_SaveImage.json")["body"],
    "VAEDecode": _node({"samples": [LATENT], "vae": [VAE]}, [IMAGE]),
    "VAEEncode": _node({"pixels": [IMAGE], "vae": [VAE]}, [LATENT]),
    "VAELoader": _node({"vae_name": ["COMBO", {"options": ["fine.safetensors"]}]}, [VAE]),
    "RepeatLatentBatch": _node({"samples": [LATENT], "amount": ["INT", {"min": 1, "max": 64}]}, [LATENT]),
    "LatentUpscaleBy": _node(
        {
            "samples": [LATENT],
            "upscale_method": [["nearest-exact", "bilinear"], {}],
            "scale_by": ["FLOAT", {"min": 0.01, "max": 8.0}],
        },
        [LATENT],
    ),
    "PreviewImage": _node({"images": [IMAGE]}, [], is_output=True),
    "SaveVideo": _node({"images": [IMAGE]}, [], is_output=True),
    "SaveWEBM": _node({"images": [IMAGE]}, [], is_output=True),
    "VHS_VideoCombine": _node({"images": [IMAGE]}, [], is_output=True),
    "SaveAudio": _node({"audio": [IMAGE]}, [], is_output=True),
    "SaveAudioMP3": _node({"audio": [IMAGE]}, [], is_output=True),
    "SaveText": _node({"images": [IMAGE]}, [], is_output=True),
}


@dataclass(slots=True)
class Submit:
    """One POST /prompt that was taken."""

    prompt_id: str
    job_id: str | None
    graph: dict[str, Any]
    life: int  # how often the server had been restarted


class ComfyStandIn(Runs):
    """The server; use it as a context. `version` decides which routes and shapes there are."""

    def __init__(
        self,
        version: str = "0.33.0",
        *,
        step_seconds: float = 0.005,
        checkpoints: Iterable[str] = ("tiny.safetensors",),
        loras: Iterable[str] = ("ink.safetensors", "oil.safetensors"),
        without: Iterable[str] = (),
        port: int = 0,
    ) -> None:
        super().__init__(step_seconds)
        self.version = version
        self.nodes: dict[str, Any] = json.loads(json.dumps({k: v for k, v in NODES.items() if k not in set(without)}))
        self.set_choices("CheckpointLoaderSimple", "ckpt_name", checkpoints)
        self.set_choices("LoraLoader", "lora_name", loras)
        # --- what was seen
        self.ledger: list[Submit] = []
        self.seen: list[str] = []  # method and path of every request
        self.headers: list[dict[str, str]] = []
        self.socket_headers: list[dict[str, str]] = []
        self.uploads: dict[str, bytes] = {}
        self.frees = 0
        # --- misbehaviour
        self.foreign_jobs = 0  # of others, in the queue
        self.late_seconds = 0.0  # before every answer
        self.answers: list[dict[str, Any]] = []  # recorded answers for the next submits
        self.lost_replies = 0  # submits that are taken, and the connection closed
        self.lost_requests = 0  # submits that are not taken, and the connection closed
        self.refuse_sockets = False
        self.silent_sockets = False
        self.half_files = 0
        self.required_header: tuple[str, str] | None = None
        self.on_request: Callable[[str], None] | None = None  # called with method and path before the answer
        self.life = 0
        self._port = port
        self._answering = asyncio.Event()
        self._answering.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="comfyui stand-in", daemon=True)
        self._server: asyncio.Server | None = None
        self._is_open = False
        self._worker: asyncio.Task[None] | None = None

    def set_choices(self, class_type: str, name: str, choices: Iterable[str]) -> None:
        """The models of a loader."""
        self.nodes[class_type]["input"]["required"][name][0] = list(choices)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def submits(self, job_id: str) -> int:
        """How often a job was submitted, over all restarts."""
        return sum(entry.job_id == job_id for entry in self.ledger)

    # --- control, from any thread ---------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self._thread.start()
        self._call(self._open())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._call(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE_SECONDS)
        self._loop.close()

    def kill(self) -> None:
        """The process dies: connections break, the port is closed, everything but the files is forgotten."""
        self._call(self._close())

    def revive(self) -> None:
        """It is started again, on the same port."""
        self.life += 1
        self._call(self._open())

    def restart(self) -> None:
        """Die and be back at once."""
        self.kill()
        self.revive()

    def hang(self) -> None:
        """Accept connections and answer nothing any more."""
        self._loop.call_soon_threadsafe(self._answering.clear)

    def answer_again(self) -> None:
        """Thaw."""
        self._loop.call_soon_threadsafe(self._answering.set)

    def drop_sockets(self) -> None:
        """Close every WebSocket."""
        self._call(self._drop())

    def remove_queued(self) -> None:
        """Somebody clears the queue."""
        self._call(self._clear())

    def interrupt(self) -> None:
        """Somebody presses the stop button."""
        if self._running is not None:
            self._stop_id = self._running.id

    def _call(self, coroutine: Coroutine[Any, Any, R]) -> R:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    async def _open(self) -> None:
        self._forget()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]
        self._worker = asyncio.create_task(self._work())
        self._is_open = True

    async def _close(self) -> None:
        self._is_open = False
        if self._server is not None:
            for listening in self._server.sockets:
                self._loop.remove_reader(listening.fileno())
            for _ in range(3):  # closed in the middle of making a connection, asyncio would leave that open for ever
                await asyncio.sleep(0)
            self._server.close()
        if self._worker is not None:
            self._worker.cancel()
        for writer in list(self._writers):
            writer.transport.abort()
        self._forget()
        await asyncio.sleep(0.01)

    async def _end(self) -> None:
        await self._close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _drop(self) -> None:
        for writer, _ in list(self._sockets.values()):
            writer.transport.abort()

    async def _clear(self) -> None:
        self._pending.clear()

    def _forget(self) -> None:
        super()._forget()
        self._sockets: dict[str, tuple[asyncio.StreamWriter, ServerProtocol]] = {}
        self._announced = set()

    # --- HTTP -----------------------------------------------------------------------------------------------------

    def _is_since(self, *version: int) -> bool:
        return tuple(int(part) for part in self.version.split(".")) >= version

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._is_open:  # it was connected a moment before the end
            writer.transport.abort()
            return
        self._writers.add(writer)
        try:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                while True:
                    head = await reader.readuntil(b"\r\n\r\n")
                    lines = head.decode("latin-1").split("\r\n")
                    method, target, _ = lines[0].split(" ")
                    headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:]) if k}
                    body = await reader.readexactly(int(headers.get("content-length", "0")))
                    url = urlsplit(target)
                    path = url.path.removeprefix("/api") if not url.path.startswith("/api/jobs") else url.path
                    self.seen.append(f"{method} {path}")
                    if self.on_request is not None:
                        self.on_request(self.seen[-1])
                    await self._answering.wait()
                    await asyncio.sleep(self.late_seconds)
                    if self.required_header and headers.get(self.required_header[0]) != self.required_header[1]:
                        self._answer(writer, 401, {})
                    elif path == "/ws":
                        self.socket_headers.append(headers)
                        if self.refuse_sockets:
                            self._answer(writer, 403, {})
                            continue
                        await self._hear(reader, writer, head, parse_qs(url.query)["clientId"][0])
                        return
                    else:
                        self.headers.append(headers)
                        query = {name: values[0] for name, values in parse_qs(url.query).items()}
                        if not self._route(writer, method, path, query, headers, body):
                            return
                    await writer.drain()
        finally:
            self._writers.discard(writer)
            writer.transport.abort()

    def _answer(self, writer: asyncio.StreamWriter, status: int, body: Any, content_type: str = "") -> bool:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        kind = content_type or "application/json; charset=utf-8"
        head = f"HTTP/1.1 {status} -\r\nContent-Type: {kind}\r\nContent-Length: {len(data)}\r\n\r\n"
        writer.write(head.encode() + data)
        return True

    def _route(
        self,
        writer: asyncio.StreamWriter,
        method: str,
        path: str,
        query: Mapping[str, str],
        headers: Mapping[str, str],
        body: bytes,
    ) -> bool:
        """Answer; False to break the connection off."""
        match method, path.strip("/").split("/"):
            case "GET", ["system_stats"]:
                stats = recorded("system_stats.json")["body"]
                stats["system"]["comfyui_version"] = self.version
                return self._answer(writer, 200, stats)
            case "GET", ["object_info"]:
                return self._answer(writer, 200, self.nodes)
            case "GET", ["prompt"]:
                return self._answer(writer, 200, {"exec_info": {"queue_remaining": self._remaining()}})
            case "POST", ["prompt"]:
                return self._submit(writer, json.loads(body))
            case "GET", ["queue"]:
                running = [self._running.as_item()] if self._running else []
                pending = [prompt.as_item() for prompt in reversed(self._pending)]
                return self._answer(writer, 200, {"queue_running": running, "queue_pending": pending})
            case "POST", ["queue"]:
                self._delete(json.loads(body).get("delete", []))
                return self._answer(writer, 200, b"")
            case "POST", ["interrupt"]:
                self._interrupt(json.loads(body)["prompt_id"])
                return self._answer(writer, 200, b"")
            case "GET", ["history", prompt_id]:
                prompt = self._history.get(prompt_id)
                return self._answer(writer, 200, {prompt_id: _as_history(prompt)} if prompt else {})
            case "POST", ["free"]:
                self.frees += 1
                self._cache.clear()
                return self._answer(writer, 200, b"")
            case "GET", ["api", "jobs"] if self._is_since(0, 6):
                return self._list(writer, query["status"])
            case "GET", ["api", "jobs", prompt_id] if self._is_since(0, 6):
                return self._job(writer, prompt_id)
            case "POST", ["api", "jobs", prompt_id, "cancel"] if self._is_since(0, 26):
                is_there = self._interrupt(prompt_id) or self._delete([prompt_id])
                return self._answer(writer, 200, {"cancelled": is_there})
            case "POST", ["upload", "image"]:
                return self._upload(writer, headers, body)
            case "GET", ["view"]:
                return self._view(writer, query)
            case _:
                return self._answer(writer, 404, b"404: Not Found", "text/plain; charset=utf-8")

    def _submit(self, writer: asyncio.StreamWriter, body: Mapping[str, Any]) -> bool:
        if self.lost_requests:
            self.lost_requests -= 1
            return False
        number = next(self._numbers)
        if self.answers:
            answer = self.answers.pop(0)
            if answer["status"] == 200:
                self._queue(number, body)
            data = answer["body"] if isinstance(answer["body"], dict) else str(answer["body"]).encode()
            return self._answer(writer, answer["status"], data, answer["content_type"])
        prompt_id = str(body["prompt_id"])
        if self._is_since(0, 25) and str(uuid.UUID(prompt_id)) != prompt_id:
            return self._answer(writer, 400, {"error": {"type": "invalid_prompt_id", "message": "", "details": ""}})
        for node_id, node in body["prompt"].items():
            if node["class_type"] not in self.nodes:
                name = "error_unknown_node.json" if self._is_since(0, 12) else "v0.3.64/error_unknown_node.json"
                return self._answer(writer, 400, recorded(name)["body"])
            required = self.nodes[node["class_type"]]["input"]["required"]
            if missing := [name for name in required if name not in node["inputs"]]:
                answer = recorded("error_missing_input.json")["body"]
                (found,) = answer["node_errors"].values()
                found["errors"][0] |= {"details": missing[0], "extra_info": {"input_name": missing[0]}}
                return self._answer(writer, 400, answer | {"node_errors": {node_id: found}})
        self._queue(number, body)
        if self.lost_replies:
            self.lost_replies -= 1
            return False
        return self._answer(writer, 200, {"prompt_id": prompt_id, "number": number, "node_errors": {}})

    def _queue(self, number: int, body: Mapping[str, Any]) -> None:
        extra = dict(body.get("extra_data") or {}) | {"client_id": body.get("client_id")}
        prompt = Prompt(number, str(body["prompt_id"]), body["prompt"], extra)
        job_id = dict(extra.get("safelight") or {}).get("job_id")
        self.ledger.append(Submit(prompt.id, job_id, prompt.graph, self.life))
        self._pending.append(prompt)
        self._arrived.set()
        self._tell_status()

    def _job(self, writer: asyncio.StreamWriter, prompt_id: str) -> bool:
        alive = [*self._pending, *([self._running] if self._running else [])]
        prompt = next((prompt for prompt in alive if prompt.id == prompt_id), None)
        if prompt is not None:
            status = "in_progress" if prompt is self._running else "pending"
            return self._answer(writer, 200, recorded("job_running.json")["body"] | {"id": prompt_id, "status": status})
        prompt = self._history.get(prompt_id)
        if prompt is None:
            return self._answer(writer, 404, {"error": "Job not found"})
        entry = _as_history(prompt)
        status = {"success": "completed", "error": "failed", "interrupted": "cancelled"}[prompt.status]
        job = {"id": prompt_id, "status": status, "outputs": prompt.outputs, "execution_status": entry["status"]}
        job |= {"workflow": {"prompt": prompt.graph, "extra_data": prompt.extra}}
        return self._answer(writer, 200, recorded("job_completed.json")["body"] | job)

    def _list(self, writer: asyncio.StreamWriter, status: str) -> bool:
        """Those that wait, newest first as the server tells them; others are not asked for."""
        assert status == "pending"
        answer = recorded("jobs_list_pending.json")["body"]
        like = answer["jobs"][0]
        jobs = [like | {"id": prompt.id, "priority": prompt.number} for prompt in reversed(self._pending)]
        return self._answer(writer, 200, answer | {"jobs": jobs})

    def _upload(self, writer: asyncio.StreamWriter, headers: Mapping[str, str], body: bytes) -> bool:
        boundary = headers["content-type"].partition("boundary=")[2].encode()
        fields: dict[str, str] = {}
        name, data = "", b""
        for part in body.split(b"--" + boundary)[1:-1]:
            head, _, content = part.strip(b"\r\n").partition(b"\r\n\r\n")
            found = re.search(rb'filename="([^"]+)"', head)
            if found:
                name, data = found[1].decode(), content
            else:
                fields[re.search(rb'name="([^"]+)"', head)[1].decode()] = content.decode()  # type: ignore[index]
        stored = f"{fields.get('subfolder', '')}/{name}".strip("/")
        self.uploads[stored] = data
        answer = {"name": name, "subfolder": fields.get("subfolder", ""), "type": "input"}
        return self._answer(writer, 200, answer)

    def _view(self, writer: asyncio.StreamWriter, query: Mapping[str, str]) -> bool:
        data = self.files.get((query["type"], query.get("subfolder", ""), query["filename"]))
        if data is None:
            return self._answer(writer, 404, b"")
        if self.half_files:
            self.half_files -= 1
            head = f"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nContent-Length: {len(data)}\r\n\r\n"
            writer.write(head.encode() + data[: len(data) // 2])
            return False
        return self._answer(writer, 200, data, "image/png")

    # --- sockets --------------------------------------------------------------------------------------------------

    async def _hear(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes, client_id: str
    ) -> None:
        protocol = ServerProtocol()
        protocol.receive_data(head)
        (request,) = protocol.events_received()
        assert isinstance(request, Request)
        protocol.send_response(protocol.accept(request))
        self._sockets[client_id] = writer, protocol
        self._tell(client_id, "status", {**self._status(), "sid": client_id})
        if self._running is not None and self._running.extra["client_id"] == client_id and self._node_running:
            self._tell(client_id, "executing", {"node": self._node_running})
        try:
            while True:
                writer.write(b"".join(protocol.data_to_send()))
                data = await reader.read(65536)
                if not data:
                    return
                protocol.receive_data(data)
                for frame in protocol.events_received():
                    if getattr(frame, "opcode", None) is Opcode.TEXT and b"supports_preview_metadata" in frame.data:  # type: ignore[union-attr]
                        self._announced.add(client_id)
                if protocol.close_expected():
                    writer.write(b"".join(protocol.data_to_send()))
                    return
        finally:
            self._sockets.pop(client_id, None)  # even if a newer socket has the id: so does ComfyUI

    def _status(self) -> dict[str, Any]:
        return {"status": {"exec_info": {"queue_remaining": self._remaining()}}}

    def _remaining(self) -> int:
        return len(self._pending) + (self._running is not None) + self.foreign_jobs

    def _tell_status(self) -> None:
        for client_id in list(self._sockets):
            self._tell(client_id, "status", self._status())

    def _send(self, client_id: str, data: bytes, *, is_text: bool = False) -> None:
        if client_id not in self._sockets or self.silent_sockets or not self._answering.is_set():
            return
        writer, protocol = self._sockets[client_id]
        if is_text:
            protocol.send_text(data)
        else:
            protocol.send_binary(data)
        writer.write(b"".join(protocol.data_to_send()))


def _as_history(prompt: Prompt) -> dict[str, Any]:
    status = {
        "status_str": "success" if prompt.status == "success" else "error",
        "completed": prompt.status == "success",
        "messages": prompt.messages,
    }
    return {"prompt": prompt.as_item(), "outputs": prompt.outputs, "status": status, "meta": {}}
