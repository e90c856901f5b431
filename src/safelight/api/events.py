"""A job's events as server-sent events: a snapshot, what was missed, then live, as ready bytes."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Generator
from dataclasses import replace
from functools import partial
from typing import Annotated, Any

import orjson
import structlog
from fastapi import APIRouter, Depends, Header, Query, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from safelight.api.authentication import may_stay
from safelight.api.deps import NUMBER, HeaderInvalid, ItemId, Owner, World
from safelight.api.document import stream_of
from safelight.api.job_view import PREFIX
from safelight.api.prefix import current_prefix, frames_below
from safelight.api.problems import refusals
from safelight.bootstrap import Safelight
from safelight.db import Tx
from safelight.jobs import (
    Job,
    JobDeleted,
    JobEvent,
    JobNotFound,
    history,
    message_of,
    snapshot,
    why_blocked,
    with_artifacts,
)
from safelight.stream import Stream
from safelight.watch import Message

KEEPALIVE_SECONDS = 15.0
RECONNECT_MILLISECONDS = 2000
LOOK_AGAIN_SECONDS = 60.0  # whether the watcher's key, token or session still holds
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}

router = APIRouter(prefix=PREFIX, tags=["events"])

log = structlog.get_logger()


def _version(value: str | None) -> int | None:
    if not value:
        return None
    if not re.fullmatch(NUMBER, value):
        raise HeaderInvalid("Last-Event-ID", "must be the id of an event of this job: a whole number")
    return int(value)


ID_FORM = {"pattern": f"^({NUMBER})?$"}


async def _last_version(
    last_event_id: Annotated[str | None, Header(json_schema_extra=ID_FORM)] = None,
    resume_from: Annotated[str | None, Query(alias="last_event_id", json_schema_extra=ID_FORM)] = None,
) -> int | None:
    """By the header, or by the query for those who cannot set one."""
    by_header, by_query = _version(last_event_id), _version(resume_from)
    return by_query if last_event_id is None else by_header


class Stay:
    """How long a watcher may stay: as long as the key, token or session holds, which is looked at now and then."""

    def __init__(self, request: Request, **watched: str) -> None:
        """`watched`: what the log line is to say of it."""
        self._request = request
        self._watched = watched
        self._now = asyncio.get_running_loop().time
        self._look_at = self._now() + LOOK_AGAIN_SECONDS

    async def is_over(self) -> bool:
        """Look again if it is time to."""
        if self._now() < self._look_at:
            return False
        if not await may_stay(self._request):
            log.info("watcher.put_out", **self._watched)
            return True
        self._look_at = self._now() + LOOK_AGAIN_SECONDS
        return False


@router.get(
    "/{id}/events",
    operation_id="followJob",
    summary="Follow a job live",
    response_class=StreamingResponse,
    responses={
        **refusals(410),
        200: {
            "content": stream_of(JobEvent),
            "description": "`job.snapshot`, then every state event once and the latest progress; ends after the end",
        },
        204: {"description": "Everything up to the terminal event was received before; do not reconnect"},
    },
)
async def follow(
    job_id: ItemId,
    request: Request,
    world: World,
    owner: Owner,
    known: Annotated[int | None, Depends(_last_version)],
) -> Response:
    """Resume with the id of the last event received (`Last-Event-ID`, or the query): no state event is missed or
    told twice. Progress and previews have no id; after a break the latest is told. A comment every 15 s keeps the
    connection open. It ends early, within a minute and a half, when the key, token or session no longer holds."""
    found = await world.database.read_one(with_artifacts, (job_id, owner))
    if found is None:
        raise JobNotFound(f"There is no job {job_id}.")
    job, _ = found
    if job.deleted_at is not None:
        raise JobDeleted
    if known is not None and known > job.version:
        known = None  # not an id of this job: nothing is known
    if known is not None and job.is_terminal and known == job.version:
        return Response(status_code=204)
    return EventStream(partial(_tell, request, world, job_id, owner, known))


class Wire:
    """A client's connection, as the server sends to it. One writes at a time."""

    def __init__(self, send: Send, prefix: str = "") -> None:
        """`prefix` is put before the paths that events tell."""
        self._send = send
        self._prefix = prefix
        self._rest: Awaitable[None] | None = None  # of a write that waits until the client has read
        self._failure: Exception | None = None
        self._now = asyncio.get_running_loop().time
        self.wrote_at = self._now()

    async def write(self, data: bytes) -> None:
        """Return when all of it, and of what was passed on before, was taken."""
        rest, self._rest = self._rest, None
        if rest is not None:
            await rest
        if self._failure is not None:
            raise self._failure
        if data:
            data = frames_below(self._prefix, data)
            await self._send({"type": "http.response.body", "body": data, "more_body": True})
            self.wrote_at = self._now()

    def pass_on(self, data: bytes) -> bool:
        """Write without a task's help; whether the connection takes more. If not, `write` waits until it does."""
        self.wrote_at = self._now()
        data = frames_below(self._prefix, data)
        writing = self._send({"type": "http.response.body", "body": data, "more_body": True}).__await__()
        try:
            waits_for = next(writing)
        except StopIteration:
            return True
        except Exception as error:
            self._failure = error
        else:
            self._rest = _Begun(writing, waits_for)
        return False


class _Begun:
    """What is left of an awaitable that was run up to its first wait."""

    def __init__(self, rest: Generator[Any, Any, None], waits_for: Any) -> None:
        self._rest = rest
        self._waits_for = waits_for

    def __await__(self) -> Generator[Any, Any, None]:
        yield self._waits_for
        yield from self._rest


class EventStream(StreamingResponse):
    """Starts and ends through all layers of the application; what lies between goes straight to the server.

    Passing each event through the layers, none of which wants to see it, was an eighth of its cost.
    """

    def __init__(self, tell: Callable[[Wire], Awaitable[None]]) -> None:
        super().__init__((), media_type="text/event-stream", headers=HEADERS)
        self._tell = tell

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._wire = Wire(scope["state"]["server_send"], current_prefix())
        await super().__call__(scope, receive, send)

    async def stream_response(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await self._tell(self._wire)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _tell(request: Request, world: Safelight, job_id: str, owner: str, known: int | None, wire: Wire) -> None:
    now = asyncio.get_running_loop().time
    stay = Stay(request, job_id=job_id)
    async with world.stream.watch(job_id) as watch:
        found = await world.database.read(_opening, job_id, owner, known)
        if found is None:
            return
        job, first, missed, after = found
        job, seq = await with_latest(world.stream, job)
        first = replace(first, progress=job.progress, stage=job.stage, message=message_of(job), seq=seq)
        watch.start(job.version, seq, why_blocked(job))
        # Whoever is cut off after the snapshot resumes before the state events that follow it.
        head = f"retry: {RECONNECT_MILLISECONDS}\nid: {after}\n"
        await wire.write(head.encode() + first.as_message().frame + b"".join(message.frame for message in missed))
        if job.is_terminal:
            return
        while not (watch.ended and watch.is_told):
            silent_at = wire.wrote_at + KEEPALIVE_SECONDS
            messages = await watch.next(silent_at - now(), wire.pass_on)
            await wire.write(b"".join(message.frame for message in messages))
            if now() >= wire.wrote_at + KEEPALIVE_SECONDS and not watch.ended:
                await wire.write(b": keep-alive\n\n")
            if await stay.is_over():
                return


def _opening(tx: Tx, job_id: str, owner: str, known: int | None) -> tuple[Job, JobEvent, list[Message], int] | None:
    """How the job stands, the state events a watcher who knows `known` has missed, and the id they come after."""
    [found] = with_artifacts(tx, [(job_id, owner)])
    if found is None:
        return None
    job, artifacts = found
    after = min(known, job.version) if known is not None else job.version - int(job.is_terminal)
    return job, snapshot(job, artifacts), [event.as_message() for event in history(tx, job, after)], after


async def with_latest(stream: Stream, job: Job) -> tuple[Job, int]:
    """A processing job with its latest progress, which the row learns only at the next heartbeat, and its `seq`."""
    if job.status != "processing":
        return job, snapshot(job, ()).seq
    latest = await stream.latest(job.id)
    if latest is None:
        return job, 0
    event: dict[str, Any] = orjson.loads(latest)
    if event["version"] != job.version:
        return job, 0
    current = replace(job, progress=event["progress"], stage=event["stage"], message=event["message"])
    return current, event["seq"]
