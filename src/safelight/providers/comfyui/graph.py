"""Workflows in ComfyUI's API format: made of parameters, and checked for shape without any server.

A graph maps node ids to `{"class_type": ..., "inputs": {...}}`. An input is a value or a link `[node id, slot]`.
"""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, cast

from safelight.providers.base import Capabilities, InvalidParameters, Limits, Parameters

MAX_NODES = 5000
MAX_SEED = 2**64 - 1
SIDE_STEP, MIN_SIDE, MAX_SIDE, DEFAULT_SIDE = 8, 16, 8192, 512
MAX_BATCH = 64  # a server takes more, in one piece of its memory
SOFT_SECONDS, HARD_SECONDS = 1500.0, 1800.0
MAX_PROBLEMS = 50  # that are told of one request; what is beyond is not even looked for
MAX_NAME = 200  # letters of a node's id, its class_type and the names of its inputs
MAX_CIRCLE = 20  # nodes of a circle that are named
SAMPLER_PARAMS = ("steps", "cfg", "sampler", "scheduler", "denoise", "seed")
SEED_INPUTS = ("seed", "noise_seed")
HOW_TO_EXPORT = (
    "This is the format in which the editor saves workflows, not the one that runs. Open it in ComfyUI and choose "
    "Workflow > Export (API); older versions: switch the developer options on in the settings, then Save (API Format)."
)

TAKES = (
    *("negative_prompt", "model", "checkpoint_model", "lora_models", "width", "height", "seed"),
    *("sampler_params", "provider_options", "template", "inputs", "workflow", "input_images"),
)
CAPABILITIES = Capabilities(
    kinds=frozenset({"image.generate"}),
    models=(),
    max_width=MAX_SIDE,
    max_height=MAX_SIDE,
    max_batch=MAX_BATCH,
    cancel=True,
    progress=True,
    previews=True,
    limits=Limits(SOFT_SECONDS, HARD_SECONDS),
    input_images=16,
    workflows=True,
)  # of plain parameters; templates and workflows know their own bounds

# Where others put the graph: ComfyUI's POST /prompt, Comfy API v2, RunPod's worker and its kin.
WRAPPERS = (("prompt",), ("workflow",), ("input", "workflow"), ("input", "prompt"), ("input", "workflow_json"))

Node = dict[str, Any]
Graph = dict[str, Node]


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong, and where: `field` is dotted below the request's body, or below the template's."""

    field: str
    message: str


def exact(number: float) -> str:
    """A number with all its digits."""
    return str(number).removesuffix(".0")


def first_of(problems: Iterable[Fault]) -> list[Fault]:
    """As many as are told. Finding a problem costs time, so give an iterator where somebody may send thousands."""
    return list(islice(problems, MAX_PROBLEMS))


def refuse(found: Iterable[Fault]) -> None:
    """Raise `InvalidParameters` for the first of the problems, with the others in its details, if there are any."""
    problems = first_of(found)
    if problems:
        details = {"problems": [{"field": problem.field, "message": problem.message} for problem in problems]}
        others = [InvalidParameters(problem.message, field=problem.field) for problem in problems[1:]]
        raise InvalidParameters(problems[0].message, field=problems[0].field, details=details, others=others)


@dataclass(frozen=True, slots=True)
class Plan:
    """A graph to run, and what its inputs are called in the request.

    `pictures` are the inputs that take the uploaded pictures, in order. `any_checkpoint` is the one that takes the
    first checkpoint the server has. `root` is the field at fault where `fields` names none.
    """

    graph: Graph
    root: str
    fields: Mapping[tuple[str, str], str] = field(default_factory=dict[tuple[str, str], str])
    pictures: tuple[tuple[str, str], ...] = ()
    any_checkpoint: tuple[str, str] | None = None

    def field_of(self, node_id: str, name: str | None = None) -> str:
        """The request's field behind an input, or behind the node itself."""
        known = self.fields.get((node_id, name or ""))
        if known is not None or self.root != "workflow":
            return known or self.root
        return f"workflow.{node_id}.inputs.{name}" if name else f"workflow.{node_id}.class_type"

    def filled(self, pictures: Sequence[str], checkpoint: str | None, prefix: str) -> Graph:
        """The graph as it is sent. Every node that saves files under a prefix gets ours, so that they can be found."""
        if len(pictures) < len(self.pictures):
            refuse([Fault("input_images", f"{len(self.pictures)} pictures are needed.")])
        graph = copy.deepcopy(self.graph)
        for (node_id, name), file in zip(self.pictures, pictures, strict=True):
            graph[node_id]["inputs"][name] = file
        if self.any_checkpoint is not None:
            node_id, name = self.any_checkpoint
            graph[node_id]["inputs"][name] = checkpoint
        for node in graph.values():
            if isinstance(node["inputs"].get("filename_prefix"), str):
                node["inputs"]["filename_prefix"] = prefix
        return graph

    @property
    def seed(self) -> int | None:
        """The seed of the first node that has one."""
        for node in self.graph.values():
            for name in SEED_INPUTS:
                value = node["inputs"].get(name)
                if isinstance(value, int) and not isinstance(value, bool):
                    return value
        return None


# --- reading a graph --------------------------------------------------------------------------------------------------


def is_link(value: Any) -> bool:
    """Whether an input is a link, by ComfyUI's own rule."""
    if not isinstance(value, list) or len(value) != 2 or not isinstance(value[0], str):
        return False
    return type(value[1]) is int or (type(value[1]) is float and value[1].is_integer())


def links_of(node: Node) -> Iterator[tuple[str, str, int]]:
    """The links of a node: input, node id, slot."""
    for name, value in node["inputs"].items():
        if is_link(value):
            yield name, value[0], int(value[1])


def needed_by(graph: Graph, ends: Iterable[str]) -> set[str]:
    """The ids of `ends` and of everything they need."""
    needed: set[str] = set()
    waiting = list(ends)
    while waiting:
        node_id = waiting.pop()
        if node_id not in needed and node_id in graph:
            needed.add(node_id)
            waiting.extend(source for _, source, _ in links_of(graph[node_id]))
    return needed


def title_of(graph: Graph, node_id: str) -> str:
    """What people call a node."""
    node = graph.get(node_id)
    if node is None:
        return f"node {node_id}"
    meta: Any = node.get("_meta")
    title: Any = cast(Mapping[str, Any], meta).get("title") if isinstance(meta, Mapping) else None
    return title if isinstance(title, str) and title else node["class_type"]


def checkpoints_of(graph: Any) -> tuple[str, ...]:
    """The checkpoints that the nodes of a graph load, in order."""
    nodes: Any = cast(Mapping[str, Any], graph).values() if isinstance(graph, Mapping) else ()
    inputs: list[Any] = [cast(Mapping[str, Any], node).get("inputs") for node in nodes if isinstance(node, Mapping)]
    named = (cast(Mapping[str, Any], each).get("ckpt_name") for each in inputs if isinstance(each, Mapping))
    return tuple(dict.fromkeys(name for name in named if isinstance(name, str) and name))


def check_graph(graph: Any, root: str = "workflow") -> list[Fault]:
    """What is wrong with the shape of a graph: not API format, links that lead nowhere, circles."""
    if not isinstance(graph, Mapping):
        return [Fault(root, f"{root} must be an object that maps node ids to nodes.")]
    given = cast(Mapping[str, Any], graph)
    if _is_saved_format(given):
        return [Fault(root, HOW_TO_EXPORT)]
    for way in WRAPPERS:
        inner: Any = given
        for key in way:
            inner = cast(Mapping[str, Any], inner).get(key) if isinstance(inner, Mapping) else None
        if not isinstance(inner, Mapping) or "class_type" in inner or "class_type" in given[way[0]]:
            continue
        within = cast(Mapping[str, Any], inner)
        if _is_saved_format(within):
            return [Fault(root, HOW_TO_EXPORT)]
        if any(isinstance(node, Mapping) and "class_type" in node for node in within.values()):
            path = ".".join(way)
            message = f"This is a whole request; {root} is the object in it under `{path}`."
            return [Fault(root, message)]
    if not 1 <= len(given) <= MAX_NODES:
        return [Fault(root, f"{root} must have 1 to {MAX_NODES} nodes, not {len(given)}.")]
    long = next((node_id for node_id in given if len(node_id) > MAX_NAME), None)
    if long is not None:
        return [Fault(root, f"The id of a node has at most {MAX_NAME} characters, not {len(long)}.")]
    problems = first_of(
        problem for node_id, node in given.items() for problem in _check_node(node, f"{root}.{node_id}")
    )
    if problems:
        return problems
    nodes = cast(Graph, given)
    problems = first_of(
        Fault(
            f"{root}.{node_id}.inputs.{name}",
            f"Links to the node {source[:MAX_NAME]!r}, which is not in the workflow.",
        )
        for node_id, node in nodes.items()
        for name, source, _ in links_of(node)
        if source not in nodes
    )
    circle = _circle(nodes)
    if circle:
        shown = circle if len(circle) <= MAX_CIRCLE else circle[:MAX_CIRCLE]
        way = " -> ".join(f"{node_id} ({nodes[node_id]['class_type']})" for node_id in shown)
        way += " -> ..." if len(shown) < len(circle) else ""
        way += f" -> {circle[0]} ({nodes[circle[0]]['class_type']})"
        problems.append(Fault(f"{root}.{circle[0]}", f"The workflow runs in a circle: {way}."))
    return problems


def _is_saved_format(given: Mapping[str, Any]) -> bool:
    return isinstance(given.get("nodes"), list) and "links" in given


def _check_node(node: Any, where: str) -> Iterator[Fault]:
    if not isinstance(node, Mapping):
        yield Fault(where, 'A node must be an object like {"class_type": "KSampler", "inputs": {...}}.')
        return
    given = cast(Mapping[str, Any], node)
    class_type, inputs = given.get("class_type"), given.get("inputs")
    if not isinstance(class_type, str):
        yield Fault(f"{where}.class_type", "A node must name its class_type, like KSampler. " + HOW_TO_EXPORT)
    elif len(class_type) > MAX_NAME:
        yield Fault(f"{where}.class_type", f"A class_type has at most {MAX_NAME} characters, not {len(class_type)}.")
    if not isinstance(inputs, Mapping):
        yield Fault(f"{where}.inputs", "A node must have inputs: an object, which may be empty.")
    elif any(len(name) > MAX_NAME for name in cast(Mapping[str, Any], inputs)):
        yield Fault(f"{where}.inputs", f"The name of an input has at most {MAX_NAME} characters.")


def _circle(graph: Graph) -> list[str]:
    """The ids of a circle, each linking to the next, or nothing."""
    done: set[str] = set()
    for start in graph:
        path: list[str] = []
        on_path: set[str] = set()
        stack: list[tuple[str, bool]] = [(start, False)]
        while stack:
            node_id, is_left = stack.pop()
            if is_left:
                on_path.discard(path.pop())
                done.add(node_id)
            elif node_id in on_path:
                return path[path.index(node_id) :]
            elif node_id not in done and node_id in graph:
                path.append(node_id)
                on_path.add(node_id)
                stack.append((node_id, True))
                stack.extend((source, False) for _, source, _ in links_of(graph[node_id]))
    return []


# --- the caller's own graph -------------------------------------------------------------------------------------------


def plan_workflow(parameters: Parameters) -> Plan:
    """The caller's graph as it is; pictures go to its LoadImage nodes in the order of their ids."""
    problems = check_graph(parameters.workflow)
    problems += [
        Fault(name, f"{name} has no effect beside a workflow; set it in the workflow itself.")
        for name, is_given in (
            ("negative_prompt", parameters.negative_prompt),
            ("checkpoint_model", parameters.checkpoint_model),
            ("lora_models", parameters.lora_models),
            ("width", parameters.width),
            ("height", parameters.height),
            ("batch_size", parameters.batch_size != 1),
            ("sampler_params", parameters.sampler_params),
            ("inputs", parameters.inputs),
        )
        if is_given
    ]
    refuse(problems)
    graph = copy.deepcopy({node_id: dict(node) for node_id, node in (parameters.workflow or {}).items()})
    loaders = sorted((key for key, node in graph.items() if node["class_type"] == "LoadImage"), key=_in_order)
    if len(parameters.input_images) > len(loaders):
        message = f"The workflow has {len(loaders)} LoadImage nodes for {len(parameters.input_images)} pictures."
        refuse([Fault("input_images", message)])
    pictures = tuple((node_id, "image") for node_id in loaders[: len(parameters.input_images)])
    return Plan(graph, "workflow", pictures=pictures)


def _in_order(node_id: str) -> tuple[int, str]:
    return (int(node_id) if node_id.isdecimal() else MAX_SEED, node_id)


# --- a graph of parameters --------------------------------------------------------------------------------------------


def check_parameters(parameters: Parameters) -> list[Fault]:
    """What is wrong with parameters of which a graph shall be made; `None` means that the default is meant."""
    problems: list[Fault] = []
    for name, side in (("width", parameters.width), ("height", parameters.height)):
        if side is not None and (not MIN_SIDE <= side <= MAX_SIDE or side % SIDE_STEP):
            near = min(MAX_SIDE, max(MIN_SIDE, round(side / SIDE_STEP) * SIDE_STEP))
            message = f"The {name} must be a multiple of {SIDE_STEP} from {MIN_SIDE} to {MAX_SIDE}; {near} is near."
            problems.append(Fault(name, message))
    if not 1 <= parameters.batch_size <= MAX_BATCH:
        message = f"The batch size must be 1 to {MAX_BATCH}, not {parameters.batch_size}."
        problems.append(Fault("batch_size", message))
    if parameters.seed is not None and not 0 <= parameters.seed <= MAX_SEED:
        problems.append(Fault("seed", f"The seed must be 0 to {MAX_SEED}."))
    if parameters.checkpoint_model and parameters.model and parameters.checkpoint_model != parameters.model:
        problems.append(Fault("model", "model and checkpoint_model differ; give one of them."))
    if len(parameters.input_images) > 1:
        problems.append(Fault("input_images", "One picture can be given here; a template may take more."))
    return problems + [
        problem for name, value in parameters.sampler_params.items() for problem in _sampler(name, value)
    ]


def _sampler(name: str, value: Any) -> Iterator[Fault]:
    where = f"sampler_params.{name}"
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if name not in SAMPLER_PARAMS:
        yield Fault(where, f"sampler_params has no {name!r}; it has {', '.join(SAMPLER_PARAMS)}.")
    elif value is None:
        return
    elif name in ("sampler", "scheduler"):
        if not isinstance(value, str) or not value:
            yield Fault(where, f"The {name} must be a name, like {'euler' if name == 'sampler' else 'normal'}.")
    elif name in ("steps", "seed"):
        most = 10000 if name == "steps" else MAX_SEED
        if not is_number or not isinstance(value, int) or not (name == "steps") <= value <= most:
            yield Fault(where, f"The {name} must be a whole number from {int(name == 'steps')} to {most}.")
    elif not is_number or not 0 <= value <= (100 if name == "cfg" else 1):
        yield Fault(where, f"{name} must be a number from 0 to {100 if name == 'cfg' else 1}.")


def plan_parameters(parameters: Parameters, seed: int) -> Plan:
    """Text to image; with an input picture, image to image in its size or in the one asked for."""
    refuse(check_parameters(parameters))
    sampler = {name: value for name, value in parameters.sampler_params.items() if value is not None}
    checkpoint = parameters.checkpoint_model or parameters.model
    fields: dict[tuple[str, str], str] = {("4", "ckpt_name"): "checkpoint_model"}
    if parameters.model and not parameters.checkpoint_model:
        fields["4", "ckpt_name"] = "model"
    graph: Graph = {"4": _node("CheckpointLoaderSimple", ckpt_name=checkpoint or "")}
    model, clip, vae = ["4", 0], ["4", 1], ["4", 2]
    for index, lora in enumerate(parameters.lora_models):
        node_id = str(20 + index)
        graph[node_id] = _node(
            "LoraLoader",
            lora_name=lora.name,
            strength_model=lora.strength_model,
            strength_clip=lora.strength_clip,
            model=model,
            clip=clip,
        )
        fields[node_id, "lora_name"] = f"lora_models.{index}.name"
        for name in ("strength_model", "strength_clip"):
            fields[node_id, name] = f"lora_models.{index}.{name}"
        model, clip = [node_id, 0], [node_id, 1]
    if "vae" in parameters.provider_options:
        graph["14"] = _node("VAELoader", vae_name=parameters.provider_options["vae"])
        fields["14", "vae_name"] = "provider_options.vae"
        vae = ["14", 0]
    graph["6"] = _node("CLIPTextEncode", "Prompt", text=parameters.prompt, clip=clip)
    graph["7"] = _node("CLIPTextEncode", "Negative prompt", text=parameters.negative_prompt or "", clip=clip)
    latent = _latent(graph, fields, parameters, vae)
    graph["3"] = _node(
        "KSampler",
        seed=seed,
        steps=sampler.get("steps", 20),
        cfg=sampler.get("cfg", 7.0),
        sampler_name=sampler.get("sampler", "euler"),
        scheduler=sampler.get("scheduler", "normal"),
        denoise=sampler.get("denoise", 0.6 if parameters.input_images else 1.0),
        model=model,
        positive=["6", 0],
        negative=["7", 0],
        latent_image=latent,
    )
    fields |= {("3", name): f"sampler_params.{name}" for name in ("steps", "cfg", "scheduler", "denoise")}
    fields |= {("3", "sampler_name"): "sampler_params.sampler", ("3", "seed"): "seed"}
    graph["8"] = _node("VAEDecode", samples=["3", 0], vae=vae)
    graph["9"] = _node("SaveImage", images=["8", 0], filename_prefix="")
    return Plan(
        graph,
        root="",
        fields=fields,
        pictures=(("10", "image"),) if parameters.input_images else (),
        any_checkpoint=None if checkpoint else ("4", "ckpt_name"),
    )


def _latent(graph: Graph, fields: dict[tuple[str, str], str], parameters: Parameters, vae: list[Any]) -> list[Any]:
    """What the sampler starts from: nothing, or the picture."""
    width, height = parameters.width, parameters.height
    if not parameters.input_images:
        width, height = width or DEFAULT_SIDE, height or DEFAULT_SIDE
        graph["5"] = _node("EmptyLatentImage", width=width, height=height, batch_size=parameters.batch_size)
        fields |= {("5", name): name for name in ("width", "height", "batch_size")}
        return ["5", 0]
    graph["10"] = _node("LoadImage", image="")
    fields["10", "image"] = "input_images"
    pixels = ["10", 0]
    if width or height:  # 0: in proportion
        graph["11"] = _node(
            "ImageScale",
            image=pixels,
            upscale_method="lanczos",
            width=width or 0,
            height=height or 0,
            crop="center" if width and height else "disabled",
        )
        fields |= {("11", name): name for name in ("width", "height")}
        pixels = ["11", 0]
    graph["12"] = _node("VAEEncode", pixels=pixels, vae=vae)
    if parameters.batch_size == 1:
        return ["12", 0]
    graph["13"] = _node("RepeatLatentBatch", samples=["12", 0], amount=parameters.batch_size)
    fields["13", "amount"] = "batch_size"
    return ["13", 0]


def _node(class_type: str, title: str | None = None, /, **inputs: Any) -> Node:
    return {"class_type": class_type, "inputs": inputs, "_meta": {"title": title or class_type}}
