"""What ModelsLab's models take: the table in `models.json`, what it refuses, and the names over there."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from importlib.resources import files
from typing import Any

from safelight.providers.base import Capabilities, Faults, Parameters
from safelight.providers.model_table import TablePart
from safelight.suggestion import near_names

RATIO_TOLERANCE = 0.1  # a tenth
CHARACTERS_PER_TOKEN = 4  # of English, about
MAX_SIDE = 2048  # of a size that is given to a model of ratios, which takes its proportions only


class ModelsLabModel(TablePart):
    """What a model takes. With neither `ratios` nor `sides` it chooses the size of its pictures itself.

    `images` are the fewest and the most pictures to start from. With `redraws` it starts from one's pixels and keeps
    its size, and is told how strongly to change it; others look at the pictures and draw anew.
    """

    ratios: tuple[str, ...] = ()
    sides: tuple[int, int] | None = None  # the least and the greatest, in pixels
    max_samples: int = 1
    max_prompt_tokens: int | None = None
    max_steps: int = 0
    max_cfg: int = 0
    schedulers: bool = False
    negative_prompt: bool = False
    seeds: bool = False
    loras: bool = False
    images: tuple[int, int] = (0, 0)
    redraws: bool = False
    options: frozenset[str] = frozenset()

    @property
    def max_prompt(self) -> int | None:
        """In characters."""
        return None if self.max_prompt_tokens is None else self.max_prompt_tokens * CHARACTERS_PER_TOKEN


class ModelsLabFamily(ModelsLabModel):
    """Models of one kind."""

    names: tuple[str, ...]


class ModelsLabTable(TablePart):
    """The file: when and where it was read. `community` is what models take that it does not name.

    `redrawing_scheduler` is the one that community models must be told to start from a picture.
    """

    read: date
    sources: tuple[str, ...]
    side_step: int
    schedulers: tuple[str, ...]
    redrawing_scheduler: str
    community: ModelsLabModel
    models: tuple[ModelsLabFamily, ...]


TABLE = ModelsLabTable.model_validate_json(files("safelight.providers.modelslab").joinpath("models.json").read_bytes())
MODELS: Mapping[str, ModelsLabModel] = {name: entry for entry in TABLE.models for name in entry.names}
COMMUNITY = TABLE.community
SAMPLER_FIELDS = {
    "steps": "num_inference_steps",
    "cfg": "guidance_scale",
    "scheduler": "scheduler",
    "denoise": "strength",
}


TAKES = (
    *("negative_prompt", "model", "lora_models", "width", "height", "seed"),
    *("sampler_params", "provider_options", "input_images"),
)
OUR_FIELDS = {
    "prompt": "prompt",
    "negative_prompt": "negative_prompt",
    "model_id": "model",
    "width": "width",
    "height": "height",
    "samples": "batch_size",
    "seed": "seed",
    "lora_model": "lora_models",
    "aspect_ratio": "provider_options.aspect_ratio",
    "num_inference_steps": "sampler_params.steps",
    "guidance_scale": "sampler_params.cfg",
    "scheduler": "sampler_params.scheduler",
    "strength": "sampler_params.denoise",
    "init_image": "input_images",
}


def capabilities_of(default: str, models: Mapping[str, ModelsLabModel]) -> Capabilities:
    """What these models can do together."""
    return Capabilities(
        kinds=frozenset({"image.generate"}),
        models=tuple(dict.fromkeys((default, *models))),
        max_width=MAX_SIDE,
        max_height=MAX_SIDE,
        max_batch=4,
        cancel=False,
        progress=True,
        previews=False,
        input_images=max(model.images[1] for model in models.values()),
    )


def fitted(name: str, model: ModelsLabModel, parameters: Parameters) -> Parameters:
    """The parameters as this model takes them. Raises `InvalidParameters` for what it would pass over in silence."""
    faults = Faults()
    if model.max_prompt is not None and len(parameters.prompt) > model.max_prompt:
        message = (
            f"{name} takes prompts of about {model.max_prompt_tokens} tokens, which is {model.max_prompt} characters;"
            f" this one has {len(parameters.prompt)}."
        )
        faults.add(message, field="prompt")
    if not 1 <= parameters.batch_size <= model.max_samples:
        message = f"{name} makes 1 to {model.max_samples} pictures at once, not {parameters.batch_size}."
        if model.max_samples == 1:
            message = f"{name} makes one picture at a time, not {parameters.batch_size}."
        faults.add(message, field="batch_size")
    if parameters.negative_prompt and not model.negative_prompt:
        faults.add(f"{name} takes no negative prompt; leave it out.", field="negative_prompt")
    if parameters.lora_models and not model.loras:
        faults.add(f"{name} takes no LoRAs; leave them out.", field="lora_models")
    _check_images(name, model, len(parameters.input_images), faults)
    redraws = model.redraws and bool(parameters.input_images)
    _check_sampler(name, model, parameters.sampler_params, faults, redraws=redraws)
    ratio = _check_options(name, model, parameters.provider_options, faults)
    if redraws:
        for field in ("width", "height"):
            if getattr(parameters, field) is not None:
                message = f"{name} makes a picture as large as the one it starts from; leave width and height out."
                faults.add(message, field=field)
        faults.refuse()
        return replace(parameters, model=name)
    width, height = _size(name, model, parameters, ratio, faults)
    faults.refuse()
    return replace(parameters, model=name, width=width, height=height)


def fields_of(
    model: ModelsLabModel, parameters: Parameters, images: Sequence[str] = (), shape: tuple[int, int] = (1, 1)
) -> dict[str, Any]:
    """What is said of fitted parameters in the body of a submit.

    `images` are the links of the pictures to start from, `shape` the proportions where none were asked for.
    """
    fields: dict[str, Any] = {"model_id": parameters.model, "prompt": parameters.prompt, **parameters.provider_options}
    if model.ratios and "aspect_ratio" not in fields:
        fields["aspect_ratio"] = _nearest(model.ratios, parameters.width or shape[0], parameters.height or shape[1])[0]
    if images:
        fields["init_image"] = list(images) if model.images[1] > 1 else images[0]
    if model.sides is not None and not images:
        fields |= {"width": parameters.width, "height": parameters.height}
    if model.max_samples > 1:
        fields["samples"] = parameters.batch_size
    if model.seeds and parameters.seed is not None:
        fields["seed"] = parameters.seed
    if parameters.negative_prompt:
        fields["negative_prompt"] = parameters.negative_prompt
    if parameters.lora_models:
        fields["lora_model"] = ",".join(lora.name for lora in parameters.lora_models)
        fields["lora_strength"] = ",".join(f"{lora.strength_model:g}" for lora in parameters.lora_models)
    for ours, theirs in SAMPLER_FIELDS.items():
        if ours in parameters.sampler_params:
            fields[theirs] = parameters.sampler_params[ours]
    if images and model.schedulers:
        fields.setdefault("scheduler", TABLE.redrawing_scheduler)
    return fields


# --- checking ---------------------------------------------------------------------------------------------------------


def _check_images(name: str, model: ModelsLabModel, given: int, faults: Faults) -> None:
    least, most = model.images
    if not most and given:
        faults.add(f"{name} takes no pictures to start from; leave them out.", field="input_images")
    elif not least <= given <= most:
        takes = f"{least} to {most} pictures" if least != most else "one picture"
        faults.add(f"{name} takes {takes} to start from, not {given}.", field="input_images")


def _check_sampler(
    name: str, model: ModelsLabModel, given: Mapping[str, Any], faults: Faults, *, redraws: bool
) -> None:
    for field, value in given.items():
        path = f"sampler_params.{field}"
        if field == "denoise" and redraws:
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                faults.add(f"{name} takes denoise from 0 to 1, not {value}.", field=path)
            continue
        if field == "scheduler" and model.schedulers:
            if value not in TABLE.schedulers:
                near = near_names(value, TABLE.schedulers, most=3) or TABLE.schedulers
                shown = str(value)[:60]
                faults.add(f"{name} has no scheduler {shown!r}; try {' or '.join(near)}.", field=path)
            continue
        greatest = {"steps": model.max_steps, "cfg": model.max_cfg}.get(field, 0)
        if not greatest:
            faults.add(f"{name} takes no {field}; leave it out.", field=path)
        elif not isinstance(value, int | float) or not 1 <= value <= greatest:
            faults.add(f"{name} takes {field} from 1 to {greatest}, not {value}.", field=path)


def _check_options(name: str, model: ModelsLabModel, given: Mapping[str, Any], faults: Faults) -> str | None:
    """The aspect ratio, if it is asked for by name."""
    known = model.options | ({"aspect_ratio"} if model.ratios else set())
    for field in given:
        if field not in known:
            takes = f"it takes {', '.join(sorted(known))}" if known else "it takes none"
            message = f"{name} has no option {field[:60]!r}; {takes}."
            faults.add(message, field=f"provider_options.{field}")
    ratio = given.get("aspect_ratio")
    if "aspect_ratio" in given and ratio not in model.ratios:
        message = f"{name} makes {', '.join(model.ratios)}, not {ratio!r}."
        faults.add(message, field="provider_options.aspect_ratio")
    return ratio


def _size(
    name: str, model: ModelsLabModel, parameters: Parameters, ratio: str | None, faults: Faults
) -> tuple[int | None, int | None]:
    """Width and height as the model takes them; None where it chooses them itself."""
    width = parameters.width if parameters.width is not None else parameters.height
    height = parameters.height if parameters.height is not None else parameters.width
    if model.sides is not None:
        least, greatest = model.sides
        sizes = {"width": greatest if width is None else width, "height": greatest if height is None else height}
        for field, side in sizes.items():
            if not least <= side <= greatest or side % TABLE.side_step:
                bounds = f"{least} to {greatest} pixels, divisible by {TABLE.side_step}"
                message = f"{name} makes a {field} of {bounds}; not {side}."
                faults.add(message, field=field)
        return sizes["width"], sizes["height"]
    if width is None or height is None:
        return None, None
    for field, side in (("width", width), ("height", height)):
        if not 1 <= side <= MAX_SIDE:
            faults.add(f"The {field} must be at most {MAX_SIDE} pixels, not {side}.", field=field)
    if not model.ratios:
        faults.add(f"{name} chooses the size itself; leave width and height out.", field="width")
        return None, None
    nearest, distance = _nearest(model.ratios, width, height)
    if distance > RATIO_TOLERANCE or ratio not in {None, nearest}:
        wanted = f"{', '.join(model.ratios)}" if ratio is None else ratio
        message = f"{name} makes {wanted}; {width}x{height} is none of these, the nearest is {nearest}."
        faults.add(message, field="width")
    return width, height


def _nearest(ratios: Sequence[str], width: int, height: int) -> tuple[str, float]:
    """The ratio that is most like this size, and how far off it is (0.1: a tenth)."""

    def distance(ratio: str) -> float:
        across, down = ratio.split(":")
        return abs(math.log(width / height * int(down) / int(across)))

    nearest = min(ratios, key=distance)
    return nearest, distance(nearest)
