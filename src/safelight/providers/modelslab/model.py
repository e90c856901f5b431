"""What ModelsLab's models take: a table, what is wrong with parameters by it, and their names over there."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

from safelight.providers.base import InvalidParameters, Parameters

RATIO_TOLERANCE = 0.1  # a tenth


@dataclass(frozen=True, slots=True)
class Model:
    """What a model takes. With neither `ratios` nor `sides` it chooses the size of its pictures itself.

    `images` are the fewest and the most pictures to start from. With `redraws` it starts from one's pixels and keeps
    its size, and is told how strongly to change it; others look at the pictures and draw anew.
    """

    ratios: tuple[str, ...] = ()
    sides: tuple[int, int] | None = None  # the least and the greatest, in pixels
    max_samples: int = 1
    max_prompt: int | None = None  # characters
    max_steps: int = 0
    max_cfg: int = 0
    schedulers: bool = False
    negative_prompt: bool = False
    seeds: bool = False
    loras: bool = False
    images: tuple[int, int] = (0, 0)
    redraws: bool = False
    options: frozenset[str] = frozenset()


IMAGEN = ("1:1", "3:4", "4:3", "9:16", "16:9")
WIDER = ("1:1", "4:3", "3:4", "16:9", "9:16", "3:2", "2:3", "21:9")
TOKENS_480 = 480 * 4  # a token of English is about four characters
SIDE_STEP = 8
MAX_SIDE = 2048  # of a size that is given to a model of ratios, which takes its proportions only

FLUX = Model(sides=(256, 1024), max_samples=4, max_steps=50, max_cfg=20, seeds=True, images=(0, 1), redraws=True)
COMMUNITY = replace(
    FLUX,
    schedulers=True,
    negative_prompt=True,
    loras=True,
    options=frozenset(
        {
            "algorithm_type",
            "clip_skip",
            "enhance_prompt",
            "enhance_style",
            "highres_fix",
            "safety_checker",
            "safety_checker_type",
            "upscale",
            "use_karras_sigmas",
            "vae",
        }
    ),
)
FLUX_PRO = Model(sides=(512, 1024), max_cfg=10, negative_prompt=True)
MODELS: Mapping[str, Model] = {
    "flux": FLUX,
    "sdxl": COMMUNITY,
    "midjourney": COMMUNITY,
    "flux-pro-1.1": FLUX_PRO,
    "flux-pro-1.1-ultra": FLUX_PRO,
    "imagen-3": Model(),
    "imagen-4": Model(ratios=IMAGEN),
    "imagen-4.0-fast-generate": Model(ratios=IMAGEN, max_prompt=TOKENS_480),
    "imagen-4.0-ultra": Model(ratios=IMAGEN, max_prompt=TOKENS_480, max_samples=4),
    "nano-banana-t2i": Model(),
    "nano-banana-pro": Model(ratios=WIDER, images=(0, 14)),
    "seedream-t2i": Model(sides=(512, 1024)),
    "seedream-4": Model(ratios=WIDER),
    "seedream-4.5": Model(ratios=WIDER),
    "flux-kontext-pro": Model(ratios=(*WIDER, "9:21"), images=(1, 1)),
    "seededit-i2i": Model(images=(1, 1)),
    "seedream-4.0-i2i": Model(images=(1, 10)),
    "seedream-4.5-i2i": Model(ratios=("1:1", "4:3", "16:9", "9:16", "3:2", "2:3", "21:9"), images=(1, 10)),
}
SCHEDULERS = tuple(
    f"{name}Scheduler"
    for name in (
        *("DDPM", "DDIM", "PNDM", "LMSDiscrete", "EulerDiscrete", "EulerAncestralDiscrete", "DPMSolverMultistep"),
        *("HeunDiscrete", "KDPM2Discrete", "DPMSolverSinglestep", "KDPM2AncestralDiscrete", "UniPCMultistep"),
        *("DDIMInverse", "DEISMultistep", "IPNDM", "KarrasVe", "ScoreSdeVe", "LCM"),
    )
)
REDRAWING_SCHEDULER = "UniPCMultistepScheduler"  # community models must be told one to start from a picture
SAMPLER_FIELDS = {
    "steps": "num_inference_steps",
    "cfg": "guidance_scale",
    "scheduler": "scheduler",
    "denoise": "strength",
}


def fitted(name: str, model: Model, parameters: Parameters) -> Parameters:
    """The parameters as this model takes them. Raises `InvalidParameters` for what it would pass over in silence."""
    if model.max_prompt is not None and len(parameters.prompt) > model.max_prompt:
        message = (
            f"{name} takes prompts of about {model.max_prompt // 4} tokens, which is {model.max_prompt} characters;"
            f" this one has {len(parameters.prompt)}."
        )
        raise InvalidParameters(message, field="prompt")
    if not 1 <= parameters.batch_size <= model.max_samples:
        message = f"{name} makes 1 to {model.max_samples} pictures at once, not {parameters.batch_size}."
        if model.max_samples == 1:
            message = f"{name} makes one picture at a time, not {parameters.batch_size}."
        raise InvalidParameters(message, field="batch_size")
    if parameters.negative_prompt and not model.negative_prompt:
        raise InvalidParameters(f"{name} takes no negative prompt; leave it out.", field="negative_prompt")
    if parameters.lora_models and not model.loras:
        raise InvalidParameters(f"{name} takes no LoRAs; leave them out.", field="lora_models")
    _check_images(name, model, len(parameters.input_images))
    redraws = model.redraws and bool(parameters.input_images)
    _check_sampler(name, model, parameters.sampler_params, redraws=redraws)
    ratio = _check_options(name, model, parameters.options)
    if redraws:
        for field in ("width", "height"):
            if getattr(parameters, field) is not None:
                message = f"{name} makes a picture as large as the one it starts from; leave width and height out."
                raise InvalidParameters(message, field=field)
        return replace(parameters, model=name)
    width, height = _size(name, model, parameters, ratio)
    return replace(parameters, model=name, width=width, height=height)


def fields_of(
    model: Model, parameters: Parameters, images: Sequence[str] = (), shape: tuple[int, int] = (1, 1)
) -> dict[str, Any]:
    """What is said of fitted parameters in the body of a submit.

    `images` are the links of the pictures to start from, `shape` the proportions where none were asked for.
    """
    fields: dict[str, Any] = {"model_id": parameters.model, "prompt": parameters.prompt, **parameters.options}
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
        fields.setdefault("scheduler", REDRAWING_SCHEDULER)
    return fields


# --- checking ---------------------------------------------------------------------------------------------------------


def _check_images(name: str, model: Model, given: int) -> None:
    least, most = model.images
    if not most and given:
        raise InvalidParameters(f"{name} takes no pictures to start from; leave them out.", field="input_images")
    if not least <= given <= most:
        takes = f"{least} to {most} pictures" if least != most else "one picture"
        raise InvalidParameters(f"{name} takes {takes} to start from, not {given}.", field="input_images")


def _check_sampler(name: str, model: Model, given: Mapping[str, Any], *, redraws: bool) -> None:
    for field, value in given.items():
        path = f"sampler_params.{field}"
        if field == "denoise" and redraws:
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                raise InvalidParameters(f"{name} takes denoise from 0 to 1, not {value}.", field=path)
            continue
        if field == "scheduler" and model.schedulers:
            if value not in SCHEDULERS:
                near = get_close_matches(str(value), SCHEDULERS, n=3, cutoff=0.3) or SCHEDULERS
                raise InvalidParameters(f"{name} has no scheduler {value!r}; try {' or '.join(near)}.", field=path)
            continue
        greatest = {"steps": model.max_steps, "cfg": model.max_cfg}.get(field, 0)
        if not greatest:
            raise InvalidParameters(f"{name} takes no {field}; leave it out.", field=path)
        if not isinstance(value, int | float) or not 1 <= value <= greatest:
            raise InvalidParameters(f"{name} takes {field} from 1 to {greatest}, not {value}.", field=path)


def _check_options(name: str, model: Model, given: Mapping[str, Any]) -> str | None:
    """The aspect ratio, if it is asked for by name."""
    known = model.options | ({"aspect_ratio"} if model.ratios else set())
    for field in given:
        if field not in known:
            takes = f"it takes {', '.join(sorted(known))}" if known else "it takes none"
            message = f"{name} has no option {field[:60]!r}; {takes}."
            raise InvalidParameters(message, field=f"provider_options.{field}")
    ratio = given.get("aspect_ratio")
    if "aspect_ratio" in given and ratio not in model.ratios:
        message = f"{name} makes {', '.join(model.ratios)}, not {ratio!r}."
        raise InvalidParameters(message, field="provider_options.aspect_ratio")
    return ratio


def _size(name: str, model: Model, parameters: Parameters, ratio: str | None) -> tuple[int | None, int | None]:
    """Width and height as the model takes them; None where it chooses them itself."""
    width = parameters.width if parameters.width is not None else parameters.height
    height = parameters.height if parameters.height is not None else parameters.width
    if model.sides is not None:
        least, greatest = model.sides
        sizes = {"width": greatest if width is None else width, "height": greatest if height is None else height}
        for field, side in sizes.items():
            if not least <= side <= greatest or side % SIDE_STEP:
                message = (
                    f"{name} makes a {field} of {least} to {greatest} pixels, divisible by {SIDE_STEP}; not {side}."
                )
                raise InvalidParameters(message, field=field)
        return sizes["width"], sizes["height"]
    if width is None or height is None:
        return None, None
    for field, side in (("width", width), ("height", height)):
        if not 1 <= side <= MAX_SIDE:
            raise InvalidParameters(f"The {field} must be at most {MAX_SIDE} pixels, not {side}.", field=field)
    if not model.ratios:
        raise InvalidParameters(f"{name} chooses the size itself; leave width and height out.", field="width")
    nearest, distance = _nearest(model.ratios, width, height)
    if distance > RATIO_TOLERANCE or ratio not in {None, nearest}:
        wanted = f"{', '.join(model.ratios)}" if ratio is None else ratio
        message = f"{name} makes {wanted}; {width}x{height} is none of these, the nearest is {nearest}."
        raise InvalidParameters(message, field="width")
    return width, height


def _nearest(ratios: Sequence[str], width: int, height: int) -> tuple[str, float]:
    """The ratio that is most like this size, and how far off it is (0.1: a tenth)."""

    def distance(ratio: str) -> float:
        across, down = ratio.split(":")
        return abs(math.log(width / height * int(down) / int(across)))

    nearest = min(ratios, key=distance)
    return nearest, distance(nearest)
