"""What a server that speaks like OpenAI answers: pictures, events, refusals."""

import base64
import binascii
from collections.abc import AsyncGenerator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
import orjson

from safelight.providers.base import (
    BadOutput,
    ContentRejected,
    InvalidParameters,
    ProviderError,
    ProviderUnavailable,
    RateLimited,
    UnknownOutcome,
)
from safelight.providers.openai_images.model import FIELDS

CONTENT_CODES = {"moderation_blocked", "content_policy_violation", "content_filter"}
CONTENT_WORDS = ("content policy", "content management policy", "safety system", "content moderation")
CREDIT_CODES = {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"}
MAX_SAID = 300


@dataclass(frozen=True, slots=True)
class Result:
    """A finished picture as base64, or where it is; `usage` is what all pictures of its answer took, in tokens."""

    data: str | None
    url: str | None
    is_refused: bool = False
    usage: Mapping[str, int] | None = None

    @property
    def details(self) -> Mapping[str, Any]:
        return {} if self.usage is None else {"usage": self.usage}

    @classmethod
    def of(cls, item: Mapping[str, Any], answer: Mapping[str, Any]) -> "Result":
        """A picture of an answer, which bears the usage."""
        told = answer.get("usage")
        usage = {name: count for name, count in told.items() if type(count) is int} if isinstance(told, dict) else None
        is_refused = item.get("respect_moderation") is False
        return cls(item.get("b64_json") or None, item.get("url") or None, is_refused, usage or None)


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error as the server tells it. `should_retry` is None if it does not say."""

    message: str
    code: str
    field: str
    retry_after: float | None
    should_retry: bool | None

    @property
    def is_about_content(self) -> bool:
        return self.code in CONTENT_CODES or any(words in self.message.lower() for words in CONTENT_WORDS)

    @classmethod
    def of(cls, status: int, headers: Mapping[str, str], body: bytes) -> "Refusal":
        try:
            said = orjson.loads(body)
        except orjson.JSONDecodeError:
            said = body.decode(errors="replace")
        error = said.get("error", said) if isinstance(said, dict) else said
        if not isinstance(error, dict):
            error = {"message": error}
        code = str(error.get("code") or error.get("type") or "")
        param = str(error.get("param") or "").removesuffix("[]")
        message = " ".join(str(error.get("message") or error.get("detail") or "").split())[:MAX_SAID]
        asked = headers.get("x-should-retry")
        return cls(
            message=message,
            code=code,
            field=FIELDS.get(param, f"provider_options.{param}" if param else ""),
            retry_after=_retry_after(headers),
            should_retry=None if asked is None else asked == "true",
        )


def error_of(name: str, status: int, headers: Mapping[str, str], body: bytes) -> ProviderError:
    """What a refusal by `name` means. The body must not hold the key."""
    refusal = Refusal.of(status, headers, body)
    said = refusal.message or f"HTTP {status}"
    details = {"http_status": status} | ({"code": refusal.code} if refusal.code else {})
    if refusal.is_about_content:
        return ContentRejected(f"{name} refuses this content: {said}", details=details)
    if refusal.code in CREDIT_CODES:
        return ProviderError(f"The account at {name} has no credit left: {said}", details=details)
    if status == 401:
        return ProviderError(f"{name} refuses the API key: {said}", details=details)
    if status == 403:
        return ProviderError(f"The account at {name} may not do this: {said}", details=details)
    if status in {504, 524}:
        message = f"A gateway of {name} gave up waiting (HTTP {status}); the picture may have been made."
        return UnknownOutcome(message, details=details)
    if status == 429 or refusal.code == "rate_limit_exceeded":
        if refusal.should_retry is False:
            return ProviderError(f"{name} takes no more requests: {said}", details=details)
        after = refusal.retry_after
        return RateLimited(f"{name} asks us to slow down: {said}", retry_after=after, details=details)
    may_help = status >= 500 or status in {408, 409} or refusal.code == "server_error"
    if may_help if refusal.should_retry is None else refusal.should_retry:
        after = refusal.retry_after
        return ProviderUnavailable(f"{name} fails on its side: {said}", retry_after=after, details=details)
    if refusal.code == "model_not_found":
        return InvalidParameters(f"{name}: {said}", field="model", details=details)
    if status in {400, 413, 422}:
        return InvalidParameters(f"{name}: {said}", field=refusal.field, details=details)
    return ProviderError(f"{name} refuses: {said}", details=details)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds, of milliseconds, seconds or a date."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) * unit
        except ValueError:
            continue
        if 0 <= seconds < float("inf"):
            return seconds
    try:
        date = parsedate_to_datetime(headers.get("retry-after", ""))
    except ValueError:
        return None
    return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def decoded(data: Any) -> bytes:
    try:
        return base64.b64decode(str(data).partition("base64,")[2] or str(data), validate=True)
    except (binascii.Error, ValueError):
        raise BadOutput("The picture is no base64.") from None


async def events_of(response: httpx.Response) -> AsyncGenerator[Mapping[str, Any]]:
    """The events of a stream that are JSON objects; their kind stands in them."""
    data: list[str] = []
    async for line in response.aiter_lines():
        if line.startswith("data:"):
            data.append(line[5:].removeprefix(" "))
        elif not line and data:
            try:
                event = orjson.loads("\n".join(data))
            except orjson.JSONDecodeError:
                event = None  # "[DONE]"
            if isinstance(event, dict):
                yield event
            data = []


def shutdown_dates_of(body: bytes) -> dict[str, date]:
    """When models are shut down, by name, as a list of models says; nothing where it does not say."""
    try:
        listed = orjson.loads(body)["data"]
        said = {str(each["id"]): each.get("shutdown_date") for each in listed}
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        return {}
    dates: dict[str, date] = {}
    for name, when in said.items():
        with suppress(ValueError):
            dates[name] = date.fromisoformat(str(when))
    return dates
