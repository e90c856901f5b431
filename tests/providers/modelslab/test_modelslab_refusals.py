"""What ModelsLab refuses, what fails there, and what nobody can tell: each by its own error."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import structlog
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from structlog.testing import LogCapture
from wishes import Make, order, refused

from safelight.providers.base import (
    BadOutput,
    ContentRejected,
    GenerationFailed,
    InvalidParameters,
    ProviderError,
    ProviderTimedOut,
    ProviderUnavailable,
    ProviderUnreachable,
    RateLimited,
    UnknownOutcome,
)
from safelight.providers.modelslab import ModelsLab
from safelight.providers.modelslab import provider as module
from stand_ins.generation import collect
from stand_ins.modelslab import Job, ModelsLabStandIn, says
from stand_ins.serve import Dropped, Half

pytestmark = pytest.mark.anyio


def error(message: Any, http_status: int = 200, name: str = "message", **more: Any) -> Callable[[Job, str], Response]:
    return lambda job, base: says(http_status, **({"status": "error", name: message} | more))


@pytest.mark.parametrize(
    ("answer", "expected", "words"),
    [
        (
            error("Rate limit exceeded. Maximum 5 queued requests allowed.", 429, retry_after=30),
            RateLimited,
            "Maximum 5",
        ),
        (error("Rate limit exceeded"), RateLimited, "Rate limit"),
        (lambda job, base: PlainTextResponse("slow", 429, {"Retry-After": "30"}), RateLimited, "slow"),
        (error("Insufficient credits", 402), ProviderError, "no credit"),
        (error("You do not have enough credits", name="messege"), ProviderError, "no credit"),
        (error("Not in your plan", 403), ProviderError, "may not do this"),
        (error("NSFW content was detected in the prompt"), ContentRejected, "NSFW"),
        (error("Your prompt violates our policy", 400), ContentRejected, "violates"),
        (error("Model not found: flix", 400), InvalidParameters, "flix"),
        (error({"prompt": ["The prompt field is required."]}), InvalidParameters, "prompt: The prompt field"),
        (error("Try again later, all servers are busy"), ProviderUnavailable, "busy"),
        (error("Something odd", name="error"), ProviderError, "Something odd"),
        (error("Something odd", status="failed"), ProviderError, "Something odd"),
        (lambda job, base: PlainTextResponse("Internal Server Error", 500), ProviderUnavailable, "Internal"),
        (lambda job, base: PlainTextResponse("", 503), ProviderUnavailable, "503"),
        (lambda job, base: PlainTextResponse("load balancer error", 502), ProviderUnavailable, "balancer"),
        (lambda job, base: PlainTextResponse("no such page", 404), ProviderError, "no such page"),
        (lambda job, base: RedirectResponse("http://127.0.0.1:1/"), ProviderError, "307"),
        (lambda job, base: says(status="processing", id=None, fetch_result=None), UnknownOutcome, "under which id"),
        (lambda job, base: says(status="success", id=None, output=[]), BadOutput, "delivers nothing"),
        (lambda job, base: says(status="success", output=[], nsfw_content_detected=True), ContentRejected, "unsafe"),
        (lambda job, base: says(status="success", output=["###"]), BadOutput, "neither a link nor base64"),
    ],
)
async def test_a_refused_submit_says_why(
    provider: ModelsLab,
    service: ModelsLabStandIn,
    answer: Callable[[Job, str], Response],
    expected: type[ProviderError],
    words: str,
) -> None:
    service.on_submit = [answer]
    problem = await refused(provider.generate(order()), expected)
    assert words in problem.message
    if "30" in str(problem.retry_after):
        assert problem.retry_after == 30
    if isinstance(problem, InvalidParameters):
        assert problem.field == ("prompt" if "required" in words or "field" in words else "model")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (error("CUDA out of memory", status="failed"), GenerationFailed),
        (error("Something went wrong, try again"), GenerationFailed),
        (error({"detail": {"reason": "worker died"}}, status="failed"), GenerationFailed),
        (error("Unsafe content in the result", status="failed"), ContentRejected),
        (error("Invalid API key", 401), ProviderError),
        (error("No credits", 402), ProviderError),
        (lambda job, base: says(status="success", output=[], nsfw_content_detected=[True]), ContentRejected),
    ],
)
async def test_a_job_that_was_taken_may_fail(
    provider: ModelsLab,
    service: ModelsLabStandIn,
    answer: Callable[[Job, str], Response],
    expected: type[ProviderError],
) -> None:
    service.on_fetch = [answer]
    await refused(provider.generate(order()), expected)
    assert len(service.ledger) == 1


async def test_success_without_a_result_is_believed_in_the_end(provider: ModelsLab, service: ModelsLabStandIn) -> None:
    service.on_fetch = [lambda job, base: says(status="success", id=job.id, output=[])] * 9
    await refused(provider.generate(order()), BadOutput)
    assert len(service.fetched) == module.LOOKS


@pytest.mark.parametrize(
    "answer",
    [
        lambda job, base: Dropped(),
        lambda job, base: Half(b'{"status": "processing"}'),
        lambda job, base: PlainTextResponse("<html>welcome</html>"),
        lambda job, base: PlainTextResponse("gateway timeout", 504),
        lambda job, base: PlainTextResponse("a timeout occurred", 524),
    ],
    ids=["dropped", "half", "no answer to this", "504", "524"],
)
async def test_a_submit_nobody_can_tell_of_is_not_repeated(
    make: Make, service: ModelsLabStandIn, answer: Callable[[Job, str], Response]
) -> None:
    service.on_submit = [answer, answer]
    unknown = await refused(make().generate(order()), UnknownOutcome)
    assert (unknown.retryable, unknown.may_have_cost) == (False, True)
    assert (await refused(make(resubmit_unknown=True).generate(order()), ProviderTimedOut)).retryable
    assert len(service.ledger) == 2


async def test_silence_after_the_submit_is_unknown_too(
    provider: ModelsLab, service: ModelsLabStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def stall(job: Job, base: str) -> None:
        await asyncio.sleep(1)

    monkeypatch.setattr(module, "SUBMIT_TIMEOUT", 0.1)
    service.on_submit = [stall]
    assert "ReadTimeout" in (await refused(provider.generate(order()), UnknownOutcome)).message


async def test_a_service_that_is_not_there_took_nothing(make: Make) -> None:
    gone = ModelsLabStandIn()
    gone.close()
    assert (await refused(make(base_url=gone.url).generate(order()), ProviderUnreachable)).retryable


async def test_the_key_is_told_to_nobody(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The service repeats a wrong key in its error; no log line and no error of ours does."""
    wrong = "ml-a-wrong-but-secret-key"
    lines = LogCapture()
    monkeypatch.setattr(module, "log", structlog.wrap_logger(None, processors=[lines]))
    provider = make(key=wrong)
    with pytest.raises(ProviderError, match=r"refuses the API key: Invalid API key: \*\*\*") as caught:
        await collect(provider.generate(order()))
    with pytest.raises(ProviderError, match="refuses the API key") as adopting:
        await collect(provider.resume(order(), "5"))
    health = await provider.health()
    assert health is not None
    assert "refuses the API key" in health
    told = [health, repr(provider), lines.entries]
    for error in (caught.value, adopting.value):
        told += [repr(error), error.details, repr(error.__cause__), repr(error.__context__)]
    assert wrong not in str(told)


async def test_health(make: Make) -> None:
    assert await make().health() is None
    gone = ModelsLabStandIn()
    gone.close()
    assert await make(base_url=gone.url).health() == "ModelsLab cannot be reached (ConnectError)."
