"""ModelsLab against its stand-in: every shape of answer, every way to fail, and one submit for one picture."""

import asyncio
import base64
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from wishes import Make, asked, order, refused

from patience import PATIENCE_SECONDS
from safelight.providers.address import AddressRefused, UrlRefused
from safelight.providers.base import (
    Accepted,
    InputImage,
    InvalidParameters,
    JobLost,
    Output,
    Progress,
    ProviderError,
    ProviderUnreachable,
    Submitting,
    Update,
)
from safelight.providers.modelslab import ModelsLab, job_of_webhook
from safelight.providers.modelslab import provider as module
from stand_ins import generation
from stand_ins.generation import collect, kinds, outputs, sizes
from stand_ins.modelslab import KEY, Job, ModelsLabStandIn, says
from stand_ins.serve import Dropped, Half, picture

pytestmark = pytest.mark.anyio


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
    await refused(make(base_url="http://127.0.0.1:9/api").generate(start), ProviderUnreachable)
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
