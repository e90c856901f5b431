"""What ModelsLab says, whatever shape it comes in, and what it means."""

import math
import re
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import httpx
import orjson

from safelight.providers.base import (
    ContentRejected,
    GenerationFailed,
    InvalidParameters,
    Parameters,
    ProviderError,
    ProviderUnavailable,
    RateLimited,
)
from safelight.providers.modelslab.model import OUR_FIELDS

KNOWN_STATUSES = {"success", "processing", "queued", "pending", "error", "failed"}
RATE_WORDS = re.compile(r"rate limit|too many requests|queued requests", re.I)
KEY_WORDS = re.compile(r"api key|\bkey is\b", re.I)
CREDIT_WORDS = re.compile(r"credit|insufficient|wallet|\bbalance\b|subscri|plan (has )?expired", re.I)
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
class Answer:
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
    def of(cls, response: httpx.Response, key: str) -> "Answer":
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
        seed = str(meta.get("seed")) if isinstance(meta, dict) else ""
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
            seed=int(seed) if seed.isdecimal() and len(seed) < 20 else None,
            is_nsfw=any(nsfw) if isinstance(nsfw, list) else nsfw is True,
        )


# --- what it means ----------------------------------------------------------------------------------------------------


def refusal_of(answer: Answer) -> ProviderError:
    """Why it did not take the job."""
    status, said = answer.http_status, answer.message or f"HTTP {answer.http_status}"
    details = {"http_status": status}
    if status == 429 or RATE_WORDS.search(said):
        return RateLimited(f"ModelsLab: {said}", retry_after=answer.retry_after, details=details)
    if status >= 500:
        return ProviderUnavailable(f"ModelsLab fails on its side: {said}", details=details)
    if status == 401 or KEY_WORDS.search(said):
        return ProviderError(f"ModelsLab refuses the API key: {said}", details=details)
    if status == 402 or CREDIT_WORDS.search(said):
        return ProviderError(f"The ModelsLab account has no credit or plan left: {said}", details=details)
    if CONTENT_WORDS.search(said):
        return ContentRejected(f"ModelsLab refuses this content: {said}", details=details)
    if status == 403:
        return ProviderError(f"The ModelsLab account may not do this: {said}", details=details)
    if BUSY_WORDS.search(said):
        return ProviderUnavailable(f"ModelsLab fails on its side: {said}", details=details)
    if MODEL_WORDS.search(said):
        return InvalidParameters(f"ModelsLab: {said}", field="model", details=details)
    field = OUR_FIELDS.get(answer.wrong_field or "", "")
    if status in {400, 422} or field:
        return InvalidParameters(f"ModelsLab: {said}", field=field, details=details)
    return ProviderError(f"ModelsLab refuses: {said}", details=details)


def failure_of(answer: Answer) -> ProviderError:
    """Why a job it had taken came to nothing."""
    refusal = refusal_of(answer)
    if answer.http_status < 400 and not isinstance(refusal, ContentRejected | InvalidParameters):
        return GenerationFailed(f"ModelsLab took the job and failed: {answer.message or 'it does not say why'}")
    return refusal


def refuse_withheld(answer: Answer, parameters: Parameters) -> None:
    """A picture found unsafe may be delivered all the same, unless the safety checker was asked to replace it."""
    is_withheld = not answer.links or parameters.provider_options.get("safety_checker")
    if answer.is_nsfw and answer.status == "success" and is_withheld:
        raise ContentRejected("ModelsLab found the picture unsafe and withholds it.")


def job_of_webhook(body: bytes) -> str | None:
    """The id of our job in a webhook's body. Nothing else in it may be believed: it is not signed."""
    try:
        said = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    track_id = said.get("track_id") if isinstance(said, dict) else None
    return track_id if isinstance(track_id, str) else None


# --- reading ----------------------------------------------------------------------------------------------------------


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
