"""What is asked of providers for people to see: bounded in time, remembered, and never the end of a page."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from structlog.testing import capture_logs

from safelight.api.service import providers as module
from safelight.api.service.providers import ModelsUnknown, Survey
from safelight.providers.base import Provider, ProviderUnavailable
from safelight.providers.mock import MockProvider
from safelight.providers.registry import Own, Registry

pytestmark = pytest.mark.anyio


class Patient(MockProvider):
    """Answers as told, and counts how often it was asked."""

    def __init__(self, health: Any = None, models: Any = None, warnings: Any = ()) -> None:
        super().__init__(plays="patient")
        self._warnings = warnings
        self._health = health
        self._models = models
        self.asked = 0

    async def health(self) -> str | None:
        return await self._answer(self._health)

    async def models(self) -> Mapping[str, Sequence[str]]:
        return await self._answer(self._models)

    async def warnings(self) -> Sequence[str]:
        return await self._answer(self._warnings)

    async def _answer(self, answer: Any) -> Any:
        self.asked += 1
        await asyncio.sleep(0)
        if answer == "never":
            await asyncio.Event().wait()
        if isinstance(answer, Exception):
            raise answer
        return answer


def _broken() -> Provider:
    raise OSError("no such key")


def survey_of(provider: Patient) -> Survey:
    registry = Registry(mock_mode=False, default="mock", own={"patient": Own(lambda: provider), "broken": Own(_broken)})
    database: Any = None  # run times alone come from there
    return Survey(registry, database)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (None, None),
        ("The queue is full.", "The queue is full."),
        ("never", "It did not answer within 0.05 s."),
        (ProviderUnavailable("Nobody there."), "Nobody there."),
        (KeyError("x"), "It failed in an unexpected way (KeyError)."),
    ],
)
async def test_health_is_an_answer_in_any_case(answer: Any, says: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HEALTH_SECONDS", 0.05)
    assert await survey_of(Patient(health=answer)).health("patient") == says


async def test_a_provider_that_cannot_be_made_says_why() -> None:
    survey = survey_of(Patient())
    assert "OSError: no such key" in (await survey.health("broken") or "")
    with pytest.raises(ModelsUnknown, match="no such key"):
        await survey.models("broken")


async def test_it_is_asked_once_however_many_look(monkeypatch: pytest.MonkeyPatch) -> None:
    patient = Patient(health=None, models={"checkpoints": ["a"]})
    survey = survey_of(patient)
    await asyncio.gather(*(survey.health("patient") for _ in range(5)))
    assert patient.asked == 1
    await asyncio.gather(*(survey.models("patient") for _ in range(5)))
    assert patient.asked == 2
    monkeypatch.setattr(module, "HEALTH_KEPT_SECONDS", -1.0)
    await survey.health("patient")
    assert patient.asked == 3


async def test_models_that_cannot_be_told_are_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MODELS_SECONDS", 0.05)
    patient = Patient(models="never")
    survey = survey_of(patient)
    for times in (1, 2):
        with pytest.raises(ModelsUnknown, match="did not answer"):
            await survey.models("patient")
        assert patient.asked == times


async def test_whoever_stops_looking_stops_nobody_else() -> None:
    survey = survey_of(Patient(health="Well enough."))
    impatient = asyncio.ensure_future(survey.health("patient"))
    other = asyncio.ensure_future(survey.health("patient"))
    await asyncio.sleep(0)
    impatient.cancel()
    assert await other == "Well enough."


@pytest.mark.parametrize("answer", [["It ends soon."], "never", KeyError("x")])
async def test_warnings_are_asked_for_in_the_background_and_logged_once(
    answer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WARNINGS_SECONDS", 0.05)
    monkeypatch.setattr(module, "WARNINGS_KEPT_SECONDS", 0.01)
    patient = Patient(warnings=answer)
    survey = survey_of(patient)
    assert survey.warnings("patient") == ()  # nobody waits for them
    with capture_logs() as lines:
        watching = asyncio.ensure_future(survey.watch())
        async with asyncio.timeout(60):
            while patient.asked < 3:  # noqa: ASYNC110 - the task makes it so
                await asyncio.sleep(0.01)
        watching.cancel()
    told = [answer[0]] if isinstance(answer, list) else []
    assert list(survey.warnings("patient")) == told
    assert [entry["warning"] for entry in lines if entry["event"] == "provider.warning"] == told
