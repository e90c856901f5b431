"""What a server can do: its nodes, and the models behind their choices, read from `/object_info`."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any, cast

from safelight.providers.comfyui.graph import Fault, Plan, exact, first_of, is_link, needed_by
from safelight.suggestion import MAX_NAMES, did_you_mean, near_names

MODEL_INPUTS = {
    "checkpoints": ("CheckpointLoaderSimple", "ckpt_name"),
    "loras": ("LoraLoader", "lora_name"),
    "samplers": ("KSampler", "sampler_name"),
    "schedulers": ("KSampler", "scheduler"),
    "vaes": ("VAELoader", "vae_name"),
}
NOUNS = {
    "ckpt_name": "checkpoint",
    "lora_name": "LoRA",
    "vae_name": "VAE",
    "sampler_name": "sampler",
    "scheduler": "scheduler",
}
SHOWN_CHOICES = 6
STORABLE = {"IMAGE", "VIDEO", "AUDIO"}  # what output nodes make files of that can be stored
NOTHING_KEPT = {"SaveImageWebsocket"}  # sends its pictures to the socket, and leaves no file
GROWING = "COMFY_"  # how the kinds of inputs begin that grow, match or depend on others


@dataclass(frozen=True, slots=True)
class Input:
    """An input of a node type. `choices` is None where any value of the kind will do."""

    kind: str
    is_required: bool
    choices: tuple[Any, ...] | None = None
    minimum: float | None = None
    maximum: float | None = None


@dataclass(frozen=True, slots=True)
class NodeType:
    """A node type. `is_output` nodes are what a run is made for.

    Those of others (custom nodes) may take values of their own accord that their choices and bounds do not show, so
    only ComfyUI's own are judged by them.
    """

    inputs: Mapping[str, Input]
    outputs: tuple[str, ...]
    is_output: bool
    is_custom: bool


class Catalogue:
    """The node types of one server at one moment."""

    def __init__(self, nodes: Mapping[str, NodeType]) -> None:
        self.nodes = nodes

    @classmethod
    def read(cls, object_info: Mapping[str, Any]) -> "Catalogue":
        """A server's answer to `/object_info`."""
        return cls({name: _node_type(info) for name, info in object_info.items() if isinstance(info, Mapping)})

    @classmethod
    def union(cls, catalogues: Iterable["Catalogue"]) -> "Catalogue":
        """All the nodes and choices that some server has."""
        nodes: dict[str, NodeType] = {}
        for catalogue in catalogues:
            for name, node in catalogue.nodes.items():
                known = nodes.get(name)
                nodes[name] = node if known is None else replace(known, inputs=_both(known.inputs, node.inputs))
        return cls(nodes)

    def names(self, kind: str) -> Sequence[str]:
        """The names of a kind of `MODEL_INPUTS`."""
        class_type, name = MODEL_INPUTS[kind]
        node = self.nodes.get(class_type)
        spec = node.inputs.get(name) if node else None
        return [str(choice) for choice in (spec.choices or ())] if spec else []

    def problems(self, plan: Plan) -> list[Fault]:
        """Why this server cannot run the plan; nothing if it can."""
        return first_of(self._problems(plan))

    def _problems(self, plan: Plan) -> Iterator[Fault]:
        graph = plan.graph
        unknown = {node_id for node_id, node in graph.items() if node["class_type"] not in self.nodes}
        for node_id in graph:
            if node_id in unknown:
                yield Fault(plan.field_of(node_id), self._no_node(node_id, graph[node_id]["class_type"]))
        types = {node_id: node["class_type"] for node_id, node in graph.items() if node_id not in unknown}
        ends = [node_id for node_id, class_type in types.items() if self.nodes[class_type].is_output]
        if not unknown:  # or one of these may be what saves
            if not ends:
                yield Fault(plan.root, "No node of the workflow saves anything; add one, like SaveImage.")
                return
            kinds = sorted({types[node_id] for node_id in ends})
            if not any(self._makes_files(kind) for kind in kinds):
                named = f"{', '.join(kinds[:SHOWN_CHOICES])} saves"
                yield Fault(plan.root, f"{named} no picture, video or sound; add a node like SaveImage.")
                return
        needed = needed_by(graph, [*ends, *unknown])
        for node_id in types:
            if node_id in needed:
                yield from self._check(plan, node_id)

    def _makes_files(self, class_type: str) -> bool:
        """Whether an output node may leave a file that can be stored; of custom nodes nobody can tell."""
        node = self.nodes[class_type]
        if class_type in NOTHING_KEPT:
            return False
        taken = {kind for each in node.inputs.values() for kind in each.kind.split(",")}
        return node.is_custom or bool(taken & STORABLE) or any(kind.startswith(GROWING) for kind in taken)

    def _no_node(self, node_id: str, class_type: str) -> str:
        meant = did_you_mean(class_type, self.nodes, most=3) or " Is its custom node installed?"
        return f"The ComfyUI server has no node type {class_type[:100]!r} (node {node_id}).{meant}"

    def _check(self, plan: Plan, node_id: str) -> Iterator[Fault]:
        node = plan.graph[node_id]
        class_type, given = node["class_type"], node["inputs"]
        kind = self.nodes[class_type]
        for name, spec in kind.inputs.items():
            where = plan.field_of(node_id, name)
            if name not in given:
                if spec.is_required:
                    yield Fault(where, f"The node {node_id} ({class_type}) needs its input {name}.")
            elif kind.is_custom:
                continue
            elif is_link(given[name]):
                message = self._check_link(plan, given[name], spec)
                if message:
                    yield Fault(where, f"The input {name} of the node {node_id} ({class_type}) {message}")
            elif (node_id, name) == plan.any_checkpoint:
                if not spec.choices:
                    yield Fault(where, "The ComfyUI server has no checkpoint; put one into models/checkpoints.")
            elif (node_id, name) not in plan.pictures:
                message = _check_value(name, given[name], spec, f"{class_type} (node {node_id})")
                if message:
                    yield Fault(where, message)

    def _check_link(self, plan: Plan, link: list[Any], spec: Input) -> str | None:
        source = self.nodes.get(plan.graph[link[0]]["class_type"])
        if source is None:  # that is told of the node itself
            return None
        outputs = source.outputs
        slot = int(link[1])
        if not 0 <= slot < len(outputs):
            return f"links to output {slot} of the node {link[0]}, which has {len(outputs)}."
        wanted, made = set(spec.kind.split(",")), set(outputs[slot].split(","))
        is_open = any(kind in ("*", "COMBO") or kind.startswith(GROWING) for kind in wanted | made)
        if is_open or wanted & made:
            return None
        return f"takes {spec.kind}, but the node {link[0]} makes {outputs[slot]}."


def _both(inputs: Mapping[str, Input], others: Mapping[str, Input]) -> Mapping[str, Input]:
    """The inputs of a node type with the choices of another server added."""
    merged = dict(inputs)
    for name, theirs in others.items():
        ours = merged.get(name)
        if ours is not None and ours.choices is not None and theirs.choices is not None:
            more = (choice for choice in theirs.choices if choice not in (ours.choices or ()))
            merged[name] = replace(ours, choices=(*ours.choices, *more))
    return merged


def _node_type(info: Mapping[str, Any]) -> NodeType:
    groups: Any = info.get("input")
    inputs: dict[str, Input] = {}
    for group in ("required", "optional"):
        specs: Any = cast(Mapping[str, Any], groups).get(group) if isinstance(groups, Mapping) else None
        if isinstance(specs, Mapping):
            for name, spec in cast(Mapping[str, Any], specs).items():
                inputs[name] = _input(spec, is_required=group == "required")
    outputs = tuple("COMBO" if isinstance(kind, list) else str(kind) for kind in info.get("output") or ())
    is_custom = str(info.get("python_module") or "").startswith("custom_nodes")
    return NodeType(inputs, outputs, bool(info.get("output_node")), is_custom)


def _input(spec: Any, *, is_required: bool) -> Input:
    """`[kind, settings]`, where the kind of a choice is the list of choices itself, or `COMBO` with `options`."""
    parts = cast(list[Any], spec) if isinstance(spec, list) and spec else ["*"]
    kind: Any = parts[0]
    settings: Mapping[str, Any] = parts[1] if len(parts) > 1 and isinstance(parts[1], Mapping) else {}
    choices: Any = kind if isinstance(kind, list) else settings.get("options") if kind == "COMBO" else None
    if any(str(key).endswith("_upload") and value for key, value in settings.items()):
        choices = None  # a file of the input folder, which may also be named with a subfolder or an [annotation]
    return Input(
        kind="COMBO" if isinstance(kind, list) else str(kind),
        # Inputs that grow or depend on others are named differently in a graph.
        is_required=is_required and not str(kind).startswith(GROWING),
        choices=tuple(cast(list[Any], choices)) if isinstance(choices, list) else None,
        minimum=_number(settings.get("min")),
        maximum=_number(settings.get("max")),
    )


def _number(value: Any) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _check_value(name: str, value: Any, spec: Input, node: str) -> str | None:
    if isinstance(value, list | dict):  # many at once, or wrapped
        return None
    if spec.choices is not None:
        return None if value in spec.choices else _unknown(name, value, spec.choices, node)
    if spec.kind not in ("INT", "FLOAT"):
        return None
    try:
        number = int(value) if spec.kind == "INT" else float(value)
    except (TypeError, ValueError, OverflowError):
        wanted = "a whole number" if spec.kind == "INT" else "a number"
        return f"{name} of {node} must be {wanted}, not {str(value)[:60]!r}."
    if (spec.minimum is not None and number < spec.minimum) or (spec.maximum is not None and number > spec.maximum):
        least = "" if spec.minimum is None else f" from {exact(spec.minimum)}"
        most = "" if spec.maximum is None else f" to {exact(spec.maximum)}"
        return f"{name} of {node} must be a number{least}{most}, not {exact(number)}."
    return None


def _unknown(name: str, value: Any, choices: tuple[Any, ...], node: str) -> str:
    noun = NOUNS.get(name)
    what = f"no {noun}" if noun else f"no {name} for {node} called"
    if not choices:
        return f"The ComfyUI server has {what} {str(value)[:100]!r}; it has none at all."
    # People leave the folder and the ending of a file out.
    names = [str(choice) for choice in choices[:MAX_NAMES]]
    known = {PurePath(name.lower()).stem: name for name in names}
    known |= {name.lower(): name for name in names}
    near = dict.fromkeys(known[name] for name in near_names(str(value).lower(), known, most=3))
    if near:
        hint = f"Did you mean {' or '.join(near)}?"
    else:
        shown = ", ".join(str(choice) for choice in choices[:SHOWN_CHOICES])
        hint = f"It has {shown}{', ...' if len(choices) > SHOWN_CHOICES else ''}."
    return f"The ComfyUI server has {what} {str(value)[:100]!r}. {hint}"
