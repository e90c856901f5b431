"""How far a run is: one percentage over all its nodes and steps, made of the messages of its server."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from safelight.providers.base import Progress
from safelight.providers.comfyui.graph import Graph, links_of, needed_by, title_of

FIRST_PERCENT, LAST_PERCENT = 2, 97  # what a run spans; before it pictures are sent, after it results are fetched
STEP_WEIGHT = 2.0
MAX_STEPS = 1000.0
MAX_TOLD_WEIGHT = 150.0  # of a node that counts something else than steps, such as bytes
STAGES = (
    ("sampl", "sampling"),
    ("load", "loading"),
    ("decode", "decoding"),
    ("encode", "encoding"),
    ("save", "saving"),
    ("preview", "saving"),
    ("combine", "saving"),
    ("upscale", "upscaling"),
)


class Tracker:
    """What one run's messages say. A node weighs 1, and 2 for each step; cached nodes are done from the start."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        linked = {source for node in graph.values() for _, source, _ in links_of(node)}
        needed = needed_by(graph, (node_id for node_id in graph if node_id not in linked))
        self._weights = {node_id: _weight(graph[node_id]["inputs"]) for node_id in needed}
        self._done: dict[str, float] = {}  # 0-1 by node
        self._node: str | None = None
        self._step = (0.0, 1.0)
        self.is_executing = False

    def take(self, kind: str, data: Mapping[str, Any]) -> None:
        """Take a message about this run; unknown kinds are left alone."""
        match kind:
            case "execution_start":
                self.is_executing = True
            case "execution_cached":
                self._done |= dict.fromkeys(map(str, data.get("nodes") or ()), 1.0)
            case "executing":
                self._enter(data.get("display_node") or data.get("node"))
            case "progress":
                self._advance(str(data.get("node")), data.get("value"), data.get("max"))
            case "progress_state":
                for node_id, state in (data.get("nodes") or {}).items():
                    if state.get("state") == "finished":
                        self._done[str(node_id)] = 1.0
                    else:
                        self._advance(str(node_id), state.get("value"), state.get("max"))
            case "executed":
                self._done[str(data.get("node"))] = 1.0
            case _:
                pass

    @property
    def progress(self) -> Progress:
        """Where it stands. The percentage may fall when a node turns out to be longer; `Meter` sees to that."""
        total = sum(self._weights.values())
        done = sum(weight * self._done.get(node_id, 0.0) for node_id, weight in self._weights.items())
        percent = FIRST_PERCENT + int((LAST_PERCENT - FIRST_PERCENT) * (done / total if total else 0.0))
        if self._node is None:
            return Progress(percent, "starting", "Starting")
        name = title_of(self._graph, self._node)
        step, steps = self._step
        counted = f", step {step:.0f} of {steps:.0f}" if steps > 1 else ""
        return Progress(percent, self._stage(), f"{name}{counted}")

    def _stage(self) -> str:
        class_type = str(self._graph.get(self._node or "", {}).get("class_type", "")).lower()
        return next((stage for part, stage in STAGES if part in class_type), "processing")

    def _enter(self, node_id: Any) -> None:
        if node_id is None:
            self.is_executing = False
            return
        self.is_executing = True
        if self._node not in (None, node_id):
            self._done[str(self._node)] = 1.0
        if self._node != node_id:
            self._node, self._step = str(node_id), (0.0, 1.0)

    def _advance(self, node_id: str, value: Any, most: Any) -> None:
        if not isinstance(value, int | float) or not isinstance(most, int | float) or most <= 0:
            return
        self._enter(node_id)
        self._step = (float(value), float(most))
        self._done[node_id] = min(1.0, max(0.0, value / most))
        if node_id in self._weights and most > self._weights[node_id]:
            self._weights[node_id] = max(self._weights[node_id], min(MAX_TOLD_WEIGHT, 1.0 + most))


class Meter:
    """Lets no percentage of an attempt fall."""

    def __init__(self) -> None:
        self._percent = 0

    def read(self, progress: Progress) -> Progress:
        """The progress, at least as far as the ones before."""
        self._percent = max(self._percent, progress.percent or 0)
        return replace(progress, percent=self._percent)


def _weight(inputs: Mapping[str, Any]) -> float:
    steps = inputs.get("steps")
    first, last = inputs.get("start_at_step"), inputs.get("end_at_step")
    if isinstance(steps, int) and isinstance(first, int) and isinstance(last, int):
        steps = min(steps, last) - first
    return 1.0 + STEP_WEIGHT * min(MAX_STEPS, max(0.0, float(steps))) if isinstance(steps, int | float) else 1.0
