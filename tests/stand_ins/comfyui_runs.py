"""How the ComfyUI stand-in runs prompts: its queue, steps that take time, previews, files and records.

What its routes and sockets do with them stands in `comfyui.py`.
"""

import asyncio
import itertools
import json
import struct
import threading
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

RECORDED = Path(__file__).parent / "comfyui"
SAMPLERS = ("KSampler",)
PIXELS = ("latent_image", "samples", "pixels", "image", "images")  # the inputs that a picture comes through
SAVED: Mapping[str, tuple[str, str]] = {  # extension of the file, and under which key it is told
    "SaveVideo": ("mp4", "images"),
    "SaveWEBM": ("webm", "images"),
    "VHS_VideoCombine": ("mp4", "gifs"),
    "SaveAudio": ("flac", "audio"),
    "SaveAudioMP3": ("mp3", "audio"),
    "SaveText": ("txt", "files"),
}


@dataclass(slots=True)
class Prompt:
    """A job in it."""

    number: float
    id: str
    graph: dict[str, Any]
    extra: dict[str, Any]
    outputs: dict[str, Any] = field(default_factory=dict[str, Any])
    messages: list[list[Any]] = field(default_factory=list[list[Any]])
    status: str = "pending"

    def as_item(self) -> list[Any]:
        return [self.number, self.id, self.graph, self.extra, []]


class Interrupt(Exception):
    """Someone stopped the running job."""


class Runs:
    """The half of the stand-in that works, one prompt after the other; it is heard through the sockets of the other."""

    nodes: dict[str, Any]
    _sockets: dict[str, Any]  # by client id
    uploads: dict[str, bytes]
    _announced: set[str]  # clients that understand previews with metadata

    def __init__(self, step_seconds: float) -> None:
        self.step_seconds = step_seconds
        # --- what was seen
        self.interrupted: list[str] = []
        self.reached = threading.Event()  # a step was made
        self.files: dict[tuple[str, str, str], bytes] = {}
        # --- misbehaviour
        self.late_history = 0.0  # seconds after the end was told
        self.drop_sockets_at_step: int | None = None
        self.previews: str | None = "metadata"  # or "plain", or None
        self.foreign_previews = False
        self.delete_files = False  # every file is gone as soon as it was made
        self.failures: list[dict[str, str]] = []  # for the next runs: exception_type, exception_message
        self.hold: str | None = None  # the class of a node at which every run stands still
        self._counters: dict[str, int] = {}
        self._forget()

    def _forget(self) -> None:
        self._arrived = asyncio.Event()
        self._pending: list[Prompt] = []
        self._running: Prompt | None = None
        self._history: dict[str, Prompt] = {}
        self._cache: dict[str, Any] = {}
        self._stop_id: str | None = None
        self._numbers = itertools.count()
        self._node_running: str | None = None

    def _send(self, client_id: str, data: bytes, *, is_text: bool = False) -> None:
        raise NotImplementedError

    def _tell_status(self) -> None:
        raise NotImplementedError

    async def _drop(self) -> None:
        raise NotImplementedError

    def _tell(self, client_id: str, kind: str, data: Mapping[str, Any]) -> None:
        self._send(client_id, json.dumps({"type": kind, "data": data}).encode(), is_text=True)

    def _delete(self, ids: Iterable[str]) -> bool:
        before = len(self._pending)
        self._pending = [prompt for prompt in self._pending if prompt.id not in set(ids)]
        self._tell_status()
        return len(self._pending) < before

    def _interrupt(self, prompt_id: str) -> bool:
        if self._running is None or self._running.id != prompt_id:
            return False
        self._stop_id = prompt_id
        self.interrupted.append(prompt_id)
        return True

    async def _work(self) -> None:
        while True:
            self._arrived.clear()
            if not self._pending:
                await self._arrived.wait()
                continue
            prompt = min(self._pending, key=lambda prompt: prompt.number)
            self._pending.remove(prompt)
            self._running = prompt
            self._tell_status()
            await self._run(prompt)

    async def _run(self, prompt: Prompt) -> None:
        client = str(prompt.extra["client_id"])

        def tell(kind: str, **data: Any) -> None:
            told = {**data, "prompt_id": prompt.id}
            if kind.startswith("execution_"):
                told["timestamp"] = int(time.time() * 1000)
                prompt.messages.append([kind, told])
            self._tell(client, kind, told)

        tell("execution_start")
        key = json.dumps(prompt.graph, sort_keys=True)
        cached = self._cache.get(key)
        tell("execution_cached", nodes=list(prompt.graph) if cached else [])
        try:
            if cached:
                prompt.outputs = cached
                for node_id, output in cached.items():
                    tell("executed", node=node_id, display_node=node_id, output=output)
            else:
                await self._execute(prompt, client, tell)
                self._cache[key] = prompt.outputs
            prompt.status = "success"
            tell("execution_success")
        except Interrupt:
            prompt.status = "interrupted"
            tell("execution_interrupted", node_id=self._node_running, node_type="KSampler", executed=[])
        except RuntimeError as error:
            prompt.status = "error"
            tell("execution_error", **error.args[0], executed=[], traceback=[], current_inputs={}, current_outputs=[])
        self._node_running = None
        if self.late_history:
            self._running = None
            self._tell_status()
            self._running = prompt  # the record appears later than the news
            self._tell(client, "executing", {"node": None, "prompt_id": prompt.id})
            await asyncio.sleep(self.late_history)
        self._history[prompt.id] = prompt
        self._running = None
        self._tell_status()
        if not self.late_history:
            self._tell(client, "executing", {"node": None, "prompt_id": prompt.id})

    async def _execute(self, prompt: Prompt, client: str, tell: Any) -> None:
        states: dict[str, Any] = {}
        failure = self.failures.pop(0) if self.failures else None
        for node_id in _in_order(prompt.graph):
            node = prompt.graph[node_id]
            steps = int(node["inputs"]["steps"]) if node["class_type"] in SAMPLERS else 1
            self._node_running = node_id

            def advance(value: int, state: str, node_id: str = node_id, steps: int = steps) -> None:
                states[node_id] = {"value": value, "max": steps, "state": state, "node_id": node_id}
                tell("progress_state", nodes=states)

            advance(0, "running")
            tell("executing", node=node_id, display_node=node_id)
            if failure is not None and node["class_type"] in SAMPLERS:
                raise RuntimeError({"node_id": node_id, "node_type": node["class_type"], **failure})
            while self.hold == node["class_type"]:
                await self._breathe(prompt)
            if node["class_type"] in SAMPLERS:
                for step in range(1, steps + 1):
                    await self._breathe(prompt)
                    advance(step, "running")
                    self._preview(client, prompt.id, node_id)
                    tell("progress", value=step, max=steps, node=node_id)
                    self.reached.set()
                    if self.drop_sockets_at_step == step:
                        self.drop_sockets_at_step = None
                        await self._drop()
                        async with asyncio.timeout(5):  # the run goes on when somebody listens again
                            while client in self._sockets:  # noqa: ASYNC110
                                await asyncio.sleep(0.001)
                            while client not in self._sockets:  # noqa: ASYNC110
                                await asyncio.sleep(0.001)
            output = self._output(prompt.graph, node_id)
            advance(steps, "finished")
            if output is not None:
                prompt.outputs[node_id] = output
                tell("executed", node=node_id, display_node=node_id, output=output)

    async def _breathe(self, prompt: Prompt) -> None:
        await asyncio.sleep(self.step_seconds)
        if self._stop_id == prompt.id:
            self._stop_id = None
            raise Interrupt

    def _preview(self, client: str, prompt_id: str, node_id: str) -> None:
        if self.previews is None:
            return
        picture = _picture("JPEG")
        if self.previews == "metadata" and client in self._announced:
            for owner in [str(uuid.uuid4())] * self.foreign_previews + [prompt_id]:
                metadata = json.dumps({"node_id": node_id, "prompt_id": owner, "image_type": "image/jpeg"}).encode()
                colour = b"" if owner == prompt_id else b"foreign"
                self._send(client, struct.pack(">II", 4, len(metadata)) + metadata + picture + colour)
        else:
            self._send(client, struct.pack(">II", 1, 1) + picture)

    def _output(self, graph: Mapping[str, Any], node_id: str) -> dict[str, Any] | None:
        node = graph[node_id]
        if not self.nodes[node["class_type"]]["output_node"]:
            return None
        prefix = str(node["inputs"].get("filename_prefix", "fixed"))
        subfolder, _, stem = prefix.rpartition("/")
        kind = "temp" if node["class_type"] == "PreviewImage" else "output"
        extension, key = SAVED.get(node["class_type"], ("png", "images"))
        width, height, count = self._extent(graph, node_id)
        entries: list[dict[str, Any]] = []
        for _ in range(count if extension == "png" else 1):
            self._counters[prefix] = self._counters.get(prefix, 0) + 1
            name = f"{stem}_{self._counters[prefix]:05}_.{extension}"
            if not self.delete_files:
                made = _picture("PNG", (width, height)) if extension == "png" else _video(extension)
                self.files[kind, subfolder, name] = made
            entries.append({"filename": name, "subfolder": subfolder, "type": kind})
        if key == "gifs":
            entries[0] |= {"format": "video/h264-mp4", "frame_rate": 8.0, "workflow": f"{stem}_00001_.png"}
        return (
            {key: entries, "animated": [True]} if extension in {"mp4", "webm"} and key == "images" else {key: entries}
        )

    def _extent(self, graph: Mapping[str, Any], node_id: str) -> tuple[int, int, int]:
        """Width, height and number of what a node makes: of the first of its inputs that leads to a size."""
        inputs = graph[node_id]["inputs"]
        if isinstance(inputs.get("image"), str):  # LoadImage
            data = self.uploads.get(inputs["image"])
            if data is None:
                return 64, 64, 1
            with Image.open(BytesIO(data)) as image:
                return image.width, image.height, 1
        links = {name: str(value[0]) for name, value in inputs.items() if isinstance(value, list)}
        source = next((links[name] for name in PIXELS if name in links), None)
        width, height, count = (64, 64, 1) if source is None else self._extent(graph, source)
        scale = float(inputs.get("scale_by", 1))
        across, down = int(inputs.get("width") or 0), int(inputs.get("height") or 0)
        if across and not down:
            height = round(height * across / width)
        elif down and not across:
            width = round(width * down / height)
        count *= int(inputs.get("batch_size", 1)) * int(inputs.get("amount", 1))
        return round((across or width) * scale), round((down or height) * scale), count


def _in_order(graph: Mapping[str, Any]) -> list[str]:
    """Every node after those it needs."""
    done: dict[str, None] = {}

    def visit(node_id: str) -> None:
        for value in graph[node_id]["inputs"].values():
            if isinstance(value, list) and value[0] not in done:
                visit(str(value[0]))
        done[node_id] = None

    for node_id in graph:
        if node_id not in done:
            visit(node_id)
    return list(done)


def _video(extension: str) -> bytes:
    """A second of a test card with a tone, or what the extension can hold of it."""
    found = list(RECORDED.glob(f"*.{extension}"))
    return found[0].read_bytes() if found else b"words"


def _picture(kind: str, size: tuple[int, int] = (64, 64)) -> bytes:
    file = BytesIO()
    info = PngImagePlugin.PngInfo()
    info.add_text("prompt", "{}")
    Image.new("RGB", size, (200, 40, 40)).save(file, kind, **({"pnginfo": info} if kind == "PNG" else {}))
    return file.getvalue()
