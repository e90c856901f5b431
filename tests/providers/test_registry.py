"""The registry: names, what the mock plays, and plug-ins that are missing or broken."""

from importlib.metadata import EntryPoint

import pytest

from safelight.providers.base import InvalidParameters, Parameters
from safelight.providers.mock import MockProvider
from safelight.providers.registry import GROUP, Registry, UnknownProvider

OWN = {"comfyui": MockProvider, "modelslab": MockProvider}
GOOD = EntryPoint("painter", "safelight.providers.mock:MockProvider", GROUP)
BROKEN = EntryPoint("broken", "safelight.no_such_module:Thing", GROUP)


def test_in_mock_mode_every_known_name_is_played() -> None:
    registry = Registry(True, "comfyui", OWN, [GOOD, BROKEN])
    assert registry.names() == ["mock", "broken", "comfyui", "modelslab", "painter"]
    for name in registry.names():
        found, provider, mocked = registry.resolve(name)
        assert (found, mocked) == (name, True)
        assert isinstance(provider, MockProvider)
        assert provider.plays == (None if name == "mock" else name)
    assert registry.resolve(None)[0] == "comfyui"
    assert registry.resolve("comfyui")[1] is registry.resolve("comfyui")[1]
    assert registry.problems == {}


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(UnknownProvider) as caught:
        Registry(True, "mock", OWN, []).resolve("comfyiu")
    assert caught.value.field == "provider"
    assert "Did you mean comfyui?" in caught.value.message
    assert "modelslab" in caught.value.message


def test_outside_mock_mode_only_what_is_installed_can_be_used() -> None:
    registry = Registry(False, "mock", OWN, [GOOD])
    name, provider, mocked = registry.resolve("painter")
    assert (name, mocked) == ("painter", False)
    assert provider is registry.resolve("painter")[1]
    assert registry.resolve(None)[2] is True  # the mock stays what it is
    assert registry.resolve("comfyui")[2] is False


def test_a_broken_plug_in_is_a_reason_not_a_crash() -> None:
    registry = Registry(False, "mock", OWN, [BROKEN, GOOD])
    for _ in range(2):
        with pytest.raises(InvalidParameters, match="broken cannot be used: ModuleNotFoundError"):
            registry.resolve("broken")
    assert set(registry.problems) == {"broken"}
    assert registry.resolve("painter")[1].check(Parameters("image", "x")).width == 1024


def test_installed_plug_ins_are_found_by_default() -> None:
    assert "mock" in Registry(True, "mock").names()


def test_scripts_are_for_mock_mode() -> None:
    script = Parameters(kind="image.generate", prompt="x", options={"mock": {"crash": True}})
    with pytest.raises(InvalidParameters) as refused:
        Registry(mock_mode=False, default="mock").resolve("mock")[1].check(script)
    assert refused.value.field == "provider_options.mock"
    Registry(mock_mode=True, default="mock").resolve("mock")[1].check(script)
