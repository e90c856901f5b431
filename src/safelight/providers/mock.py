"""The mock provider: takes real time, reports real progress, draws a real picture, and calls nothing outside.

It plays itself or any other provider, and it can be told to misbehave: `provider_options.mock` is a script for one
job, so that applications try their own handling of slow, broken and dying providers against it. What happens "in the
first n attempts" follows from the attempt's number alone: the mock keeps no state.

It has a far side like a real provider: the remote id says when the drawing began and how long it takes, so an attempt
that adopts it goes on where the clock says, in any process. `SAFELIGHT_MOCK_LEDGER` names a file to which every submit
and every cancel appends one line; tests count there.
"""

import asyncio
import hashlib
import importlib
import math
import os
import re
import signal
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, replace
from io import BytesIO
from itertools import repeat
from typing import TYPE_CHECKING, TypeVar, TypeVarTuple

from safelight.providers.base import (
    CONTRACT,
    Accepted,
    Capabilities,
    ContentRejected,
    Faults,
    Generation,
    JobLost,
    Output,
    Parameters,
    Preview,
    Progress,
    Provider,
    ProviderUnavailable,
    RateLimited,
    Submitting,
    Update,
)
from safelight.providers.script import Script, read_duration, read_script
from safelight.suggestion import did_you_mean

if TYPE_CHECKING:
    from types import ModuleType

    from PIL.Image import Image

LEDGER_VARIABLE = "SAFELIGHT_MOCK_LEDGER"
MODELS = ("darkroom", "darkroom-fast")
MIN_SIDE, MAX_SIDE, DEFAULT_SIDE = 64, 2048, 1024
MAX_BATCH = 16
DEFAULT_SECONDS = 2.0
PREVIEW_SIDE = 256
PREVIEWS_AT = (0.2, 0.45, 0.7)
DRAWING_THREADS = 2
MESSAGES = {"preparing": "Preparing...", "rendering": "Rendering...", "finishing": "Finishing..."}
Ts = TypeVarTuple("Ts")
R = TypeVar("R")
SIZES = ("width", "height")
WORDS = ("negative_prompt", "model", "checkpoint_model", "lora_models", "seed", "sampler_params", "provider_options")


class MockProvider(Provider):
    """Plays a provider. `plays` is the name of the one played, or None when it is asked for by its own name."""

    contract = CONTRACT

    def __init__(self, plays: str | None = None, *, takes_scripts: bool = True) -> None:
        self.plays = plays
        self._takes_scripts = takes_scripts

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            kinds=frozenset({"image.generate"}),
            models=() if self.plays else MODELS,
            max_width=MAX_SIDE,
            max_height=MAX_SIDE,
            max_batch=MAX_BATCH,
            cancel=True,
            progress=True,
            previews=True,
            input_images=16 if self.plays else 0,
            workflows=self.plays is not None,
        )

    def check(self, parameters: Parameters) -> Parameters:
        """Fill in model and size. Options of a played provider are let through; the mock's own are always checked."""
        faults = Faults()
        model = parameters.model
        if self.plays is None:
            model = model or MODELS[0]
            if model not in MODELS:
                meant = did_you_mean(model, MODELS, most=2)
                message = f"The mock provider has no model {model!r}; it has {', '.join(MODELS)}.{meant}"
                faults.add(message, field="model")
        sides: dict[str, int] = {}
        for name, value in (("width", parameters.width), ("height", parameters.height)):
            side = DEFAULT_SIDE if value is None else value
            if not MIN_SIDE <= side <= MAX_SIDE:
                message = f"The {name} must be {MIN_SIDE} to {MAX_SIDE} pixels, not {side}."
                faults.add(message, field=name)
            sides[name] = side
        for name in parameters.others((*SIZES, *WORDS)) if self.plays is None else ():
            faults.add(f"The mock provider draws from the prompt alone; it takes no {name}.", field=name)
        if not 1 <= parameters.batch_size <= MAX_BATCH:
            message = f"The batch size must be 1 to {MAX_BATCH}, not {parameters.batch_size}."
            faults.add(message, field="batch_size")
        with faults:
            read_duration(parameters.provider_options)
        if not self._takes_scripts and "mock" in parameters.provider_options:
            message = "Scripts are for development: they are taken with AI_MOCK_MODE=true only."
            faults.add(message, field="provider_options.mock")
        with faults:
            read_script(parameters.provider_options, others_allowed=self.plays is not None)
        faults.refuse()
        return replace(parameters, model=model, width=sides["width"], height=sides["height"])

    async def generate(self, generation: Generation) -> AsyncGenerator[Update]:
        """Fail as the script says, else submit to the imagined far side and follow it."""
        order = Order.of(self.check(generation.parameters), generation.job_id)
        script, attempt = order.script, generation.attempt
        await asyncio.sleep(script.latency_seconds)
        if script.refuse is not None:
            raise ContentRejected(script.refuse)
        if attempt <= script.rate_limit_times:
            raise RateLimited("The mock provider asks us to slow down.", retry_after=script.rate_limit_retry_after)
        if attempt <= script.rate_limit_times + script.transient_errors:
            raise ProviderUnavailable("The mock provider fails on its side, as its script says.")
        if script.paid:
            yield Submitting()
        started = time.time()
        _write_ledger(f"{generation.job_id} {attempt} {started:.3f}")
        yield Accepted(f"mock-{generation.job_id}-{round(started * 1000)}-{round(order.seconds * 1000)}")
        async with aclosing(_follow(order, attempt, started, order.seconds)) as updates:
            async for update in updates:
                yield update

    async def resume(self, generation: Generation, remote_id: str) -> AsyncGenerator[Update]:
        """Go on where the clock says; nothing is submitted again."""
        match = re.fullmatch(r"mock-.+-(\d{1,15})-(\d{1,9})", remote_id)
        if match is None:
            raise JobLost(f"The mock provider does not know a job {remote_id!r}.")
        order = Order.of(self.check(generation.parameters), generation.job_id)
        async with aclosing(_follow(order, generation.attempt, int(match[1]) / 1000, int(match[2]) / 1000)) as updates:
            async for update in updates:
                yield update

    async def cancel(self, remote_id: str) -> None:
        """Note the cancel in the ledger: there is nothing to stop, as the drawing is only a matter of the clock."""
        _write_ledger(f"cancel {remote_id}")

    async def health(self) -> str | None:
        """Always well."""
        return None


# --- the far side -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Order:
    """What to draw: checked parameters without the maybes. `seconds` is how long the drawing is to take."""

    prompt: str
    seed: int
    width: int
    height: int
    batch_size: int
    fast: bool
    seconds: float
    script: Script

    @classmethod
    def of(cls, parameters: Parameters, job_id: str) -> "Order":
        fast = parameters.model == MODELS[1]
        seconds = read_duration(parameters.provider_options)
        if seconds is None:
            seconds = DEFAULT_SECONDS / 2 if fast else DEFAULT_SECONDS
        seed = parameters.seed
        if seed is None:  # a different one for every job, the same for every attempt
            seed = int.from_bytes(hashlib.sha256(job_id.encode()).digest()[:4], "big")
        return cls(
            prompt=parameters.prompt,
            seed=seed,
            width=parameters.width or DEFAULT_SIDE,
            height=parameters.height or DEFAULT_SIDE,
            batch_size=parameters.batch_size,
            fast=fast,
            seconds=seconds,
            script=read_script(parameters.provider_options, others_allowed=True),
        )


async def _follow(order: Order, attempt: int, started: float, seconds: float) -> AsyncGenerator[Update]:
    """The drawing, from wherever it stands now to its end. `started` is wall time, so that any process can go on."""
    script = order.script

    def stands() -> float:
        """How much of the time is over, 0-1."""
        return min(1.0, max(0.0, time.time() - started) / seconds) if seconds > 0 else 1.0

    error_at = math.inf if script.error_at_percent is None else script.error_at_percent / 100
    yield _progress(min(stands(), error_at) if seconds > 0 else 0.0)
    ballast = bytearray(b"\1") * (script.memory_mb << 20)
    if attempt <= script.crash:
        os.kill(os.getpid(), signal.SIGKILL)
    if script.block_loop_seconds:
        time.sleep(script.block_loop_seconds)  # noqa: ASYNC251 - the script asks for exactly this
    if script.spin_seconds:
        _spin(script.spin_seconds)
    if script.swallow_cancel_seconds:
        await _refuse_to_stop(script.swallow_cancel_seconds)
    if script.hang:
        await asyncio.Event().wait()

    with_previews = seconds >= 0.3 and max(order.width, order.height) >= PREVIEW_SIDE // 2
    previews = [at for at in PREVIEWS_AT if at > stands()] if with_previews else []
    sketch: Image | None = None
    tick = max(min(0.3, seconds / 5), seconds / 400)
    drawing_begins = max(0.9, 1 - 1 / seconds) if seconds > 0 else 0.0
    outputs: list[Output] = []
    while True:
        share = stands()
        if share >= error_at:
            message = f"The mock provider fails at {script.error_at_percent} %, as its script says."
            raise ProviderUnavailable(message)
        if previews and share >= previews[0]:
            sketch = sketch or await _in_thread(_sketch, order)
            yield await _in_thread(_preview, sketch, previews.pop(0))
        if share >= drawing_begins and len(outputs) < order.batch_size:
            outputs.append(await _in_thread(_output, order, len(outputs)))
            continue
        if share >= 1:
            break
        marks = (1.0, drawing_begins, error_at)
        await asyncio.sleep(min(tick, seconds * (min(mark for mark in marks if mark > share) - share)))
        yield _progress(min(stands(), error_at))
    for output in outputs:
        yield output
    del ballast


def _progress(share: float) -> Progress:
    stage = "preparing" if share < 0.08 else "rendering" if share < 0.9 else "finishing"
    return Progress(min(99, int(share * 100)), stage, MESSAGES[stage])


def _write_ledger(line: str) -> None:
    """One line in one write, so that lines of many processes never mix."""
    path = os.environ.get(LEDGER_VARIABLE)
    if path:
        ledger = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(ledger, f"{line}\n".encode())
        finally:
            os.close(ledger)


async def _refuse_to_stop(seconds: float) -> None:
    """Wait, deaf to cancellation."""
    ends = time.monotonic() + seconds
    while (left := ends - time.monotonic()) > 0:
        try:
            await asyncio.sleep(min(left, 3600))
        except asyncio.CancelledError:
            continue


def _spin(seconds: float) -> None:
    """Hold the interpreter inside one C call: no other thread runs and no signal handler of Python's either."""
    sample = 2_000_000
    began = time.perf_counter()
    deque(repeat(None, sample), maxlen=0)
    rate = sample / (time.perf_counter() - began)
    deque(repeat(None, int(rate * seconds)), maxlen=0)


# --- drawing, beside the loop -----------------------------------------------------------------------------------------


class _Threads:
    """The two threads that draw, for all jobs of a process. Made when first used, and again in a forked child."""

    def __init__(self) -> None:
        self.forget()
        os.register_at_fork(after_in_child=self.forget)

    def forget(self) -> None:
        self.pool = ThreadPoolExecutor(DRAWING_THREADS, thread_name_prefix="darkroom")


_threads = _Threads()


async def _in_thread(draw: Callable[[*Ts], R], *args: *Ts) -> R:
    return await asyncio.get_running_loop().run_in_executor(_threads.pool, draw, *args)


def _darkroom() -> "ModuleType":
    """Brings Pillow: only processes that draw load it."""
    return importlib.import_module("safelight.providers.darkroom")


def _sketch(order: Order) -> "Image":
    """The first picture of the batch, small."""
    shrink = min(1.0, PREVIEW_SIDE / max(order.width, order.height))
    size = max(1, round(order.width * shrink)), max(1, round(order.height * shrink))
    return _darkroom().draw(order.prompt, order.seed, *size, fast=True)


def _preview(sketch: "Image", share: float) -> Preview:
    data = BytesIO()
    _darkroom().develop(sketch, share).save(data, "JPEG", quality=72)
    return Preview(data.getvalue(), "image/jpeg")


def _output(order: Order, index: int) -> Output:
    script, seed = order.script, order.seed + index
    divisor = 2 if script.wrong_size else 1
    picture = _darkroom().draw(order.prompt, seed, order.width // divisor, order.height // divisor, fast=order.fast)
    file = BytesIO()
    picture.save(file, "PNG", compress_level=1)
    data = file.getvalue()
    if script.corrupt == "empty":
        data = b""
    elif script.corrupt == "truncated":
        data = data[: len(data) // 2]
    return Output(data, "image/png", seed)
