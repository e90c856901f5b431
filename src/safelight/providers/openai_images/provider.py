"""OpenAI's image interface, spoken by OpenAI and by many servers that took it over.

A picture is one long request: there is no job on the other side, no id and nothing to come back to. Whoever loses the
connection has lost the picture, and does not know whether it was made and charged; that is said as it is
(`UnknownOutcome`) and never repeated by itself.
"""

import json
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from datetime import UTC, date, datetime
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
    ProviderUnreachable,
    Submitting,
    UnknownOutcome,
    Update,
)
from safelight.providers.fetch import NOT_REACHED, content_type_of, fetch, host_of, shared_tls
from safelight.providers.openai_images.answer import Result, decoded, error_of, events_of, shutdown_dates_of
from safelight.providers.openai_images.model import MODELS, OTHER, can_stream, capabilities_of, fitted, living
from safelight.suggestion import did_you_mean, listed

BASE_URL = "https://api.openai.com/v1"
TIMEOUT = httpx.Timeout(600, connect=10, write=60)  # nothing is heard while it draws
HEALTH_SECONDS = 5.0
DEFAULT_MODEL = "gpt-image-2"
WARNINGS_SECONDS = 30.0
WARNING_DAYS = 90  # before a model is shut down
PARTIAL_IMAGES = 2

log = structlog.get_logger()


class OpenAIImages(Provider):
    """Pictures by OpenAI, or by a server that speaks like it.

    `model` is the default one. `models` are the only ones that may be asked for; by default any, but those that OpenAI
    has shut down. What a model takes that the house does not know is left to the server's judgement. `streams`: ask for
    previews; some servers refuse a request that does. `today` is the date by which models are shut down.
    """

    def __init__(
        self,
        key: str,
        *,
        base_url: str = BASE_URL,
        model: str = DEFAULT_MODEL,
        models: Sequence[str] | None = None,
        streams: bool = True,
        today: Callable[[], date] = lambda: datetime.now(UTC).date(),
    ) -> None:
        self._key = key
        self._base_url = base_url.rstrip("/")
        self._is_openai = self._base_url == BASE_URL
        self._name = "OpenAI" if self._is_openai else host_of(base_url)
        self._default = model
        self._models = tuple(dict.fromkeys((model, *models))) if models else ()  # the only ones
        self._streams = streams
        self._today = today

    @property
    def capabilities(self) -> Capabilities:
        return capabilities_of(self._offered(), streams=self._streams)

    def _offered(self) -> tuple[str, ...]:
        """The models to show. At OpenAI newer ones may be named besides; elsewhere nobody can tell which there are."""
        if self._models or not self._is_openai:
            return self._models
        return tuple(dict.fromkeys((self._default, *living(self._today()))))

    def check(self, parameters: Parameters) -> Parameters:
        """Fill in the model, and refuse what this interface has no field for."""
        name = parameters.model or self._default
        if self._models and name not in self._models:
            meant = did_you_mean(name, self._models, most=3) or f" There are {listed(self._models)}."
            raise InvalidParameters(f"There is no model {name[:80]!r} here.{meant}", field="model")
        shutdown = MODELS.get(name, OTHER).shutdown_date
        if self._is_openai and name not in self._models and shutdown is not None and self._today() > shutdown:
            message = f"OpenAI shut {name} down on {shutdown}; there are {', '.join(living(self._today()))}."
            raise InvalidParameters(message, field="model")
        return fitted(name, parameters)

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

    async def warnings(self) -> Sequence[str]:
        """Which models will be shut down soon, or were: by the house's table, and by the server's list."""
        dates = {name: model.shutdown_date for name, model in MODELS.items() if model.shutdown_date and self._is_openai}
        try:
            response = await self._client.get(f"{self._base_url}/models", timeout=WARNINGS_SECONDS)
        except httpx.HTTPError:
            pass  # its health says so
        else:
            dates |= shutdown_dates_of(response.content)
        used = self._models or self._offered() or (self._default,)
        return [self._warning(name, dates[name]) for name in used if name in dates and self._is_near(dates[name])]

    def _is_near(self, shutdown: date) -> bool:
        return (shutdown - self._today()).days <= WARNING_DAYS

    def _warning(self, name: str, shutdown: date) -> str:
        is_default = "; it is the default (SAFELIGHT_OPENAI_MODEL)" if name == self._default else ""
        left = (shutdown - self._today()).days
        if left < 0:
            return f"{self._name} shut {name} down on {shutdown}{is_default}."
        return f"{self._name} shuts {name} down on {shutdown}, in {left} days{is_default}."

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
        results: list[Result] = []
        try:
            async with self._client.stream("POST", **self._request(parameters, generation)) as response:
                if not response.is_success:
                    raise self._error(response.status_code, response.headers, await response.aread())
                if response.headers.get("content-type", "").startswith("text/event-stream"):
                    async with aclosing(events_of(response)) as events:
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
        except NOT_REACHED as error:
            raise ProviderUnreachable(f"{self._name} cannot be reached ({type(error).__name__}).") from None
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
        fields |= {**model.always, **parameters.provider_options}
        if parameters.width and parameters.height:
            fields["size"] = f"{parameters.width}x{parameters.height}"
        partial_images = fields.pop("partial_images", PARTIAL_IMAGES)
        streams = self._streams and can_stream(parameters.model or "", parameters.provider_options)
        if streams and partial_images and parameters.batch_size == 1:
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

    def _told(self, event: Mapping[str, Any]) -> Preview | Result | None:
        """What an event of the stream says."""
        kind = str(event.get("type", ""))
        if kind.endswith(".partial_image"):
            try:
                data = decoded(event.get("b64_json"))
                return Preview(data, content_type_of(data))
            except BadOutput:
                return None  # the picture itself may still be well
        if kind.endswith(".completed"):
            return Result.of(event, event)
        if kind == "error" or event.get("error"):
            raise self._error(200, {}, orjson.dumps(event))
        return None

    def _told_at_once(self, body: bytes) -> list[Result]:
        try:
            said = orjson.loads(body)
            results = [Result.of(item, {} if number else said) for number, item in enumerate(said["data"])]
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
            raise BadOutput(f"{self._name} answered with something that holds no pictures.") from None
        return results

    async def _output(self, result: Result) -> Output:
        if result.is_refused:
            raise ContentRejected(f"{self._name} made the picture and withholds it.")
        if result.data is not None:
            data = decoded(result.data)
            return Output(data, content_type_of(data), details=result.details)
        if not result.url:
            raise BadOutput(f"{self._name} delivered neither a picture nor a link to one.")
        own = host_of(self._base_url)
        fetched = await fetch(result.url, trusted_hosts={own}, headers=self._headers_for(result.url))
        return Output(fetched.data, fetched.content_type, details=result.details)

    def _headers_for(self, url: str) -> Mapping[str, str]:
        """A server of one's own may want its key for the files, too. Nobody else gets it."""
        is_own = url.startswith(str(httpx.URL(self._base_url).copy_with(raw_path=b"/")))
        return {"Authorization": f"Bearer {self._key}"} if is_own and self._key else {}

    def _error(self, status: int, headers: Mapping[str, str], body: bytes) -> ProviderError:
        """What a refusal means, without the key."""
        return error_of(self._name, status, headers, body.replace(self._key.encode(), b"***") if self._key else body)
