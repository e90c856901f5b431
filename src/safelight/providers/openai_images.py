"""OpenAI's image interface, spoken by OpenAI and by many servers that took it over.

A picture is one long request: there is no job on the other side, no id and nothing to come back to. Whoever loses the
connection has lost the picture, and does not know whether it was made and charged; that is said as it is
(`UnknownOutcome`) and never repeated by itself.
"""

import base64
import binascii
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from difflib import get_close_matches
from email.utils import parsedate_to_datetime
from functools import cached_property
from typing import Any

import httpx
import orjson
import structlog

from safelight.providers.base import (
    BadOutput,
    Capabilities,
    ContentRejected,
    Generation,
    InvalidParameters,
    Output,
    Parameters,
    Preview,
    Progress,
    Provider,
    ProviderError,
    ProviderUnavailable,
    RateLimited,
    Submitting,
    UnknownOutcome,
    Update,
)
from safelight.providers.fetch import content_type_of, fetch, host_of, shared_tls

BASE_URL = "https://api.openai.com/v1"
TIMEOUT = httpx.Timeout(600, connect=10, write=60)  # nothing is heard while it draws
HEALTH_SECONDS = 5.0
PARTIAL_IMAGES = 2

log = structlog.get_logger()


# --- what its models take ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Model:
    """What a model takes. `sizes` empty: any up to `longest` and `shortest`, in steps of `step`."""

    sizes: tuple[str, ...] = ()
    longest: int = 4096
    shortest: int = 4096
    step: int = 1
    max_ratio: float = 16.0
    max_batch: int = 10
    max_prompt: int = 32_000  # characters
    max_input_images: int = 16
    streams: bool = True
    options: Mapping[str, tuple[str, ...] | range] | None = None  # None: any, on the server's judgement
    always: Mapping[str, str] | None = None


QUALITY = {"quality": ("auto", "low", "medium", "high")}
GPT = Model(
    sizes=("1024x1024", "1536x1024", "1024x1536"),
    options=QUALITY
    | {
        "background": ("auto", "transparent", "opaque"),
        "output_format": ("png", "jpeg", "webp"),
        "output_compression": range(101),
        "moderation": ("auto", "low"),
        "input_fidelity": ("low", "high"),
        "partial_images": range(4),
    },
)
DALLE_3 = Model(
    sizes=("1024x1024", "1792x1024", "1024x1792"),
    max_batch=1,
    max_prompt=4000,
    max_input_images=0,
    streams=False,
    options={"quality": ("standard", "hd"), "style": ("vivid", "natural")},
    always={"response_format": "b64_json"},
)
DALLE_2 = Model(
    sizes=("256x256", "512x512", "1024x1024"),
    max_prompt=1000,
    max_input_images=1,
    streams=False,
    options={},
    always={"response_format": "b64_json"},
)
MODELS: Mapping[str, Model] = {
    "gpt-image-1": GPT,
    "gpt-image-1-mini": GPT,
    "gpt-image-1.5": GPT,
    "gpt-image-2": replace(GPT, sizes=(), longest=3840, shortest=2160, step=16, max_ratio=3.0),
    "dall-e-3": DALLE_3,
    "dall-e-2": DALLE_2,
}
OTHER = Model()
OURS = {"model", "prompt", "n", "size", "stream", "image", "image[]"}  # what no option may replace


# --- the provider -----------------------------------------------------------------------------------------------------


class OpenAIImages(Provider):
    """Pictures by OpenAI, or by a server that speaks like it.

    `model` is the default one. `models` are those that may be asked for: by default OpenAI's own there, and any
    elsewhere. What a model takes that is not OpenAI's is left to the server's judgement. `streams`: ask for previews;
    some servers refuse a request that does.
    """

    def __init__(
        self,
        key: str,
        *,
        base_url: str = BASE_URL,
        model: str = "gpt-image-1",
        models: Sequence[str] | None = None,
        streams: bool = True,
    ) -> None:
        self._key = key
        self._base_url = base_url.rstrip("/")
        is_openai = self._base_url == BASE_URL
        self._name = "OpenAI" if is_openai else host_of(base_url)
        self._default = model
        if models is None:
            models = tuple(MODELS) if is_openai else ()
        self._models = tuple(dict.fromkeys((model, *models))) if models else ()
        self._streams = streams

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            kinds=frozenset({"image.generate"}),
            models=self._models,
            max_width=4096,
            max_height=4096,
            max_batch=10,
            cancel=False,
            progress=False,
            previews=self._streams,
            seeds=False,
            negative_prompt=False,
            input_images=16,
        )

    def check(self, parameters: Parameters) -> Parameters:
        """Fill in the model, and refuse what this interface has no field for."""
        name = parameters.model or self._default
        if self._models and name not in self._models:
            near = get_close_matches(name, self._models, n=3, cutoff=0.3)
            meant = f"Did you mean {' or '.join(near)}?" if near else f"There are {', '.join(self._models)}."
            raise InvalidParameters(f"There is no model {name[:80]!r} here. {meant}", field="model")
        model = MODELS.get(name, OTHER)
        for field, given in (
            ("template", parameters.template),
            ("workflow", parameters.workflow),
            ("checkpoint_model", parameters.checkpoint_model),
            ("lora_models", parameters.lora_models),
            ("negative_prompt", parameters.negative_prompt),
            ("sampler_params", parameters.sampler_params),
        ):
            if given:
                raise InvalidParameters(f"{name} takes no {field}; leave it out.", field=field)
        if len(parameters.prompt) > model.max_prompt:
            message = f"{name} takes prompts of up to {model.max_prompt} characters, not {len(parameters.prompt)}."
            raise InvalidParameters(message, field="prompt")
        if not 1 <= parameters.batch_size <= model.max_batch:
            message = f"{name} makes 1 to {model.max_batch} pictures at once, not {parameters.batch_size}."
            raise InvalidParameters(message, field="batch_size")
        if len(parameters.input_images) > model.max_input_images:
            takes = f"at most {model.max_input_images}" if model.max_input_images else "no"
            message = f"{name} takes {takes} input images, not {len(parameters.input_images)}."
            raise InvalidParameters(message, field="input_images")
        width, height = _size(name, model, parameters)
        _check_options(name, model, parameters.options)
        return replace(parameters, model=name, width=width, height=height)

    async def generate(self, generation: Generation) -> AsyncGenerator[Update]:
        """One request, followed to its end."""
        parameters = self.check(generation.parameters)
        yield Submitting()
        yield Progress(None, "generating", f"{self._name} is generating")
        async with aclosing(self._made(parameters, generation)) as updates:
            async for update in updates:
                yield update

    async def health(self) -> str | None:
        """Asks for the list of models: it needs the key, and costs nothing. A server without such a list is well."""
        try:
            response = await self._client.get(f"{self._base_url}/models", timeout=HEALTH_SECONDS)
        except httpx.HTTPError as error:
            return f"{self._name} cannot be reached ({type(error).__name__})."
        if response.is_success or response.status_code in {404, 405}:
            return None
        return self._error(response.status_code, response.headers, response.content).message

    async def close(self) -> None:
        client = vars(self).pop("_client", None)
        if client is not None:
            await client.aclose()

    # --- the request --------------------------------------------------------------------------------------------------

    @cached_property
    def _client(self) -> httpx.AsyncClient:
        """Takes a new connection each time: one that was kept may be closed by the other side at the moment of the
        request, and then nobody could tell whether it had arrived."""
        return httpx.AsyncClient(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            verify=shared_tls(),
            timeout=TIMEOUT,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
        )

    async def _made(self, parameters: Parameters, generation: Generation) -> AsyncGenerator[Update]:
        """Send the request and read what comes, as a stream or in one piece."""
        results: list[_Result] = []
        try:
            async with self._client.stream("POST", **self._request(parameters, generation)) as response:
                if not response.is_success:
                    raise self._error(response.status_code, response.headers, await response.aread())
                if response.headers.get("content-type", "").startswith("text/event-stream"):
                    async with aclosing(_events(response)) as events:
                        async for event in events:
                            update = self._told(event)
                            if isinstance(update, Preview):
                                yield update
                            elif update is not None:
                                results.append(update)
                                if len(results) == parameters.batch_size:
                                    break
                else:
                    results = self._told_at_once(await response.aread())
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise ProviderUnavailable(f"{self._name} cannot be reached ({type(error).__name__}).") from None
        except httpx.HTTPError as error:
            if results:
                log.warning("openai.broke_off", results=len(results), reason=type(error).__name__)
            else:
                raise UnknownOutcome(
                    f"The connection to {self._name} was lost ({type(error).__name__}); "
                    "the picture may have been made and charged."
                ) from None
        if not results:
            raise BadOutput(f"{self._name} ended without a picture.")
        for result in results:
            yield await self._output(result)

    def _request(self, parameters: Parameters, generation: Generation) -> dict[str, Any]:
        """What httpx is to send: JSON, or a form with the input pictures."""
        model = MODELS.get(parameters.model or self._default, OTHER)
        fields: dict[str, Any] = {"model": parameters.model, "prompt": parameters.prompt, "n": parameters.batch_size}
        fields |= {**(model.always or {}), **parameters.options}
        if parameters.width and parameters.height:
            fields["size"] = f"{parameters.width}x{parameters.height}"
        partial_images = fields.pop("partial_images", PARTIAL_IMAGES)
        if self._streams and model.streams and partial_images and parameters.batch_size == 1:
            fields |= {"stream": True, "partial_images": partial_images}
        if not generation.images:
            return {"url": f"{self._base_url}/images/generations", "json": fields}
        name = "image" if len(generation.images) == 1 else "image[]"
        files = [
            (name, (f"{number}.{image.content_type.rpartition('/')[2]}", image.data, image.content_type))
            for number, image in enumerate(generation.images, 1)
        ]
        form = {field: value if isinstance(value, str) else json.dumps(value) for field, value in fields.items()}
        return {"url": f"{self._base_url}/images/edits", "data": form, "files": files}

    # --- the answer ---------------------------------------------------------------------------------------------------

    def _told(self, event: Mapping[str, Any]) -> "Preview | _Result | None":
        """What an event of the stream says."""
        kind = str(event.get("type", ""))
        if kind.endswith(".partial_image"):
            try:
                data = _decoded(event.get("b64_json"))
                return Preview(data, content_type_of(data))
            except BadOutput:
                return None  # the picture itself may still be well
        if kind.endswith(".completed"):
            return _Result.of(event, event)
        if kind == "error" or event.get("error"):
            raise self._error(200, {}, orjson.dumps(event))
        return None

    def _told_at_once(self, body: bytes) -> "list[_Result]":
        try:
            said = orjson.loads(body)
            results = [_Result.of(item, {} if number else said) for number, item in enumerate(said["data"])]
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
            raise BadOutput(f"{self._name} answered with something that holds no pictures.") from None
        return results

    async def _output(self, result: "_Result") -> Output:
        if result.is_refused:
            raise ContentRejected(f"{self._name} made the picture and withholds it.")
        if result.data is not None:
            data = _decoded(result.data)
            return Output(data, content_type_of(data), details=result.details)
        if not result.url:
            raise BadOutput(f"{self._name} delivered neither a picture nor a link to one.")
        own = host_of(self._base_url)
        fetched = await fetch(self._client, result.url, trusted_hosts={own}, headers=self._headers_for(result.url))
        return Output(fetched.data, fetched.content_type, details=result.details)

    def _headers_for(self, url: str) -> Mapping[str, str]:
        """A server of one's own may want its key for the files, too. Nobody else gets it."""
        is_own = url.startswith(str(httpx.URL(self._base_url).copy_with(raw_path=b"/")))
        return {"Authorization": f"Bearer {self._key}"} if is_own and self._key else {}

    def _error(self, status: int, headers: Mapping[str, str], body: bytes) -> ProviderError:
        """What a refusal means."""
        refusal = _Refusal.of(status, headers, body.replace(self._key.encode(), b"***") if self._key else body)
        said = refusal.message or f"HTTP {status}"
        details = {"http_status": status} | ({"code": refusal.code} if refusal.code else {})
        if refusal.is_about_content:
            return ContentRejected(f"{self._name} refuses this content: {said}", details=details)
        if refusal.code in CREDIT_CODES:
            return ProviderError(f"The account at {self._name} has no credit left: {said}", details=details)
        if status == 401:
            return ProviderError(f"{self._name} refuses the API key: {said}", details=details)
        if status == 403:
            return ProviderError(f"The account at {self._name} may not do this: {said}", details=details)
        if status in {504, 524}:
            message = f"A gateway of {self._name} gave up waiting (HTTP {status}); the picture may have been made."
            return UnknownOutcome(message, details=details)
        if status == 429 or refusal.code == "rate_limit_exceeded":
            if refusal.should_retry is False:
                return ProviderError(f"{self._name} takes no more requests: {said}", details=details)
            after = refusal.retry_after
            return RateLimited(f"{self._name} asks us to slow down: {said}", retry_after=after, details=details)
        may_help = status >= 500 or status in {408, 409} or refusal.code == "server_error"
        if may_help if refusal.should_retry is None else refusal.should_retry:
            after = refusal.retry_after
            return ProviderUnavailable(f"{self._name} fails on its side: {said}", retry_after=after, details=details)
        if refusal.code == "model_not_found":
            return InvalidParameters(f"{self._name}: {said}", field="model", details=details)
        if status in {400, 413, 422}:
            return InvalidParameters(f"{self._name}: {said}", field=refusal.field, details=details)
        return ProviderError(f"{self._name} refuses: {said}", details=details)


# --- checking ---------------------------------------------------------------------------------------------------------


def _size(name: str, model: Model, parameters: Parameters) -> tuple[int | None, int | None]:
    """Width and height; None leaves the choice to the model."""
    width = parameters.width if parameters.width is not None else parameters.height
    height = parameters.height if parameters.height is not None else parameters.width
    if width is None or height is None:
        return None, None
    if model.sizes:
        if f"{width}x{height}" not in model.sizes:
            field = "width" if all(not size.startswith(f"{width}x") for size in model.sizes) else "height"
            message = f"{name} makes {', '.join(model.sizes)}; not {width}x{height}."
            raise InvalidParameters(message, field=field)
        return width, height
    for field, side in (("width", width), ("height", height)):
        if not 1 <= side <= model.longest or side % model.step:
            steps = f", divisible by {model.step}" if model.step > 1 else ""
            message = f"{name} makes a {field} of up to {model.longest} pixels{steps}; not {side}."
            raise InvalidParameters(message, field=field)
    if min(width, height) > model.shortest or max(width, height) > model.max_ratio * min(width, height):
        message = (
            f"{name} makes pictures of up to {model.longest}x{model.shortest}, one side at most {model.max_ratio:g} "
            f"times the other; not {width}x{height}."
        )
        raise InvalidParameters(message, field="width" if width >= height else "height")
    return width, height


def _check_options(name: str, model: Model, given: Mapping[str, Any]) -> None:
    for option, value in given.items():
        field = f"provider_options.{option}"
        if option in OURS:
            raise InvalidParameters(f"{option} is not an option: the request has a field of its own.", field=field)
        if model.options is None:
            continue
        takes = model.options.get(option)
        if takes is None:
            known = f"it takes {', '.join(sorted(model.options))}" if model.options else "it takes none"
            raise InvalidParameters(f"{name} has no option {option[:60]!r}; {known}.", field=field)
        if value not in takes or isinstance(value, bool):
            meant = f"{takes[0]} to {takes[-1]}" if isinstance(takes, range) else ", ".join(takes)
            raise InvalidParameters(f"{option} must be {meant}; not {value!r}.", field=field)


# --- reading ----------------------------------------------------------------------------------------------------------


CONTENT_CODES = {"moderation_blocked", "content_policy_violation", "content_filter"}
CONTENT_WORDS = ("content policy", "content management policy", "safety system", "content moderation")
CREDIT_CODES = {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"}
FIELDS = {"prompt": "prompt", "model": "model", "n": "batch_size", "size": "width", "image": "input_images"}
MAX_SAID = 300


@dataclass(frozen=True, slots=True)
class _Result:
    """A finished picture as base64, or where it is; `usage` is what all pictures of its answer took, in tokens."""

    data: str | None
    url: str | None
    is_refused: bool = False
    usage: Mapping[str, int] | None = None

    @property
    def details(self) -> Mapping[str, Any]:
        return {} if self.usage is None else {"usage": self.usage}

    @classmethod
    def of(cls, item: Mapping[str, Any], answer: Mapping[str, Any]) -> "_Result":
        """A picture of an answer, which bears the usage."""
        told = answer.get("usage")
        usage = {name: count for name, count in told.items() if type(count) is int} if isinstance(told, dict) else None
        is_refused = item.get("respect_moderation") is False
        return cls(item.get("b64_json") or None, item.get("url") or None, is_refused, usage or None)


@dataclass(frozen=True, slots=True)
class _Refusal:
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
    def of(cls, status: int, headers: Mapping[str, str], body: bytes) -> "_Refusal":
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


def _decoded(data: Any) -> bytes:
    try:
        return base64.b64decode(str(data).partition("base64,")[2] or str(data), validate=True)
    except (binascii.Error, ValueError):
        raise BadOutput("The picture is no base64.") from None


async def _events(response: httpx.Response) -> AsyncGenerator[Mapping[str, Any]]:
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
