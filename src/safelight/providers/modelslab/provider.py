"""ModelsLab: hosted models behind one key, by its v7 interface.

A picture is paid for when the submit is taken and there is
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
from functools import cached_property
from typing import Any

import httpx
import structlog

from safelight.pictures import read_head
from safelight.providers.address import FetchRefused, parsed_url
from safelight.providers.base import (
    Accepted,
    BadOutput,
    Capabilities,
    Faults,
    Generation,
    InputImage,
    InvalidParameters,
    JobLost,
    Output,
    Parameters,
    Progress,
    Provider,
    ProviderError,
    ProviderTimedOut,
    ProviderUnavailable,
    ProviderUnreachable,
    Submitting,
    UnknownOutcome,
    Update,
)
from safelight.providers.fetch import NOT_REACHED, content_type_of, fetch, host_of, shared_tls
from safelight.providers.modelslab.answer import KNOWN_STATUSES, Answer, failure_of, refusal_of, refuse_withheld
from safelight.providers.modelslab.model import COMMUNITY, MODELS, TAKES, capabilities_of, fields_of, fitted
from safelight.suggestion import did_you_mean, listed

BASE_URL = "https://modelslab.com/api"
SUBMIT_TIMEOUT = httpx.Timeout(180, connect=10)  # it may make the picture before it answers
ASK_TIMEOUT = httpx.Timeout(30, connect=10)
UPLOAD_TIMEOUT = httpx.Timeout(60, connect=10)
MAX_UPLOAD_BYTES = 5_000_000
HEALTH_SECONDS = 5.0
FIRST_PAUSE = 1.0  # between two looks; doubled up to
MAX_PAUSE = 10.0
MAX_FIRST_PAUSE = 30.0  # before the first look, whatever eta it gave
TICK = 2.0  # between two words about the progress
MAX_PERCENT = 90  # an eta is a guess: it never says that it is nearly done
LOOKS = 3  # before it is believed that a job is gone, or that there is no result
DOWNLOAD_TRIES = 6  # of each link: about 15 s

log = structlog.get_logger()


class ModelsLab(Provider):
    """Pictures by ModelsLab.

    `models` names further models, the default one first. Those that the house does not know (there are thousands) can
    be used once they are named there, and are taken for community models.
    `resubmit_unknown`: a submit of which nobody can tell whether it was taken is repeated, and perhaps paid twice.
    `webhook_url` is where ModelsLab may tell that a job has ended; it is polled all the same.
    """

    def __init__(
        self,
        key: str,
        *,
        base_url: str = BASE_URL,
        models: Sequence[str] = (),
        resubmit_unknown: bool = False,
        webhook_url: str | None = None,
    ) -> None:
        if not key:
            raise ValueError("ModelsLab needs an API key.")
        self._key = key
        self._base_url = base_url.rstrip("/")
        self._origin = httpx.URL(base_url).scheme, host_of(base_url)
        self._models = dict.fromkeys(models, COMMUNITY) | dict(MODELS)
        self._default = next(iter((*models, *MODELS)))
        self._resubmit_unknown = resubmit_unknown
        self._webhook_url = webhook_url

    @property
    def capabilities(self) -> Capabilities:
        return capabilities_of(self._default, self._models)

    def check(self, parameters: Parameters) -> Parameters:
        """Fill in model and size, and refuse what the model does not take: ModelsLab would pass over it in silence."""
        faults = Faults()
        for field in parameters.others(TAKES):
            instead = "; name the model in model" if field == "checkpoint_model" else ""
            faults.add(f"ModelsLab takes no {field} here{instead}.", field=field)
        name = parameters.model or self._default
        model = self._models.get(name)
        if model is None:
            meant = did_you_mean(name, self._models, most=3) or f" There are {listed(self._models)}."
            message = f"The model {name[:80]!r} is not known here.{meant} Others can be named in the settings."
            faults.add(message, field="model")
        else:
            with faults:
                parameters = fitted(name, model, parameters)
        faults.refuse()
        return parameters

    def takes_seed(self, parameters: Parameters) -> bool:
        """Some models do."""
        return self._models[parameters.model or self._default].seeds

    async def generate(self, generation: Generation) -> AsyncGenerator[Update]:
        """Submit, follow, download."""
        parameters = self.check(generation.parameters)
        order = {"key": self._key, "track_id": generation.job_id}
        model = self._models[parameters.model or ""]
        if generation.images:
            yield Progress(None, "uploading", "Sending the pictures")
            named = zip(parameters.pictures, generation.images, strict=True)
            links = [await self._uploaded(field, image) for field, image in named]
            first = await asyncio.to_thread(read_head, generation.images[0].data)
            order |= fields_of(model, parameters, links, (first.width, first.height))
        else:
            order |= fields_of(model, parameters)
        if self._webhook_url is not None:
            order["webhook"] = self._webhook_url
        yield Submitting()
        submitted = time.monotonic()
        answer = await self._submit(order, parameters)
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
        answer = Answer.of(response, self._key)
        if response.is_success and not answer.is_failed:
            return None
        return refusal_of(answer).message

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

    async def _uploaded(self, field: str, image: InputImage) -> str:
        """The link to a picture that ModelsLab keeps for a day. It costs nothing, so it may be tried again."""
        if len(image.data) > MAX_UPLOAD_BYTES:
            message = f"ModelsLab takes pictures of at most {MAX_UPLOAD_BYTES // 1_000_000} MB to start from."
            raise InvalidParameters(message, field=field)
        data = f"data:{image.content_type};base64,{base64.b64encode(image.data).decode()}"
        try:
            response = await self._asking.post(
                f"{self._base_url}/v6/base64_to_url",
                json={"key": self._key, "base64_string": data},
                timeout=UPLOAD_TIMEOUT,
            )
        except NOT_REACHED as error:
            raise ProviderUnreachable(f"ModelsLab cannot be reached ({type(error).__name__}).") from None
        except httpx.HTTPError as error:
            raise ProviderUnavailable(f"ModelsLab cannot be sent a picture ({type(error).__name__}).") from None
        answer = Answer.of(response, self._key)
        if answer.is_failed or not response.is_success:
            raise refusal_of(answer)
        if not answer.links:
            raise ProviderUnavailable("ModelsLab took a picture and does not say where it is.")
        return answer.links[0][0]

    async def _submit(self, order: Mapping[str, Any], parameters: Parameters) -> Answer:
        """Its answer to the submit, which is not a refusal."""
        way = "image-to-image" if "init_image" in order else "text-to-image"
        try:
            response = await self._submitting.post(f"{self._base_url}/v7/images/{way}", json=order)
        except NOT_REACHED as error:
            raise ProviderUnreachable(f"ModelsLab cannot be reached ({type(error).__name__}).") from None
        except httpx.HTTPError as error:
            raise self._unknown(
                f"The connection to ModelsLab was lost after the submit ({type(error).__name__})"
            ) from None
        answer = Answer.of(response, self._key)
        if answer.http_status in {504, 524}:  # a gateway lost patience with what may go on behind it
            raise self._unknown(f"A gateway of ModelsLab gave up waiting (HTTP {answer.http_status})")
        if response.is_success and not answer.status and not answer.links:
            raise self._unknown("ModelsLab answered the submit with something unreadable")
        if answer.is_failed or not response.is_success:
            raise refusal_of(answer)
        refuse_withheld(answer, parameters)
        return answer

    async def _follow(
        self, generation: Generation, remote_id: str, first: Answer | None, since: float
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
            refuse_withheld(answer, generation.parameters)
            if gone == LOOKS:
                raise JobLost(f"ModelsLab does not know the job {remote_id[:80]} any more.")
            if empty == LOOKS:
                raise BadOutput("ModelsLab says that it is done, and delivers nothing.")
            if answer.links and not answer.is_failed:
                break
            if not gone and (answer.is_failed or 400 <= answer.http_status < 500) and not answer.may_change:
                raise failure_of(answer)
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
                url = parsed_url(fetch_url)
            except FetchRefused:
                return ways
            if (url.scheme, host_of(url)) == self._origin:
                ways.insert(0, fetch_url)
            else:
                log.warning("modelslab.foreign_fetch_url", host=url.host)
        return list(dict.fromkeys(ways))

    async def _ask(self, ways: list[str], remote_id: str) -> Answer:
        """What it says of the job. One that cannot be had reads as: no news yet."""
        answer = Answer(http_status=404)
        for way in ways:
            try:
                response = await self._asking.post(way, json={"key": self._key, "request_id": remote_id})
            except httpx.HTTPError as error:
                log.warning("modelslab.no_answer", reason=type(error).__name__)
                return Answer(http_status=503)
            answer = Answer.of(response, self._key)
            if not answer.is_unknown_job:
                break
        if answer.status not in KNOWN_STATUSES:
            log.warning(
                "modelslab.strange_answer", http_status=answer.http_status, said=answer.status or answer.message
            )
        return answer

    async def _deliver(self, parameters: Parameters, answer: Answer) -> AsyncGenerator[Update]:
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
                fetched = await fetch(link, trusted_hosts={self._origin[1]}, tries=DOWNLOAD_TRIES)
                return fetched.data, fetched.content_type
            except ProviderError as error:
                log.warning("modelslab.link_failed", reason=error.message)
        fetched = await fetch(links[-1], trusted_hosts={self._origin[1]}, tries=DOWNLOAD_TRIES)
        return fetched.data, fetched.content_type

    # --- what went wrong ----------------------------------------------------------------------------------------------

    def _unknown(self, what: str) -> ProviderError:
        if self._resubmit_unknown:
            return ProviderTimedOut(f"{what}; it is submitted again, and may be charged twice.")
        return UnknownOutcome(f"{what}; it may have been carried out and charged.")


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
