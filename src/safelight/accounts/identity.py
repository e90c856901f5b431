"""Who asks: the one value that every door works with, however somebody has shown who they are."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from safelight.errors import SafelightError

Scope = Literal["read", "write", "admin"]
How = Literal["local", "key", "token", "session"]

# Each scope includes the ones before it: who may manage keys could make one for everything else anyway.
SCOPES: tuple[Scope, ...] = ("read", "write", "admin")
LOCAL_OWNER = "local"  # the one user of an installation without accounts


class Unauthenticated(SafelightError):
    """Say who you are: send an API key or a token as `Authorization: Bearer ...`, or open a session."""

    kind = "unauthenticated"
    code = "unauthenticated"


class ScopeMissing(SafelightError):
    """This key, token or session may not do that."""

    kind = "forbidden"
    code = "scope_missing"


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose request it is, and what it may do. `tier` is None without accounts: then nothing is limited.

    `key_id` names the key behind it, if there is one, so that a session ends with the key it was opened with.
    `expires_at` is the end of the key, token or session itself.
    """

    owner_id: str
    scopes: frozenset[Scope]
    tier: str | None
    how: How
    expires_at: datetime | None = None
    key_id: str | None = None

    def require(self, scope: Scope) -> None:
        """Raises `ScopeMissing` unless the scope is there."""
        if scope not in self.scopes:
            raise ScopeMissing(f"This needs the scope `{scope}`; there is only {', '.join(in_order(self.scopes))}.")


@dataclass(frozen=True, slots=True)
class Claims:
    """What a good token of an identity provider says. `tier` is None if it says nothing about it."""

    issuer: str
    subject: str
    expires_at: datetime
    scopes: frozenset[Scope]
    tier: str | None


LOCAL = Identity(LOCAL_OWNER, frozenset(SCOPES), None, "local")


def granted(names: Iterable[str]) -> frozenset[Scope]:
    """The scopes that these give, with the ones they include; unknown names give nothing."""
    highest = max((SCOPES.index(name) for name in names if name in SCOPES), default=-1)
    return frozenset(SCOPES[: highest + 1])


def in_order(scopes: Iterable[Scope]) -> list[Scope]:
    """Scopes as they are shown and stored."""
    return sorted(scopes, key=SCOPES.index)
