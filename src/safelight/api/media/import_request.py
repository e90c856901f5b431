"""The body of a media import: its fields, their bounds, and the row they become."""

import hashlib
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from typing import Annotated, Any

import orjson
from pydantic import ConfigDict, Field, StringConstraints, field_validator

from safelight import stories
from safelight.api.fields import Body, OpaqueId
from safelight.api.job_request import attempt_limits
from safelight.api.problems import invalid_fields
from safelight.bootstrap import Safelight
from safelight.bounds import Int, Number
from safelight.config import Settings, Tier
from safelight.db import Tx, new_id
from safelight.errors import FieldError, Invalid, SafelightError
from safelight.jobs import Job, NewBatch, NewJob, Submitted, SubmittedBatch
from safelight.providers.address import AddressRefused, UrlRefused
from safelight.providers.base import InvalidParameters, Parameters
from safelight.providers.registry import Registry

IMPORT = "media.import"
PROVIDER = "media"

Url = Annotated[
    str,
    StringConstraints(min_length=1, max_length=2000),
    Field(json_schema_extra={"pattern": "^https?://[^\\u0000]+$"}),
]


class UrlNotFetched(Invalid):
    """Only http:// and https:// URLs are fetched."""

    code = UrlRefused.code


class AddressNotFetched(Invalid):
    """This address must not be connected to."""

    code = AddressRefused.code


class ProbeRequest(Body):
    """A URL to look at."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"url": "https://example.com/lighthouse.mp4"}]}
    )

    url: Url = Field(description="Of a media file, or of a page that plays one")


class MediaRequest(Body):
    """A request to import what a URL leads to."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"url": "https://example.com/lighthouse.mp4"},
                {"url": "https://example.com/watch?v=7", "max_height": 720, "metadata": {"user": "42"}},
            ]
        },
    )

    url: Url = Field(description="Of a media file, or of a page that plays one")
    scene_id: str | None = Field(None, description="The scene whose `media_status` and `media_url` follow this import")
    project_id: OpaqueId | None = None
    max_height: Int | None = Field(
        None, ge=1, le=8192, description="Pixels: of several forms on offer, the largest that is not higher"
    )
    audio_only: Annotated[bool, Field(strict=True)] = Field(False, description="The sound alone")
    priority: Int = Field(0, ge=-10, le=10, description="Higher runs first")
    timeout_seconds: Number | None = Field(None, ge=1, le=86400, description="Soft limit of an attempt; default 3600")
    max_retries: Int | None = Field(None, ge=0, le=20, description="Of transient failures; default 3")
    metadata: dict[
        Annotated[str, StringConstraints(min_length=1, max_length=100)],
        Annotated[str, StringConstraints(max_length=1000)],
    ] = Field({}, max_length=50, description="Your own notes, given back in every view")

    @field_validator("metadata")
    @classmethod
    def no_nul_within(cls, value: dict[str, str]) -> dict[str, str]:
        if any("\0" in part for pair in value.items() for part in pair):
            raise ValueError("must not contain the character NUL")
        return value

    def fingerprint(self, about: str | None) -> str:
        """What an idempotency key is bound to."""
        given = [IMPORT, about, self.model_dump(mode="json", exclude_unset=True)]
        return hashlib.sha256(orjson.dumps(given, option=orjson.OPT_SORT_KEYS)).hexdigest()


def new_import(
    request: MediaRequest,
    *,
    owner_id: str,
    providers: Registry,
    settings: Settings,
    request_id: str,
    tier: Tier | None = None,
    idempotency_key: str | None = None,
    origin_job_id: str | None = None,
) -> NewJob:
    """The job that an import asks for, with every default filled in. Raises `Invalid`.

    It has no prompt; what it imports stands in the options of its provider, and its scene among its inputs.
    """
    options = request.model_dump(include={"url", "max_height", "audio_only"})
    _, provider, mocked = providers.resolve(PROVIDER)
    try:
        checked = provider.check(Parameters(IMPORT, "", provider_options=options))
    except InvalidParameters as error:
        raise refused(error) from None
    soft, hard = attempt_limits(provider, request.timeout_seconds, settings)
    scene = {} if request.scene_id is None else {"scene_id": request.scene_id}
    values: dict[str, Any] = {
        **dict.fromkeys(
            ("route", "skips", "image_type", "chapter_id", "script_id", "scene_number", "character_id", "batch_id")
        ),
        "provider": PROVIDER,
        "mocked": mocked,
        "parameters": replace(checked, inputs=scene),
        "soft_limit_seconds": soft,
        "hard_limit_seconds": hard,
        "project_id": request.project_id,
        "metadata": request.metadata,
        "priority": request.priority,
        "max_retries": settings.max_retries if request.max_retries is None else request.max_retries,
        "origin_job_id": origin_job_id,
        "request_id": request_id,
        "owner_limit": tier.jobs_at_once if tier is not None else None,
    }
    return NewJob(
        id=new_id(),
        kind=IMPORT,
        owner_id=owner_id,
        values=values,
        idempotency_key=idempotency_key,
        fingerprint=request.fingerprint(origin_job_id) if idempotency_key is not None else "",
    )


def import_of(job: Job) -> dict[str, Any]:
    """The body that would ask for this import again."""
    return {
        **job.parameters.provider_options,
        **job.parameters.inputs,
        "project_id": job.project_id,
        "priority": job.priority,
        "timeout_seconds": job.soft_limit_seconds,
        "max_retries": job.max_retries,
        "metadata": job.metadata,
    }


def submit_import(world: Safelight) -> Callable[[NewJob], Awaitable[Submitted | SafelightError]]:
    """Submits imports, and lets their scenes follow them, in one transaction."""

    def in_transaction(tx: Tx, new: NewJob) -> Submitted | SafelightError:
        for missing in _missing_scenes(tx, [new]).values():
            return missing
        [outcome] = world.jobs.submit(tx, [new])
        if isinstance(outcome, Submitted) and not outcome.replayed:
            _let_follow(tx, [new])
        return outcome

    return lambda new: world.database.write(in_transaction, new)


def submit_imports(world: Safelight) -> Callable[[NewBatch], Awaitable[SubmittedBatch | SafelightError]]:
    """The same for the imports of a batch."""

    def in_transaction(tx: Tx, new: NewBatch) -> SubmittedBatch | SafelightError:
        missing = _missing_scenes(tx, new.jobs)
        if missing:
            return invalid_fields(
                [FieldError(f"#/jobs/{place}/scene_id", scene.detail) for place, scene in missing.items()]
            )
        outcome = world.jobs.submit_batch(tx, new)
        if isinstance(outcome, SubmittedBatch) and not outcome.replayed:
            _let_follow(tx, new.jobs)
        return outcome

    return lambda new: world.database.write(in_transaction, new)


def _scenes_of(new: Sequence[NewJob]) -> Iterator[tuple[int, NewJob, str]]:
    """The imports that have a scene, with their place and its id."""
    for place, each in enumerate(new):
        if each.kind == IMPORT and each.parameters.inputs:
            yield place, each, each.parameters.inputs["scene_id"]


def _missing_scenes(tx: Tx, new: Sequence[NewJob]) -> dict[int, SafelightError]:
    scenes = {place: stories.get_scene(tx, scene_id, each.owner_id) for place, each, scene_id in _scenes_of(new)}
    return {place: scene for place, scene in scenes.items() if isinstance(scene, SafelightError)}


def _let_follow(tx: Tx, new: Sequence[NewJob]) -> None:
    for _, each, scene_id in _scenes_of(new):
        missing = stories.expect_media(tx, scene_id, each.owner_id, each.id)
        if missing is not None:
            raise missing  # deleted a moment ago: nothing of this is kept


def refused(error: InvalidParameters) -> Invalid:
    """What a provider has against an import, each reason by its own code."""
    errors = [FieldError(f"#/{error.field}", error.message)] if error.field else []
    match error.__cause__:
        case AddressRefused():
            return AddressNotFetched(error.message, errors=errors)
        case UrlRefused():
            return UrlNotFetched(error.message, errors=errors)
        case _:
            return Invalid(error.message, errors=errors)
