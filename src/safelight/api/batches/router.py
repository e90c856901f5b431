"""Batches over HTTP: submit many jobs at once, look, list, cancel, retry what failed."""

import asyncio
import contextlib
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Annotated, Any

import orjson
import structlog
from fastapi import APIRouter, Header, Request
from starlette.responses import Response

from safelight.accounts import Identity
from safelight.api.batches.request import BatchRequest, Turn, checked_jobs
from safelight.api.batches.view import (
    PREFIX,
    BatchList,
    BatchView,
    batch_view_of,
    estimate_end,
    summary_of,
)
from safelight.api.body import JsonRoute
from safelight.api.deps import (
    KEY_FORM,
    UNCHANGED,
    Asker,
    IdCursor,
    IdempotencyKey,
    ItemId,
    Limit,
    Owner,
    World,
    idempotency_key,
    list_response,
    polled_response,
    read_id_cursor,
)
from safelight.api.jobs import has_room
from safelight.api.media.import_request import IMPORT, import_of, submit_imports
from safelight.api.problems import refusals
from safelight.api.rate import take_tokens, too_quick
from safelight.api.repetition import request_of
from safelight.bootstrap import Safelight
from safelight.db import Tx, new_id
from safelight.errors import SafelightError, Unavailable
from safelight.jobs import (
    Batch,
    BatchEnded,
    BatchNotFound,
    BatchState,
    Job,
    NewBatch,
    NewJob,
    SubmittedBatch,
    find_batches,
    last_to_end,
    look_at_batch,
    retryable_of,
)

CANCEL_SECONDS = 5.0

router = APIRouter(prefix=PREFIX, tags=["batches"], route_class=JsonRoute)

log = structlog.get_logger()


class NothingToRetry(SafelightError):
    """No job of this batch failed or was cancelled."""

    kind = "conflict"
    code = "nothing_to_retry"


class BatchNotEnded(SafelightError):
    """The batch has not ended. Wait for its end, or cancel it."""

    kind = "conflict"
    code = "batch_not_ended"


@router.post(
    "",
    operation_id="submitBatch",
    status_code=202,
    response_model=BatchView,
    responses=refusals(429),
    summary="Submit a batch of jobs",
)
async def submit(
    body: BatchRequest,
    request: Request,
    world: World,
    asker: Asker,
    key: Annotated[
        str | None,
        Header(
            alias="Idempotency-Key",
            description="Same key, same body: the first batch again. Kept for 24 h",
            json_schema_extra=KEY_FORM,
        ),
    ] = None,
) -> Response:
    """Accept up to 1,000 jobs, all of them or none, and answer at once. What is wrong is told by its place, as
    `#/jobs/17/prompt`, the first 50 of it. The body may have 8 MiB; the jobs start in their order."""
    given: list[Any] = body.jobs
    checked_key = idempotency_key(key)
    checked = await checked_jobs([(each, None) for each in given], request, world, asker)
    fingerprint = ""
    if checked_key is not None:
        fingerprint = await asyncio.to_thread(_fingerprint, [body.name, body.metadata, given])
    new = NewBatch(
        id=new_id(),
        owner_id=asker.owner_id,
        jobs=checked,
        name=body.name,
        metadata=body.metadata,
        idempotency_key=checked_key,
        fingerprint=fingerprint,
    )
    return await accept_batch(request, world, asker, new)


@router.get("", operation_id="listBatches", response_model=BatchList, summary="List batches, newest first")
async def list_batches(
    world: World,
    owner: Owner,
    cursor: IdCursor = None,
    limit: Limit = 50,
) -> Response:
    """Your batches, each with its counts and progress."""
    page = await world.database.read(find_batches, owner, read_id_cursor(cursor), limit)
    items = [summary_of(batch, state) for batch, state in page.batches]
    next_cursor = page.batches[-1][0].id if page.more else None
    return await list_response(items, next_cursor=next_cursor)


@router.get(
    "/{id}",
    operation_id="getBatch",
    response_model=BatchView,
    summary="Look at a batch",
    responses={**refusals(410), **UNCHANGED},
)
async def get_batch(
    batch_id: ItemId,
    request: Request,
    world: World,
    owner: Owner,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """How many of its jobs have each status, and one progress for all, a few seconds old at most: its events are
    quicker. `ETag` and `If-None-Match` make polling cheap."""
    return await _show(request, world, batch_id, owner, if_none_match=if_none_match)


@router.post(
    "/{id}/cancel",
    operation_id="cancelBatch",
    response_model=BatchView,
    summary="Cancel a batch",
    responses=refusals(409, 410),
)
async def cancel(batch_id: ItemId, request: Request, world: World, owner: Owner) -> Response:
    """Its waiting jobs are cancelled at once, its running ones as soon as their workers hear of it; what has ended
    stays as it is. Repeating is harmless."""
    loop = asyncio.get_running_loop()
    give_up = loop.time() + CANCEL_SECONDS
    is_first = True
    while True:
        left = await world.database.write(world.jobs.cancel_batch, batch_id, owner)
        if isinstance(left, BatchEnded) and not is_first:
            break  # by what we did
        if isinstance(left, SafelightError):
            raise left
        if left == 0:
            break
        if loop.time() > give_up:
            raise Unavailable("Not all jobs of the batch could be cancelled in time. Try again.")
        is_first = False
        await asyncio.sleep(0)
    return await _show(request, world, batch_id, owner)


@router.post(
    "/{id}/retry",
    operation_id="retryBatch",
    status_code=202,
    response_model=BatchView,
    responses=refusals(409, 410, 422, 429),
    summary="Run what failed or was cancelled again",
)
async def retry(
    batch_id: ItemId,
    request: Request,
    world: World,
    asker: Asker,
    key: IdempotencyKey = None,
) -> Response:
    """A new batch of the same requests, in their order, once the batch has ended; it names its origin, and each of its
    jobs its own."""
    found = await world.database.read(_to_retry, batch_id, asker.owner_id)
    if found is None:
        raise BatchNotFound(f"There is no batch {batch_id}.")
    batch, state, failed = found
    if not state.is_terminal:
        raise BatchNotEnded
    if not failed:
        raise NothingToRetry
    checked_key = idempotency_key(key)
    new = NewBatch(
        id=new_id(),
        owner_id=asker.owner_id,
        jobs=await checked_jobs([(_again(job), job) for job in failed], request, world, asker),
        name=batch.name,
        metadata=batch.metadata,
        origin_batch_id=batch.id,
        idempotency_key=checked_key,
        fingerprint=_fingerprint([batch.id]) if checked_key is not None else "",
    )
    return await accept_batch(request, world, asker, new)


def _again(job: Job) -> dict[str, Any]:
    return import_of(job) | {"kind": IMPORT} if job.kind == IMPORT else request_of(job)


def _fingerprint(asked: list[Any]) -> str:
    """What an idempotency key is bound to: the fields as given, in any order."""
    return hashlib.sha256(orjson.dumps(["batch", *asked], option=orjson.OPT_SORT_KEYS)).hexdigest()


async def accept_batch(
    request: Request,
    world: Safelight,
    asker: Identity,
    new: NewBatch,
    *,
    submit: Callable[[NewBatch], Awaitable[SubmittedBatch | SafelightError]] | None = None,
) -> Response:
    """Submit checked jobs as one batch, in a transaction of the caller's if it brings its own; the whole answer."""
    verdict = await take_tokens(world, asker, len(new.jobs))
    if verdict is not None and not verdict.is_allowed:
        return too_quick(request, verdict, len(new.jobs))
    turn = Turn()
    hinted: list[NewJob] = []
    for each in new.jobs:
        await turn.over()
        hinted.append(replace(each, tier=asker.tier, hint=has_room(each, world)))
    new = replace(new, jobs=hinted)
    outcome = await (submit_imports(world) if submit is None else submit)(new)
    if not isinstance(outcome, SubmittedBatch):
        raise outcome
    batch, state = outcome.batch, outcome.state
    headers = {"Location": f"{PREFIX}/{batch.id}", **(verdict.headers if verdict is not None else {})}
    if outcome.replayed:
        headers["Idempotency-Replayed"] = "true"
    else:
        log.info(
            "batch.received",
            batch_id=batch.id,
            jobs=batch.total,
            origin_batch_id=batch.origin_batch_id,
            tier=asker.tier,
        )
    return await _answer(request, world, batch, state, outcome.job_ids, status=202, headers=headers)


async def _show(
    request: Request, world: Safelight, batch_id: str, owner: str, *, if_none_match: str | None = None
) -> Response:
    found = await world.database.read(look_at_batch, batch_id, owner)
    if found is None:
        raise BatchNotFound(f"There is no batch {batch_id}.")
    return await _answer(request, world, *found, if_none_match=if_none_match)


async def _answer(
    request: Request,
    world: Safelight,
    batch: Batch,
    state: BatchState,
    job_ids: Sequence[str],
    *,
    status: int = 200,
    headers: dict[str, str] | None = None,
    if_none_match: str | None = None,
) -> Response:
    last: Job | None = None
    if not state.is_terminal:
        with contextlib.suppress(Unavailable):  # what is known already shall be told
            last = await world.database.read(last_to_end, batch.id, batch.owner_id)
    eta = await estimate_end(request.app.state.estimator, last)
    view = batch_view_of(batch, state, job_ids, eta)
    return polled_response(
        view, is_final=state.is_terminal, status=status, headers=headers, if_none_match=if_none_match
    )


def _to_retry(tx: Tx, batch_id: str, owner_id: str) -> tuple[Batch, BatchState, list[Job]] | None:
    found = look_at_batch(tx, batch_id, owner_id)
    if found is None:
        return None
    batch, state, _ = found
    return batch, state, retryable_of(tx, batch_id, owner_id) if state.is_terminal else []
