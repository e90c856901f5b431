"""Every provider of the house passes the suite that others are given; and the suite finds what is broken."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import replace
from io import BytesIO
from typing import Any, ClassVar

import pytest
from PIL import Image

from safelight import testing
from safelight.providers.base import (
    Accepted,
    Capabilities,
    Generation,
    InvalidParameters,
    JobLost,
    Output,
    Parameters,
    Preview,
    Progress,
    Provider,
    Reserved,
    Submitting,
    Update,
)
from safelight.providers.comfyui import ComfyUI
from safelight.providers.mock import MockProvider
from safelight.providers.modelslab import ModelsLab
from safelight.providers.modelslab import provider as modelslab
from safelight.providers.openai_images import OpenAIImages
from safelight.testing import ProviderCheckFailed, check_provider
from stand_ins.comfyui import ComfyStandIn
from stand_ins.comfyui_lab import QUICK
from stand_ins.generation import asked
from stand_ins.modelslab import KEY as MODELSLAB_KEY
from stand_ins.modelslab import ModelsLabStandIn
from stand_ins.openai_images import KEY as OPENAI_KEY
from stand_ins.openai_images import OpenAIStandIn

pytestmark = pytest.mark.anyio


async def test_the_mock_passes() -> None:
    given = asked(width=64, height=64, provider_options={"duration_seconds": 0.1})
    await check_provider(MockProvider, parameters=given, others=[replace(given, width=96), replace(given, height=128)])


@pytest.fixture
def modelslab_service(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelsLabStandIn]:
    for name, seconds in (("FIRST_PAUSE", 0.02), ("MAX_PAUSE", 0.1), ("MAX_FIRST_PAUSE", 0.1)):
        monkeypatch.setattr(modelslab, name, seconds)
    service = ModelsLabStandIn()
    yield service
    service.close()


async def test_modelslab_passes(modelslab_service: ModelsLabStandIn) -> None:
    given = asked(width=256, height=256)
    await check_provider(
        lambda: ModelsLab(MODELSLAB_KEY, base_url=modelslab_service.url),
        parameters=given,
        others=[replace(given, width=512), replace(given, model="sdxl", height=264)],
    )
    ids = [order["track_id"] for order in modelslab_service.ledger]
    assert len(set(ids)) == len(ids)  # not one submit was repeated


@pytest.mark.parametrize("version", ["0.33.0", "0.3.64"])
async def test_comfyui_passes(version: str) -> None:
    with ComfyStandIn(version) as service:
        given = asked(width=64, height=64, sampler_params={"steps": 4})
        await check_provider(
            lambda: ComfyUI([service.url], pace=QUICK),
            parameters=given,
            others=[replace(given, width=96), replace(given, height=128, batch_size=3)],
        )
        jobs = [submit.job_id for submit in service.ledger]
        assert len(set(jobs)) == len(jobs)  # not one was sent twice


@pytest.fixture
def openai_service() -> Iterator[OpenAIStandIn]:
    service = OpenAIStandIn()
    yield service
    service.close()


@pytest.mark.parametrize("streams", [True, False])
async def test_openai_passes(openai_service: OpenAIStandIn, streams: bool) -> None:
    given = asked(width=1024, height=1024)
    await check_provider(
        lambda: OpenAIImages(OPENAI_KEY, base_url=openai_service.url, models=["dall-e-2"], streams=streams),
        parameters=given,
        others=[replace(given, width=1536), replace(given, model="dall-e-2", width=256, height=256)],
    )


# --- the suite itself -------------------------------------------------------------------------------------------------


def png(width: int = 64, height: int = 64) -> bytes:
    data = BytesIO()
    Image.new("RGB", (width, height)).save(data, "PNG")
    return data.getvalue()


class Sound(Provider):
    """A provider without a fault, to be broken in one place."""

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(frozenset({"image.generate"}), ("one",), 64, 64, 2, False, True, True)

    def check(self, parameters: Parameters) -> Parameters:
        for field in ("width", "height"):
            if not 1 <= (getattr(parameters, field) or 64) <= 64 or getattr(parameters, field) == 0:
                raise InvalidParameters("It must be 1 to 64.", field=field)
        if not 1 <= parameters.batch_size <= 2:
            raise InvalidParameters("It must be 1 or 2.", field="batch_size")
        if parameters.model not in {None, "one"}:
            raise InvalidParameters("There is only one.", field="model")
        return replace(parameters, model="one", width=parameters.width or 64, height=parameters.height or 64)

    async def generate(self, generation: Generation) -> AsyncGenerator[Update]:
        yield Submitting()
        yield Accepted(generation.job_id)
        async for update in self.resume(generation, generation.job_id):
            yield update

    async def resume(self, generation: Generation, remote_id: str) -> AsyncGenerator[Update]:
        if not remote_id.startswith("check-"):
            raise JobLost
        yield Progress(50, "drawing", "Drawing")
        await asyncio.sleep(0.1)
        yield Preview(png(8, 8), "image/png")
        for _ in range(generation.parameters.batch_size):
            yield Output(png(generation.parameters.width or 0, generation.parameters.height or 0), "image/png")


async def test_a_sound_provider_passes() -> None:
    await check_provider(Sound)


class Shrinks(Sound):
    async def generate(self, generation: Generation) -> AsyncGenerator[Update]:
        yield Output(png(32, 32), "image/png")


class TalksAfterwards(Sound):
    async def generate(self, generation: Generation) -> AsyncGenerator[Update]:
        for _ in range(generation.parameters.batch_size):
            yield Output(png(), "image/png")
        yield Progress(100, "done", "Done")


class SubmitsLate(Sound):
    async def generate(self, generation: Generation) -> AsyncGenerator[Update]:
        yield Accepted(generation.job_id)
        yield Submitting()


class Exaggerates(Sound):
    async def generate(self, generation: Generation) -> AsyncGenerator[Update]:
        yield Progress(101, "drawing", "Drawing")


class Mislabels(Sound):
    async def generate(self, generation: Generation) -> AsyncGenerator[Update]:
        yield Output(png(), "image/jpeg")


class Delivers(Sound):
    async def generate(self, generation: Generation) -> AsyncGenerator[Update]:
        yield Output(b"<html></html>", "image/png")


class Raises(Sound):
    async def generate(self, generation: Generation) -> AsyncGenerator[Update]:
        yield Submitting()
        raise KeyError("output")


class Mixes(Sound):
    def __init__(self) -> None:
        self.latest = Sound().check(asked())

    async def generate(self, generation: Generation) -> AsyncGenerator[Update]:
        self.latest = generation.parameters
        yield Submitting()
        await asyncio.sleep(0.05)
        for _ in range(generation.parameters.batch_size):
            yield Output(png(self.latest.width or 0), "image/png")


class SharesIds(Sound):
    async def generate(self, generation: Generation) -> AsyncGenerator[Update]:
        yield Accepted("check-always-the-same")
        async for update in self.resume(generation, "check-always-the-same"):
            yield update


class LeavesTasks(Sound):
    def __init__(self) -> None:
        self.tasks: set[asyncio.Task[Any]] = set()

    async def generate(self, generation: Generation) -> AsyncGenerator[Update]:
        self.tasks.add(asyncio.create_task(asyncio.sleep(5)))
        yield Submitting()
        async for update in self.resume(generation, "check-1"):
            yield update

    async def close(self) -> None:
        while self.tasks:
            self.tasks.pop().cancel()


class SwallowsCancel(Sound):
    async def generate(self, generation: Generation) -> AsyncGenerator[Update]:
        yield Submitting()
        try:
            await asyncio.sleep(0.15)
        except asyncio.CancelledError:
            await asyncio.sleep(0.4)
        yield Output(png(), "image/png")


class Connects(Sound):
    def check(self, parameters: Parameters) -> Parameters:
        import socket  # noqa: PLC0415

        socket.create_connection(("127.0.0.1", 9), 0.1)
        return super().check(parameters)


class LetsThrough(Sound):
    def check(self, parameters: Parameters) -> Parameters:
        return replace(parameters, model="one", width=parameters.width or 64, height=parameters.height or 64)


class SaysNoField(Sound):
    def check(self, parameters: Parameters) -> Parameters:
        try:
            return super().check(parameters)
        except InvalidParameters as error:
            raise InvalidParameters(error.message) from None


class SubmitsAgain(Sound):
    async def resume(self, generation: Generation, remote_id: str) -> AsyncGenerator[Update]:
        if remote_id == generation.job_id and generation.attempt > 1:
            yield Submitting()
        async for update in super().resume(generation, remote_id):
            yield update


class Reserves(Sound):
    """Sound as well, on a service that takes an id from us."""

    received: ClassVar[set[str]] = set()

    async def generate(self, generation: Generation) -> AsyncGenerator[Update]:
        yield Reserved(generation.job_id)
        self.received.add(generation.job_id)
        async for update in super().resume(generation, generation.job_id):
            yield update

    async def resume(self, generation: Generation, remote_id: str) -> AsyncGenerator[Update]:
        is_known = remote_id in self.received or not remote_id.startswith("check-")
        async for update in super().resume(generation, remote_id) if is_known else self.generate(generation):
            yield update


async def test_a_sound_provider_that_reserves_passes() -> None:
    await check_provider(Reserves)


class Forgets(Reserves):
    async def resume(self, generation: Generation, remote_id: str) -> AsyncGenerator[Update]:
        if remote_id not in self.received:
            raise JobLost
        async for update in super().resume(generation, remote_id):
            yield update


class SendsTwice(Reserves):
    def resume(self, generation: Generation, remote_id: str) -> AsyncGenerator[Update]:
        return self.generate(generation)


class FindsEverything(Sound):
    async def resume(self, generation: Generation, remote_id: str) -> AsyncGenerator[Update]:
        async for update in super().resume(generation, "check-1"):
            yield update


class IsIll(Sound):
    async def health(self) -> str | None:
        return "The server is away."


@pytest.mark.parametrize(
    ("broken", "check", "words"),
    [
        (Shrinks, "generates_what_was_asked", "64x64 was asked for, 32x32 came"),
        (Shrinks, "generates_a_batch", "2 outputs were asked for, 1 came"),
        (TalksAfterwards, "generates_what_was_asked", "came after the first Output"),
        (SubmitsLate, "generates_what_was_asked", "Submitting must come once, and before Accepted"),
        (Exaggerates, "generates_what_was_asked", "not 101"),
        (Mislabels, "generates_what_was_asked", "says that it is image/jpeg, and is image/png"),
        (Delivers, "generates_what_was_asked", "no picture"),
        (Raises, "generates_what_was_asked", "KeyError"),
        (Mixes, "generations_do_not_mix", "was asked for"),
        (SharesIds, "generations_do_not_mix", "have the same id"),
        (LeavesTasks, "closing_leaves_nothing_running", "tasks of it still ran"),
        (SwallowsCancel, "cancelling_is_obeyed", "still ran after 0.2 s"),
        (Connects, "check_is_pure", "belongs into verify"),
        (LetsThrough, "check_refuses_nonsense", "width=0 was let through"),
        (SaysNoField, "check_refuses_nonsense", "is ''"),
        (SubmitsAgain, "an_accepted_job_is_adopted", "submitted the job again"),
        (Forgets, "a_reserved_job_is_sent_once", "job_lost"),
        (SendsTwice, "a_reserved_job_is_sent_once", "sent a job again that had been received"),
        (FindsEverything, "an_unknown_job_is_lost", "that never was"),
        (IsIll, "it_tells_about_itself", "The server is away."),
    ],
)
async def test_the_suite_names_what_is_broken(
    broken: Callable[[], Provider], check: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(testing, "STOP_SECONDS", 0.2)
    with pytest.raises(ProviderCheckFailed) as caught:
        await check_provider(broken, others=[asked(width=32)])
    assert words in caught.value.failures[check]
    assert check in str(caught.value)
