"""Which providers there are: the mock, the house's own, what is installed as a plug-in."""

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping
from difflib import get_close_matches
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from typing import cast

from safelight.providers.base import InvalidParameters, Provider
from safelight.providers.mock import MockProvider

GROUP = "safelight.providers"
MOCK = "mock"


class UnknownProvider(InvalidParameters):
    """There is no provider of this name."""


class Registry:
    """Finds providers by name. One instance per name lives as long as the registry.

    `own` makes the house's providers, by name. In mock mode every known name is played by the mock, but those in
    `unplayed`: what they do costs nothing, and a drawn picture would be no stand-in. A provider that
    cannot be made does not stop the others: its reason stands in `problems`, and asking for it is refused with that
    reason. The mock itself is always there.
    """

    def __init__(
        self,
        mock_mode: bool,
        default: str,
        own: Mapping[str, Callable[[], Provider]] | None = None,
        plug_ins: Iterable[EntryPoint] | None = None,
        unplayed: Collection[str] = (),
    ) -> None:
        found = entry_points(group=GROUP) if plug_ins is None else plug_ins
        self.mock_mode = mock_mode
        self._unplayed = frozenset(unplayed)
        self.default = default
        self.problems: dict[str, str] = {}
        self._makers: dict[str, Callable[[], Provider]] = {
            plug_in.name: partial(_load, plug_in) for plug_in in found if plug_in.name != MOCK
        } | dict(own or {})
        self._made: dict[str, Provider] = {MOCK: MockProvider(takes_scripts=mock_mode)}

    def names(self) -> list[str]:
        """Every name that may be asked for, the mock first."""
        return [MOCK, *sorted(self._makers)]

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
        return name, self._provider(name), self._is_mocked(name)

    def _provider(self, name: str) -> Provider:
        made = self._made.get(name)
        if made is not None:
            return made
        if name in self.problems:
            raise InvalidParameters(self.problems[name], field="provider")
        try:
            provider = MockProvider(plays=name) if self._is_mocked(name) else self._makers[name]()
        except Exception as error:  # a plug-in may fail in any way while it is imported or made
            self.problems[name] = f"The provider {name} cannot be used: {type(error).__name__}: {error}"
            raise InvalidParameters(self.problems[name], field="provider") from error
        self._made[name] = provider
        return provider

    def _is_mocked(self, name: str) -> bool:
        return name == MOCK or (self.mock_mode and name not in self._unplayed)

    async def close(self) -> None:
        """End the connections of all that were made."""
        await asyncio.gather(*(provider.close() for provider in self._made.values()), return_exceptions=True)


def _load(plug_in: EntryPoint) -> Provider:
    return cast(Provider, plug_in.load()())
