"""What the runner makes of the errors of providers: whose fault they are, and what is worth another try or place."""

import json
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import Response
from workshop import PICTURE, Scripted, Workshop

from media import media
from safelight.db import Tx, db_now
from safelight.jobs.availability import half_open, provider_states, set_probe
from safelight.providers.base import (
    BadOutput,
    ContentRejected,
    GenerationFailed,
    JobDropped,
    JobLost,
    NotTaken,
    Output,
    Progress,
    ProviderCrashed,
    ProviderError,
    ProviderTimedOut,
    ProviderUnavailable,
    RateLimited,
    ResultMissing,
    UnknownOutcome,
    Update,
)
from safelight.providers.comfyui import ComfyUI, outcome
from safelight.providers.modelslab import ModelsLab
from safelight.providers.modelslab import provider as modelslab
from safelight.worker import runner
from stand_ins.comfyui import ComfyStandIn
from stand_ins.comfyui_lab import QUICK
from stand_ins.modelslab import KEY, ModelsLabStandIn

pytestmark = pytest.mark.anyio


def _let_try(tx: Tx, job_id: str) -> None:
    """As dispatch does when the breaker has cooled down."""
    tx.execute(provider_states.update().values(retry_at=db_now(-1.0)))
    half_open(tx)
    set_probe(tx, "one", job_id)


async def test_a_rate_limit_pauses_the_provider_and_costs_no_retry(workshop: Workshop) -> None:
    provider = Scripted(RateLimited("Too many.", retry_after=40.0))
    workshop.add("one", provider)
    first, second = await workshop.submit(max_retries=0), await workshop.submit()
    job = await workshop.attempt(first)
    assert (job.status, job.retry_count, job.submitting_at) == ("pending", 0, None)
    state = (await workshop.states())["one"]
    assert state.pause_reason == "Too many." and state.paused_until is not None
    assert (await workshop.attempt(second)).attempt == 0  # its hint finds a closed door
    assert provider.asked == ["generate"]


async def test_a_rate_limit_while_following_a_job_loses_nothing(workshop: Workshop) -> None:
    provider = Scripted(RateLimited(retry_after=0.0), accepts=True)
    workshop.add("one", provider)
    job_id = await workshop.submit()
    assert (await workshop.attempt(job_id)).provider_job_id == "remote-1"
    assert (await workshop.attempt(job_id)).status == "completed"
    assert provider.asked == ["generate", "resume remote-1"]


@pytest.mark.parametrize("error", [ProviderUnavailable, ProviderTimedOut])
async def test_outages_open_the_breaker_and_the_rest_does_not(workshop: Workshop, error: type[ProviderError]) -> None:
    workshop.add("one", Scripted(error(), error()))
    workshop.add("two", Scripted(JobLost(), BadOutput(), UnknownOutcome(), ContentRejected()))
    for _ in range(2):
        await workshop.attempt(await workshop.submit("one"))
    for _ in range(4):
        await workshop.attempt(await workshop.submit("two"))
    states = await workshop.states()
    assert states["one"].breaker == "open"
    assert "two" not in states


async def test_a_refusal_shows_that_the_provider_works(workshop: Workshop) -> None:
    workshop.add("one", Scripted(ProviderUnavailable(), ContentRejected("Not that."), ProviderUnavailable()))
    for _ in range(3):
        await workshop.attempt(await workshop.submit())
    state = (await workshop.states())["one"]
    assert (state.breaker, state.failures) == ("closed", 1)


@pytest.mark.parametrize(
    ("error", "moves"),
    [
        (ProviderUnavailable(), True),
        (ProviderTimedOut(), True),
        (JobLost(), True),
        (UnknownOutcome(), False),
        (BadOutput(), False),
        (ContentRejected(), False),
    ],
)
async def test_what_is_worth_another_provider(workshop: Workshop, error: ProviderError, moves: bool) -> None:
    """Never after an outcome that may have been paid for."""
    workshop.add("one", Scripted(error))
    workshop.add("two", Scripted())
    job_id = await workshop.submit(["one", "two"], max_retries=0)
    job = await workshop.attempt(job_id)
    assert (job.status, job.provider) == (("pending", "two") if moves else ("failed", "one"))
    if moves:
        assert [(skip["provider"], skip["code"]) for skip in job.skips or ()] == [("one", error.code)]
        assert (await workshop.attempt(job_id)).status == "completed"
        assert [attempt.outcome for attempt in await workshop.attempts(job_id)] == ["moved", "completed"]


# After the provider has accepted the job, it has it, and may have been paid for it


@pytest.mark.parametrize(
    "error", [ProviderUnavailable(), ProviderTimedOut(), ResultMissing(), ZeroDivisionError("a bug of the plug-in")]
)
async def test_a_job_that_the_provider_has_is_followed_and_not_made_again(workshop: Workshop, error: Exception) -> None:
    provider = Scripted(error, error, error, accepts=True)
    workshop.add("one", provider)
    job = await workshop.carry_out(await workshop.submit(max_retries=3))
    assert (job.status, job.retry_count) == ("completed", 3)
    assert provider.asked == ["generate", *["resume remote-1"] * 3]


@pytest.mark.parametrize("error", [JobLost(), GenerationFailed(), BadOutput(), NotTaken()])
async def test_a_job_that_came_to_nothing_is_made_anew(workshop: Workshop, error: ProviderError) -> None:
    provider = Scripted(error, accepts=True)
    workshop.add("one", provider)
    job = await workshop.carry_out(await workshop.submit())
    assert (job.status, job.provider_job_id) == ("completed", "remote-2")
    assert provider.asked == ["generate", "generate"]


async def test_following_is_given_up_when_the_retries_are(workshop: Workshop) -> None:
    provider = Scripted(*[ProviderUnavailable()] * 9, accepts=True)
    workshop.add("one", provider)
    job = await workshop.carry_out(await workshop.submit(max_retries=2))
    assert (job.status, job.retry_count, (job.error or {})["code"]) == ("failed", 2, "provider_unavailable")
    assert provider.asked == ["generate", "resume remote-1", "resume remote-1"]


async def test_finding_nothing_to_follow_is_no_try_and_never_goes_on_for_ever(workshop: Workshop) -> None:
    provider = Scripted(*[ProviderUnavailable(), JobLost()] * 9, accepts=True)
    workshop.add("one", provider)
    job = await workshop.carry_out(await workshop.submit(max_retries=2))
    assert (job.status, job.retry_count) == ("failed", 2)
    assert provider.asked == ["generate", "resume remote-1", "generate", "resume remote-3", "generate"]


@pytest.mark.parametrize("between", [[], [ProviderUnavailable()], [JobLost()]])
async def test_a_job_under_which_servers_die_twice_takes_no_third_one_down(
    workshop: Workshop, between: list[ProviderError]
) -> None:
    provider = Scripted(ProviderCrashed("It died."), *between, ProviderCrashed("Another died."), accepts=True)
    workshop.add("one", provider)
    workshop.add("two", second := Scripted())
    job = await workshop.carry_out(await workshop.submit(["one", "two"], max_retries=9))
    error = job.error or {}
    assert (job.status, error["code"], error["message"]) == ("failed", "provider_crashed", "Another died.")
    assert (error["retryable"], second.asked, len(provider.asked)) == (False, [], 2 + len(between))


async def test_one_server_that_dies_is_survived(workshop: Workshop) -> None:
    workshop.add("one", Scripted(ProviderCrashed(), accepts=True))
    job = await workshop.carry_out(await workshop.submit())
    assert (job.status, job.retry_count) == ("completed", 1)


async def test_who_waited_at_a_server_that_dies_loses_no_retry(workshop: Workshop) -> None:
    provider = Scripted(*[JobDropped()] * 5, accepts=True)
    workshop.add("one", provider)
    job = await workshop.carry_out(await workshop.submit(max_retries=0))
    assert (job.status, job.retry_count, job.attempt) == ("completed", 0, 6)
    workshop.add("ever", Scripted(*[JobDropped()] * 99, accepts=True))
    job = await workshop.carry_out(await workshop.submit("ever", max_retries=0))
    assert (job.status, job.attempt) == ("failed", 20)  # but not for ever


async def test_the_next_of_a_route_never_follows_a_foreign_job(workshop: Workshop) -> None:
    free = Scripted(ProviderUnavailable(), ProviderUnavailable(), accepts=True, is_free=True)
    second = Scripted(accepts=True)
    workshop.add("one", free)
    workshop.add("two", second)
    job = await workshop.carry_out(await workshop.submit(["one", "two"]))
    assert (job.status, job.provider, free.asked) == ("completed", "two", ["generate", "resume remote-1"])
    assert second.asked == ["generate"]


async def test_a_job_that_may_be_paid_is_not_made_elsewhere(workshop: Workshop) -> None:
    second = Scripted()
    workshop.add("one", Scripted(ProviderUnavailable(), ProviderUnavailable(), accepts=True))
    workshop.add("two", second)
    job = await workshop.carry_out(await workshop.submit(["one", "two"]))
    assert (job.status, job.provider, second.asked) == ("failed", "one", [])


async def test_comfyui_draws_once_however_often_the_download_fails(workshop: Workshop) -> None:
    with ComfyStandIn() as server:
        server.half_files = 3 * outcome.DOWNLOAD_TRIES
        workshop.add("comfyui", ComfyUI([server.url], pace=QUICK))
        job = await workshop.carry_out(await workshop.submit("comfyui", max_retries=3))
        assert (job.status, job.retry_count) == ("completed", 3)
        assert server.submits(job.id) == 1


async def test_comfyui_is_asked_again_if_it_forgot_meanwhile(workshop: Workshop) -> None:
    with ComfyStandIn() as server:
        server.half_files = outcome.DOWNLOAD_TRIES
        workshop.add("comfyui", ComfyUI([server.url], pace=QUICK))
        job_id = await workshop.submit("comfyui")
        assert (await workshop.attempt(job_id)).status == "pending"
        server.restart()
        job = await workshop.carry_out(job_id)
        assert (job.status, job.retry_count, server.submits(job_id)) == ("completed", 1, 2)


async def test_a_comfyui_that_is_not_there_does_not_hold_a_job_that_knows_another_way(workshop: Workshop) -> None:
    """The id that was reserved for it is worth nothing: it was never sent."""
    with ComfyStandIn() as server:
        server.lost_requests = 99
        workshop.add("comfyui", ComfyUI([server.url], pace=QUICK))
        workshop.add("two", Scripted())
        job_id = await workshop.submit(["comfyui", "two"])
        assert (await workshop.attempt(job_id)).provider_job_id is None
        job = await workshop.carry_out(job_id)
        assert (job.status, job.provider, len(server.ledger)) == ("completed", "two", 0)


async def test_modelslab_is_paid_once_however_often_the_download_fails(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("FIRST_PAUSE", 0.01), ("MAX_FIRST_PAUSE", 0.02), ("DOWNLOAD_TRIES", 1)):
        monkeypatch.setattr(modelslab, name, value)
    service = ModelsLabStandIn()
    try:
        service.on_file = [lambda job, base, status=status: Response(status_code=status) for status in (503, 404, 403)]
        provider = ModelsLab(key=KEY, base_url=service.url)
        workshop.add("modelslab", provider)
        job = await workshop.carry_out(await workshop.submit("modelslab", max_retries=3))
        await provider.close()
    finally:
        service.close()
    assert (job.status, job.retry_count) == ("completed", 3)
    assert len(service.ledger) == 1
    codes = [(attempt.error or {}).get("code") for attempt in await workshop.attempts(job.id)]
    assert codes == ["provider_unavailable", "result_missing", "result_missing", None]


async def test_a_probe_that_fails_keeps_the_job(workshop: Workshop) -> None:
    provider = Scripted(*[ProviderUnavailable()] * 3, accepts=True)
    workshop.add("one", provider)
    job_id = await workshop.submit(max_retries=3)
    for _ in range(2):  # then the breaker is open
        await workshop.attempt(job_id)
    await workshop.world.database.write(_let_try, job_id)
    job = await workshop.attempt(job_id)
    assert (await workshop.attempts(job_id))[-1].outcome == "deferred"
    assert (job.status, job.provider_job_id) == ("pending", "remote-1")
    await workshop.world.database.write(_let_try, job_id)
    assert (await workshop.attempt(job_id)).status == "completed"
    assert provider.asked == ["generate", *["resume remote-1"] * 3]


# Files


@pytest.mark.parametrize("whole", [True, False])
async def test_a_file_is_gone_whatever_became_of_it(workshop: Workshop, tmp_path: Path, whole: bool) -> None:
    file = tmp_path / "result.tmp"
    file.write_bytes(media("mp4") if whole else media("mp4")[:2000])
    workshop.add("one", Scripted(delivers=file))
    job = await workshop.attempt(await workshop.submit(max_retries=0))
    assert (job.status, (job.error or {}).get("code")) == (("completed", None) if whole else ("failed", "bad_output"))
    assert not file.exists()


async def test_without_ffmpeg_a_video_is_not_made_again_and_again(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workshop.add("one", Scripted(delivers=media("mp4")))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    job = await workshop.attempt(await workshop.submit(max_retries=3))
    assert (job.status, (job.error or {}).get("code")) == ("failed", "ffmpeg_missing")


async def test_a_provider_that_repeats_itself_is_told_once(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    class Repeating(Scripted):
        async def _go_on(self) -> AsyncGenerator[Update]:
            for percent in (10, 10, 20, 10, 20):
                yield Progress(percent, "rendering", "Rendering")
            yield Output(PICTURE, "image/png")

    told: list[int] = []

    def publish(*given: Any) -> None:
        event = json.loads(given[3])
        if event["type"] == "job.progress":
            told.append(event["progress"])

    monkeypatch.setattr(runner, "PROGRESS_SECONDS", 0.0)
    monkeypatch.setattr(workshop.world.stream, "publish", publish)
    workshop.add("one", Repeating())
    assert (await workshop.attempt(await workshop.submit())).status == "completed"
    assert told == [10, 20]
