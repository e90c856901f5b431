"""A batch's events as server-sent events: how all stands, then every state of every job, and one progress for all."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Depends, Header, Query, Request
from starlette.responses import Response, StreamingResponse

from safelight.api import events
from safelight.api.batches.view import PREFIX
from safelight.api.deps import HeaderInvalid, ItemId, Owner, World
from safelight.api.document import stream_of
from safelight.api.events import HEADERS, RECONNECT_MILLISECONDS, Stay
from safelight.api.prefix import current_prefix, frames_below
from safelight.api.problems import refusals
from safelight.bootstrap import Safelight
from safelight.db import Tx
from safelight.jobs import (
    END_ID,
    LONGEST_POSITION,
    POSITION,
    BatchEvent,
    BatchNotFound,
    BatchProgress,
    JobEvent,
    Member,
    Position,
    get_batch,
    look_at_batch,
    members_of,
    missed,
)
from safelight.stream import Stream
from safelight.watch import Message

PROGRESS_SECONDS = 0.4  # between two `batch.progress` at least

router = APIRouter(prefix=PREFIX, tags=["events"])

ID_FORM: dict[str, Any] = {"pattern": f"^({END_ID}|{POSITION})?$", "maxLength": LONGEST_POSITION}


async def _last_event_id(
    last_event_id: Annotated[str | None, Header(json_schema_extra=ID_FORM)] = None,
    resume_from: Annotated[str | None, Query(alias="last_event_id", json_schema_extra=ID_FORM)] = None,
) -> str | None:
    """By the header, or by the query for those who cannot set one; each is the id of an event of a batch."""
    for given in (last_event_id, resume_from):
        _known(given)
    return resume_from if last_event_id is None else last_event_id


@router.get(
    "/{id}/events",
    operation_id="followBatch",
    summary="Follow a batch live",
    response_class=StreamingResponse,
    responses={
        **refusals(410),
        200: {
            "content": stream_of(BatchEvent, JobEvent),
            "description": "`batch.snapshot`, then the state events of its jobs, each once, and `batch.progress`; ends "
            "after `batch.completed`, `batch.failed` or `batch.cancelled`",
        },
        204: {"description": "The terminal event was received before; do not reconnect"},
    },
)
async def follow(
    batch_id: ItemId,
    request: Request,
    world: World,
    owner: Owner,
    last_event_id: Annotated[str | None, Depends(_last_event_id)],
) -> Response:
    """One stream for all jobs. Whoever comes without an id is told the end of each job that has ended; resume with the
    id of the last event received (`Last-Event-ID`, or the query) and no state event is missed. `batch.progress` comes
    at most a few times a second and names the jobs that came further; previews are told by a job's own stream. A
    comment every 15 s keeps the connection open."""
    known = _known(last_event_id)
    found = await world.database.read(look_at_batch, batch_id, owner)
    if found is None:
        raise BatchNotFound(f"There is no batch {batch_id}.")
    if last_event_id == END_ID and found[1].is_terminal:
        return Response(status_code=204)
    return StreamingResponse(
        _events(request, world, batch_id, owner, known), media_type="text/event-stream", headers=HEADERS
    )


async def _events(
    request: Request, world: Safelight, batch_id: str, owner: str, known: Position | None
) -> AsyncIterator[bytes]:
    now = asyncio.get_running_loop().time
    stay = Stay(request, batch_id=batch_id)
    prefix = current_prefix()
    async with world.stream.watch_batch(batch_id) as watch:
        found = await world.database.read(_opening, batch_id, owner, known)
        if found is None:
            return
        batch = found.progress
        await _learn_progress(batch, found.members, world.stream)
        watch.start({member.job_id: member.version for member in found.members if not member.is_terminal})
        yield f"retry: {RECONNECT_MILLISECONDS}\n".encode() + batch.snapshot().as_frame(found.after)
        yield frames_below(prefix, found.missed)
        sent_at = spoke_at = now()
        while not batch.state.is_terminal:
            frames = b""
            for job_id, message in await watch.next(PROGRESS_SECONDS):
                if message.is_state:
                    batch.take_state(job_id, message.topic, message.version)
                    frames += _frame(message, batch.position)
                else:
                    batch.take_progress(job_id, _progress_in(message))
            if batch.has_changed and now() - sent_at >= PROGRESS_SECONDS and not batch.state.is_terminal:
                frames += batch.news().as_frame(batch.position)
                sent_at = now()
            if frames:
                spoke_at = now()
            elif now() - spoke_at >= events.KEEPALIVE_SECONDS:
                frames, spoke_at = b": keep-alive\n\n", now()
            if frames:
                yield frames_below(prefix, frames)
            if await stay.is_over():
                return
        yield batch.end().as_frame(END_ID)


@dataclass(frozen=True, slots=True)
class _Opening:
    """How a batch stands, the frames of the state events its watcher has missed, and the id they come after."""

    progress: BatchProgress
    members: Sequence[Member]
    missed: bytes
    after: Position


def _opening(tx: Tx, batch_id: str, owner: str, known: Position | None) -> _Opening | None:
    batch = get_batch(tx, batch_id, owner)
    if batch is None:
        return None
    members = members_of(tx, batch_id, owner)
    now = [member.version for member in members]
    if known is None or len(known.versions) != len(now) or any(a > b for a, b in zip(known.versions, now, strict=True)):
        # Not an id of this batch: nothing is known. Of what has ended, the end is told.
        known = Position([member.version - int(member.is_terminal) for member in members], 0)
    progress = BatchProgress(batch, members, known.progress)
    after = Position(known.versions, progress.progress)
    behind = {
        member.job_id: version
        for member, version in zip(members, after.versions, strict=True)
        if version < member.version
    }
    found = missed(tx, behind)
    versions = list(after.versions)
    frames: list[bytes] = []
    for place, member in enumerate(members):
        for message in found.get(member.job_id, ()):
            if message.is_state:
                versions[place] = message.version
                frames.append(_frame(message, Position(versions, after.progress)))
    return _Opening(progress, members, b"".join(frames), after)


async def _learn_progress(progress: BatchProgress, members: Sequence[Member], stream: Stream) -> None:
    """What the rows learn only at the next heartbeat."""
    running = [member.job_id for member in members if member.status == "processing"]
    for job_id, latest in zip(running, await asyncio.gather(*map(stream.latest, running)), strict=True):
        if latest is not None:
            progress.take_progress(job_id, orjson.loads(latest)["progress"])


def _frame(message: Message, position: Position) -> bytes:
    """A state event of a job, with the id that says what is known of all."""
    return f"id: {position}\n".encode() + message.frame_without_id


def _progress_in(message: Message) -> int | None:
    _, _, data = message.frame.partition(b"\ndata: ")
    return orjson.loads(data)["progress"]


def _known(event_id: str | None) -> Position | None:
    """What the id of an event says that its watcher knows."""
    if not event_id or event_id == END_ID:
        return None
    position = Position.parse(event_id)
    if position is None:
        raise HeaderInvalid("Last-Event-ID", "must be the id of an event of this batch, as `3x40.2.1x9~81`")
    return position
