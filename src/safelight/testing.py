"""The suite that every provider passes: ours, and those of others.

    async def test_painter() -> None:
        await check_provider(lambda: Painter("http://127.0.0.1:9000"))

It asks for real pictures (about ten), so let it speak to a stand-in or to the cheapest model.
"""

import asyncio
import math
import socket
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from copy import deepcopy
from dataclasses import dataclass, field, fields, replace
from itertools import count
from pathlib import Path
from typing import TypeVar
from unittest.mock import patch

from safelight.pictures import BadPicture, decode, read_head
from safelight.providers.base import (
    Accepted,
    BadOutput,
    Generation,
    InvalidParameters,
    JobLost,
    Output,
    Parameters,
    Preview,
    Progress,
    Provider,
    ProviderError,
    Reserved,
    Submitting,
    Update,
)
from safelight.providers.fetch import content_type_of

PARAMETERS = Parameters(kind="image.generate", prompt="a lighthouse at dusk")
AT_ONCE = 3  # generations side by side
CHECK_SECONDS = 0.05  # a check stands in the way of a submit
STOP_SECONDS = 1.0  # for a generation that is told to stop
ASK_SECONDS = 10.0  # for health, models, cancel and the like
UNKNOWN_ID = "no-such-job-0"

_numbers = count(1)
T = TypeVar("T")


class ProviderCheckFailed(AssertionError):
    """The provider breaks its contract. `failures` tells how, by the name of the check."""

    def __init__(self, failures: dict[str, str]) -> None:
        self.failures = failures
        told = "".join(f"\n- {name}: {reason}" for name, reason in failures.items())
        super().__init__(f"{len(failures)} of {len(CHECKS)} checks failed:{told}")


async def check_provider(
    make: Callable[[], Provider],
    *,
    parameters: Parameters = PARAMETERS,
    others: Sequence[Parameters] = (),
    timeout_seconds: float = 60,
) -> None:
    """Run all checks, each with a provider of its own; raise `ProviderCheckFailed` with everything that is wrong.

    `parameters` are good ones, of something that is cheap. `others` are good too, and of other sizes: with them it can
    be seen that generations side by side do not mix. `timeout_seconds` is for one generation.
    """
    case = Case(make, parameters, tuple(others), timeout_seconds)
    failures: dict[str, str] = {}
    for check in CHECKS:
        provider = make()
        try:
            await check(provider, case)
        except _Broken as broken:
            failures[check.__name__] = str(broken)
        except Exception as error:
            failures[check.__name__] = f"it raised {type(error).__name__}: {error}"
        finally:
            await provider.close()
    if failures:
        raise ProviderCheckFailed(failures)


@dataclass(frozen=True, slots=True)
class Case:
    """What the checks are made with."""

    make: Callable[[], Provider]
    parameters: Parameters
    others: tuple[Parameters, ...]
    timeout_seconds: float

    def generation(self, provider: Provider, parameters: Parameters | None = None) -> Generation:
        """An order as the runner would give it: of parameters that were checked and have a seed if they take one."""
        checked = provider.check(parameters or self.parameters)
        number = next(_numbers)
        if checked.seed is None and provider.takes_seed(checked):
            checked = replace(checked, seed=number)
        return Generation(f"check-{time.time_ns()}-{number}", 1, checked, self.timeout_seconds)


class _Broken(Exception):
    """A check found what must not be."""


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise _Broken(otherwise)


# --- one generation, walked as the runner does ------------------------------------------------------------------------


@dataclass(slots=True)
class _Walk:
    """What a provider told in one generation."""

    remote_id: str | None = None
    reserved: bool = False  # the id is not known to have been received
    submitted: bool = False
    outputs: list[Output] = field(default_factory=list[Output])


async def _walk(updates: AsyncGenerator[Update], case: Case) -> _Walk:
    """Follow to the end, and hold every update to the contract."""
    walk = _Walk()
    try:
        async with asyncio.timeout(case.timeout_seconds), aclosing(updates):
            async for update in updates:
                _take(walk, update)
    except TimeoutError:
        raise _Broken(f"a generation did not end within {case.timeout_seconds:g} s") from None
    except ProviderError as error:
        raise _Broken(f"a generation with good parameters failed: {error.code}: {error.message}") from None
    except _Broken:
        raise
    except Exception as error:
        raise _Broken(f"it raised {error!r}, which is no ProviderError: nobody knows whether to try again") from error
    return walk


def _take(walk: _Walk, update: Update) -> None:
    _expect(not walk.outputs or isinstance(update, Output), f"{update!r:.100} came after the first Output")
    match update:
        case Submitting():
            _expect(not walk.submitted and walk.remote_id is None, "Submitting must come once, and before Accepted")
            walk.submitted = True
        case Reserved(remote_id=remote_id):
            _expect(0 < len(remote_id) <= 500, "an id must have 1 to 500 characters")
            _expect(walk.remote_id is None or walk.reserved, "Reserved came after Accepted")
            walk.remote_id, walk.reserved = remote_id, True
        case Accepted(remote_id=remote_id):
            _expect(0 < len(remote_id) <= 500, "an id must have 1 to 500 characters")
            _expect(walk.remote_id in {None, remote_id}, "Accepted came with another id than before")
            walk.remote_id, walk.reserved = remote_id, False
        case Progress(percent=percent, stage=stage):
            _expect(percent is None or 0 <= percent <= 100, f"a percentage must be 0 to 100 or None, not {percent}")
            _expect(bool(stage), "the stage of a Progress must not be empty")
        case Preview(data=data, content_type=content_type):
            _picture(data, content_type, "a preview")
        case Output(data=data):
            walk.outputs.append(replace(update, data=update.read()))
            if isinstance(data, Path):  # it is handed over, and would be removed by the runner
                data.unlink()


def _picture(data: bytes, content_type: str, what: str) -> tuple[int, int] | None:
    """The size of a picture; None for a video or sound."""
    try:
        found = content_type_of(data)
    except BadOutput as error:
        raise _Broken(f"{what}: {error.message}") from None
    _expect(found == content_type, f"{what} says that it is {content_type}, and is {found}")
    if not found.startswith("image/"):
        return None
    try:
        picture = read_head(data)
        decode(picture)
    except BadPicture as error:
        raise _Broken(f"{what} cannot be decoded: {error.detail}") from None
    return picture.width, picture.height


def _judge(walk: _Walk, parameters: Parameters) -> None:
    """Hold the outputs to what was asked for."""
    wanted = parameters.batch_size
    _expect(len(walk.outputs) == wanted, f"{wanted} outputs were asked for, {len(walk.outputs)} came")
    for output in walk.outputs:
        size = _picture(output.read(), output.content_type, "an output")
        if size is None or parameters.width is None or parameters.height is None:
            continue
        asked = parameters.width, parameters.height
        _expect(size == asked, f"{asked[0]}x{asked[1]} was asked for, {size[0]}x{size[1]} came")


# --- the checks -------------------------------------------------------------------------------------------------------


async def capabilities_are_sane(provider: Provider, case: Case) -> None:
    """They can be shown to people and used to refuse early."""
    told = provider.capabilities
    _expect(told == provider.capabilities, "they must not change from one look to the next")
    _expect(case.parameters.kind in told.kinds, f"kinds must hold {case.parameters.kind!r}")
    _expect(min(told.max_width, told.max_height, told.max_batch) >= 1, "the greatest size and batch must be 1 or more")
    _expect(len(set(told.models)) == len(told.models), "a model is named twice")
    for each in fields(told):
        value = getattr(told, each.name)
        _expect(not isinstance(value, int) or value >= 0, f"{each.name} must be 0 or more")
    for ratio in told.aspect_ratios:
        across, _, down = ratio.partition(":")
        _expect(across.isdigit() and down.isdigit(), f"an aspect ratio is written 16:9, not {ratio!r}")
    if told.limits is not None:
        _expect(
            0 < told.limits.soft_seconds < told.limits.hard_seconds, "the soft limit must be less than the hard one"
        )


async def check_is_pure(provider: Provider, case: Case) -> None:
    """It fills in defaults, changes nothing else, is offline, and quick enough to stand in the way of a submit."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise _Broken("it wants to connect somewhere; what only a server knows belongs into verify")

    before = deepcopy(case.parameters)
    checked = before
    with (
        patch.object(socket.socket, "connect", refuse),
        patch.object(socket, "getaddrinfo", refuse),
    ):
        seconds = math.inf
        for _ in range(5):  # the quickest counts: the machine may be busy with something else
            began = time.perf_counter()
            checked = provider.check(case.parameters)
            seconds = min(seconds, time.perf_counter() - began)
    _expect(case.parameters == before, "it changed what it was given")
    _expect(provider.check(checked) == checked, "checking what was checked must change nothing")
    for name in ("kind", "prompt", "batch_size", "negative_prompt"):
        _expect(getattr(checked, name) == getattr(before, name), f"it changed {name}")
    for name in ("model", "width", "height", "seed"):
        given = getattr(before, name)
        _expect(given in {None, getattr(checked, name)}, f"it changed {name}, which was given")
    _expect(seconds <= CHECK_SECONDS, f"it took {seconds:.3f} s; at most {CHECK_SECONDS} s are well")


async def check_refuses_nonsense(provider: Provider, case: Case) -> None:
    """By the name of the field, so that the caller can mend it."""
    told = provider.capabilities
    nonsense: list[tuple[str, Parameters]] = [
        ("width", replace(case.parameters, width=0, height=case.parameters.height or told.max_height)),
        ("width", replace(case.parameters, width=told.max_width + 1)),
        ("height", replace(case.parameters, height=told.max_height + 1)),
        ("batch_size", replace(case.parameters, batch_size=0)),
        ("batch_size", replace(case.parameters, batch_size=told.max_batch + 1)),
    ]
    if told.models:
        nonsense.append(("model", replace(case.parameters, model="no-such-model-anywhere")))
    for name, parameters in nonsense:
        value = getattr(parameters, name)
        try:
            provider.check(parameters)
        except InvalidParameters as error:
            allowed = {"width", "height"} if name in {"width", "height"} else {name}
            _expect(error.field in allowed, f"the field of the error for {name}={value!r} is {error.field!r}")
            _expect(bool(error.message), f"the error for {name}={value!r} says nothing")
        else:
            raise _Broken(f"{name}={value!r} was let through")


async def generates_what_was_asked(provider: Provider, case: Case) -> None:
    """Updates in their order, and outputs of the size and number asked for."""
    generation = case.generation(provider)
    _judge(await _walk(provider.generate(generation), case), generation.parameters)


async def generates_a_batch(provider: Provider, case: Case) -> None:
    """Several outputs of one order, where the provider makes several."""
    try:
        generation = case.generation(provider, replace(case.parameters, batch_size=2))
    except InvalidParameters:
        return
    _judge(await _walk(provider.generate(generation), case), generation.parameters)


async def generations_do_not_mix(provider: Provider, case: Case) -> None:
    """Side by side, each gets its own."""
    several = [case.parameters, *case.others]
    orders = [case.generation(provider, several[number % len(several)]) for number in range(max(AT_ONCE, len(several)))]
    ended = await asyncio.gather(*(_walk(provider.generate(order), case) for order in orders), return_exceptions=True)
    walks: list[_Walk] = []
    for order, walk in zip(orders, ended, strict=True):
        if isinstance(walk, BaseException):
            raise walk
        _judge(walk, order.parameters)
        walks.append(walk)
    ids = [walk.remote_id for walk in walks if walk.remote_id is not None]
    _expect(len(set(ids)) == len(ids), "two generations have the same id")


async def closing_leaves_nothing_running(provider: Provider, case: Case) -> None:
    """A generation that is closed after any of its first updates ends at once, with its tasks."""
    for updates_taken in (1, 2, 3):
        before = asyncio.all_tasks()
        updates = provider.generate(case.generation(provider))
        for _ in range(updates_taken):
            if await anext(updates, None) is None:
                break
        await _within(STOP_SECONDS, updates.aclose(), f"after {updates_taken} updates aclose() did not end")
        await _ended(before)


async def cancelling_is_obeyed(provider: Provider, case: Case) -> None:
    """The task that runs a generation can be cancelled while it waits."""
    before = asyncio.all_tasks()
    body = asyncio.create_task(_walk(provider.generate(case.generation(provider)), case))
    await asyncio.sleep(0.05)
    body.cancel()
    await asyncio.wait({body}, timeout=STOP_SECONDS)
    _expect(body.done(), f"a cancelled generation still ran after {STOP_SECONDS:g} s")
    if not body.cancelled():
        body.result()  # it may have been quicker
    await _ended(before)


async def an_accepted_job_is_adopted(provider: Provider, case: Case) -> None:
    """Another process goes on with the id alone, and submits nothing. For providers that yield Accepted."""
    generation = case.generation(provider)
    remote_id = None
    async with asyncio.timeout(case.timeout_seconds), aclosing(provider.generate(generation)) as updates:
        async for update in updates:
            if isinstance(update, Accepted):
                remote_id = update.remote_id
                break
            if isinstance(update, Output):
                return
    if remote_id is None:
        return
    heir = case.make()
    try:
        walk = await _walk(heir.resume(replace(generation, attempt=2), remote_id), case)
    finally:
        await heir.close()
    _expect(not walk.submitted, "resume submitted the job again")
    _judge(walk, generation.parameters)


async def a_reserved_job_is_sent_once(provider: Provider, case: Case) -> None:
    """Another process sends what was never received, and follows what was. For providers that yield Reserved."""
    for was_received in (False, True):
        generation = case.generation(provider)
        remote_id = None
        async with asyncio.timeout(case.timeout_seconds), aclosing(provider.generate(generation)) as updates:
            async for update in updates:
                if remote_id is not None:  # the service has answered
                    break
                if isinstance(update, Accepted | Output):
                    return
                if isinstance(update, Reserved):
                    remote_id = update.remote_id
                    if not was_received:
                        break
        if remote_id is None:
            return
        heir = case.make()
        try:
            walk = await _walk(heir.resume(replace(generation, attempt=2), remote_id), case)
        finally:
            await heir.close()
        _expect(not (was_received and walk.reserved), "resume sent a job again that had been received")
        _judge(walk, generation.parameters)


async def an_unknown_job_is_lost(provider: Provider, case: Case) -> None:
    """`resume` of an id that is none of the provider's says so by `JobLost`, and `cancel` does not mind."""
    await _within(ASK_SECONDS, provider.cancel(UNKNOWN_ID), "cancel of an unknown job did not end")
    try:
        async with (
            asyncio.timeout(case.timeout_seconds),
            aclosing(provider.resume(case.generation(provider), UNKNOWN_ID)) as updates,
        ):
            async for update in updates:
                _expect(not isinstance(update, Output), "resume delivered a job that never was")
    except JobLost:
        return
    raise _Broken("resume of an unknown job must raise JobLost")


async def it_tells_about_itself(provider: Provider, case: Case) -> None:
    """Health, models and verify answer within seconds."""
    health = await _within(ASK_SECONDS, provider.health(), "health did not answer")
    _expect(health is None, f"it is not well: {health}")
    models = await _within(ASK_SECONDS, provider.models(), "models did not answer")
    _expect(
        all(not isinstance(names, str) and all(names) for names in models.values()),
        "models must be lists of names, by kind",
    )
    await _within(ASK_SECONDS, provider.verify(provider.check(case.parameters)), "verify did not answer")


CHECKS: tuple[Callable[[Provider, Case], Awaitable[None]], ...] = (
    capabilities_are_sane,
    check_is_pure,
    check_refuses_nonsense,
    generates_what_was_asked,
    generates_a_batch,
    generations_do_not_mix,
    closing_leaves_nothing_running,
    cancelling_is_obeyed,
    an_accepted_job_is_adopted,
    a_reserved_job_is_sent_once,
    an_unknown_job_is_lost,
    it_tells_about_itself,
)


async def _within(seconds: float, awaitable: Awaitable[T], otherwise: str) -> T:
    try:
        async with asyncio.timeout(seconds):
            return await awaitable
    except TimeoutError:
        raise _Broken(f"{otherwise} within {seconds:g} s") from None


async def _ended(before: set[asyncio.Task[object]]) -> None:
    """Wait for the tasks that a generation had begun."""
    left = asyncio.all_tasks() - before
    if left:
        _, left = await asyncio.wait(left, timeout=STOP_SECONDS)
    _expect(not left, f"{len(left)} tasks of it still ran {STOP_SECONDS:g} s later")
