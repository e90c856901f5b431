"""Far sides that keep hundreds of jobs waiting at once, in a process of their own: a ComfyUI server and ModelsLab.

They are the tests' stand-ins; only that this ComfyUI works on everything it has at once, and that nothing gets on but
as the lines on stdin say: `tell` has every run make a step so often, and the step's number is the moment (monotonic
nanoseconds) at which it was told; `finish` lets them all end, one after the other.
"""

import asyncio
import json
import sys
import time
from collections.abc import Mapping
from typing import Any

from stand_ins.comfyui import ComfyStandIn, recorded
from stand_ins.comfyui_runs import Prompt
from stand_ins.modelslab import ModelsLabStandIn

SLICE_SECONDS = 0.005
STEPS = 10**15  # more than any moment
READY_PER_SECOND = 50


class CrowdedComfyUI(ComfyStandIn):
    """Takes any number of prompts and works on all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[str, Prompt] = {}

    def tell(self, seconds: float, per_second: float) -> int:
        """Have every run make a step so often, evenly spread; how many were told."""
        return self._call(self._tell_steps(seconds, per_second), seconds + 30)

    def finish(self) -> None:
        self._call(self._finish(), 30)

    def _call(self, coroutine: Any, seconds: float = 10) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(seconds)

    def _tell_status(self) -> None:
        """To nobody: a real server has two of these sockets, not hundreds, and tells each of them of every change."""

    async def _work(self) -> None:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            for prompt in self._pending:
                self._tell_of(prompt, "execution_start")
                self.alive[prompt.id] = prompt
            self._pending.clear()

    async def _tell_steps(self, seconds: float, per_second: float) -> int:
        prompts = list(self.alive.values())
        samplers = [_node_of(prompt, "KSampler") for prompt in prompts]
        total = int(len(prompts) * seconds * per_second)
        began, sent = time.monotonic(), 0
        while sent < total:
            due = min(total, int((time.monotonic() - began) * len(prompts) * per_second))
            for number in range(sent, due):
                node = samplers[number % len(prompts)]
                step = {"value": time.monotonic_ns(), "max": STEPS, "state": "running", "node_id": node}
                self._tell_of(prompts[number % len(prompts)], "progress_state", nodes={node: step})
            sent = due
            await asyncio.sleep(SLICE_SECONDS)
        return sent

    async def _finish(self) -> None:
        for prompt in list(self.alive.values()):
            await asyncio.sleep(1 / READY_PER_SECOND)
            node = _node_of(prompt, "SaveImage")
            prompt.outputs[node] = self._output(prompt.graph, node) or {}
            prompt.status = "success"
            self._history[prompt.id] = prompt
            del self.alive[prompt.id]
            self._tell_of(prompt, "executing", node=None)

    def _tell_of(self, prompt: Prompt, kind: str, **data: Any) -> None:
        self._tell(str(prompt.extra["client_id"]), kind, {**data, "prompt_id": prompt.id})

    def _job(self, writer: asyncio.StreamWriter, prompt_id: str) -> bool:
        if prompt_id not in self.alive:
            return super()._job(writer, prompt_id)
        job: Mapping[str, Any] = recorded("job_running.json")["body"]
        return self._answer(writer, 200, {**job, "id": prompt_id, "status": "in_progress"})


def _node_of(prompt: Prompt, class_type: str) -> str:
    return next(node_id for node_id, node in prompt.graph.items() if node["class_type"] == class_type)


def _make_ready(modelslab: ModelsLabStandIn) -> dict[str, float]:
    """Let all jobs end, one after the other; when (monotonic seconds) each is ready."""
    now = time.monotonic()
    ready: dict[str, float] = {}
    waiting = [job for job in modelslab.jobs.values() if job.ready_at == float("inf")]
    for place, job in enumerate(waiting):
        job.ready_at = now + place / READY_PER_SECOND
        ready[job.order["track_id"]] = job.ready_at
    return ready


def main() -> None:
    modelslab = ModelsLabStandIn()
    modelslab.seconds = float("inf")
    with CrowdedComfyUI() as comfyui:
        print(json.dumps({"comfyui": comfyui.url, "modelslab": modelslab.url}), flush=True)
        for line in sys.stdin:
            request: dict[str, Any] = json.loads(line)
            match request.pop("do"):
                case "count":
                    waiting = sum(job.ready_at == float("inf") for job in modelslab.jobs.values())
                    answer: dict[str, Any] = {
                        "comfyui": sum(f"safelight-{prompt_id}" in comfyui._sockets for prompt_id in comfyui.alive),
                        "modelslab": waiting,
                        "looks": len(modelslab.fetched),
                    }
                case "tell":
                    answer = {"sent": comfyui.tell(**request)}
                case _:
                    comfyui.finish()
                    answer = {"ready": _make_ready(modelslab)}
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
