"""ModelsLab: hosted models behind one key, by its v7 interface.

It answers in many shapes, which `_Answer` reads into one. A picture is paid for when the submit is taken and there is
no way to submit twice safely, so nothing after that step gives up easily: an answer that cannot be had is asked for
again until the attempt's time is over. The key travels in the body of each request and never leaves this module
otherwise: not to the host of a link, nor into an error.
"""

import asyncio
import base64
import binascii
import math
import re
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cached_property
from itertools import zip_longest
from typing import Any

import httpx
import orjson
import structlog

from safelight.providers.base import (
    Accepted,
    BadOutput,
    Capabilities,
    ContentRejected,
    Generation,
    InvalidParameters,
    JobLost,
    Output,
    Parameters,
    Progress,
    Provider,
    ProviderError,
    ProviderTimedOut,
    ProviderUnavailable,
    RateLimited,
    Submitting,
    UnknownOutcome,
    Update,
)
from safelight.providers.fetch import content_type_of, fetch, host_of, shared_tls

BASE_URL = "https://modelslab.com/api"
SUBMIT_TIMEOUT = httpx.Timeout(180, connect=10)  # it may make the picture before it answers
ASK_TIMEOUT = httpx.Timeout(30, connect=10)
HEALTH_SECONDS = 5.0
FIRST_PAUSE = 1.0  # between two looks; doubled up to
MAX_PAUSE = 10.0
MAX_FIRST_PAUSE = 30.0  # before the first look, whatever eta it gave
TICK = 2.0  # between two words about the progress
MAX_PERCENT = 90  # an eta is a guess: it never says that it is nearly done
LOOKS = 3  # before it is believed that a job is gone, or that there is no result
DOWNLOAD_TRIES = 6  # of each link: about 15 s
RATIO_TOLERANCE = 0.1

log = structlog.get_logger()


class GenerationFailed(ProviderError):
    """The provider took the job and failed at it."""

    code = "generation_failed"
    retryable = True
    may_have_cost = True


# --- what its models take ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Model:
    """What a model takes. With neither `ratios` nor `sides` it chooses the size of its pictures itself."""

    ratios: tuple[str, ...] = ()
    sides: tuple[int, int] | None = None  # the least and the greatest, in pixels
    max_samples: int = 1
    max_prompt: int | None = None  # characters
    max_steps: int = 0
    max_cfg: int = 0
    schedulers: bool = False
    negative_prompt: bool = False
    seeds: bool = False
    loras: bool = False
    options: frozenset[str] = frozenset()


IMAGEN = ("1:1", "3:4", "4:3", "9:16", "16:9")
WIDER = ("1:1", "4:3", "3:4", "16:9", "9:16", "3:2", "2:3", "21:9")
TOKENS_480 = 480 * 4  # a token of English is about four characters
SIDE_STEP = 8
MAX_SIDE = 2048  # of a size that is given to a model of ratios, which takes its proportions only

FLUX = Model(sides=(256, 1024), max_samples=4, max_steps=50, max_cfg=20, seeds=True)
COMMUNITY = replace(
    FLUX,
    schedulers=True,
    negative_prompt=True,
    loras=True,
    options=frozenset(
        {
            "algorithm_type",
            "clip_skip",
            "enhance_prompt",
            "enhance_style",
            "highres_fix",
            "safety_checker",
            "safety_checker_type",
            "upscale",
            "use_karras_sigmas",
            "vae",
        }
    ),
)
FLUX_PRO = Model(sides=(512, 1024), max_cfg=10, negative_prompt=True)
MODELS: Mapping[str, Model] = {
    "flux": FLUX,
    "sdxl": COMMUNITY,
    "midjourney": COMMUNITY,
    "flux-pro-1.1": FLUX_PRO,
    "flux-pro-1.1-ultra": FLUX_PRO,
    "imagen-3": Model(),
    "imagen-4": Model(ratios=IMAGEN),
    "imagen-4.0-fast-generate": Model(ratios=IMAGEN, max_prompt=TOKENS_480),
    "imagen-4.0-ultra": Model(ratios=IMAGEN, max_prompt=TOKENS_480, max_samples=4),
    "nano-banana-t2i": Model(),
    "nano-banana-pro": Model(ratios=WIDER),
    "seedream-t2i": Model(sides=(512, 1024)),
    "seedream-4": Model(ratios=WIDER),
    "seedream-4.5": Model(ratios=WIDER),
}
SCHEDULERS = tuple(
    f"{name}Scheduler"
    for name in (
        *("DDPM", "DDIM", "PNDM", "LMSDiscrete", "EulerDiscrete", "EulerAncestralDiscrete", "DPMSolverMultistep"),
        *("HeunDiscrete", "KDPM2Discrete", "DPMSolverSinglestep", "KDPM2AncestralDiscrete", "UniPCMultistep"),
        *("DDIMInverse", "DEISMultistep", "IPNDM", "KarrasVe", "ScoreSdeVe", "LCM"),
    )
)


# --- the provider -----------------------------------------------------------------------------------------------------


class ModelsLab(Provider):
    """Pictures by ModelsLab.

    `models` names a model per tier of the caller; the first one is for everybody else. Models that the house does not
    know (there are thousands) can be used once they are named there, and are taken for community models.
    `resubmit_unknown`: a submit of which nobody can tell whether it was taken is repeated, and perhaps paid twice.
    `webhook_url` is where ModelsLab may tell that a job has ended; it is polled all the same.
    """

    def __init__(
        self,
        key: str,
        *,
        base_url: str = BASE_URL,
        models: Mapping[str, str] | None = None,
        resubmit_unknown: bool = False,
        webhook_url: str | None = None,
    ) -> None:
        if not key:
            raise ValueError("ModelsLab needs an API key.")
        self._key = key
        self._base_url = base_url.rstrip("/")
        self._origin = httpx.URL(base_url).scheme, host_of(base_url)
        self._tiers = dict(models or {})
        self._models = dict.fromkeys(self._tiers.values(), COMMUNITY) | dict(MODELS)
        self._default = next(iter(self._tiers.values()), next(iter(MODELS)))
        self._resubmit_unknown = resubmit_unknown
        self._webhook_url = webhook_url

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            kinds=frozenset({"image.generate"}),
            models=tuple(dict.fromkeys((self._default, *self._models))),
            max_width=MAX_SIDE,
            max_height=MAX_SIDE,
            max_batch=4,
            cancel=False,
            progress=True,
            previews=False,
        )

    def check(self, parameters: Parameters) -> Parameters:
        """Fill in model and size, and refuse what the model does not take: ModelsLab would pass over it in silence."""
        for field, given in (
            ("template", parameters.template),
            ("workflow", parameters.workflow),
            ("input_images", parameters.input_images),
            ("checkpoint_model", parameters.checkpoint_model),
        ):
            if given:
                instead = "; name the model in model" if field == "checkpoint_model" else ""
                raise InvalidParameters(f"ModelsLab takes no {field} here{instead}.", field=field)
        name = parameters.model or self._tiers.get(parameters.tier or "", self._default)
        model = self._models.get(name)
        if model is None:
            near = get_close_matches(name, self._models, n=3, cutoff=0.3)
            meant = f"Did you mean {' or '.join(near)}?" if near else f"There are {', '.join(self._models)}."
            message = f"The model {name[:80]!r} is not known here. {meant} Others can be named in the settings."
            raise InvalidParameters(message, field="model")
        if model.max_prompt is not None and len(parameters.prompt) > model.max_prompt:
            message = (
                f"{name} takes prompts of about {model.max_prompt // 4} tokens, which is {model.max_prompt} characters;"
                f" this one has {len(parameters.prompt)}."
            )
            raise InvalidParameters(message, field="prompt")
        if not 1 <= parameters.batch_size <= model.max_samples:
            message = f"{name} makes 1 to {model.max_samples} pictures at once, not {parameters.batch_size}."
            if model.max_samples == 1:
                message = f"{name} makes one picture at a time, not {parameters.batch_size}."
            raise InvalidParameters(message, field="batch_size")
        if parameters.negative_prompt and not model.negative_prompt:
            raise InvalidParameters(f"{name} takes no negative prompt; leave it out.", field="negative_prompt")
        if parameters.lora_models and not model.loras:
            raise InvalidParameters(f"{name} takes no LoRAs; leave them out.", field="lora_models")
        _check_sampler(name, model, parameters.sampler_params)
        ratio = _check_options(name, model, parameters.options)
        width, height = _size(name, model, parameters, ratio)
        return replace(parameters, model=name, width=width, height=height)

    async def generate(self, generation: Generation) -> AsyncGenerator[Update]:
        """Submit, follow, download."""
        parameters = self.check(generation.parameters)
        yield Submitting()
        submitted = time.monotonic()
        answer = await self._submit(generation.job_id, parameters)
        if answer.id is not None:
            yield Accepted(answer.id)
        elif not answer.links:
            if answer.status == "success":
                raise BadOutput("ModelsLab says that it is done, and delivers nothing.")
            raise self._unknown("ModelsLab took the job and did not say under which id")
        if not answer.links and answer.id is not None:
            follow = self._follow(generation, answer.id, answer, submitted)
        else:
            follow = self._deliver(parameters, answer)
        async with aclosing(follow) as updates:
            async for update in updates:
                yield update

    async def resume(self, generation: Generation, remote_id: str) -> AsyncGenerator[Update]:
        """Ask for the job by its id, and follow it."""
        async with aclosing(self._follow(generation, remote_id, None, time.monotonic())) as updates:
            async for update in updates:
                yield update

    async def health(self) -> str | None:
        """Asks for the balance: it needs the key, and costs nothing."""
        try:
            response = await self._asking.post(
                f"{self._base_url}/v6/wallet_balance", json={"key": self._key}, timeout=HEALTH_SECONDS
            )
        except httpx.HTTPError as error:
            return f"ModelsLab cannot be reached ({type(error).__name__})."
        answer = _Answer.of(response, self._key)
        if response.is_success and not answer.is_failed:
            return None
        return self._refusal(answer).message

    async def close(self) -> None:
        for name in ("_asking", "_submitting"):
            client = vars(self).pop(name, None)
            if client is not None:
                await client.aclose()

    # --- the far side -------------------------------------------------------------------------------------------------

    @cached_property
    def _asking(self) -> httpx.AsyncClient:
        """Keeps few connections: its pool looks through all the kept ones with every request."""
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=8)
        return httpx.AsyncClient(verify=shared_tls(), timeout=ASK_TIMEOUT, limits=limits)

    @cached_property
    def _submitting(self) -> httpx.AsyncClient:
        """Takes a new connection each time: one that was kept may be closed by the other side at the moment of the
        submit, and then nobody could tell whether it had arrived."""
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        return httpx.AsyncClient(verify=shared_tls(), timeout=SUBMIT_TIMEOUT, limits=limits)

    async def _submit(self, job_id: str, parameters: Parameters) -> "_Answer":
        """Its answer to the submit, which is not a refusal."""
        try:
            response = await self._submitting.post(
                f"{self._base_url}/v7/images/text-to-image", json=self._order(job_id, parameters)
            )
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise ProviderUnavailable(f"ModelsLab cannot be reached ({type(error).__name__}).") from None
        except httpx.HTTPError as error:
            raise self._unknown(
                f"The connection to ModelsLab was lost after the submit ({type(error).__name__})"
            ) from None
        answer = _Answer.of(response, self._key)
        if answer.http_status in {504, 524}:  # a gateway lost patience with what may go on behind it
            raise self._unknown(f"A gateway of ModelsLab gave up waiting (HTTP {answer.http_status})")
        if response.is_success and not answer.status and not answer.links:
            raise self._unknown("ModelsLab answered the submit with something unreadable")
        if answer.is_failed or not response.is_success:
            raise self._refusal(answer)
        _refuse_withheld(answer, parameters)
        return answer

    def _order(self, job_id: str, parameters: Parameters) -> dict[str, Any]:
        """The body of the submit."""
        model = self._models[parameters.model or self._default]
        order: dict[str, Any] = {"key": self._key, "model_id": parameters.model, "prompt": parameters.prompt}
        order |= {"track_id": job_id, **parameters.options}
        if model.ratios and "aspect_ratio" not in order:
            order["aspect_ratio"] = _nearest(model.ratios, parameters.width or 1, parameters.height or 1)[0]
        if model.sides is not None:
            order |= {"width": parameters.width, "height": parameters.height}
        if model.max_samples > 1:
            order["samples"] = parameters.batch_size
        if model.seeds and parameters.seed is not None:
            order["seed"] = parameters.seed
        if parameters.negative_prompt:
            order["negative_prompt"] = parameters.negative_prompt
        if parameters.lora_models:
            order["lora_model"] = ",".join(lora.name for lora in parameters.lora_models)
            order["lora_strength"] = ",".join(f"{lora.strength_model:g}" for lora in parameters.lora_models)
        for ours, theirs in SAMPLER_FIELDS.items():
            if ours in parameters.sampler_params:
                order[theirs] = parameters.sampler_params[ours]
        if self._webhook_url is not None:
            order["webhook"] = self._webhook_url
        return order

    async def _follow(
        self, generation: Generation, remote_id: str, first: "_Answer | None", since: float
    ) -> AsyncGenerator[Update]:
        """Look until it is done, and deliver. `first` is the answer to the submit, None if a job is adopted."""
        eta = first.eta if first else None
        ways = self._ways(remote_id, first.fetch_url if first else None)
        step = FIRST_PAUSE
        pause = 0.0 if first is None else min(max(eta or 0.0, step), MAX_FIRST_PAUSE)
        gone = empty = 0
        while True:
            yield _progress(since, eta)
            due = time.monotonic() + pause
            while (left := due - time.monotonic()) > 0 and not await _woken(generation, min(left, TICK)):
                yield _progress(since, eta)
            answer = await self._ask(ways, remote_id)
            gone = gone + 1 if answer.is_unknown_job else 0
            empty = empty + 1 if answer.status == "success" and not answer.links else 0
            _refuse_withheld(answer, generation.parameters)
            if gone == LOOKS:
                raise JobLost(f"ModelsLab does not know the job {remote_id[:80]} any more.")
            if empty == LOOKS:
                raise BadOutput("ModelsLab says that it is done, and delivers nothing.")
            if answer.links and not answer.is_failed:
                break
            if not gone and (answer.is_failed or 400 <= answer.http_status < 500) and not answer.may_change:
                raise self._failure(answer)
            eta = eta if answer.eta is None else time.monotonic() - since + answer.eta
            pause, step = max(step, answer.retry_after or 0.0), min(step * 2, MAX_PAUSE)
        async with aclosing(self._deliver(generation.parameters, answer)) as updates:
            async for update in updates:
                yield update

    def _ways(self, remote_id: str, fetch_url: str | None) -> list[str]:
        """Where to ask for a job, the best first. The key goes along, so a link elsewhere is none of them."""
        ways = [f"{self._base_url}/{version}/images/fetch/{remote_id}" for version in ("v7", "v6")]
        if not re.fullmatch(r"\w[\w.-]*", remote_id):
            ways = []
        if fetch_url is not None:
            try:
                url = httpx.URL(fetch_url)
            except httpx.InvalidURL:
                return ways
            if (url.scheme, host_of(url)) == self._origin and not url.userinfo:
                ways.insert(0, fetch_url)
            else:
                log.warning("modelslab.foreign_fetch_url", host=url.host)
        return list(dict.fromkeys(ways))

    async def _ask(self, ways: list[str], remote_id: str) -> "_Answer":
        """What it says of the job. One that cannot be had reads as: no news yet."""
        answer = _Answer(http_status=404)
        for way in ways:
            try:
                response = await self._asking.post(way, json={"key": self._key, "request_id": remote_id})
            except httpx.HTTPError as error:
                log.warning("modelslab.no_answer", reason=type(error).__name__)
                return _Answer(http_status=503)
            answer = _Answer.of(response, self._key)
            if not answer.is_unknown_job:
                break
        if answer.status not in KNOWN_STATUSES:
            log.warning(
                "modelslab.strange_answer", http_status=answer.http_status, said=answer.status or answer.message
            )
        return answer

    async def _deliver(self, parameters: Parameters, answer: "_Answer") -> AsyncGenerator[Update]:
        """Download all results."""
        yield Progress(None, "downloading", "Downloading the result")
        if len(answer.links) < parameters.batch_size:
            log.warning("modelslab.too_few", asked=parameters.batch_size, got=len(answer.links))
        seed = answer.seed if parameters.batch_size == 1 else None
        for links in answer.links[: parameters.batch_size]:
            data, content_type = await self._download(links)
            yield Output(data, content_type, seed)

    async def _download(self, links: Sequence[str]) -> tuple[bytes, str]:
        """One result, from the first of its links that works."""
        if not links[0].startswith(("http://", "https://")):
            try:
                data = base64.b64decode(links[0].partition("base64,")[2] or links[0], validate=True)
            except (binascii.Error, ValueError):
                raise BadOutput("ModelsLab delivered a result that is neither a link nor base64.") from None
            return data, content_type_of(data)
        for link in links[:-1]:
            try:
                fetched = await fetch(self._asking, link, trusted_hosts={self._origin[1]}, tries=DOWNLOAD_TRIES)
                return fetched.data, fetched.content_type
            except ProviderError as error:
                log.warning("modelslab.link_failed", reason=error.message)
        fetched = await fetch(self._asking, links[-1], trusted_hosts={self._origin[1]}, tries=DOWNLOAD_TRIES)
        return fetched.data, fetched.content_type

    # --- what went wrong ----------------------------------------------------------------------------------------------

    def _unknown(self, what: str) -> ProviderError:
        if self._resubmit_unknown:
            return ProviderTimedOut(f"{what}; it is submitted again, and may be charged twice.")
        return UnknownOutcome(f"{what}; it may have been carried out and charged.")

    def _refusal(self, answer: "_Answer") -> ProviderError:
        """Why it did not take the job."""
        status, said = answer.http_status, answer.message or f"HTTP {answer.http_status}"
        details = {"http_status": status}
        if status == 429 or RATE_WORDS.search(said):
            return RateLimited(f"ModelsLab: {said}", retry_after=answer.retry_after, details=details)
        if status == 401 or KEY_WORDS.search(said):
            return ProviderError(f"ModelsLab refuses the API key: {said}", details=details)
        if status == 402 or CREDIT_WORDS.search(said):
            return ProviderError(f"The ModelsLab account has no credit or plan left: {said}", details=details)
        if CONTENT_WORDS.search(said):
            return ContentRejected(f"ModelsLab refuses this content: {said}", details=details)
        if status == 403:
            return ProviderError(f"The ModelsLab account may not do this: {said}", details=details)
        if status >= 500 or BUSY_WORDS.search(said):
            return ProviderUnavailable(f"ModelsLab fails on its side: {said}", details=details)
        if MODEL_WORDS.search(said):
            return InvalidParameters(f"ModelsLab: {said}", field="model", details=details)
        field = OUR_FIELDS.get(answer.wrong_field or "", "")
        if status in {400, 422} or field:
            return InvalidParameters(f"ModelsLab: {said}", field=field, details=details)
        return ProviderError(f"ModelsLab refuses: {said}", details=details)

    def _failure(self, answer: "_Answer") -> ProviderError:
        """Why a job it had taken came to nothing."""
        refusal = self._refusal(answer)
        if answer.http_status < 400 and not isinstance(refusal, ContentRejected | InvalidParameters):
            return GenerationFailed(f"ModelsLab took the job and failed: {answer.message or 'it does not say why'}")
        return refusal


def job_of_webhook(body: bytes) -> str | None:
    """The id of our job in a webhook's body. Nothing else in it may be believed: it is not signed."""
    try:
        said = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    track_id = said.get("track_id") if isinstance(said, dict) else None
    return track_id if isinstance(track_id, str) else None


# --- checking ---------------------------------------------------------------------------------------------------------


SAMPLER_FIELDS = {"steps": "num_inference_steps", "cfg": "guidance_scale", "scheduler": "scheduler"}
OUR_FIELDS = {
    "prompt": "prompt",
    "negative_prompt": "negative_prompt",
    "model_id": "model",
    "width": "width",
    "height": "height",
    "samples": "batch_size",
    "seed": "seed",
    "lora_model": "lora_models",
    "aspect_ratio": "provider_options.aspect_ratio",
    "num_inference_steps": "sampler_params.steps",
    "guidance_scale": "sampler_params.cfg",
    "scheduler": "sampler_params.scheduler",
}


def _check_sampler(name: str, model: Model, given: Mapping[str, Any]) -> None:
    for field, value in given.items():
        path = f"sampler_params.{field}"
        if field == "scheduler" and model.schedulers:
            if value not in SCHEDULERS:
                near = get_close_matches(str(value), SCHEDULERS, n=3, cutoff=0.3) or SCHEDULERS
                raise InvalidParameters(f"{name} has no scheduler {value!r}; try {' or '.join(near)}.", field=path)
            continue
        greatest = {"steps": model.max_steps, "cfg": model.max_cfg}.get(field, 0)
        if not greatest:
            raise InvalidParameters(f"{name} takes no {field}; leave it out.", field=path)
        if not isinstance(value, int | float) or not 1 <= value <= greatest:
            raise InvalidParameters(f"{name} takes {field} from 1 to {greatest}, not {value}.", field=path)


def _check_options(name: str, model: Model, given: Mapping[str, Any]) -> str | None:
    """The aspect ratio, if it is asked for by name."""
    known = model.options | ({"aspect_ratio"} if model.ratios else set())
    for field in given:
        if field not in known:
            takes = f"it takes {', '.join(sorted(known))}" if known else "it takes none"
            message = f"{name} has no option {field[:60]!r}; {takes}."
            raise InvalidParameters(message, field=f"provider_options.{field}")
    ratio = given.get("aspect_ratio")
    if ratio is not None and ratio not in model.ratios:
        message = f"{name} makes {', '.join(model.ratios)}, not {ratio!r}."
        raise InvalidParameters(message, field="provider_options.aspect_ratio")
    return ratio


def _size(name: str, model: Model, parameters: Parameters, ratio: str | None) -> tuple[int | None, int | None]:
    """Width and height as the model takes them; None where it chooses them itself."""
    width = parameters.width if parameters.width is not None else parameters.height
    height = parameters.height if parameters.height is not None else parameters.width
    if model.sides is not None:
        least, greatest = model.sides
        sizes = {"width": greatest if width is None else width, "height": greatest if height is None else height}
        for field, side in sizes.items():
            if not least <= side <= greatest or side % SIDE_STEP:
                message = (
                    f"{name} makes a {field} of {least} to {greatest} pixels, divisible by {SIDE_STEP}; not {side}."
                )
                raise InvalidParameters(message, field=field)
        return sizes["width"], sizes["height"]
    if width is None or height is None:
        return None, None
    for field, side in (("width", width), ("height", height)):
        if not 1 <= side <= MAX_SIDE:
            raise InvalidParameters(f"The {field} must be at most {MAX_SIDE} pixels, not {side}.", field=field)
    if not model.ratios:
        raise InvalidParameters(f"{name} chooses the size itself; leave width and height out.", field="width")
    nearest, distance = _nearest(model.ratios, width, height)
    if distance > RATIO_TOLERANCE or ratio not in {None, nearest}:
        wanted = f"{', '.join(model.ratios)}" if ratio is None else ratio
        message = f"{name} makes {wanted}; {width}x{height} is none of these, the nearest is {nearest}."
        raise InvalidParameters(message, field="width")
    return width, height


def _nearest(ratios: Sequence[str], width: int, height: int) -> tuple[str, float]:
    """The ratio that is most like this size, and how far off it is (0.1: a tenth)."""

    def distance(ratio: str) -> float:
        across, down = ratio.split(":")
        return abs(math.log(width / height * int(down) / int(across)))

    nearest = min(ratios, key=distance)
    return nearest, distance(nearest)


# --- reading ----------------------------------------------------------------------------------------------------------


KNOWN_STATUSES = {"success", "processing", "queued", "pending", "error", "failed"}
RATE_WORDS = re.compile(r"rate limit|too many requests|queued requests", re.I)
KEY_WORDS = re.compile(r"api key|\bkey is\b", re.I)
CREDIT_WORDS = re.compile(r"credit|insufficient|wallet|balance|subscri|plan (has )?expired", re.I)
CONTENT_WORDS = re.compile(r"nsfw|sensitive|prohibit|violat|content polic|moderat|inappropriate|unsafe|safety", re.I)
BUSY_WORDS = re.compile(
    r"try again|busy|overload|capacity|temporar|unavailable|internal (server )?error|timed? ?out", re.I
)
MODEL_WORDS = re.compile(r"model(_id)?\b.*(not found|invalid|not exist|not available)|(invalid|unknown) model", re.I)
UNKNOWN_JOB_WORDS = re.compile(
    r"\b(request|id|job)\b.*(not found|invalid|not exist)|no (such )?request|invalid (request )?id", re.I
)
MAX_SAID = 300


@dataclass(frozen=True, slots=True)
class _Answer:
    """One answer, whatever shape it came in. `status` is the word it used, empty if it was no JSON object."""

    http_status: int
    status: str = ""
    id: str | None = None
    links: tuple[tuple[str, ...], ...] = ()  # for each result where it is, in the order to try
    eta: float | None = None  # seconds
    fetch_url: str | None = None
    message: str = ""
    wrong_field: str | None = None
    retry_after: float | None = None
    seed: int | None = None
    is_nsfw: bool = False

    @property
    def is_failed(self) -> bool:
        return self.status in {"error", "failed"}

    @property
    def is_unknown_job(self) -> bool:
        return self.http_status == 404 or (
            self.status == "error" and UNKNOWN_JOB_WORDS.search(self.message) is not None
        )

    @property
    def may_change(self) -> bool:
        """Whether a failing answer is about the asking, not about the job."""
        return self.http_status in {408, 429} or self.http_status >= 500 or RATE_WORDS.search(self.message) is not None

    @classmethod
    def of(cls, response: httpx.Response, key: str) -> "_Answer":
        """Read a response, and forget the key if it is told in it."""
        content = response.content.replace(key.encode(), b"***")
        after = _number(response.headers.get("retry-after"))
        try:
            said = orjson.loads(content)
        except orjson.JSONDecodeError:
            said = None
        if not isinstance(said, dict):
            return cls(response.status_code, message=_text(content.decode(errors="replace")), retry_after=after)
        message = next((said[name] for name in ("message", "messege", "error", "detail") if said.get(name)), "")
        given_id = said.get("id", said.get("request_id"))
        fetch_url = said.get("fetch_result")
        if not (isinstance(given_id, str | int) and given_id) and isinstance(fetch_url, str):
            given_id = fetch_url.rstrip("/").rpartition("/")[2]
        meta = said.get("meta")
        seed = _number(meta.get("seed")) if isinstance(meta, dict) else None
        nsfw = said.get("nsfw_content_detected")
        output, proxies = _links(said.get("output")), _links(said.get("proxy_links"))
        status = str(said.get("status", "")).lower()
        if not output and status == "success":
            output = proxies
        return cls(
            http_status=response.status_code,
            status=status,
            id=str(given_id)[:400] if isinstance(given_id, str | int) and given_id else None,
            links=tuple(
                tuple(dict.fromkeys(link for link in both if link))
                for both in zip_longest(output, proxies[: len(output)])
            ),
            eta=_number(said.get("eta")),
            fetch_url=fetch_url if isinstance(fetch_url, str) else None,
            message=_text(message),
            wrong_field=next(iter(message), None) if isinstance(message, dict) else None,
            retry_after=_number(said.get("retry_after")) or after,
            seed=int(seed) if seed is not None else None,
            is_nsfw=any(nsfw) if isinstance(nsfw, list) else nsfw is True,
        )


def _refuse_withheld(answer: "_Answer", parameters: Parameters) -> None:
    """A picture found unsafe may be delivered all the same, unless the safety checker was asked to replace it."""
    is_withheld = not answer.links or parameters.options.get("safety_checker")
    if answer.is_nsfw and answer.status == "success" and is_withheld:
        raise ContentRejected("ModelsLab found the picture unsafe and withholds it.")


def _links(value: Any) -> list[str]:
    """Links as a list, an object of index and link, or a single one."""
    if isinstance(value, dict):
        value = [value[index] for index in sorted(value, key=lambda index: (len(index), index))]
    if isinstance(value, str):
        value = [value]
    return [link for link in value if isinstance(link, str) and link] if isinstance(value, list) else []


def _text(value: Any) -> str:
    """A message for people, of a string, a list, or an object of fields and what is wrong with them."""
    if isinstance(value, dict):
        value = "; ".join(f"{field}: {_text(wrong)}" for field, wrong in value.items())
    elif isinstance(value, list):
        value = " ".join(_text(part) for part in value)
    return " ".join(str(value).split())[:MAX_SAID]


def _number(value: Any) -> float | None:
    """A number that may come as a string. Nothing below zero, nothing endless."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if 0 <= number < math.inf else None


# --- waiting ----------------------------------------------------------------------------------------------------------


def _progress(since: float, eta: float | None) -> Progress:
    """ModelsLab tells no progress: the percentage is the part of its own estimate that is over."""
    if not eta:
        return Progress(None, "generating", "ModelsLab is generating")
    share = (time.monotonic() - since) / eta
    return Progress(min(MAX_PERCENT, int(share * 100)), "generating", f"ModelsLab expects {math.ceil(eta)} s in all")


async def _woken(generation: Generation, seconds: float) -> bool:
    """Wait; true at once if somebody says that there is news."""
    try:
        async with asyncio.timeout(seconds):
            await generation.woken.wait()
    except TimeoutError:
        return False
    generation.woken.clear()
    return True
