"""The registry: names, what the mock plays, and plug-ins that are missing or broken."""

from importlib.metadata import EntryPoint

import pytest

from safelight.providers.base import InvalidParameters, Parameters
from safelight.providers.mock import MockProvider
from safelight.providers.registry import GROUP, NoDefault, Own, Registry, UnknownProvider

OWN = {"comfyui": Own(MockProvider), "modelslab": Own(MockProvider)}
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
    assert registry.required_default() == "comfyui"
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
    assert registry.resolve("mock")[2] is True  # the mock stays what it is
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
    script = Parameters(kind="image.generate", prompt="x", provider_options={"mock": {"crash": True}})
    with pytest.raises(InvalidParameters) as refused:
        Registry(mock_mode=False, default="mock").resolve("mock")[1].check(script)
    assert refused.value.field == "provider_options.mock"
    Registry(mock_mode=True, default="mock").resolve("mock")[1].check(script)


def test_without_mock_mode_the_only_one_that_is_configured_is_the_default() -> None:
    def own(**missing: str) -> dict[str, Own]:
        return {name: Own(MockProvider, variable) for name, variable in missing.items()} | {
            "media": Own(MockProvider, makes_pictures=False)
        }

    assert Registry(False, "", own(comfyui="", modelslab="KEY"), []).required_default() == "comfyui"
    assert Registry(False, "", own(modelslab="KEY"), [GOOD, BROKEN]).required_default() == "painter"
    assert Registry(False, "best", own(comfyui="KEY"), []).required_default() == "best"
    assert Registry(False, "mock", own(comfyui=""), []).required_default() == "mock"  # somebody wants it so
    assert Registry(True, "", own(comfyui=""), []).required_default() == "mock"
    for registry, words in (
        (Registry(False, "", own(comfyui="", modelslab=""), []), "comfyui, modelslab are configured"),
        (Registry(False, "", own(comfyui="URLS", modelslab="KEY"), []), "None is configured: set URLS or KEY."),
        (Registry(False, "", {}, [BROKEN]), "none but the mock"),
    ):
        assert registry.default == ""
        with pytest.raises(NoDefault, match=words) as refused:
            registry.required_default()
        assert refused.value.field == "provider"


def test_what_is_not_configured_says_which_variable_is_missing() -> None:
    def make() -> MockProvider:
        raise OSError("no key")

    registry = Registry(False, "", {"modelslab": Own(make, "KEY"), "comfyui": Own(MockProvider, "URLS")}, [])
    with pytest.raises(InvalidParameters, match=r"modelslab is not configured: KEY is not set\."):
        registry.resolve("modelslab")
    assert not registry.resolve("comfyui")[2]  # can be used all the same, by those who name it
    assert (registry.missing("comfyui"), registry.missing("mock"), registry.configured()) == ("URLS", "", [])


class Old(MockProvider):
    """Written before contracts had numbers."""

    contract = 1


def test_a_plug_in_for_another_contract_is_refused_with_what_to_do() -> None:
    registry = Registry(False, "mock", OWN, [EntryPoint("old", f"{__name__}:Old", GROUP)])
    with pytest.raises(InvalidParameters, match=r"contract 1, and .* has 2; docs/how-to/write-a-provider.md says"):
        registry.resolve("old")
    assert "contract 1" in registry.problems["old"]
