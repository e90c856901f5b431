"""OpenAI-style images against their stand-in: pieces and streams, refusals told from failures, no blind repeats."""

import asyncio
import base64
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from typing import Any

import httpx
import pytest
from starlette.responses import JSONResponse, PlainTextResponse, Response

from patience import PATIENCE_SECONDS
from safelight.providers import fetch as fetch_module
from safelight.providers.address import AddressRefused, UrlRefused
from safelight.providers.base import (
    BadOutput,
    ContentRejected,
    InputImage,
    InvalidParameters,
    JobLost,
    Lora,
    Output,
    Preview,
    ProviderError,
    ProviderUnavailable,
    ProviderUnreachable,
    RateLimited,
    UnknownOutcome,
)
from safelight.providers.openai_images import OpenAIImages
from safelight.providers.openai_images import provider as provider_module
from stand_ins import generation
from stand_ins.generation import asked, collect, names, order, outputs, sizes
from stand_ins.openai_images import KEY, OpenAIStandIn, drawn, refusal, stream
from stand_ins.serve import Dropped, Half, picture

pytestmark = pytest.mark.anyio
Make = Callable[..., OpenAIImages]
Act = Callable[[dict[str, Any], str], Response]


@pytest.fixture(scope="module")
def shared_service() -> Iterator[OpenAIStandIn]:
    service = OpenAIStandIn()
    yield service
    service.close()


@pytest.fixture
def service(shared_service: OpenAIStandIn, monkeypatch: pytest.MonkeyPatch) -> OpenAIStandIn:
    monkeypatch.setattr(fetch_module, "PAUSE_SECONDS", 0.01)
    for listed in (shared_service.acts, shared_service.ledger, shared_service.paths, shared_service.file_headers):
        listed.clear()
    shared_service.streams = True
    shared_service.listed = {"gpt-image-2": None}
    return shared_service


@pytest.fixture
async def make(service: OpenAIStandIn) -> AsyncIterator[Make]:
    made: list[OpenAIImages] = []

    def make(**changes: Any) -> OpenAIImages:
        given: dict[str, Any] = {"key": KEY, "base_url": service.url}
        made.append(OpenAIImages(**(given | changes)))
        return made[-1]

    yield make
    for provider in made:
        await provider.close()


@pytest.fixture
def provider(make: Make) -> OpenAIImages:
    return make()


refused = partial(generation.refused, KEY)


# --- a picture --------------------------------------------------------------------------------------------------------


async def test_partial_pictures_are_previews(provider: OpenAIImages, service: OpenAIStandIn) -> None:
    updates = await collect(provider.generate(order(asked(width=1536, height=1024))))
    assert names(updates) == ["Submitting", "Progress", "Preview", "Preview", "Output"]
    assert sizes(updates) == [(1536, 1024)]
    assert {u.content_type for u in updates if isinstance(u, Preview | Output)} == {"image/png"}
    assert service.ledger == [
        {
            "model": "gpt-image-2",
            "prompt": "a harbour",
            "n": 1,
            "size": "1536x1024",
            "stream": True,
            "partial_images": 2,
        }
    ]


async def test_a_server_without_streams_answers_in_one_piece(provider: OpenAIImages, service: OpenAIStandIn) -> None:
    service.streams = False
    assert names(await collect(provider.generate(order()))) == ["Submitting", "Progress", "Output"]


@pytest.mark.parametrize(
    ("changes", "given"),
    [
        ({"streams": False}, {}),
        ({}, {"provider_options": {"partial_images": 0}}),
        ({}, {"batch_size": 3}),
        ({}, {"model": "dall-e-3"}),
    ],
)
async def test_a_stream_is_asked_for_only_where_it_helps(
    make: Make, service: OpenAIStandIn, changes: dict[str, Any], given: dict[str, Any]
) -> None:
    updates = await collect(make(**changes).generate(order(asked(**given))))
    assert len(sizes(updates)) == given.get("batch_size", 1)
    assert "stream" not in service.ledger[0]
    assert "partial_images" not in service.ledger[0]
    assert service.ledger[0].get("response_format") == ("b64_json" if "model" in given else None)


async def test_input_images_make_it_an_edit(provider: OpenAIImages, service: OpenAIStandIn) -> None:
    first = InputImage(picture(64, 64), "image/png")
    second = InputImage(picture(64, 32, format="JPEG"), "image/jpeg")
    parameters = asked(input_images=("a", "b"), provider_options={"background": "opaque", "quality": "low"})
    updates = await collect(provider.generate(order(parameters, (first, second))))
    assert names(updates) == ["Submitting", "Progress", "Preview", "Preview", "Output"]
    await collect(provider.generate(order(asked(input_images=("a",)), (first,))))
    assert service.paths == ["/v1/images/edits"] * 2
    assert service.ledger[0]["files"] == [
        ("image[]", "1.png", "image/png", first.data),
        ("image[]", "2.jpeg", "image/jpeg", second.data),
    ]
    fields = {name: value for name, value in service.ledger[0].items() if name != "files"}
    assert fields == {
        "model": "gpt-image-2",
        "prompt": "a harbour",
        "n": "1",
        "background": "opaque",
        "quality": "low",
        "stream": "true",
        "partial_images": "2",
    }
    assert [name for name, *_ in service.ledger[1]["files"]] == ["image"]


async def test_results_may_be_links(provider: OpenAIImages, service: OpenAIStandIn) -> None:
    service.acts = [lambda order, base: JSONResponse({"data": [{"url": f"{base}/files/640x480.png"}]})]
    assert sizes(await collect(provider.generate(order()))) == [(640, 480)]
    assert service.file_headers[0]["authorization"] == f"Bearer {KEY}"  # a server of one's own may want it


async def test_links_elsewhere_get_no_key_and_none_lead_inside(provider: OpenAIImages, service: OpenAIStandIn) -> None:
    other = OpenAIStandIn()
    try:
        for link, error in (
            (f"http://{other.host}/files/8x8.png", AddressRefused),
            ("http://169.254.169.254/", AddressRefused),
            ("https://x:99999999/", UrlRefused),
        ):
            service.acts = [lambda order, base, to=link: JSONResponse({"data": [{"url": to}]})]
            await refused(provider.generate(order()), error)
        assert other.file_headers == []
    finally:
        other.close()


async def test_what_it_used_is_told_of_the_first_picture(provider: OpenAIImages, service: OpenAIStandIn) -> None:
    used = {"usage": {"input_tokens": 11, "output_tokens": 4160, "total_tokens": 4171}}
    assert [output.details for output in outputs(await collect(provider.generate(order())))] == [used]
    service.streams = False
    several = await collect(provider.generate(order(asked(batch_size=3))))
    assert [output.details for output in outputs(several)] == [used, {}, {}]  # it is that of all three


async def test_a_broken_preview_costs_no_picture(provider: OpenAIImages, service: OpenAIStandIn) -> None:
    def answer(order: dict[str, Any], base: str) -> Response:
        broken = {"type": "image_generation.partial_image", "b64_json": "###"}
        return stream([broken, {"type": "keepalive"}, *service.events(order)])

    service.acts = [answer]
    assert names(await collect(provider.generate(order())))[2:] == ["Preview", "Preview", "Output"]


async def test_it_ends_with_the_picture_not_with_the_stream(provider: OpenAIImages, service: OpenAIStandIn) -> None:
    service.acts = [lambda order, base: stream(service.events(order), after=asyncio.Event().wait)]
    async with asyncio.timeout(PATIENCE_SECONDS):
        assert names(await collect(provider.generate(order())))[-1] == "Output"


async def test_there_is_nothing_to_come_back_to(provider: OpenAIImages) -> None:
    await refused(provider.resume(order(), "anything"), JobLost)
    await provider.cancel("anything")


# --- refusals and failures --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "expected", "words", "retry_after"),
    [
        (refusal(400, "Rejected by the safety system.", "moderation_blocked"), ContentRejected, "safety", None),
        (refusal(400, "No.", "content_policy_violation"), ContentRejected, "refuses this content", None),
        (refusal(403, "Blocked: it may violate our content policy.", "Forbidden"), ContentRejected, "policy", None),
        (refusal(429, "Exceeded your current quota.", "insufficient_quota"), ProviderError, "no credit", None),
        (refusal(400, "Hard limit.", "billing_hard_limit_reached"), ProviderError, "no credit", None),
        (refusal(403, "Your organization must be verified."), ProviderError, "must be verified", None),
        (refusal(429, "Slow down.", headers={"Retry-After": "7"}), RateLimited, "Slow down", 7),
        (refusal(429, "Slow.", headers={"retry-after-ms": "1500", "retry-after": "2"}), RateLimited, "Slow", 1.5),
        (refusal(429, "No more.", headers={"x-should-retry": "false"}), ProviderError, "No more", None),
        (refusal(500, "The server had an error."), ProviderUnavailable, "had an error", None),
        (refusal(503, "Overloaded.", headers={"Retry-After": "3"}), ProviderUnavailable, "Overloaded", 3),
        (refusal(500, "Never.", headers={"x-should-retry": "false"}), ProviderError, "Never", None),
        (refusal(400, "Later.", headers={"x-should-retry": "true"}), ProviderUnavailable, "Later", None),
        (refusal(409, "Conflict."), ProviderUnavailable, "Conflict", None),
        (refusal(400, "Bad size.", "invalid_value", param="size"), InvalidParameters, "Bad size", None),
        (refusal(404, "No model.", "model_not_found"), InvalidParameters, "No model", None),
        (PlainTextResponse("upstream timed out", 504), UnknownOutcome, "may have been made", None),
        (PlainTextResponse("<html>oops</html>", 500), ProviderUnavailable, "oops", None),
        (PlainTextResponse("nothing here", 404), ProviderError, "nothing here", None),
        (JSONResponse({"error": "plain words"}, 422), InvalidParameters, "plain words", None),
        (JSONResponse({"detail": "plain detail"}, 422), InvalidParameters, "plain detail", None),
        (JSONResponse({"data": []}), BadOutput, "without a picture", None),
        (JSONResponse({"data": [{"revised_prompt": "x"}]}), BadOutput, "neither", None),
        (JSONResponse({"data": [{"url": "", "respect_moderation": False}]}), ContentRejected, "withholds", None),
        (JSONResponse({"data": [{"b64_json": "###"}]}), BadOutput, "no base64", None),
        (JSONResponse({"data": [{"b64_json": base64.b64encode(b"<html>").decode()}]}), BadOutput, "no picture", None),
        (JSONResponse(["odd"]), BadOutput, "holds no pictures", None),
        (PlainTextResponse("<html>welcome</html>"), BadOutput, "holds no pictures", None),
        (
            stream([{"type": "error", "error": {"code": "moderation_blocked", "message": "No."}}]),
            ContentRejected,
            "No",
            None,
        ),
        (
            stream([{"type": "error", "error": {"code": "server_error", "message": "Oh."}}]),
            ProviderUnavailable,
            "Oh",
            None,
        ),
        (stream([]), BadOutput, "without a picture", None),
    ],
)
async def test_a_refusal_says_what_it_is(
    provider: OpenAIImages,
    service: OpenAIStandIn,
    answer: Response,
    expected: type[ProviderError],
    words: str,
    retry_after: float | None,
) -> None:
    service.acts = [lambda order, base: answer]
    problem = await refused(provider.generate(order()), expected)
    assert words in problem.message
    assert problem.retry_after == retry_after


async def test_a_pause_may_be_told_as_a_date(provider: OpenAIImages, service: OpenAIStandIn) -> None:
    in_an_hour = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    service.acts = [lambda order, base: refusal(429, "Slow.", headers={"Retry-After": in_an_hour})]
    assert (await refused(provider.generate(order()), RateLimited)).retry_after == pytest.approx(3600, abs=60)


def broken_stream(order: dict[str, Any], base: str) -> Response:
    async def drop() -> None:
        raise ConnectionError("the other side goes away")

    partial = {"type": "image_generation.partial_image", "b64_json": drawn(order)}
    return stream([partial], after=drop)


@pytest.mark.parametrize(
    "act",
    [lambda order, base: Dropped(), lambda order, base: Half(b'{"data": [{"b64_json": ""}]}'), broken_stream],
    ids=["dropped", "half", "in mid-stream"],
)
@pytest.mark.filterwarnings("ignore")
async def test_a_lost_connection_is_not_repeated(provider: OpenAIImages, service: OpenAIStandIn, act: Act) -> None:
    service.acts = [act]
    unknown = await refused(provider.generate(order()), UnknownOutcome)
    assert (unknown.retryable, unknown.may_have_cost) == (False, True)
    assert len(service.ledger) == 1


async def test_silence_is_not_repeated(
    provider: OpenAIImages, service: OpenAIStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def stall(order: dict[str, Any], base: str) -> None:
        await asyncio.sleep(1)

    monkeypatch.setattr(provider_module, "TIMEOUT", 0.1)
    service.acts = [stall]
    assert "ReadTimeout" in (await refused(provider.generate(order()), UnknownOutcome)).message


async def test_a_server_that_is_not_there_made_nothing(make: Make) -> None:
    gone = OpenAIStandIn()
    gone.close()
    provider = make(base_url=gone.url)
    assert (await refused(provider.generate(order()), ProviderUnreachable)).retryable
    assert await provider.health() == f"{gone.host} cannot be reached (ConnectError)."


async def test_the_key_is_told_to_nobody(make: Make) -> None:
    wrong = "sk-a-wrong-but-secret-key"
    provider = make(key=wrong)
    with pytest.raises(ProviderError, match=r"refuses the API key: Incorrect API key: Bearer \*\*\*") as caught:
        await collect(provider.generate(order()))
    told = f"{caught.value!r} {caught.value.details} {caught.value.__cause__!r} {provider!r} {await provider.health()}"
    assert wrong not in told
    assert "refuses the API key" in (await provider.health() or "")


async def test_health_and_models(make: Make) -> None:
    assert await make().health() is None
    assert (await make(models=["a", "b"], model="b").models())["models"] == ("b", "a")


# --- checking ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "field", "words"),
    [
        ({"model": "gpt-image-1"}, "model", "shut gpt-image-1 down on 2026-10-23; there are gpt-image-2.6-sunburst"),
        ({"model": "dall-e-3"}, "model", "shut dall-e-3 down on 2026-05-12"),
        ({"model": "gpt-image-1.5", "width": 512, "height": 512}, "width", "1024x1024, 1536x1024, 1024x1536"),
        ({"model": "gpt-image-1-mini", "width": 1024, "height": 1025}, "height", "not 1024x1025"),
        ({"width": 1000, "height": 1024}, "width", "divisible by 16"),
        ({"width": 3840, "height": 1024}, "width", "3 times the other"),
        ({"width": 3840, "height": 3840}, "width", "655,360 to 8,294,400 pixels in all"),
        ({"width": 512, "height": 512}, "width", "512x512 has 262,144"),
        ({"batch_size": 11}, "batch_size", "1 to 10"),
        ({"prompt": "x" * 32_001}, "prompt", "32000 characters"),
        ({"input_images": ("a",) * 17}, "input_images", "at most 16"),
        ({"negative_prompt": "people"}, "negative_prompt", "leave it out"),
        ({"lora_models": (Lora("x"),)}, "lora_models", "leave it out"),
        ({"sampler_params": {"steps": 20}}, "sampler_params", "leave it out"),
        ({"workflow": {"1": {}}}, "workflow", "leave it out"),
        ({"provider_options": {"quality": "hd"}}, "provider_options.quality", "auto, low, medium, high"),
        ({"provider_options": {"partial_images": 4}}, "provider_options.partial_images", "0 to 3"),
        ({"provider_options": {"style": "vivid"}}, "provider_options.style", "it takes background"),
        ({"provider_options": {"prompt": "x"}}, "provider_options.prompt", "a field of its own"),
        ({"provider_options": {"quality": "max"}}, "provider_options.quality", "auto, low, medium, high; not 'max'"),
        (
            {"model": "gpt-image-2.5-flare", "provider_options": {"complexity": "low"}},
            "provider_options.complexity",
            "no option",
        ),
        ({"provider_options": {"output_format": "gif"}}, "provider_options.output_format", "png, jpeg, webp"),
        ({"provider_options": {"input_fidelity": "high"}}, "provider_options.input_fidelity", "no option"),
        (
            {"provider_options": {"output_compression": 80}},
            "provider_options.output_compression",
            "an output_format of jpeg or webp, not with png",
        ),
        (
            {"provider_options": {"background": "transparent", "output_format": "jpeg"}},
            "provider_options.background",
            "png or webp",
        ),
        (
            {"model": "gpt-image-2.6-flare", "provider_options": {"frame_count": 1, "output_format": "gif"}},
            "provider_options.frame_count",
            "2 to 16",
        ),
        (
            {"input_images": ("a",), "provider_options": {"moderation": "low"}},
            "provider_options.moderation",
            "does not go with input_images",
        ),
        (
            {"model": "gpt-image-1.5", "provider_options": {"input_fidelity": "low"}},
            "provider_options.input_fidelity",
            "with pictures to start from only",
        ),
        (
            {"provider_options": {"safety_identifier": "x" * 129}},
            "provider_options.safety_identifier",
            "1 to 128 characters",
        ),
        ({"provider_options": {"partial_images": True}}, "provider_options.partial_images", "0 to 3"),
    ],
)
async def test_what_a_model_does_not_take_is_refused_by_field(wrong: dict[str, Any], field: str, words: str) -> None:
    provider = OpenAIImages(KEY, today=lambda: date(2026, 12, 1))
    with pytest.raises(InvalidParameters) as caught:
        provider.check(asked(**wrong))
    assert caught.value.field == field
    assert words in caught.value.message


@pytest.mark.parametrize("family", ["gpt-image-2.6-sunburst", "gpt-image-2.6-flare", "gpt-image-2.5-flare"])
async def test_the_newest_models_take_their_own_parameters(make: Make, service: OpenAIStandIn, family: str) -> None:
    options: dict[str, Any] = {"quality": "xhigh", "output_format": "gif", "frame_count": 9, "frame_duration_ms": 80}
    if "2.6" in family:
        options["complexity"] = "low"
    updates = await collect(
        make().generate(order(asked(model=family, width=1024, height=640, provider_options=options)))
    )
    assert names(updates) == ["Submitting", "Progress", "Output"]
    expected = {"model": family, "prompt": "a harbour", "n": 1, "size": "1024x640"} | options
    assert service.ledger == [expected]  # a GIF is not streamed


@pytest.mark.parametrize(
    "given",
    [
        {"model": "gpt-image-3", "width": 8192, "height": 64, "provider_options": {"quality": "ultra"}},
        {"model": "gpt-image-2.7-flare", "provider_options": {"anything": [1, {"deep": True}]}},
        {"model": "gpt-image-3", "prompt": "x" * 40_000},
    ],
)
async def test_a_newer_model_is_passed_on_with_what_was_asked(given: dict[str, Any]) -> None:
    checked = OpenAIImages(KEY).check(asked(**given))
    assert {name: getattr(checked, name) for name in given} == given


def test_a_model_is_taken_until_the_day_it_is_shut_down() -> None:
    on, after = (OpenAIImages(KEY, today=lambda day=day: date(2026, 12, day)) for day in (1, 2))
    for name in ("gpt-image-1.5", "gpt-image-1-mini", "chatgpt-image-latest"):
        assert on.check(asked(model=name)).model == name
        assert name in on.capabilities.models
        with pytest.raises(InvalidParameters, match=r"shut .* down on 2026-12-01"):
            after.check(asked(model=name))
        assert name not in after.capabilities.models
    named = OpenAIImages(KEY, models=["gpt-image-1"])  # whoever names it in the settings knows better
    assert named.check(asked(model="gpt-image-1")).model == "gpt-image-1"


async def test_what_is_shut_down_soon_is_told_in_time(make: Make, service: OpenAIStandIn) -> None:
    service.listed = {"gpt-image-2": "2026-12-24", "flux": "2027-12-24", "other": None, "strange": "soon"}
    provider = make(models=["flux", "other", "strange"], model="gpt-image-2", today=lambda: date(2026, 12, 1))
    (warning,) = await provider.warnings()
    assert "shuts gpt-image-2 down on 2026-12-24, in 23 days; it is the default (SAFELIGHT_OPENAI_MODEL)" in warning
    late = make(models=["gpt-image-2"], model="gpt-image-2", today=lambda: date(2027, 1, 1))
    assert "shut gpt-image-2 down on 2026-12-24" in (await late.warnings())[0]
    assert await make(key="wrong", models=["flux"], model="flux").warnings() == []


async def test_the_table_warns_where_the_list_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    async def gone(*args: Any, **more: Any) -> Any:
        raise httpx.ConnectError("no network")

    monkeypatch.setattr(httpx.AsyncClient, "get", gone)
    provider = OpenAIImages(KEY, model="gpt-image-1", today=lambda: date(2026, 11, 20))
    warnings = await provider.warnings()
    assert "OpenAI shut gpt-image-1 down on 2026-10-23; it is the default (SAFELIGHT_OPENAI_MODEL)." in warnings
    assert "OpenAI shuts gpt-image-1.5 down on 2026-12-01, in 11 days." in warnings
    assert not any("gpt-image-2" in warning for warning in warnings)
    await provider.close()


async def test_elsewhere_any_model_is_passed_on(make: Make, service: OpenAIStandIn) -> None:
    provider = make(model="flux.1-dev", key=KEY)
    assert provider.capabilities.models == ()
    given = provider.check(asked(model="sd-3.5", width=640, height=480, provider_options={"steps": 20}))
    assert provider.check(given) == given
    assert sizes(await collect(provider.generate(order(given)))) == [(640, 480)]
    assert (service.ledger[0]["model"], service.ledger[0]["steps"]) == ("sd-3.5", 20)
    assert provider.check(asked()).model == "flux.1-dev"
