"""ModelsLab against its stand-in: every shape of answer, every way to fail, and one submit for one picture."""

import asyncio
import base64
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import structlog
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from structlog.testing import LogCapture

from patience import PATIENCE_SECONDS
from safelight.providers import fetch as fetch_module
from safelight.providers.address import AddressRefused, UrlRefused
from safelight.providers.base import (
    Accepted,
    BadOutput,
    ContentRejected,
    Generation,
    GenerationFailed,
    InputImage,
    InvalidParameters,
    JobLost,
    Output,
    Parameters,
    Progress,
    ProviderError,
    ProviderTimedOut,
    ProviderUnavailable,
    RateLimited,
    Submitting,
    UnknownOutcome,
    Update,
)
from safelight.providers.modelslab import ModelsLab, job_of_webhook
from safelight.providers.modelslab import provider as module
from stand_ins import generation
from stand_ins.generation import collect, kinds, outputs, sizes
from stand_ins.modelslab import KEY, Job, ModelsLabStandIn, says
from stand_ins.serve import Dropped, Half, picture

pytestmark = pytest.mark.anyio
Make = Callable[..., ModelsLab]


@pytest.fixture(scope="module")
def shared_service() -> Iterator[ModelsLabStandIn]:
    service = ModelsLabStandIn()
    yield service
    service.close()


@pytest.fixture
def service(shared_service: ModelsLabStandIn, monkeypatch: pytest.MonkeyPatch) -> ModelsLabStandIn:
    """The stand-in as new, and a provider that is in a hurry."""
    for name, seconds in (("FIRST_PAUSE", 0.02), ("MAX_PAUSE", 0.05), ("MAX_FIRST_PAUSE", 0.05), ("TICK", 0.02)):
        monkeypatch.setattr(module, name, seconds)
    monkeypatch.setattr(fetch_module, "PAUSE_SECONDS", 0.01)
    for listed in (
        *(shared_service.on_submit, shared_service.on_fetch, shared_service.on_file),
        *(shared_service.ledger, shared_service.fetched, shared_service.bodies, shared_service.uploads),
    ):
        listed.clear()
    shared_service.seconds, shared_service.takes_v7_fetch = 0.03, True
    return shared_service


@pytest.fixture
async def make(service: ModelsLabStandIn) -> AsyncIterator[Make]:
    made: list[ModelsLab] = []

    def make(**changes: Any) -> ModelsLab:
        given: dict[str, Any] = {"key": KEY, "base_url": service.url}
        made.append(ModelsLab(**(given | changes)))
        return made[-1]

    yield make
    for provider in made:
        await provider.close()


@pytest.fixture
def provider(make: Make) -> ModelsLab:
    return make()


asked = partial(generation.asked, width=256, height=256)
refused = partial(generation.refused, KEY)


def order(parameters: Parameters | None = None, job_id: str = "job-1") -> Generation:
    return generation.order(parameters or asked(), job_id=job_id)


# --- a picture --------------------------------------------------------------------------------------------------------


async def test_a_job_is_submitted_once_followed_and_downloaded(provider: ModelsLab, service: ModelsLabStandIn) -> None:
    parameters = asked(batch_size=2, width=512)
    updates = await collect(provider.generate(order(parameters)))
    assert kinds(updates) == ["Submitting", "Accepted", "Progress", "Output"]
    assert sizes(updates) == [(512, 256)] * 2
    assert [(output.content_type, output.seed) for output in outputs(updates)] == [("image/png", None)] * 2
    progress = [update for update in updates if isinstance(update, Progress)]
    assert progress[0].message == "ModelsLab expects 1 s in all"
    assert all(update.percent is None or 0 <= update.percent <= 90 for update in progress)
    assert service.ledger == [
        {
            "key": KEY,
            "model_id": "flux",
            "prompt": "a harbour",
            "track_id": "job-1",
            "width": 512,
            "height": 256,
            "samples": 2,
            "seed": 7,
        }
    ]
    accepted = next(update for update in updates if isinstance(update, Accepted))
    assert accepted.remote_id == str(max(service.jobs))
    assert set(service.fetched) == {f"/api/v7/images/fetch/{accepted.remote_id}"}


@pytest.mark.parametrize(
    ("given", "sent", "size"),
    [
        ({"sampler_params": {"denoise": 0.4}}, {"strength": 0.4, "samples": 1, "seed": 7}, (80, 48)),
        (
            {"model": "sdxl", "batch_size": 2},
            {"samples": 2, "seed": 7, "scheduler": "UniPCMultistepScheduler"},
            (80, 48),
        ),
        ({"model": "flux-kontext-pro"}, {"aspect_ratio": "16:9"}, None),
        ({"model": "flux-kontext-pro", "width": 512, "height": 512}, {"aspect_ratio": "1:1"}, None),
        ({"model": "seededit-i2i"}, {}, None),
    ],
)
async def test_a_picture_to_start_from_is_sent_first(
    provider: ModelsLab,
    service: ModelsLabStandIn,
    given: dict[str, Any],
    sent: dict[str, Any],
    size: tuple[int, int] | None,
) -> None:
    parameters = generation.asked(input_images=("a",), **given)
    image = InputImage(picture(80, 48, format="JPEG"), "image/jpeg")
    updates = await collect(provider.generate(generation.order(provider.check(parameters), (image,))))
    assert kinds(updates)[:3] == ["Progress", "Submitting", "Accepted"]
    assert service.uploads == [image.data]
    always = {"key": KEY, "track_id": "job-1", "prompt": "a harbour", "model_id": given.get("model", "flux")}
    assert service.ledger == [always | sent | {"init_image": service.url.replace("/api", "/uploads/0")}]
    if size is not None:
        assert sizes(updates) == [size] * parameters.batch_size


async def test_several_pictures_go_as_a_list(provider: ModelsLab, service: ModelsLabStandIn) -> None:
    images = tuple(InputImage(picture(64, 64, text), "image/png") for text in "ab")
    parameters = generation.asked(model="seedream-4.5-i2i", input_images=("a", "b"))
    await collect(provider.generate(generation.order(provider.check(parameters), images)))
    assert len(service.ledger[0]["init_image"]) == 2 and service.ledger[0]["aspect_ratio"] == "1:1"


async def test_a_picture_that_cannot_be_sent_costs_nothing(
    make: Make, provider: ModelsLab, service: ModelsLabStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = generation.order(generation.asked(input_images=("a",)), (InputImage(picture(64, 64), "image/png"),))
    monkeypatch.setattr(module, "MAX_UPLOAD_BYTES", 10)
    error = await refused(provider.generate(start), InvalidParameters)
    assert isinstance(error, InvalidParameters) and error.field == "input_images.0"
    monkeypatch.undo()
    await refused(make(base_url="http://127.0.0.1:9/api").generate(start), ProviderUnavailable)
    wrong = make(key="another")
    assert "refuses the API key" in (await refused(wrong.generate(start), ProviderError)).message
    assert not service.ledger


SUCCESSES: dict[str, Callable[[ModelsLabStandIn, Job, str], Response]] = {
    "at once": lambda service, job, base: service.success(job, base),
    "id as a string": lambda service, job, base: service.success(job, base, id="abc123-def456"),
    "no id": lambda service, job, base: service.success(job, base, id=None),
    "links as an object": lambda service, job, base: service.success(
        job, base, output={"0": job.links(base)[0]}, proxy_links={"0": "http://127.0.0.1:1/"}
    ),
    "a single link": lambda service, job, base: service.success(job, base, output=job.links(base)[0], proxy_links=None),
    "proxies only": lambda service, job, base: service.success(job, base, output=[], proxy_links=job.links(base)),
    "base64": lambda service, job, base: service.success(
        job, base, output=[base64.b64encode(picture(256, 256)).decode()]
    ),
    "a data URL": lambda service, job, base: service.success(
        job, base, output=["data:image/png;base64," + base64.b64encode(picture(256, 256)).decode()]
    ),
    "told to be unsafe": lambda service, job, base: service.success(job, base, nsfw_content_detected=True),
    "done while processing": lambda service, job, base: service.processing(
        job, base, output=job.links(base), meta={"seed": 7}
    ),
}


@pytest.mark.parametrize("shape", SUCCESSES)
async def test_it_may_be_done_at_once(provider: ModelsLab, service: ModelsLabStandIn, shape: str) -> None:
    service.on_submit = [lambda job, base: SUCCESSES[shape](service, job, base)]
    updates = await collect(provider.generate(order()))
    expected = (
        ["Submitting", "Progress", "Output"] if shape == "no id" else ["Submitting", "Accepted", "Progress", "Output"]
    )
    assert kinds(updates) == expected
    output = updates[-1]
    assert isinstance(output, Output)
    assert (output.seed, output.content_type) == (7, "image/png")
    assert len(service.ledger) == 1
    assert service.fetched == []


PROCESSINGS: dict[str, dict[str, Any]] = {
    "no fetch_result": {"fetch_result": None},
    "id as a string": {"id": "{id}"},
    "id in fetch_result only": {"id": None},
    "queued": {"status": "queued"},
    "a new word": {"status": "dreaming"},
    "eta as a string": {"eta": "2.5"},
    "no eta": {"eta": None},
    "no output": {"output": None, "future_links": None},
}


@pytest.mark.parametrize("shape", PROCESSINGS)
async def test_it_may_be_processing_in_many_shapes(provider: ModelsLab, service: ModelsLabStandIn, shape: str) -> None:
    def answer(job: Job, base: str) -> Response:
        changes = dict(PROCESSINGS[shape])
        if changes.get("id"):
            changes["id"] = str(job.id)
        return service.processing(job, base, **changes)

    service.on_submit = [answer]
    service.on_fetch = [answer, None]
    updates = await collect(provider.generate(order()))
    assert kinds(updates) == ["Submitting", "Accepted", "Progress", "Output"]
    percents = {update.percent for update in updates if isinstance(update, Progress)}
    if shape == "no eta":
        assert percents == {None} or None in percents
    assert len(service.ledger) == 1


async def test_the_old_way_to_ask_is_tried_if_the_new_one_knows_nothing(
    provider: ModelsLab, service: ModelsLabStandIn
) -> None:
    service.takes_v7_fetch = False
    updates = await collect(provider.generate(order()))
    assert isinstance(updates[-1], Output)
    assert {path.split("/")[2] for path in service.fetched} == {"v7", "v6"}
    assert service.bodies[-1] == {"key": KEY, "request_id": str(max(service.jobs))}


async def test_a_webhook_wakes_it(
    provider: ModelsLab, service: ModelsLabStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_FIRST_PAUSE", 2 * PATIENCE_SECONDS)
    monkeypatch.setattr(module, "TICK", 2 * PATIENCE_SECONDS)
    service.on_submit = [lambda job, base: service.processing(job, base, eta=round(2 * PATIENCE_SECONDS))]
    generation = order()
    async with asyncio.timeout(PATIENCE_SECONDS):
        async for update in provider.generate(generation):
            if isinstance(update, Progress) and update.stage == "generating":
                service.seconds = 0
                service.jobs[max(service.jobs)].ready_at = 0
                generation.woken.set()
    assert len(service.fetched) == 1
    assert not generation.woken.is_set()


async def test_a_webhook_before_the_answer_to_the_submit_counts(
    provider: ModelsLab, service: ModelsLabStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_FIRST_PAUSE", 2 * PATIENCE_SECONDS)
    generation, loop = order(), asyncio.get_running_loop()

    def answer(job: Job, base: str) -> Response:
        job.ready_at = 0
        told = threading.Event()
        loop.call_soon_threadsafe(lambda: (generation.woken.set(), told.set()))
        told.wait(PATIENCE_SECONDS)
        return service.processing(job, base, eta=round(2 * PATIENCE_SECONDS))

    service.on_submit = [answer]
    async with asyncio.timeout(PATIENCE_SECONDS):
        updates = await collect(provider.generate(generation))
    assert isinstance(updates[-1], Output)
    assert len(service.fetched) == 1


async def test_it_tells_where_the_webhook_is_to_go(make: Make, service: ModelsLabStandIn) -> None:
    await collect(make(webhook_url="https://pictures.example/hook/abc").generate(order()))
    assert service.ledger[0]["webhook"] == "https://pictures.example/hook/abc"


@pytest.mark.parametrize(
    ("body", "job_id"),
    [
        (b'{"status": "success", "id": 5, "track_id": "job-1", "output": []}', "job-1"),
        (b'{"status": "success", "id": 5}', None),
        (b'{"track_id": 5}', None),
        (b"[]", None),
        (b"track_id=job-1", None),
    ],
)
async def test_of_a_webhook_only_the_job_is_read(body: bytes, job_id: str | None) -> None:
    assert job_of_webhook(body) == job_id


# --- adoption ---------------------------------------------------------------------------------------------------------


async def test_another_process_goes_on_with_the_id(make: Make, service: ModelsLabStandIn) -> None:
    generation, remote_id = order(), ""
    updates = make().generate(generation)
    async for update in updates:
        if isinstance(update, Accepted):
            remote_id = update.remote_id
            break
    await updates.aclose()
    adopted = await collect(make().resume(generation, remote_id))
    assert kinds(adopted) == ["Progress", "Output"]
    assert len(service.ledger) == 1


@pytest.mark.parametrize("steps", range(7))
async def test_at_whatever_step_a_worker_dies_there_is_one_submit(
    make: Make, service: ModelsLabStandIn, steps: int
) -> None:
    """The house's rule: an id is adopted, a submit without one is not repeated, anything before begins anew."""
    generation, seen = order(), list[Update]()
    updates = make().generate(generation)
    for _ in range(steps):
        seen.append(await anext(updates))
    await updates.aclose()
    accepted = [update.remote_id for update in seen if isinstance(update, Accepted)]
    later = replace(generation, attempt=2)
    if accepted:
        assert isinstance((await collect(make().resume(later, accepted[0])))[-1], Output)
    elif not seen:
        assert isinstance((await collect(make().generate(later)))[-1], Output)
    assert len(service.ledger) == (0 if seen == [Submitting()] else 1)


async def test_a_job_it_no_longer_knows_is_lost(provider: ModelsLab, service: ModelsLabStandIn) -> None:
    await refused(provider.resume(order(), "999"), JobLost)
    assert len(service.fetched) == 2 * module.LOOKS
    await refused(provider.resume(order(), "../../v6/wallet_balance"), JobLost)
    assert len(service.fetched) == 2 * module.LOOKS
    await provider.cancel("999")


async def test_lost_is_only_what_is_unknown_again_and_again(provider: ModelsLab, service: ModelsLabStandIn) -> None:
    unknown = says(status="error", message="Request not found")
    for _ in range(4):  # v7 and v6, twice
        service.on_fetch.append(lambda job, base: unknown)
    assert isinstance((await collect(provider.generate(order())))[-1], Output)


# --- trouble on the way -----------------------------------------------------------------------------------------------


TROUBLES: dict[str, Callable[[Job, str], Response]] = {
    "dropped": lambda job, base: Dropped(),
    "500 with text": lambda job, base: PlainTextResponse("Internal Server Error", 500),
    "200 with text": lambda job, base: PlainTextResponse("<html>maintenance</html>"),
    "503": lambda job, base: says(503, status="error", message="Service unavailable"),
    "429": lambda job, base: says(429, status="error", message="Rate limit exceeded.", retry_after=0.02),
    "half an answer": lambda job, base: Half(b'{"status": "success", "id": 1, "output": ["x"]}'),
    "done and nothing there": lambda job, base: says(status="success", id=job.id, output=[]),
    "redirected": lambda job, base: RedirectResponse("http://127.0.0.1:1/"),
}


@pytest.mark.parametrize("trouble", TROUBLES)
async def test_what_was_paid_is_asked_for_again(provider: ModelsLab, service: ModelsLabStandIn, trouble: str) -> None:
    service.on_fetch = [TROUBLES[trouble]] * 2
    updates = await collect(provider.generate(order()))
    assert isinstance(updates[-1], Output)
    assert len(service.ledger) == 1


FILE_TROUBLES: dict[str, Callable[[Job, str], Response]] = {
    "a link that is not there yet": lambda job, base: Response("not found", 404),
    "half a file": lambda job, base: Half(picture(256, 256)),
    "dropped": lambda job, base: Dropped(),
    "500": lambda job, base: Response("oops", 500),
    "a page": lambda job, base: Response("<html></html>"),
}


@pytest.mark.parametrize("trouble", FILE_TROUBLES)
async def test_a_download_is_tried_again_apart(provider: ModelsLab, service: ModelsLabStandIn, trouble: str) -> None:
    service.on_file = [FILE_TROUBLES[trouble]] * 3
    updates = await collect(provider.generate(order()))
    assert isinstance(updates[-1], Output)
    assert (len(service.ledger), len(service.jobs[max(service.jobs)].order)) == (1, 8)


async def test_a_dead_link_gives_way_to_its_proxy(provider: ModelsLab, service: ModelsLabStandIn) -> None:
    service.on_submit = [
        lambda job, base: service.success(job, base, output=["http://10.1.2.3/a.png"], proxy_links=job.links(base))
    ]
    assert isinstance((await collect(provider.generate(order())))[-1], Output)


@pytest.mark.parametrize(
    ("target", "error"),
    [
        ("http://169.254.169.254/latest/", AddressRefused),
        ("http://localhost:1/", AddressRefused),
        ("file:///etc/passwd", UrlRefused),
    ],
)
async def test_a_result_elsewhere_inside_is_refused(
    provider: ModelsLab, service: ModelsLabStandIn, target: str, error: type[ProviderError]
) -> None:
    service.on_submit = [lambda job, base: service.success(job, base, proxy_links=[])]
    service.on_file = [lambda job, base: Response(b"", 302, {"Location": target})]
    await refused(provider.generate(order()), error)


async def test_the_key_goes_to_no_other_host(make: Make, service: ModelsLabStandIn) -> None:
    foreign = ModelsLabStandIn()
    try:
        for address in (f"{foreign.url}/v7/images/fetch/1", "http://user:pw@" + service.host, "https://[x", 5):
            service.on_submit = [lambda job, base, told=address: service.processing(job, base, fetch_result=told)]
            assert isinstance((await collect(make().generate(order())))[-1], Output)
        assert foreign.fetched == []
    finally:
        foreign.close()


# --- refusals ---------------------------------------------------------------------------------------------------------


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
    service.on_fetch = [TROUBLES["done and nothing there"]] * 9
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
    assert (await refused(make(base_url=gone.url).generate(order()), ProviderUnavailable)).retryable


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
