"""Providers over HTTP: how each is, what it can do, what it does now, and why it does nothing."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any, Literal, cast, get_type_hints

import structlog
from fastapi import APIRouter, Path, Request
from pydantic import BaseModel, ConfigDict, Field, create_model
from starlette.responses import Response

from safelight.api.deps import Owner, World, json_response
from safelight.bootstrap import Safelight
from safelight.db import Database
from safelight.errors import SafelightError, Unavailable
from safelight.jobs import ProviderLoad, ProviderState, RunTime, provider_loads, read_states, run_times
from safelight.providers.base import Capabilities, InvalidParameters, Provider, ProviderError
from safelight.providers.registry import Registry, UnknownProvider

HEALTH_SECONDS = 2.0
HEALTH_KEPT_SECONDS = 5.0
WARNINGS_SECONDS = 60.0
WARNINGS_KEPT_SECONDS = 12 * 3600.0
MODELS_SECONDS = 10.0
MODELS_KEPT_SECONDS = 60.0
RUN_TIMES_KEPT_SECONDS = 5.0

Models = tuple[Mapping[str, Sequence[str]], Mapping[str, Mapping[str, Sequence[str]]]]

PLAYED = "The mock draws in its place: AI_MOCK_MODE is not false."

log = structlog.get_logger()

router = APIRouter(prefix="/api/v1/providers", tags=["providers"])


class ProviderNotFound(SafelightError):
    """There is no provider of this name."""

    kind = "not_found"
    code = "provider_not_found"


class ModelsUnknown(Unavailable):
    """The provider does not say which models it has."""

    code = "models_unknown"


class HealthView(BaseModel):
    """`unavailable`: it does not answer, says itself that it is not well, or cannot be used here. `not_configured`: a
    setting is missing, which `detail` names."""

    state: Literal["ok", "unavailable", "not_configured"]
    detail: str | None


_can = {name: (kind, ...) for name, kind in get_type_hints(Capabilities).items() if name != "limits"}
_Capabilities = create_model("_Capabilities", **cast(dict[str, Any], _can))


class CapabilitiesView(_Capabilities):
    """What it can do, as far as it is known without asking it."""

    kinds: list[str]
    models: list[str] = Field(description="The first is the default; empty: any name is passed on")


def _capabilities_of(can: Capabilities) -> dict[str, Any]:
    return {name: getattr(can, name) for name in CapabilitiesView.model_fields} | {"kinds": sorted(can.kinds)}


class RateView(BaseModel):
    """So many jobs started in so many seconds."""

    jobs: int
    seconds: int


class LimitsView(BaseModel):
    """What this installation allows it; null is without a limit. Seconds are those of an attempt."""

    jobs_at_once: int | None
    rate: RateView | None
    soft_limit_seconds: float
    hard_limit_seconds: float


class RunTimeView(BaseModel):
    """Learnt from the latest jobs that asked for the same."""

    model: str | None
    checkpoint_model: str | None
    template: str | None
    width: int | None
    height: int | None
    batch_size: int
    steps: int | None
    median_seconds: float
    samples: int


EXAMPLE: dict[str, Any] = {
    "name": "modelslab",
    "is_default": False,
    "mocked": False,
    "health": {"state": "ok", "detail": None},
    "warnings": [],
    "capabilities": _capabilities_of(
        Capabilities(
            frozenset({"image.generate"}), ("flux",), 1024, 1024, 4, cancel=False, progress=False, previews=False
        )
    ),
    "limits": {
        "jobs_at_once": 5,
        "rate": {"jobs": 10, "seconds": 60},
        "soft_limit_seconds": 300.0,
        "hard_limit_seconds": 330.0,
    },
    "running": 2,
    "waiting": 40,
    "breaker": "closed",
    "failures": 0,
    "retry_at": None,
    "unreachable_since": None,
    "paused_until": "2026-01-02T03:04:08.123000Z",
    "pause_reason": "The provider asks us to slow down.",
    "run_times": [
        {
            "model": "flux",
            "checkpoint_model": None,
            "template": None,
            "width": 1024,
            "height": 1024,
            "batch_size": 1,
            "steps": 30,
            "median_seconds": 11.2,
            "samples": 20,
        }
    ],
}


class ProviderView(BaseModel):
    """A provider. While it is paused, or its breaker is open, its jobs wait or take another way."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE]})

    name: str
    is_default: bool
    mocked: bool = Field(description="The mock plays it: nothing outside is called")
    health: HealthView
    warnings: list[str] = Field(description="What somebody should know or do: a model that is shut down soon")
    capabilities: CapabilitiesView | None = Field(description="null if it cannot be used here")
    limits: LimitsView
    running: int
    waiting: int
    breaker: Literal["closed", "open", "half_open"] = Field(description="`half_open`: one job tries whether it works")
    failures: int = Field(description="In a row: unreachable, failing on its side, timed out")
    retry_at: datetime | None = Field(description="When an open breaker lets one job try")
    unreachable_since: datetime | None = Field(
        description="It cannot be reached: its jobs wait, and one after the other tries; null when it can"
    )
    paused_until: datetime | None = Field(description="It asked for a pause; null when that is over")
    pause_reason: str | None
    run_times: list[RunTimeView]


class ProviderList(BaseModel):
    items: list[ProviderView]


class ModelsView(BaseModel):
    """The names that can be asked for, by kind."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "models": {"checkpoints": ["sd_xl_base_1.0.safetensors"], "loras": []},
                    "servers": {
                        "http://gpu-1:8188": {"checkpoints": ["sd_xl_base_1.0.safetensors"], "loras": []},
                        "http://gpu-2:8188": {"checkpoints": [], "loras": []},
                    },
                }
            ]
        }
    )

    models: dict[str, list[str]] = Field(description="What some server has")
    servers: dict[str, dict[str, list[str]]] = Field(
        description="What each server has that answers; empty where the provider has none of its own to tell apart"
    )


class Survey:
    """What is asked of providers and learnt about them, remembered for a while: one per process."""

    def __init__(self, registry: Registry, database: Database) -> None:
        self._registry = registry
        self._database = database
        self._known: dict[tuple[str, str], tuple[float, asyncio.Future[Any]]] = {}
        self._warnings: dict[str, Sequence[str]] = {}

    async def watch(self) -> None:
        """Ask every provider for its warnings, twice a day, and log those that are new. Never ends."""
        while True:
            for name in self._registry.configured():
                told = await self._ask_warnings(name)
                if told is not None:
                    for warning in set(told) - set(self._warnings.get(name, ())):
                        log.warning("provider.warning", provider=name, warning=warning)
                    self._warnings[name] = told
            await asyncio.sleep(WARNINGS_KEPT_SECONDS)

    def warnings(self, name: str) -> Sequence[str]:
        """As they were last told."""
        return self._warnings.get(name, ())

    async def health(self, name: str) -> str | None:
        """None if well, else why not; a provider that does not answer in time is not well."""
        return await self._remember(("health", name), HEALTH_KEPT_SECONDS, lambda: self._ask_health(name))

    async def models(self, name: str) -> Models:
        """Over all of its servers, and by server. Raises `ModelsUnknown`."""
        return await self._remember(("models", name), MODELS_KEPT_SECONDS, lambda: self._ask_models(name))

    async def run_times(self, name: str) -> Sequence[RunTime]:
        look = self._database.read
        return await self._remember(("run times", name), RUN_TIMES_KEPT_SECONDS, lambda: look(run_times, name))

    async def _ask_warnings(self, name: str) -> Sequence[str] | None:
        try:
            async with asyncio.timeout(WARNINGS_SECONDS):
                return await self._registry.resolve(name)[1].warnings()
        except Exception as error:  # a plug-in may fail in any way
            log.info("provider.warnings_unknown", provider=name, reason=repr(error))
            return None

    async def _ask_health(self, name: str) -> str | None:
        try:
            async with asyncio.timeout(HEALTH_SECONDS):
                return await self._registry.resolve(name)[1].health()
        except TimeoutError:
            return f"It did not answer within {HEALTH_SECONDS:g} s."
        except ProviderError as error:
            return error.message
        except Exception as error:  # a plug-in may fail in any way
            log.warning("provider.health_failed", provider=name, reason=repr(error))
            return f"It failed in an unexpected way ({type(error).__name__})."

    async def _ask_models(self, name: str) -> Models:
        try:
            async with asyncio.timeout(MODELS_SECONDS):
                provider = self._registry.resolve(name)[1]
                return await provider.models(), await provider.models_by_server()
        except TimeoutError:
            raise ModelsUnknown(f"The provider {name} did not answer within {MODELS_SECONDS:g} s.") from None
        except ProviderError as error:
            raise ModelsUnknown(error.message) from None
        except Exception as error:  # a plug-in may fail in any way
            log.warning("provider.models_failed", provider=name, reason=repr(error))
            raise ModelsUnknown(f"The provider {name} failed ({type(error).__name__}).") from None

    async def _remember(self, key: tuple[str, str], seconds: float, ask: Callable[[], Awaitable[Any]]) -> Any:
        """The answer, asked for once however many want it. A failure is not remembered."""
        now = time.monotonic()
        asked_at, answer = self._known.get(key, (0.0, None))
        failed = answer is not None and answer.done() and (answer.cancelled() or answer.exception() is not None)
        if answer is None or failed or now - asked_at > seconds:
            answer = asyncio.ensure_future(ask())
            self._known[key] = (now, answer)
        return await asyncio.shield(answer)


@router.get(
    "",
    operation_id="listProviders",
    response_model=ProviderList,
    summary="Every provider: health, limits, load, pauses, run times",
)
async def list_all(request: Request, world: World, owner: Owner) -> Response:
    """The mock first. Health is asked at most every few seconds, and no provider is waited for longer than two."""
    names = world.providers.names()
    loads, states = await _look(world)
    views = await asyncio.gather(*(_view_of(request, world, name, loads, states) for name in names))
    return json_response({"items": views}, headers={"Cache-Control": "no-store"})


Name = Annotated[str, Path(description="As in the field `provider` of a job", max_length=80)]


@router.get("/{name}", operation_id="getProvider", response_model=ProviderView, summary="Look at a provider")
async def look(name: Name, request: Request, world: World, owner: Owner) -> Response:
    """How it is, what it can do and what it does now."""
    _check_name(world, name)
    view = await _view_of(request, world, name, *await _look(world))
    return json_response(view, headers={"Cache-Control": "no-store"})


@router.get(
    "/{name}/models", operation_id="listProviderModels", response_model=ModelsView, summary="The models of a provider"
)
async def list_models(name: Name, request: Request, world: World, owner: Owner) -> Response:
    """Asked of the provider, and remembered for a minute. 503 with `models_unknown` if it does not answer."""
    _check_name(world, name)
    survey: Survey = request.app.state.survey
    models, by_server = await survey.models(name)
    servers = {address: _listed(models) for address, models in by_server.items()}
    return json_response({"models": _listed(models), "servers": servers})


def _listed(models: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    return {kind: list(names) for kind, names in models.items()}


def _check_name(world: Safelight, name: str) -> None:
    try:
        world.providers.resolve(name)
    except UnknownProvider as error:
        raise ProviderNotFound(error.message) from None
    except InvalidParameters:
        pass  # it is known, and shown with what is wrong with it


async def _look(world: Safelight) -> tuple[Mapping[str, ProviderLoad], Mapping[str, ProviderState]]:
    loads, states = await asyncio.gather(world.database.read(provider_loads), world.database.read(read_states))
    return loads, {state.provider: state for state in states}


async def _view_of(
    request: Request,
    world: Safelight,
    name: str,
    loads: Mapping[str, ProviderLoad],
    states: Mapping[str, ProviderState],
) -> dict[str, Any]:
    """The fields of `ProviderView`, ready to be encoded."""
    survey: Survey = request.app.state.survey
    problem, learnt = await asyncio.gather(survey.health(name), survey.run_times(name))
    provider, mocked = _resolve(world, name)
    settings = world.settings
    load = loads.get(name, ProviderLoad())
    state = states.get(name)
    is_paused = state is not None and state.paused_until is not None and state.paused_until > state.at
    rate = settings.provider_rates.get(name)
    limits = provider.capabilities.limits if provider is not None else None
    return {
        "name": name,
        "is_default": name == world.providers.default,
        "mocked": mocked,
        "health": _health(problem, "" if mocked else world.providers.missing(name)),
        "warnings": [*([PLAYED] if name in settings.played else []), *survey.warnings(name)],
        "capabilities": None if provider is None else _capabilities_of(provider.capabilities),
        "limits": {
            "jobs_at_once": settings.provider_limits.get(name),
            "rate": None if rate is None else {"jobs": rate.jobs, "seconds": rate.seconds},
            "soft_limit_seconds": settings.soft_limit_seconds if limits is None else limits.soft_seconds,
            "hard_limit_seconds": settings.hard_limit_seconds if limits is None else limits.hard_seconds,
        },
        "running": load.running,
        "waiting": load.waiting,
        "breaker": "closed" if state is None else state.breaker,
        "failures": 0 if state is None else state.failures,
        "retry_at": None if state is None else state.retry_at,
        "unreachable_since": None if state is None else state.unreachable_since,
        "paused_until": state.paused_until if state is not None and is_paused else None,
        "pause_reason": state.pause_reason if state is not None and is_paused else None,
        "run_times": [asdict(time_of) for time_of in learnt],
    }


def _health(problem: str | None, missing: str) -> dict[str, str | None]:
    """`missing` is the variable that is not set."""
    if problem is None:
        return {"state": "ok", "detail": None}
    if not missing:
        return {"state": "unavailable", "detail": problem}
    detail = f"{missing} is not set."
    return {"state": "not_configured", "detail": detail if missing in problem else f"{detail} {problem}"}


def _resolve(world: Safelight, name: str) -> tuple[Provider | None, bool]:
    try:
        _, provider, mocked = world.providers.resolve(name)
    except InvalidParameters:
        return None, False
    return provider, mocked
