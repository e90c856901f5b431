"""The body of a submit: its fields, their bounds, and the row they become."""

import hashlib
import random
import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Annotated, Any, Self

import orjson
from pydantic import (
    AwareDatetime,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationInfo,
    create_model,
    field_validator,
    model_validator,
)

from safelight.api.fields import Body, Metadata, OpaqueId
from safelight.bounds import Int, Name, Number
from safelight.config import Settings, Tier
from safelight.db import new_id
from safelight.errors import FieldError, Invalid
from safelight.jobs import NewJob, Unavailability, as_stop, columns_of, estimate_key, next_available, skip
from safelight.providers.address import FetchRefused, checked_url
from safelight.providers.base import InvalidParameters, Limits, Lora, Parameters, Provider
from safelight.providers.parameters import ASKED, Prompt, Seed, asked_fields
from safelight.providers.registry import NoDefault, Registry, UnknownProvider
from safelight.stories import MAX_SCENE_NUMBER

KIND = "image.generate"
PAST_TOLERANCE = timedelta(seconds=5)
FURTHEST_START = timedelta(days=366)
MOMENT = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d(:[0-5]\d(\.\d+)?)?([Zz]|[+-]\d\d:?\d\d)?", re.ASCII)
NO_MOMENT = "must be a moment as text with its offset (RFC 3339), for example 2027-01-31T18:00:00Z"
RANDOM_SEEDS = 2**32
MAX_ROUTE = 8
SHOWN_FAULTS = 3  # in the sentence; all of them are among the errors

Answers = dict[bytes, InvalidParameters | None]  # of providers' servers, by what they were asked


class LoraRequest(Body):
    """A LoRA and its strengths."""

    name: Name
    strength_model: Number = Field(1.0, ge=-20, le=20)
    strength_clip: Number = Field(1.0, ge=-20, le=20)


class SamplerParams(Body):
    """How to sample; what a provider does not know it refuses."""

    steps: Int | None = Field(None, ge=1, le=1000)
    cfg: Number | None = Field(None, ge=0, le=100)
    sampler: Name | None = None
    scheduler: Name | None = None
    denoise: Number | None = Field(None, ge=0, le=1)
    seed: Seed | None = Field(None, description="The same as `seed` beside it")


ProviderName = Annotated[str, Field(json_schema_extra={"minLength": 1, "maxLength": 200})]
EACH_ONCE = Field(json_schema_extra={"minItems": 1, "maxItems": MAX_ROUTE, "uniqueItems": True})


_fields = {name: each for name, each in asked_fields().items() if name != "prompt"}  # which not all of them need
_Asked = create_model("_Asked", __base__=Body, **_fields)


class PictureRequest(_Asked):
    """How one or more pictures are to be made, whatever they show."""

    lora_models: list[LoraRequest] = Field([], max_length=16)
    sampler_params: SamplerParams = Field(default_factory=lambda: SamplerParams.model_validate({}))
    provider: ProviderName | Annotated[list[ProviderName], EACH_ONCE] | None = Field(
        None,
        description="A provider, a route of the installation, or a list of providers to try in turn. "
        "Default: the installation's own, which `GET /api/v1/providers` marks; without one it has to be named",
        examples=["mock", ["comfyui", "modelslab"]],
    )
    image_type: Annotated[str, StringConstraints(min_length=1, max_length=80)] | None = Field(
        None, description="Default `scene` when scene fields are given"
    )
    script_id: OpaqueId | None = None
    priority: Int = Field(
        0,
        ge=-10,
        le=10,
        description="Higher runs first among the jobs of an owner: a step is worth a minute of waiting",
    )
    run_at: AwareDatetime | None = Field(None, description="Not before this moment (RFC 3339, with an offset)")
    start_within_seconds: Number | None = Field(
        None, gt=0, le=7 * 86400, description="Else it fails with `start_deadline_exceeded`"
    )
    timeout_seconds: Number | None = Field(None, ge=1, le=86400, description="Soft limit of an attempt")
    max_retries: Int | None = Field(None, ge=0, le=20, description="Of transient failures; default 3")
    metadata: Metadata = Field({}, max_length=50, description="Your own notes, given back in every view")

    @field_validator("provider", mode="before")
    @classmethod
    def names_of_providers(cls, value: Any) -> Any:
        """One sentence for whatever is wrong, instead of one for each form it could have had."""
        names: list[Any] = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(name, str) and 1 <= len(name) <= 200 and "\x00" not in name for name in names):
            raise ValueError("must be the name of a provider or of a route, or a list of providers")
        if value is not None and not 1 <= len(names) <= MAX_ROUTE:
            raise ValueError(f"must name 1 to {MAX_ROUTE} providers")
        if len(set(names)) < len(names):
            raise ValueError("must name each provider once")
        return value

    @field_validator("run_at", mode="before")
    @classmethod
    def moment(cls, value: Any) -> Any:
        """One sentence for whatever is no moment; numbers are none, as nobody could say of which unit they are."""
        if value is None or (isinstance(value, str) and MOMENT.fullmatch(value)):
            return value
        raise ValueError(NO_MOMENT)

    @field_validator("run_at")
    @classmethod
    def not_past(cls, value: datetime | None) -> datetime | None:
        if value is None:
            return None
        now = datetime.now(UTC)
        if value < now - PAST_TOLERANCE:
            raise ValueError(f"must not be in the past (it is {now.isoformat(timespec='seconds')} now)")
        if value > now + FURTHEST_START:
            raise ValueError("must be within a year")
        return value.astimezone(UTC)

    @field_validator("start_within_seconds")
    @classmethod
    def not_over_before_it_may_start(cls, value: float | None, info: ValidationInfo) -> float | None:
        run_at = info.data.get("run_at")
        if value is not None and run_at is not None and run_at > datetime.now(UTC) + timedelta(seconds=value):
            raise ValueError("counts from the submit, and must not be over before run_at")
        return value

    @model_validator(mode="after")
    def one_seed(self) -> Self:
        asked: Any = self
        if self.sampler_params.seed is not None and asked.seed not in (None, self.sampler_params.seed):
            raise ValueError("seed and sampler_params.seed differ; give one of them")
        return self

    def fingerprint(self, about: str | None) -> str:
        """What an idempotency key is bound to: the fields as given, in any order, and what they are about if not all
        is said in them: the job they retry, the path they were sent to.
        """
        given = [about, self.model_dump(mode="json", exclude_unset=True)]
        return hashlib.sha256(orjson.dumps(given, option=orjson.OPT_SORT_KEYS)).hexdigest()


class GenerationRequest(PictureRequest):
    """A request for one or more pictures."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"prompt": "a lighthouse at dusk"},
                {
                    "prompt": "a lighthouse at dusk, storm coming",
                    "width": 768,
                    "height": 512,
                    "seed": 7,
                    "chapter_id": "chapter-1",
                    "scene_number": 3,
                    "metadata": {"user": "42"},
                },
            ]
        },
    )

    prompt: Prompt = Field(description="What to draw")
    project_id: OpaqueId | None = None
    chapter_id: OpaqueId | None = None
    scene_number: Int | None = Field(None, ge=0, le=MAX_SCENE_NUMBER)
    character_id: OpaqueId | None = None

    @cached_property
    def parameters(self) -> Parameters:
        """What it asks of a provider."""
        asked: dict[str, Any] = {name: getattr(self, name) for name in ASKED}
        if asked["seed"] is None:
            asked["seed"] = self.sampler_params.seed
        asked["lora_models"] = tuple(
            Lora(each.name, each.strength_model, each.strength_clip) for each in self.lora_models
        )
        asked["sampler_params"] = self.sampler_params.model_dump(exclude_none=True, exclude={"seed"})
        return Parameters(KIND, **asked)


def new_job(
    request: GenerationRequest,
    *,
    owner_id: str,
    providers: Registry,
    settings: Settings,
    request_id: str,
    tier: Tier | None = None,
    template: Mapping[str, Any] | None = None,
    idempotency_key: str | None = None,
    origin_job_id: str | None = None,
    unavailable: Mapping[str, Unavailability] | None = None,
) -> NewJob:
    """The job a request asks for, checked by its providers, with every default filled in. Raises `Invalid`.

    Each provider of a route is asked now; the first that takes the parameters and is available gets the job, and those
    after it are its route. `template` is what stands behind the request's, if that is one of the owner's own.
    """
    try:
        names = route_of(request.provider, settings, providers)
    except NoDefault as error:
        raise _invalid(error) from None
    asked = request.parameters if template is None else replace(request.parameters, template_definition=template)
    _check_addresses(asked)
    seed = random.randrange(RANDOM_SEEDS)  # the same wherever it is made
    candidates: list[dict[str, Any]] = []
    skips: list[dict[str, Any]] = []
    refusals: list[InvalidParameters] = []
    unknown: list[UnknownProvider] = []
    now = datetime.now(UTC)
    for name in names:
        try:
            model = asked.model or (tier.models.get(name) if tier is not None else None)
            wish = asked if model == asked.model else replace(asked, model=model)
            candidates.append(_as_taken_by(name, wish, request.timeout_seconds, seed, providers, settings))
        except UnknownProvider as error:
            unknown.append(error)
        except InvalidParameters as error:
            refusals.append(error)
            skips.append(skip(name, error.code, error.message, now))
    if unknown or not candidates:
        raise _invalid(*unknown, *refusals)
    place = next_available(candidates, unavailable or {}) or 0
    for passed in candidates[:place]:
        unavailability = (unavailable or {})[passed["provider"]]
        skips.append(skip(passed["provider"], unavailability.code, unavailability.reason, now))
    is_scene = any(value is not None for value in (request.scene_number, request.chapter_id, request.script_id))
    values: Mapping[str, Any] = {
        **candidates[place],
        "route": [as_stop(each) for each in candidates[place + 1 :]] or None,
        "skips": skips or None,
        "image_type": request.image_type or ("scene" if is_scene else None),
        "project_id": request.project_id,
        "chapter_id": request.chapter_id,
        "script_id": request.script_id,
        "scene_number": request.scene_number,
        "character_id": request.character_id,
        "metadata": request.metadata,
        "priority": request.priority,
        "max_retries": settings.max_retries if request.max_retries is None else request.max_retries,
        "batch_id": None,
        "origin_job_id": origin_job_id,
        "request_id": request_id,
        "owner_limit": tier.jobs_at_once if tier is not None else None,
    }
    return NewJob(
        id=new_id(),
        kind=KIND,
        owner_id=owner_id,
        values=values,
        run_at=request.run_at,
        start_within_seconds=request.start_within_seconds,
        idempotency_key=idempotency_key,
        fingerprint=request.fingerprint(origin_job_id) if idempotency_key is not None else "",
    )


def route_of(asked: str | list[str] | None, settings: Settings, providers: Registry) -> list[str]:
    """The providers to try, in order. Raises `NoDefault`."""
    if isinstance(asked, list):
        return asked
    name = asked or providers.required_default()
    return settings.routes.get(name, [name])


def _as_taken_by(
    name: str,
    parameters: Parameters,
    timeout_seconds: float | None,
    seed: int,
    providers: Registry,
    settings: Settings,
) -> dict[str, Any]:
    """The columns by which a provider would take this request; `seed` if none is given. Raises `InvalidParameters`."""
    _, provider, mocked = providers.resolve(name)
    checked = provider.check(parameters)
    soft, hard = attempt_limits(provider, timeout_seconds, settings)
    if not provider.takes_seed(checked):
        checked = replace(checked, seed=None)
    elif checked.seed is None:
        checked = replace(checked, seed=seed)
    return {
        "provider": name,
        "mocked": mocked,
        "parameters": checked,
        "estimate_key": estimate_key(name, checked, mocked=mocked),
        "soft_limit_seconds": soft,
        "hard_limit_seconds": hard,
    }


def _check_addresses(asked: Parameters) -> None:
    """Raises `Invalid` for an address of a picture that nobody would fetch."""
    for field, reference in asked.pictures.items():
        try:
            _ = "://" in reference and checked_url(reference)
        except FetchRefused as error:
            message = f"each address must be one that can be fetched: {error.message}"
            raise _invalid(InvalidParameters(message, field=field.partition(".")[0])) from None


def attempt_limits(provider: Provider, timeout_seconds: float | None, settings: Settings) -> tuple[float, float]:
    """Soft and hard limit of an attempt, in seconds; a timeout that was asked for is the soft one."""
    limits = provider.capabilities.limits or Limits(settings.soft_limit_seconds, settings.hard_limit_seconds)
    if timeout_seconds is None:
        return limits.soft_seconds, limits.hard_seconds
    return timeout_seconds, timeout_seconds + (limits.hard_seconds - limits.soft_seconds)


def _invalid(*refusals: InvalidParameters) -> Invalid:
    """All that each provider of a route has against a request."""
    faults = [fault for refusal in refusals for fault in refusal.faults]
    errors = [FieldError("#/" + each.field.replace(".", "/") if each.field else "#", each.message) for each in faults]
    told = list(dict.fromkeys(each.message for each in faults))
    return Invalid(" ".join(told[:SHOWN_FAULTS]), errors=list(dict.fromkeys(errors)))


async def verified(new: NewJob, providers: Registry, answers: Answers | None = None) -> NewJob:
    """The job with the first provider of its route whose servers have what it asks for. Raises `Invalid`.

    `answers` remembers what was said of a batch's earlier jobs, so that those alike are asked about once.
    """
    values: dict[str, Any] = dict(new.values)
    refusals: list[InvalidParameters] = []
    while True:
        error = await _ask(values["provider"], values["parameters"], providers, answers)
        if error is None:
            return replace(new, values=values) if refusals else new
        refusals.append(error)
        if not values["route"]:
            raise _invalid(*refusals)
        passed = skip(values["provider"], error.code, error.message, datetime.now(UTC))
        following, *rest = values["route"]
        values |= {**columns_of(following), "route": rest or None, "skips": [*(values["skips"] or []), passed]}


async def _ask(
    name: str, parameters: Parameters, providers: Registry, answers: Answers | None
) -> InvalidParameters | None:
    """What a provider's servers have against these parameters."""
    question: bytes | None = None
    if answers is not None:
        # Servers know models and nodes: what is told to the model is not theirs to refuse.
        asked = replace(parameters, prompt="", negative_prompt=None, seed=None)
        question = orjson.dumps([name, asked], option=orjson.OPT_SORT_KEYS)
        if question in answers:
            return answers[question]
    error: InvalidParameters | None = None
    try:
        await providers.resolve(name)[1].verify(parameters)
    except InvalidParameters as found:
        error = found
    if answers is not None and question is not None:
        answers[question] = error
    return error
