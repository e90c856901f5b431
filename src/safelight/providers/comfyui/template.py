"""Templates: workflows as data, with typed, bounded and documented inputs.

A template is JSON: `name`, `title`, `description`, `workflow` (API format) and `inputs`, which maps a name to the node
and input it sets, its type and its bounds. An input that is not required and not given keeps the workflow's own value.
Inputs named like a field of the request (`prompt`, `width`, `steps`, ...) take that field where `inputs` has none.
"""

import copy
import math
from collections.abc import Iterable, Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from safelight.providers.base import Parameters
from safelight.providers.comfyui.graph import (
    MAX_NAME,
    MAX_PROBLEMS,
    SAMPLER_PARAMS,
    Fault,
    Plan,
    check_graph,
    exact,
    first_of,
    is_link,
    refuse,
    title_of,
)
from safelight.suggestion import did_you_mean, listed

MAX_TEXT = 20_000
MAX_INPUTS = 1000
MAX_FIELDS = 50  # of an object whose fields are all known
REQUEST_FIELDS = ("prompt", "negative_prompt", "checkpoint_model", "width", "height", "batch_size", "seed")
WORDS = {
    "string": "a text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "choice": "a text",
}


def _few(most: int, what: str) -> BeforeValidator:
    """Refuses an object that has too many fields before each of them is looked at."""

    def check(value: Any) -> Any:
        if isinstance(value, Mapping) and len(cast(Mapping[Any, Any], value)) > most:
            raise ValueError(f"has at most {most} {what}")
        return value

    return BeforeValidator(check)


InputType = Literal["string", "integer", "number", "boolean", "image", "choice"]


class InvalidTemplate(ValueError):
    """A template that cannot be used. `problems` name each wrong part, dotted below the template."""

    def __init__(self, problems: list[Fault]) -> None:
        self.problems = problems
        super().__init__("; ".join(f"{problem.field or 'template'}: {problem.message}" for problem in problems))


class TemplateInput(BaseModel):
    """What a caller may set. A `choice` without `choices` offers what the server has there."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    node: str = Field(max_length=MAX_NAME)
    input: str = Field(max_length=MAX_NAME)
    type: InputType
    minimum: int | Annotated[float, Field(allow_inf_nan=False)] | None = None
    maximum: int | Annotated[float, Field(allow_inf_nan=False)] | None = None
    choices: list[str] | None = Field(None, min_length=1)
    default: Any = None
    description: str = ""
    required: bool = False

    def check(self, value: Any) -> str | None:
        """Why `value` cannot be taken."""
        kinds: dict[str, type | tuple[type, ...]] = {"integer": int, "number": (int, float), "boolean": bool}
        is_right = isinstance(value, kinds.get(self.type, str)) and (
            self.type == "boolean" or not isinstance(value, bool)
        )
        if not is_right or (isinstance(value, float) and not math.isfinite(value)):
            return f"must be {WORDS.get(self.type, 'a picture')}, not {str(value)[:60]!r}."
        if isinstance(value, str):
            if len(value) > MAX_TEXT:
                return f"must be at most {MAX_TEXT} characters."
        elif self.type != "boolean":
            too_small = self.minimum is not None and value < self.minimum
            if too_small or (self.maximum is not None and value > self.maximum):
                least = "" if self.minimum is None else f" at least {exact(self.minimum)}"
                most = "" if self.maximum is None else f" at most {exact(self.maximum)}"
                return f"must be{least}{' and' if least and most else ''}{most}, not {value}."
        if self.choices is not None and value not in self.choices:
            meant = did_you_mean(value, self.choices, most=2)
            return f"must be one of {listed(self.choices)}, not {str(value)[:60]!r}.{meant}"
        return None


class Template(BaseModel):
    """A checked template; make one with `check_template`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")
    title: str = Field(min_length=1, max_length=200)
    description: str = Field("", max_length=4000)
    workflow: dict[str, Any]
    inputs: Annotated[
        dict[Annotated[str, Field(max_length=MAX_NAME)], Annotated[TemplateInput, _few(MAX_FIELDS, "fields")]],
        _few(MAX_INPUTS, "inputs"),
    ] = Field(default_factory=dict[str, TemplateInput])

    def as_json(self) -> dict[str, Any]:
        """As it is written, without what is left to default."""
        return self.model_dump(mode="json", exclude_none=True)

    @property
    def pictures(self) -> list[str]:
        """The names of the inputs that take pictures, in order."""
        return [name for name, spec in self.inputs.items() if spec.type == "image"]

    def check(self, parameters: Parameters, default_checkpoint: str | None = None) -> Iterator[Fault]:
        """What is wrong with the values given for it, one after the other."""
        yield from self._strangers(parameters)
        yield from self._values(self._given(parameters, default_checkpoint), parameters)

    def plan(self, parameters: Parameters, seed: int, default_checkpoint: str | None = None) -> Plan:
        """The workflow with the values in their places."""
        refuse(self.check(parameters, default_checkpoint))
        graph = copy.deepcopy(self.workflow)
        given = {"seed": seed} | self._given(parameters, default_checkpoint)
        fields: dict[tuple[str, str], str] = {}
        pictures: list[tuple[str, str]] = []
        for name, spec in self.inputs.items():
            fields[spec.node, spec.input] = _field_of(name, parameters)
            if spec.type == "image":
                fields[spec.node, spec.input] = "input_images"
                if len(pictures) < len(parameters.input_images):
                    pictures.append((spec.node, spec.input))
            elif name in given:
                graph[spec.node]["inputs"][spec.input] = given[name]
            elif spec.default is not None:
                graph[spec.node]["inputs"][spec.input] = spec.default
        return Plan(graph, "template", fields, tuple(pictures))

    def bare_plan(self) -> Plan:
        """The workflow with its own values, to be checked against a server; what callers must give is left open."""
        graph = copy.deepcopy(self.workflow)
        fields: dict[tuple[str, str], str] = {}
        left_open: list[tuple[str, str]] = []
        for name, spec in self.inputs.items():
            fields[spec.node, spec.input] = f"inputs.{name}"
            if spec.default is not None:
                graph[spec.node]["inputs"][spec.input] = spec.default
            if spec.required or spec.type == "image":
                left_open.append((spec.node, spec.input))
        return Plan(graph, "workflow", fields, tuple(left_open))

    def _given(self, parameters: Parameters, default_checkpoint: str | None) -> dict[str, Any]:
        """The values by input name: the fields of the request first, `inputs` over them."""
        values: dict[str, Any] = {name: getattr(parameters, name) for name in REQUEST_FIELDS}
        if parameters.batch_size == 1:  # the request's own default, which is no wish
            del values["batch_size"]
        values |= parameters.sampler_params
        if parameters.seed is not None:
            values["seed"] = parameters.seed
        values["checkpoint_model"] = parameters.checkpoint_model or parameters.model or default_checkpoint
        taken = {name: value for name, value in values.items() if value is not None and name in self.inputs}
        return taken | {name: value for name, value in parameters.inputs.items() if name in self.inputs}

    def _strangers(self, parameters: Parameters) -> Iterator[Fault]:
        """Values for which it has no input."""
        named = f"The template {self.name} has no input"
        offered = f"it has {listed(self.inputs) or 'none'}"
        for name in parameters.inputs:
            if name not in self.inputs:
                meant = did_you_mean(name, self.inputs)
                yield Fault(f"inputs.{name[:60]}", f"{named} {name[:60]!r}; {offered}.{meant}")
            elif self.inputs[name].type == "image":
                yield Fault(f"inputs.{name}", "Pictures are given in input_images, in the order of the inputs.")
        wishes: dict[str, Any] = {
            "negative_prompt": parameters.negative_prompt,
            "checkpoint_model": parameters.checkpoint_model,
            "width": parameters.width,
            "height": parameters.height,
            "batch_size": None if parameters.batch_size == 1 else parameters.batch_size,
            **{f"sampler_params.{name}": parameters.sampler_params.get(name) for name in SAMPLER_PARAMS[:-1]},
            "lora_models": parameters.lora_models or None,
        }
        for where, value in wishes.items():
            name = where.rpartition(".")[2]
            if value is not None and name not in self.inputs:
                yield Fault(where, f"{named} {name}; {offered}.")
        if len(parameters.input_images) > len(self.pictures):
            yield Fault("input_images", f"The template {self.name} takes {len(self.pictures)} pictures at most.")

    def _values(self, given: Mapping[str, Any], parameters: Parameters) -> Iterator[Fault]:
        wanted = sum(self.inputs[name].required for name in self.pictures)
        if len(parameters.input_images) < wanted:
            yield Fault("input_images", f"The template {self.name} needs {wanted} pictures.")
        for name, spec in self.inputs.items():
            if spec.type == "image":
                continue
            where = _field_of(name, parameters)
            if name in given:
                reason = spec.check(given[name])
                if reason:
                    yield Fault(where, f"{name} {reason}")
            elif spec.required and name != "seed":
                meaning = f" ({spec.description})" if spec.description else ""
                yield Fault(where, f"The template {self.name} needs {name}{meaning}.")


def _field_of(name: str, parameters: Parameters) -> str:
    """Where the request says, or would say, the value of an input."""
    if name in parameters.inputs:
        return f"inputs.{name}"
    if name in parameters.sampler_params:
        return f"sampler_params.{name}"
    return name if name in REQUEST_FIELDS else f"inputs.{name}"


WELL_FORMED = TypeAdapter[Template](Annotated[Template, _few(MAX_FIELDS, "fields")])


def check_template(data: Any) -> Template:
    """A template out of parsed JSON. Raises `InvalidTemplate` with everything that is wrong."""
    try:
        template = WELL_FORMED.validate_python(data)
    except ValidationError as error:
        found = error.errors(include_url=False)
        raise InvalidTemplate([_malformed(each) for each in found[:MAX_PROBLEMS]]) from None
    problems = check_graph(template.workflow)
    if not problems:
        twins: dict[tuple[str, str], str] = {}
        problems = first_of(problem for name in template.inputs for problem in _check_input(template, name, twins))
    if problems:
        raise InvalidTemplate(problems)
    return template


def _malformed(error: ErrorDetails) -> Fault:
    *path, name = error["loc"] or ("",)
    message = f"{error['msg'].removeprefix('Value error, ')}."
    if error["type"] == "extra_forbidden":
        fields = TemplateInput.model_fields if path else Template.model_fields
        message = f"There is no such field.{did_you_mean(name, fields)}"
    return Fault(".".join(map(str, error["loc"])), message)


def _check_input(template: Template, name: str, twins: dict[tuple[str, str], str]) -> Iterator[Fault]:
    """`twins` are the inputs seen so far, by what they set."""
    spec, where = template.inputs[name], f"inputs.{name}"
    node: Any = template.workflow.get(spec.node)
    if node is None:
        known = listed(f"{key} ({title_of(template.workflow, key)})" for key in template.workflow)
        yield Fault(f"{where}.node", f"The workflow has no node {spec.node!r}; it has {known}.")
    elif spec.input not in node["inputs"]:
        near = listed(key for key, value in node["inputs"].items() if not is_link(value)) or "no values"
        yield Fault(f"{where}.input", f"The node {spec.node} has no input {spec.input!r}; it has {near}.")
    elif is_link(node["inputs"][spec.input]):
        yield Fault(f"{where}.input", "It is linked to another node; only a value can be set.")
    if (spec.minimum is not None or spec.maximum is not None) and spec.type not in ("integer", "number"):
        yield Fault(where, f"minimum and maximum are for numbers; the type is {spec.type}.")
    if spec.minimum is not None and spec.maximum is not None and spec.minimum > spec.maximum:
        yield Fault(f"{where}.minimum", f"It is above the maximum {exact(spec.maximum)}.")
    if spec.choices is not None and spec.type != "choice":
        yield Fault(f"{where}.choices", f"choices are for the type choice; the type is {spec.type}.")
    if spec.default is not None:
        if spec.type == "image":
            yield Fault(f"{where}.default", "A picture has no default.")
        elif reason := spec.check(spec.default):
            yield Fault(f"{where}.default", f"The default {reason}")
        elif spec.required:
            yield Fault(f"{where}.required", "An input with a default is not required; drop one of the two.")
    twin = twins.setdefault((spec.node, spec.input), name)
    if twin != name:
        yield Fault(where, f"It sets the same input of the same node as {twin}.")


def builtin_templates() -> dict[str, Template]:
    """The templates that come with Safelight, by name."""
    return _by_name(
        check_template(orjson.loads(file.read_bytes()))
        for file in sorted(files("safelight.providers.comfyui").joinpath("templates").iterdir(), key=lambda f: f.name)
        if file.name.endswith(".json")
    )


def shared_templates(folder: Path | None) -> dict[str, Template]:
    """What everybody may name: the built-in ones, and the JSON files of a folder, which may take their place.

    Raises `ValueError` that names the file and what is wrong with it.
    """
    if folder is None:
        return builtin_templates()
    if not folder.is_dir():
        raise ValueError(f"There is no folder {folder} of templates.")
    return builtin_templates() | _by_name(map(_read, sorted(folder.glob("*.json"))))


def _read(file: Path) -> Template:
    try:
        return check_template(orjson.loads(file.read_bytes()))
    except (OSError, ValueError) as error:
        raise ValueError(f"The template {file} cannot be used: {error}") from None


def _by_name(templates: Iterable[Template]) -> dict[str, Template]:
    return {template.name: template for template in templates}
