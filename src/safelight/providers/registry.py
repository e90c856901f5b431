"""Which providers there are: the mock, what is installed as a plug-in, and what the mock can play."""

from collections.abc import Iterable
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
from typing import cast

from safelight.providers.base import InvalidParameters, Provider
from safelight.providers.mock import MockProvider

GROUP = "safelight.providers"
MOCK = "mock"
PLAYABLE = ("comfyui", "modelslab", "openai_images")  # known by name, and played in mock mode, without being installed


class UnknownProvider(InvalidParameters):
    """There is no provider of this name."""


class Registry:
    """Finds providers by name. One instance per name lives as long as the registry.

    In mock mode every known name is played by the mock. A plug-in that cannot be loaded does not stop the others: its
    reason stands in `problems`, and asking for it is refused with that reason. The mock itself is always there.
    """

    def __init__(self, mock_mode: bool, default: str, plug_ins: Iterable[EntryPoint] | None = None) -> None:
        found = entry_points(group=GROUP) if plug_ins is None else plug_ins
        self.mock_mode = mock_mode
        self.default = default
        self.problems: dict[str, str] = {}
        self._plug_ins = {plug_in.name: plug_in for plug_in in found if plug_in.name != MOCK}
        self._made: dict[str, Provider] = {MOCK: MockProvider(takes_scripts=mock_mode)}

    def names(self) -> list[str]:
        """Every name that may be asked for, the mock first. Outside mock mode some may not be installed."""
        return [MOCK, *sorted({*self._plug_ins, *PLAYABLE})]

    def resolve(self, name: str | None) -> tuple[str, Provider, bool]:
        """The provider of this name (None: the default), its name, and whether it is mocked.

        Raises `UnknownProvider` for a name nobody has, `InvalidParameters` for one that cannot be used here.
        """
        name = name or self.default
        if name not in self.names():
            near = get_close_matches(name, self.names(), n=1, cutoff=0.5)
            meant = f" Did you mean {near[0]}?" if near else ""
            message = f"There is no provider {name[:60]!r}; there are {', '.join(self.names())}.{meant}"
            raise UnknownProvider(message, field="provider")
        return name, self._provider(name), self.mock_mode or name == MOCK

    def _provider(self, name: str) -> Provider:
        made = self._made.get(name)
        if made is not None:
            return made
        if self.mock_mode:
            provider: Provider = MockProvider(plays=name)
        elif name not in self._plug_ins:
            message = (
                f"The provider {name} is not installed; installed are {', '.join([MOCK, *sorted(self._plug_ins)])}."
            )
            raise InvalidParameters(message, field="provider")
        elif name in self.problems:
            raise InvalidParameters(self.problems[name], field="provider")
        else:
            provider = self._load(name)
        self._made[name] = provider
        return provider

    def _load(self, name: str) -> Provider:
        try:
            return cast(Provider, self._plug_ins[name].load()())
        except Exception as error:  # a plug-in may fail in any way while it is imported or made
            self.problems[name] = f"The provider {name} cannot be used: {type(error).__name__}: {error}"
            raise InvalidParameters(self.problems[name], field="provider") from error
