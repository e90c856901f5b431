"""What image models take: read from `models.json`, and what is wrong with parameters by it.

The file is OpenAI's table at the date that stands in it. A model that is not in it is passed on with what was asked:
only the bounds of the interface itself are kept.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from importlib.resources import files
from typing import Any

from safelight.providers.base import Capabilities, Faults, Parameters
from safelight.providers.model_table import TablePart

OURS = {"model", "prompt", "n", "size", "stream", "image", "image[]"}  # what no option may replace


class Area(TablePart):
    """The sizes of a model that makes many: sides in pixels, `max_ratio` between them, and pixels in all."""

    step: int = 1
    longest: int
    max_ratio: float | None = None
    min_pixels: int = 1
    max_pixels: int | None = None


class Option(TablePart):
    """What an option may be. `formats`: only with one of these. `with_images`: only with input pictures, or without."""

    choices: tuple[str, ...] = ()
    minimum: int | None = None
    maximum: int | None = None
    max_length: int | None = None
    formats: tuple[str, ...] = ()
    with_images: bool | None = None

    def accepts(self, value: Any) -> bool:
        """Whether this value may be given."""
        if self.choices:
            return isinstance(value, str) and value in self.choices
        if self.max_length is not None:
            return isinstance(value, str) and 1 <= len(value) <= self.max_length
        return type(value) is int and (self.minimum or 0) <= value and (self.maximum is None or value <= self.maximum)

    @property
    def wanted(self) -> str:
        """In words: "must be ..."."""
        if self.choices:
            return ", ".join(self.choices)
        if self.max_length is not None:
            return f"a text of 1 to {self.max_length} characters"
        return f"{self.minimum} or more" if self.maximum is None else f"{self.minimum} to {self.maximum}"


class Format(TablePart):
    """What may be asked for beside a format of the files."""

    streams: bool = True


class OpenAIModel(TablePart):
    """What a model takes. Either `sizes` or an `area`. `options` of None: any, on the server's judgement.

    `shutdown_date` is when OpenAI ends it; on that day it is still tried.
    """

    shutdown_date: date | None = None
    sizes: tuple[str, ...] = ()
    area: Area | None = None
    max_batch: int
    max_prompt: int | None = None  # characters
    max_input_images: int
    streams: bool = True
    formats: Mapping[str, Format] = {}
    transparent_formats: tuple[str, ...] = ()
    options: Mapping[str, Option] | None = None
    always: Mapping[str, str] = {}

    @property
    def longest(self) -> int:
        """The longest side of its pictures, in pixels."""
        sides = [int(side) for size in self.sizes for side in size.split("x")]
        return max(sides) if self.area is None else self.area.longest


class OpenAIFamily(OpenAIModel):
    """Models of one kind."""

    names: tuple[str, ...]


class OpenAITable(TablePart):
    """The file: when it was read, and where."""

    read: date
    sources: tuple[str, ...]
    models: tuple[OpenAIFamily, ...]


TABLE = OpenAITable.model_validate_json(files("safelight.providers.openai_images").joinpath("models.json").read_bytes())
MODELS: Mapping[str, OpenAIModel] = {name: entry for entry in TABLE.models for name in entry.names}
OTHER = OpenAIModel(area=Area(longest=8192), max_batch=10, max_input_images=16)


TAKES = ("model", "width", "height", "seed", "provider_options", "input_images")
# Our name of what OpenAI calls otherwise.
FIELDS = {"prompt": "prompt", "model": "model", "n": "batch_size", "size": "width", "image": "input_images"}


def capabilities_of(models: tuple[str, ...], *, streams: bool) -> Capabilities:
    """What these models can do together; without any, what others might."""
    longest = max((MODELS.get(name, OTHER).longest for name in models), default=OTHER.longest)
    return Capabilities(
        kinds=frozenset({"image.generate"}),
        models=models,
        max_width=longest,
        max_height=longest,
        max_batch=10,
        cancel=False,
        progress=False,
        previews=streams,
        seeds=False,
        negative_prompt=False,
        input_images=16,
    )


def living(today: date) -> list[str]:
    """The models that OpenAI serves."""
    return [name for name, model in MODELS.items() if model.shutdown_date is None or today <= model.shutdown_date]


def fitted(name: str, parameters: Parameters) -> Parameters:
    """The parameters as this model takes them. Raises `InvalidParameters` for what it does not."""
    faults = Faults()
    model = MODELS.get(name, OTHER)
    for field in parameters.others(TAKES):
        faults.add(f"{name} takes no {field}; leave it out.", field=field)
    if model.max_prompt is not None and len(parameters.prompt) > model.max_prompt:
        message = f"{name} takes prompts of up to {model.max_prompt} characters, not {len(parameters.prompt)}."
        faults.add(message, field="prompt")
    if not 1 <= parameters.batch_size <= model.max_batch:
        message = f"{name} makes 1 to {model.max_batch} pictures at once, not {parameters.batch_size}."
        faults.add(message, field="batch_size")
    if len(parameters.input_images) > model.max_input_images:
        takes = f"at most {model.max_input_images}" if model.max_input_images else "no"
        message = f"{name} takes {takes} input images, not {len(parameters.input_images)}."
        faults.add(message, field="input_images")
    width, height = _size(name, model, parameters, faults)
    _check_options(name, model, parameters, faults)
    faults.refuse()
    return replace(parameters, model=name, width=width, height=height)


def can_stream(name: str, options: Mapping[str, Any]) -> bool:
    """Whether partial pictures may be asked for beside these options."""
    model = MODELS.get(name, OTHER)
    return model.streams and model.formats.get(str(options.get("output_format")), Format()).streams


def _size(name: str, model: OpenAIModel, parameters: Parameters, faults: Faults) -> tuple[int | None, int | None]:
    """Width and height; None leaves the choice to the model."""
    width = parameters.width if parameters.width is not None else parameters.height
    height = parameters.height if parameters.height is not None else parameters.width
    if width is None or height is None:
        return None, None
    if model.area is None:
        if f"{width}x{height}" not in model.sizes:
            field = "width" if all(not size.startswith(f"{width}x") for size in model.sizes) else "height"
            message = f"{name} makes {', '.join(model.sizes)}; not {width}x{height}."
            faults.add(message, field=field)
        return width, height
    area = model.area
    for field, side in (("width", width), ("height", height)):
        if not 1 <= side <= area.longest or side % area.step:
            steps = f", divisible by {area.step}" if area.step > 1 else ""
            message = f"{name} makes a {field} of up to {area.longest} pixels{steps}; not {side}."
            faults.add(message, field=field)
    longer = "width" if width >= height else "height"
    if area.max_ratio is not None and max(width, height) > area.max_ratio * min(width, height):
        message = f"{name} makes one side at most {area.max_ratio:g} times the other; not {width}x{height}."
        faults.add(message, field=longer)
    pixels = width * height
    if pixels < area.min_pixels or (area.max_pixels is not None and pixels > area.max_pixels):
        most = "" if area.max_pixels is None else f" to {area.max_pixels:,}"
        message = f"{name} makes {area.min_pixels:,}{most} pixels in all; {width}x{height} has {pixels:,}."
        faults.add(message, field=longer)
    return width, height


def _check_options(name: str, model: OpenAIModel, parameters: Parameters, faults: Faults) -> None:
    given = parameters.provider_options
    for option in given:
        if option in OURS:
            message = f"{option} is not an option: the request has a field of its own."
            faults.add(message, field=f"provider_options.{option}")
    if model.options is None:
        return
    known: Mapping[str, Option] = dict(model.options)
    if model.formats:
        known = known | {"output_format": Option(choices=tuple(model.formats))}
    file_format = given.get("output_format") or next(iter(model.formats), "")
    for option, value in given.items():
        field = f"provider_options.{option}"
        takes = known.get(option)
        if takes is None:
            which = f"it takes {', '.join(sorted(known))}" if known else "it takes none"
            faults.add(f"{name} has no option {option[:60]!r}; {which}.", field=field)
            continue
        if not takes.accepts(value):
            faults.add(f"{option} of {name} must be {takes.wanted}; not {value!r}.", field=field)
        if takes.formats and file_format not in takes.formats:
            message = f"{option} goes with an output_format of {_or(takes.formats)}, not with {file_format}."
            faults.add(message, field=field)
        if takes.with_images is not None and takes.with_images != bool(parameters.input_images):
            which = "goes with pictures to start from only" if takes.with_images else "does not go with input_images"
            faults.add(f"{option} {which}.", field=field)
    if given.get("background") == "transparent" and file_format not in model.transparent_formats:
        message = f"A transparent background needs an output_format of {_or(model.transparent_formats)}."
        faults.add(message, field="provider_options.background")


def _or(words: Sequence[str]) -> str:
    return " or ".join(words)
