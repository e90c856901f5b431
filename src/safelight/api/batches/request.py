"""The body of a batch: its fields, their bounds, and the jobs they become."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, cast

import orjson
from fastapi import Request
from pydantic import ConfigDict, Field, SkipValidation, ValidationError, field_validator

from safelight.accounts import Identity
from safelight.api.fields import Body, Metadata
from safelight.api.job_request import Answers, GenerationRequest, verified
from safelight.api.jobs import import_for, job_for
from safelight.api.media.import_request import IMPORT, MediaRequest
from safelight.api.problems import invalid_body, invalid_fields
from safelight.api.service.templates import template_of
from safelight.bootstrap import Safelight
from safelight.errors import FieldError, Invalid, SafelightError
from safelight.jobs import MAX_BATCH_JOBS, Job, NewJob

MAX_FIELD_ERRORS = 50  # after which no more jobs are looked at
SLICE_SECONDS = 0.005  # of checking, after which others have their turn
MAX_BULK_BYTES = 32 * 1024 * 1024  # of what the jobs of a batch bear together: each has its workflow and its template
VERIFY_SECONDS = 3.0  # for asking providers' servers about all jobs together; what is not asked then, the attempt sees


class BatchTooBulky(SafelightError):
    """The jobs of this batch are too large together."""

    kind = "too_large"
    code = "batch_too_bulky"

    def __init__(self) -> None:
        most = MAX_BULK_BYTES // 1024**2
        super().__init__(f"The jobs of a batch may have {most} MiB of workflows and templates together; send fewer.")


def check_bulk(size_bytes: int) -> None:
    """Raises `BatchTooBulky`."""
    if size_bytes > MAX_BULK_BYTES:
        raise BatchTooBulky


class BatchJob(GenerationRequest):
    """One job of a batch: the body of `POST /generation-jobs`, and its kind."""

    kind: Literal["image.generate"] = "image.generate"

    @field_validator("kind", mode="before")
    @classmethod
    def known(cls, value: Any) -> Any:
        if value != "image.generate":
            raise ValueError(f"must be image.generate or {IMPORT}")
        return value


class BatchImport(MediaRequest):
    """One import of a batch: the body of `POST /media/store`, and its kind."""

    kind: Literal["media.import"]


class BatchRequest(Body):
    """Jobs that are accepted together or not at all."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "name": "chapter 1",
                    "jobs": [
                        {"prompt": "a lighthouse at dusk", "chapter_id": "chapter-1", "scene_number": 1},
                        {"prompt": "the keeper climbs the stairs", "chapter_id": "chapter-1", "scene_number": 2},
                    ],
                }
            ]
        },
    )

    # Checked by `checked_jobs`, in a thread: a thousand at once would hold up everybody else.
    jobs: list[SkipValidation[BatchJob | BatchImport]] = Field(min_length=1, max_length=MAX_BATCH_JOBS)
    name: str | None = Field(None, min_length=1, max_length=200)
    metadata: Metadata = Field({}, max_length=50, description="Your own notes, given back in every view")


async def checked_jobs(
    given: Sequence[tuple[Any, Job | None]], request: Request, world: Safelight, asker: Identity
) -> list[NewJob]:
    """The jobs that these bodies ask for, each beside the job it retries, if any; checked as a single one is.

    Raises `Invalid` with all that is wrong, up to a bound, and `BatchTooBulky`. What takes long is done in a thread, or
    in pieces of a few milliseconds.
    """
    turn = Turn()
    bodies = await asyncio.to_thread(_read, [body for body, _ in given])
    templates: dict[str | None, Mapping[str, Any] | None] = {None: None}
    for body, (_, origin) in zip(bodies, given, strict=False):  # reading ends early where much is wrong
        await turn.over()
        if isinstance(body, BatchJob) and origin is None and body.parameters.template not in templates:
            own = await template_of(world, asker.owner_id, body.parameters.template)
            templates[body.parameters.template] = None if own is None else own.definition

    def make() -> tuple[list[NewJob], list[FieldError], int]:
        made: list[NewJob] = []
        wrong: list[FieldError] = []
        place = bulk = 0
        for place, (body, (_, origin)) in enumerate(zip(bodies, given, strict=False)):
            try:
                if isinstance(body, Invalid):
                    raise body
                if isinstance(body, BatchImport):
                    made.append(import_for(request, world, asker, body, origin=origin))
                else:  # a retry takes the template as it was then
                    name = body.parameters.template
                    template = templates[name] if origin is None else origin.parameters.template_definition
                    made.append(job_for(request, world, asker, body, template=template, origin=origin))
                    bulk += _bulk(made[-1])
                    check_bulk(bulk)
            except Invalid as error:
                wrong += _placed(place, error)
            if len(wrong) >= MAX_FIELD_ERRORS:
                break
        return made, wrong, place

    made, wrong, seen = await asyncio.to_thread(make)
    answers: Answers = {}
    give_up = turn.now() + VERIFY_SECONDS
    for place, new in enumerate(made if not wrong else ()):
        await turn.over()
        if turn.now() > give_up:
            break
        try:
            made[place] = await verified(new, world.providers, answers)
        except Invalid as error:
            wrong += _placed(place, error)
            seen = place
        if len(wrong) >= MAX_FIELD_ERRORS:
            break
    if wrong:
        found = invalid_fields(wrong)
        rest = len(given) - 1 - seen
        raise found if not rest else Invalid(f"{found.detail}; {rest} more jobs were not looked at", errors=wrong)
    return made


def _read(given: Sequence[Any]) -> list[BatchJob | BatchImport | Invalid]:
    """What each of these bodies is, or what is wrong with it, as far as so much is told."""
    read: list[BatchJob | BatchImport | Invalid] = []
    wrong = 0
    for body in given:
        is_import = isinstance(body, dict) and cast(dict[str, Any], body).get("kind") == IMPORT
        model = BatchImport if is_import else BatchJob
        try:
            read.append(model.model_validate(body))
        except ValidationError as error:
            invalid = invalid_body(error, model)
            read.append(invalid)
            wrong += len(invalid.errors)
            if wrong >= MAX_FIELD_ERRORS:
                break
    return read


class Turn:
    """One's time on the loop."""

    def __init__(self) -> None:
        self.now = asyncio.get_running_loop().time
        self._ends = self.now() + SLICE_SECONDS

    async def over(self) -> None:
        """Let the others have theirs, if this one has lasted long enough."""
        if self.now() > self._ends:
            await asyncio.sleep(0)
            self._ends = self.now() + SLICE_SECONDS


def _bulk(new: NewJob) -> int:
    return sum(len(orjson.dumps(each)) for each in (new.parameters.workflow, new.parameters.template_definition))


def _placed(place: int, error: Invalid) -> list[FieldError]:
    return [replace(each, pointer=f"#/jobs/{place}{each.pointer.removeprefix('#')}") for each in error.errors]
