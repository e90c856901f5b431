"""What is asked of a provider: one value, which the API reads, the row keeps, the provider is given and the view shows.

A field is declared here alone, with its bounds and what it means. The bounds are those of the API: of safety, far
beyond what models take. What a model takes its provider says, and refuses the rest exactly.
"""

import uuid
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields
from operator import attrgetter
from typing import Annotated, Any, get_type_hints

from pydantic import AfterValidator, Field, StringConstraints

from safelight.bounds import MAX_OPTIONS_BYTES, UUID, HasWords, Int, Name, at_most, storable

MAX_WORKFLOW_BYTES = 512 * 1024
MAX_PROMPT = 100_000  # characters
MAX_PICTURES = 64
MAX_INPUT_IMAGES = 16
MAX_INPUTS = 1000
# The seed of the last picture, higher by their number less one, must fit into 64 bits; floats can tell this exactly.
MAX_SEED = 2**63 - 1024


def _known(value: tuple[str, ...]) -> tuple[str, ...]:
    try:
        return tuple(reference if "://" in reference else str(uuid.UUID(reference)) for reference in value)
    except ValueError:
        raise ValueError("each must be the id of an artifact, or begin with http:// or https://") from None


Seed = Annotated[int, Field(strict=True, ge=0, le=MAX_SEED)]
Prompt = Annotated[str, StringConstraints(min_length=1, max_length=MAX_PROMPT), *HasWords]
Small = AfterValidator(lambda value: storable(value, MAX_OPTIONS_BYTES))
Reference = Annotated[
    str,
    StringConstraints(min_length=1, max_length=2000),
    Field(json_schema_extra={"pattern": f"^({UUID}$|https?://[^\\u0000]+$)"}),
]


@dataclass(frozen=True, slots=True)
class Lora:
    """A LoRA to apply, with its strengths on the diffusion model and on the text encoder."""

    name: str
    strength_model: float = 1.0
    strength_clip: float = 1.0


@dataclass(frozen=True, slots=True)
class Parameters:
    """What to generate. `width` and `height` are pixels; `None` means the provider's default.

    At most one of `template` (a name, with values for its `inputs`) and `workflow` (the caller's own graph) is given.
    `template_definition` is what stands behind the name: given for a template of the caller's own, else filled in by
    the check, and kept with the job. `input_images` are references as they were given; their bytes stand in the
    `Generation`.
    """

    kind: str
    prompt: Prompt
    negative_prompt: Annotated[str | None, Field(max_length=MAX_PROMPT)] = None
    model: Annotated[Name | None, Field(description="A model of the provider; default: its first")] = None
    checkpoint_model: Name | None = None
    lora_models: tuple[Lora, ...] = ()
    width: Annotated[Int | None, Field(ge=16, le=8192, description="Pixels; default: the provider's")] = None
    height: Annotated[Int | None, Field(ge=16, le=8192, description="Pixels; default: the provider's")] = None
    batch_size: Annotated[
        Int, Field(ge=1, le=MAX_PICTURES, description="Pictures to make, as many as the model takes")
    ] = 1
    seed: Annotated[
        Seed | None, Field(description="Default: random, and told in the view; null where the model takes none")
    ] = None
    sampler_params: Mapping[str, Any] = field(default_factory=dict[str, Any])
    provider_options: Annotated[
        Mapping[str, Any], Small, Field(description="Checked by the provider; carries the mock's script")
    ] = field(default_factory=dict[str, Any])
    template: Annotated[Name | None, Field(description="A workflow template, filled with `inputs`")] = None
    template_definition: Mapping[str, Any] | None = None
    inputs: Annotated[
        Mapping[Name, Any],
        at_most(MAX_INPUTS),
        Small,
        Field(description="What the template takes, by name: see `GET /api/v1/templates`"),
    ] = field(default_factory=dict[str, Any])
    workflow: Annotated[
        Mapping[str, Any] | None,
        AfterValidator(lambda value: None if value is None else storable(value, MAX_WORKFLOW_BYTES)),
        Field(description="A workflow of your own, as ComfyUI's `Export (API)`"),
    ] = None
    input_images: Annotated[
        tuple[Reference, ...],
        Field(
            max_length=MAX_INPUT_IMAGES,
            description="Pictures to start from: ids of your artifacts, or http(s) addresses",
        ),
        AfterValidator(_known),
    ] = ()

    @property
    def pictures(self) -> dict[str, str]:
        """The pictures it starts from, by the fields that name them: ids of artifacts, and addresses."""
        return {f"input_images.{place}": reference for place, reference in enumerate(self.input_images)}

    def others(self, taken: Collection[str]) -> list[str]:
        """What is asked for beside the prompt and the fields `taken`: refuse it, or it would be passed over in silence.

        Fields that come with later versions are among it, so a provider need not know of them.
        """
        given = self.as_json().items()
        return [name for name, value in given if value != "" and name not in _ALWAYS and name not in taken]

    def asked(self) -> dict[str, Any]:
        """The caller's part of it, by the names of the API."""
        return dict(zip(ASKED, _asked_of(self), strict=True))

    def as_json(self) -> dict[str, Any]:
        """What is given of it, as JSON can hold it: `of` makes the same of that again."""
        given = {name: value for name, value in zip(_FIELDS, _all_of(self), strict=True) if value not in _NOTHING}
        if self.lora_models:
            given["lora_models"] = [asdict(lora) for lora in self.lora_models]
        return given

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> "Parameters":
        values = dict(given)
        for name in _TUPLES & values.keys():
            values[name] = tuple(values[name])
        if loras := values.get("lora_models"):
            values["lora_models"] = tuple(Lora(**lora) for lora in loras)
        return cls(**values)


_NOTHING = (None, (), {})
_ALWAYS = ("kind", "prompt", "batch_size", "template_definition")
_FIELDS = tuple(each.name for each in fields(Parameters))
ASKED = tuple(name for name in _FIELDS if name not in ("kind", "template_definition"))
_TUPLES = {each.name for each in fields(Parameters) if each.default == ()}
_all_of, _asked_of = attrgetter(*_FIELDS), attrgetter(*ASKED)


def asked_fields(*, is_shown: bool = False) -> dict[str, Any]:
    """The caller's part for a pydantic model: each type with its default, or as it `is_shown`, without its bounds."""
    types = get_type_hints(Parameters, include_extras=not is_shown)
    bare = Parameters("", "")
    return {name: (types[name], ... if is_shown else getattr(bare, name)) for name in ASKED}


@dataclass(frozen=True, slots=True)
class InputImage:
    """A picture to start from, checked to be one."""

    data: bytes
    content_type: str


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds an attempt may take: at `soft` it is failed, at `hard` its slot is freed whatever its code does."""

    soft_seconds: float
    hard_seconds: float


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a provider can do; shown to people and used to refuse early."""

    kinds: frozenset[str]
    models: tuple[str, ...]  # the first is the default; empty: any name is passed on
    max_width: int
    max_height: int
    max_batch: int
    cancel: bool
    progress: bool
    previews: bool
    limits: Limits | None = None  # None: the defaults of the kind
    aspect_ratios: tuple[str, ...] = ()  # empty: any size up to the greatest
    seeds: bool = True
    negative_prompt: bool = True
    input_images: int = 0  # how many it takes
    workflows: bool = False  # templates and graphs of the caller's own
