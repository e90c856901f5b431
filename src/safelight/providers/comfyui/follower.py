"""Following one run inside its server to what became of it: the socket tells, and HTTP is believed.

A server that dies takes all the jobs in it along. Only the one that it worked on may be the reason: that one is told as
`ProviderCrashed`, and those that waited as `JobDropped`, which costs them nothing.
"""

import asyncio
import time
from collections.abc import AsyncGenerator

from safelight.providers.base import JobDropped, JobLost, Progress, ProviderCrashed, Update
from safelight.providers.comfyui.listener import Listener
from safelight.providers.comfyui.outcome import Run
from safelight.providers.comfyui.prompt_state import Ended, Queued, Running
from safelight.providers.comfyui.server import ServerUnreachable


async def is_there(run: Run) -> bool:
    """Whether the server knows the run, asked twice before it is denied. Raises `JobLost` if nobody answers."""
    given_up = _Patience(run)
    absent = 0
    while True:
        try:
            if await run.server.look(run.prompt_id) is not None:
                return True
            given_up.reset()
            absent += 1
            if absent == 2:
                return False
        except ServerUnreachable as error:
            given_up.wait(error)
        await asyncio.sleep(run.server.pace.look)


async def follow(run: Run, listener: Listener, *, looks_at_once: bool) -> AsyncGenerator[Update]:
    """Tell what the socket tells until the server says, by HTTP, that it is over; the end is left in the run."""
    pace = run.server.pace
    given_up = _Patience(run)
    absent = 0
    was_here = not looks_at_once  # while this socket was open
    told: Progress | None = None
    pause = 0.05  # after the end was announced, for the record to appear
    next_look = time.monotonic() + (0 if looks_at_once else min(pace.look, pace.silence))
    while True:
        await _wait(listener.news, next_look - time.monotonic())
        listener.news.clear()
        progress, preview = listener.take_progress(), listener.take_preview()
        if listener.is_executing or listener.is_over:
            run.is_executing = listener.is_executing
        if progress is not None and progress != told:
            told = progress
            yield progress
        if preview is not None:
            yield preview
        now = time.monotonic()
        if not listener.take_look() and now < next_look:
            if listener.is_connected and not listener.is_over:
                next_look = max(next_look, listener.heard_at + pace.silence)
            continue
        try:
            state = await run.server.look(run.prompt_id)
        except ServerUnreachable as error:
            given_up.wait(error)
            next_look = now + pace.look
            continue
        given_up.reset()
        absent = absent + 1 if state is None else 0
        match state:
            case Ended():
                run.end = state
                return
            case None if absent == 2:
                run.end = _end_of_the_unknown(run, listener, was_here=was_here)
                return
            case None:
                next_look = now + pace.look
                continue
            case Queued(place=place):
                at = f", place {place}" if place else ""
                progress = Progress(1, "queued", f"Waiting at the ComfyUI server{at}", is_waiting=True)
            case Running():
                run.is_executing = True
                is_news = told is None or told.stage == "queued"
                progress = Progress(1, "starting", "Starting") if is_news else None
                if listener.is_connected and now - listener.heard_at > pace.reopen:
                    await listener.reopen()
        was_here = True
        if progress is not None and progress != told:
            told = progress
            yield progress
        if listener.is_over:
            next_look = now + pause
            pause = min(pace.look, pause * 2)
        elif listener.is_connected:
            next_look = now + (pace.silence if isinstance(state, Running) else min(3.0, pace.silence))
        else:
            next_look = now + pace.look


def _end_of_the_unknown(run: Run, listener: Listener, *, was_here: bool) -> Ended:
    """What happened to a run that was there and is nowhere: it ended and its record was deleted, or was removed."""
    if listener.end is not None:
        return listener.end
    if run.is_cancelled or (was_here and not listener.was_broken):
        return Ended(is_interrupted=True)  # the server went on all the time
    raise lost(run, f"{run.server.name} was restarted and no longer knows the job.", has_died=True)


def lost(run: Run, message: str, *, has_died: bool) -> JobLost:
    """What the loss of its server means for a run."""
    if not run.is_executing:
        return JobDropped(message)
    return ProviderCrashed(message, details={"server": run.server.name}) if has_died else JobLost(message)


class _Patience:
    """How long the server of a run is waited for while it does not answer."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._since: float | None = None

    def reset(self) -> None:
        """It answered."""
        self._since = None

    def wait(self, error: ServerUnreachable) -> None:
        """Bear with one more failure, or give the server up and raise what that means for the run."""
        now = time.monotonic()
        server = self._run.server
        self._since = self._since or now
        if now - self._since >= (server.pace.hung if error.was_sent else server.pace.refused):
            server.mark_down(error.reason)
            message = f"The ComfyUI server {server.name} was lost with the job: {error.reason}."
            raise lost(self._run, message, has_died=not error.was_sent) from None


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(max(0.0, seconds)):
            await event.wait()
    except TimeoutError:
        return
