"""Which providers there are: the mock, the house's own, what is installed as a plug-in."""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from typing import cast

from safelight.providers.base import CONTRACT, InvalidParameters, Provider
from safelight.providers.mock import MockProvider
from safelight.suggestion import did_you_mean

GROUP = "safelight.providers"
MOCK = "mock"


PICTURES = "image.generate"


class UnknownProvider(InvalidParameters):
    """There is no provider of this name."""


class NoDefault(InvalidParameters):
    """The request names no provider, and there is none that is meant then."""


class ContractOutdated(Exception):
    """The plug-in was written for another provider contract."""


@dataclass(frozen=True, slots=True)
class Own:
    """One of the house's providers. `missing` is the variable that has to be set before it is configured, if any.

    The mock plays only those that make pictures: for the others a drawn one would be no stand-in.
    """

    make: Callable[[], Provider]
    missing: str = ""
    makes_pictures: bool = True


class Registry:
    """Finds providers by name. One instance per name lives as long as the registry.

    `own` are the house's providers, by name. In mock mode every known name is played by the mock. A provider that
    cannot be made does not stop the others: its reason stands in `problems`, and asking for it is refused with that
    reason. The mock itself is always there, but draws without mock mode only where it is named.
    """

    def __init__(
        self,
        mock_mode: bool,
        default: str = "",
        own: Mapping[str, Own] | None = None,
        plug_ins: Iterable[EntryPoint] | None = None,
    ) -> None:
        """`default` is a provider, or the name of a route; empty: the mock in mock mode, else the only one there is."""
        found = entry_points(group=GROUP) if plug_ins is None else plug_ins
        self.mock_mode = mock_mode
        self._own = dict(own or {})
        self._default = default
        self.problems: dict[str, str] = {}
        self._makers: dict[str, Callable[[], Provider]] = {
            plug_in.name: partial(_load, plug_in) for plug_in in found if plug_in.name != MOCK
        } | {name: each.make for name, each in self._own.items()}
        self._made: dict[str, Provider] = {MOCK: MockProvider(takes_scripts=mock_mode)}

    def names(self) -> list[str]:
        """Every name that may be asked for, the mock first."""
        return [MOCK, *sorted(self._makers)]

    def resolve(self, name: str) -> tuple[str, Provider, bool]:
        """The provider of this name, the name, and whether it is mocked.

        Raises `UnknownProvider` for a name nobody has, `InvalidParameters` for one that cannot be used here.
        """
        if name not in self.names():
            meant = did_you_mean(name, self.names())
            message = f"There is no provider {name[:60]!r}; there are {', '.join(self.names())}.{meant}"
            raise UnknownProvider(message, field="provider")
        return name, self._provider(name), self._is_mocked(name)

    # --- what is configured -------------------------------------------------------------------------------------------

    def missing(self, name: str) -> str:
        """The variable that has to be set before this provider is configured; empty if it is."""
        return self._own[name].missing if name in self._own else ""

    def configured(self) -> list[str]:
        """The providers of pictures that somebody has set up, the mock left out."""
        return [name for name in sorted(self._makers) if not self.missing(name) and self._makes_pictures(name)]

    @property
    def default(self) -> str:
        """The provider, or the route, of requests that name none; empty if they have to."""
        if self._default:
            return self._default
        if self.mock_mode:
            return MOCK
        only = self.configured()
        return only[0] if len(only) == 1 else ""

    def required_default(self) -> str:
        """The same. Raises `NoDefault`."""
        if self.default:
            return self.default
        configured = self.configured()
        if configured:
            there = f"{', '.join(configured)} are configured; SAFELIGHT_DEFAULT_PROVIDER can choose one."
        else:
            variables = [each.missing for each in self._own.values() if each.missing]
            there = f"None is configured: set {' or '.join(variables)}." if variables else "There is none but the mock."
        raise NoDefault(f"Name a provider. {there}", field="provider")

    # --- making them --------------------------------------------------------------------------------------------------

    def _makes_pictures(self, name: str) -> bool:
        if name in self._own:
            return self._own[name].makes_pictures
        try:
            return PICTURES in self._provider(name).capabilities.kinds
        except InvalidParameters:
            return False

    def _provider(self, name: str) -> Provider:
        made = self._made.get(name)
        if made is not None:
            return made
        if name in self.problems:
            raise InvalidParameters(self.problems[name], field="provider")
        try:
            provider = MockProvider(plays=name) if self._is_mocked(name) else self._makers[name]()
        except Exception as error:  # a plug-in may fail in any way while it is imported or made
            missing = self.missing(name)
            self.problems[name] = (
                f"The provider {name} is not configured: {missing} is not set."
                if missing
                else f"The provider {name} cannot be used: {type(error).__name__}: {error}"
            )
            raise InvalidParameters(self.problems[name], field="provider") from error
        self._made[name] = provider
        return provider

    def _is_mocked(self, name: str) -> bool:
        return name == MOCK or (self.mock_mode and (name not in self._own or self._own[name].makes_pictures))

    async def close(self) -> None:
        """End the connections of all that were made."""
        await asyncio.gather(*(provider.close() for provider in self._made.values()), return_exceptions=True)


def _load(plug_in: EntryPoint) -> Provider:
    made = plug_in.load()
    written_for = getattr(made, "contract", CONTRACT)  # a function that makes one answers for what it makes
    if written_for != CONTRACT:
        raise ContractOutdated(
            f"it was written for the provider contract {written_for}, and this version of Safelight has {CONTRACT}; "
            "docs/how-to/write-a-provider.md says what to change"
        )
    return cast(Provider, made())
