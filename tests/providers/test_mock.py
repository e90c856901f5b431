"""The mock provider: the same picture for the same order, honest progress, and every misbehaviour on demand."""

import asyncio
import os
import subprocess
import sys
import time
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageChops, ImageStat

from safelight.providers import darkroom
from safelight.providers.base import (
    Accepted,
    ContentRejected,
    Generation,
    InvalidParameters,
    JobLost,
    Output,
    Parameters,
    Preview,
    Progress,
    Provider,
    ProviderError,
    ProviderUnavailable,
    RateLimited,
    Submitting,
    Update,
)
from safelight.providers.mock import LEDGER_VARIABLE, MockProvider
from safelight.providers.script import KEYS
from stand_ins.generation import collect, outputs

mock = MockProvider()


def order(script: dict[str, Any] | None = None, *, attempt: int = 1, seconds: float = 0, **fields: Any) -> Generation:
    options: dict[str, Any] = {"duration_seconds": seconds}
    if script is not None:
        options["mock"] = script
    given: dict[str, Any] = {"prompt": "a lighthouse", "width": 64, "height": 64, "seed": 7, **fields}
    return Generation("0190-job", attempt, Parameters("image", provider_options=options, **given), 300)


# --- the picture ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", ["a lighthouse at dusk", "city at night", "portrait of a woman", "a shoe", "desert"])
def test_a_picture_depends_on_prompt_and_seed_alone(prompt: str) -> None:
    first = darkroom.draw(prompt, 7, 96, 64)
    assert first.size == (96, 64)
    assert first.tobytes() == darkroom.draw(prompt, 7, 96, 64).tobytes()
    assert difference(first, darkroom.draw(prompt, 8, 96, 64)) > 4
    assert difference(first, darkroom.draw("a misty forest", 7, 96, 64)) > 10
    assert len(first.getcolors(96 * 64) or ()) > 500  # not a flat sheet


def difference(a: Image.Image, b: Image.Image) -> float:
    """The root mean square difference of two pictures in levels."""
    return max(ImageStat.Stat(ImageChops.difference(a, b)).rms)


@pytest.mark.parametrize(
    "prompt", ["boat and lighthouse in a city", "cabin in the forest, aurora", "mug", "bottle", ""]
)
@pytest.mark.parametrize("size", [(32, 32), (64, 300), (300, 64), (65, 67)])
def test_every_motif_fits_every_size(prompt: str, size: tuple[int, int]) -> None:
    assert darkroom.draw(prompt, -5, *size).size == size


def test_a_small_drawing_resembles_the_large_one() -> None:
    large = darkroom.draw("a boat at dusk", 3, 512, 512).resize((64, 64), Image.Resampling.BOX)
    assert difference(large, darkroom.draw("a boat at dusk", 3, 64, 64)) < 20


def test_words_choose_light_and_motif() -> None:
    night, day = (ImageStat.Stat(darkroom.draw(f"hills at {light}", 1, 64, 64)).mean for light in ("night", "noon"))
    assert sum(night) < sum(day) / 2
    woman, valley = (darkroom.draw(f"{thing} in winter", 1, 64, 64) for thing in ("a woman", "a valley"))
    assert difference(woman, valley) > 20  # a portrait, not one more landscape


@pytest.mark.anyio
async def test_outputs_are_pngs_of_the_asked_size_that_differ_by_index() -> None:
    made = outputs(await collect(mock.generate(order(batch_size=3, width=80, height=64))))
    again = outputs(await collect(mock.generate(order(batch_size=3, width=80, height=64))))
    assert [output.data for output in made] == [output.data for output in again]
    assert [output.seed for output in made] == [7, 8, 9]
    assert len({output.data for output in made}) == 3
    for output in made:
        assert output.content_type == "image/png"
        assert Image.open(BytesIO(output.read())).size == (80, 64)


@pytest.mark.anyio
async def test_without_a_seed_the_job_decides() -> None:
    first, second = [outputs(await collect(mock.generate(order(seed=None, attempt=n))))[0] for n in (1, 2)]
    assert first == second
    assert first.seed is not None


@pytest.mark.anyio
async def test_the_fast_model_takes_half_the_time_and_draws_the_same_scene() -> None:
    generation = Generation("j", 1, Parameters("image", "x", model="darkroom-fast", width=64, height=64, seed=1), 300)
    updates = mock.generate(generation)
    accepted = await anext(updates)
    await updates.aclose()
    assert isinstance(accepted, Accepted)
    assert accepted.remote_id.endswith("-1000")


# --- progress ---------------------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_progress_rises_through_the_stages_over_the_asked_time() -> None:
    began = time.monotonic()
    updates = await collect(mock.generate(order(seconds=0.5, width=128, height=128)))
    assert time.monotonic() - began >= 0.49
    progress = [update for update in updates if isinstance(update, Progress)]
    percents = [update.percent for update in progress if update.percent is not None]
    assert percents == sorted(percents)
    assert percents[0] == 0
    assert percents[-1] <= 99
    assert len(percents) >= 4
    stages = [update.stage for update in progress]
    assert list(dict.fromkeys(stages)) == ["preparing", "rendering", "finishing"]
    previews = [update for update in updates if isinstance(update, Preview)]
    assert len(previews) == 3
    for preview in previews:
        assert preview.content_type == "image/jpeg"
        assert max(Image.open(BytesIO(preview.data)).size) <= 256
    assert isinstance(updates[0], Accepted)
    assert isinstance(updates[-1], Output)


@pytest.mark.anyio
async def test_previews_come_closer_to_the_picture() -> None:
    updates = await collect(mock.generate(order(seconds=0.4, width=256, height=128)))
    final = Image.open(BytesIO(outputs(updates)[0].read()))
    previews = [Image.open(BytesIO(update.data)) for update in updates if isinstance(update, Preview)]
    distances = [difference(final, preview) for preview in previews]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < distances[0] * 0.75


@pytest.mark.anyio
async def test_no_time_means_no_previews_and_no_wait() -> None:
    updates = await collect(mock.generate(order()))
    assert [type(update) for update in updates] == [Accepted, Progress, Output]


@pytest.mark.anyio
async def test_drawing_leaves_the_loop_free() -> None:
    task = asyncio.create_task(collect(mock.generate(order(width=1024, height=1024))))
    turns = 0
    while not task.done():
        await asyncio.sleep(0.001)
        turns += 1
    assert outputs(task.result())
    assert turns >= 5  # the interpreter is shared, but the loop goes round


# --- parameters -------------------------------------------------------------------------------------------------------


def test_check_fills_in_what_is_missing() -> None:
    checked = mock.check(Parameters("image", "x"))
    assert (checked.model, checked.width, checked.height, checked.seed) == ("darkroom", 1024, 1024, None)
    assert MockProvider("comfyui").check(Parameters("image", "x", model="flux.safetensors")).model == "flux.safetensors"


@pytest.mark.parametrize(
    ("fields", "field", "says"),
    [
        ({"width": 63}, "width", "64 to 2048"),
        ({"height": 2049}, "height", "64 to 2048"),
        ({"batch_size": 17}, "batch_size", "1 to 16"),
        ({"model": "darkrom"}, "model", "Did you mean darkroom"),
        ({"provider_options": {"duration": 3}}, "provider_options.duration", "duration_seconds"),
        ({"provider_options": {"duration_seconds": 3601}}, "provider_options.duration_seconds", "0 to 3600"),
        ({"provider_options": {"duration_seconds": "2"}}, "provider_options.duration_seconds", "number"),
        ({"provider_options": {"duration_seconds": float("nan")}}, "provider_options.duration_seconds", "number"),
        ({"provider_options": {"mock": []}}, "provider_options.mock", "object"),
        ({"provider_options": {"mock": {"latency": 1}}}, "provider_options.mock.latency", "latency_seconds"),
        ({"provider_options": {"mock": {"rate_limit": {"time": 1}}}}, "provider_options.mock.rate_limit.time", "times"),
        (
            {"provider_options": {"mock": {"rate_limit": {"times": -1}}}},
            "provider_options.mock.rate_limit.times",
            "0 to 1000",
        ),
        ({"provider_options": {"mock": {"corrupt": "very"}}}, "provider_options.mock.corrupt", '"empty"'),
        (
            {"provider_options": {"mock": {"error_at_percent": 101}}},
            "provider_options.mock.error_at_percent",
            "0 to 100",
        ),
    ],
)
def test_wrong_parameters_are_refused_by_name(fields: dict[str, Any], field: str, says: str) -> None:
    with pytest.raises(InvalidParameters) as caught:
        mock.check(Parameters("image", "x", **fields))
    assert caught.value.field == field
    assert says in caught.value.message


@pytest.mark.parametrize("key", KEYS)
def test_every_script_key_refuses_nonsense(key: str) -> None:
    with pytest.raises(InvalidParameters) as caught:
        mock.check(Parameters("image", "x", provider_options={"mock": {key: ["nonsense"]}}))
    assert caught.value.field == f"provider_options.mock.{key}"


def test_a_played_provider_keeps_its_own_options() -> None:
    played = MockProvider("comfyui")
    assert played.check(Parameters("image", "x", provider_options={"workflow": {}})).provider_options == {
        "workflow": {}
    }
    with pytest.raises(InvalidParameters):
        played.check(Parameters("image", "x", provider_options={"mock": {"nonsense": 1}}))


# --- the script -------------------------------------------------------------------------------------------------------


async def outcome(script: dict[str, Any], attempt: int = 1) -> ProviderError | None:
    try:
        await collect(mock.generate(order(script, attempt=attempt)))
    except ProviderError as error:
        return error
    return None


@pytest.mark.anyio
async def test_first_attempts_fail_and_later_ones_succeed() -> None:
    script = {"transient_errors": 1, "rate_limit": {"times": 1, "retry_after": 9}}
    first, second, third = [await outcome(script, attempt) for attempt in (1, 2, 3)]
    assert isinstance(first, RateLimited)
    assert first.retry_after == 9
    assert isinstance(second, ProviderUnavailable)
    assert third is None


@pytest.mark.anyio
async def test_a_refusal_is_final_and_says_why() -> None:
    told = await outcome({"refuse": "No lighthouses."})
    assert isinstance(told, ContentRejected)
    assert told.message == "No lighthouses."
    assert not told.retryable
    assert isinstance(await outcome({"refuse": True}), ContentRejected)


@pytest.mark.anyio
async def test_latency_comes_before_everything() -> None:
    began = time.monotonic()
    assert isinstance(await outcome({"latency_seconds": 0.1, "refuse": True}), ContentRejected)
    assert time.monotonic() - began >= 0.09


@pytest.mark.anyio
@pytest.mark.parametrize("percent", [0, 50, 95, 100])
async def test_an_error_at_a_percentage_comes_on_every_attempt(percent: int) -> None:
    seen: list[Update] = []
    with pytest.raises(ProviderUnavailable):
        async for update in mock.generate(order({"error_at_percent": percent}, attempt=4, seconds=0.1)):
            seen.append(update)  # noqa: PERF401 - what came before the error counts
    assert not outputs(seen)
    assert all(update.percent <= percent for update in seen if isinstance(update, Progress) and update.percent)


@pytest.mark.anyio
async def test_corrupt_empty_and_wrong_sized_deliveries() -> None:
    (truncated,) = outputs(await collect(mock.generate(order({"corrupt": True}))))
    with pytest.raises(OSError, match="truncated"):
        Image.open(BytesIO(truncated.read())).load()
    (empty,) = outputs(await collect(mock.generate(order({"corrupt": "empty"}))))
    assert empty.data == b""
    (half,) = outputs(await collect(mock.generate(order({"wrong_size": True}, width=128, height=64))))
    assert Image.open(BytesIO(half.read())).size == (64, 32)


@pytest.mark.anyio
async def test_a_hang_never_ends_but_can_be_cancelled() -> None:
    seen: list[Update] = []

    async def watch() -> None:
        async for update in mock.generate(order({"hang": True})):
            seen.append(update)  # noqa: PERF401 - it never ends

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(watch(), 0.1)
    assert isinstance(seen[0], Accepted)
    assert not outputs(seen)


@pytest.mark.anyio
async def test_a_cancellation_can_be_swallowed() -> None:
    task = asyncio.create_task(collect(mock.generate(order({"swallow_cancel": 0.3}))))
    for _ in range(3):
        await asyncio.sleep(0.05)
        task.cancel()
    assert outputs(await task)


@pytest.mark.anyio
@pytest.mark.parametrize("key", ["block_loop_seconds", "spin_seconds"])
async def test_the_loop_can_be_blocked(key: str) -> None:
    task = asyncio.create_task(collect(mock.generate(order({key: 0.2}))))
    longest = 0.0
    while not task.done():
        before = time.monotonic()
        await asyncio.sleep(0.005)
        longest = max(longest, time.monotonic() - before)
    assert longest > 0.1
    assert outputs(task.result())


@pytest.mark.anyio
async def test_memory_and_paid() -> None:
    updates = await collect(mock.generate(order({"memory_mb": 8, "paid": True})))
    assert [type(update) for update in updates] == [Submitting, Accepted, Progress, Output]


def test_a_crash_kills_the_process_in_the_first_attempts() -> None:
    program = (
        "import asyncio, sys\n"
        "from safelight.providers.base import Generation, Parameters\n"
        "from safelight.providers.mock import MockProvider\n"
        "options = {'duration_seconds': 0, 'mock': {'crash': 1}}\n"
        "async def main(attempt):\n"
        "    asked = Parameters('image', 'x', width=64, height=64, provider_options=options)\n"
        "    order = Generation('j', attempt, asked, 300)\n"
        "    async for update in MockProvider().generate(order): pass\n"
        "asyncio.run(main(2)); print('second attempt done', flush=True); asyncio.run(main(1)); print('not here')\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": "src"},
        check=False,
    )
    assert ended.returncode == -9
    assert ended.stdout == "second attempt done\n"


# --- the far side -----------------------------------------------------------------------------------------------------


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "ledger"
    monkeypatch.setenv(LEDGER_VARIABLE, str(path))
    return path


def lines(ledger: Path) -> list[str]:
    return ledger.read_text().splitlines() if ledger.exists() else []


@pytest.mark.anyio
async def test_a_later_attempt_adopts_the_drawing_and_submits_nothing(ledger: Path) -> None:
    updates = mock.generate(order(seconds=0.4))
    accepted = await anext(updates)
    assert isinstance(accepted, Accepted)
    await asyncio.sleep(0.25)
    await updates.aclose()  # the first attempt is gone

    resumed = await collect(MockProvider().resume(order(attempt=2, seconds=0.4), accepted.remote_id))
    first = next(update for update in resumed if isinstance(update, Progress))
    assert first.percent is not None
    assert first.percent >= 50
    assert outputs(resumed) == outputs(await collect(mock.generate(order(attempt=3))))
    assert [line.split()[:2] for line in lines(ledger)] == [["0190-job", "1"], ["0190-job", "3"]]


@pytest.mark.anyio
async def test_a_finished_drawing_is_delivered_at_once() -> None:
    resumed = await collect(mock.resume(order(attempt=2, seconds=60), "mock-0190-job-1000-60000"))
    assert [type(update) for update in resumed] == [Progress, Output]


@pytest.mark.anyio
async def test_a_foreign_remote_id_is_lost() -> None:
    with pytest.raises(JobLost):
        await collect(mock.resume(order(), "prompt-12345"))


@pytest.mark.anyio
async def test_failures_before_the_submit_leave_no_line_and_cancel_leaves_one(ledger: Path) -> None:
    assert await outcome({"transient_errors": 1}) is not None
    assert lines(ledger) == []
    await mock.cancel("mock-a-1-2")
    assert lines(ledger) == ["cancel mock-a-1-2"]


@pytest.mark.anyio
async def test_the_mock_is_a_provider() -> None:
    provider: Provider = mock
    assert await provider.health() is None
    assert provider.capabilities.models[0] == "darkroom"
    assert MockProvider("comfyui").capabilities.models == ()


@pytest.mark.parametrize(
    "given", [{"template": "txt2img"}, {"inputs": {"steps": 4}}, {"workflow": {"1": {}}}, {"input_images": ("x",)}]
)
def test_what_it_would_ignore_is_refused_unless_it_plays_another(given: dict[str, Any]) -> None:
    asked = Parameters(kind="image.generate", prompt="a lighthouse", **given)
    with pytest.raises(InvalidParameters) as refused:
        MockProvider().check(asked)
    assert refused.value.field == next(iter(given))
    MockProvider(plays="comfyui").check(asked)
