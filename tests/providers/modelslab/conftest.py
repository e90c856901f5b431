"""ModelsLab, played by its stand-in."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from wishes import Make

from safelight.providers import fetch as fetch_module
from safelight.providers.modelslab import ModelsLab
from safelight.providers.modelslab import provider as module
from stand_ins.modelslab import KEY, ModelsLabStandIn


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
