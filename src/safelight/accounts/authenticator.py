"""Who is at the door: from a key, token or cookie to an identity, quickly.

A key or session costs one indexed read, a token one signature and one read; the answer is kept in this process for a
few seconds. So what is revoked in another process is believed for that long here, and no longer; what is revoked in
this process ends at once.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

import structlog

from safelight.accounts.identity import Claims, Identity, granted
from safelight.accounts.key import Key, KeyInvalid, hash_of, is_key
from safelight.accounts.service import (
    USE_NOTED_SECONDS,
    authenticate_key,
    find_session,
    find_user,
    note_use,
    see_user,
)
from safelight.accounts.session import Session
from safelight.db import Database
from safelight.errors import Unavailable

KNOWN_SECONDS = 5.0
MAX_KNOWN = 10_000

log = structlog.get_logger()


class Tokens(Protocol):
    """Verifies tokens, as `TokenVerifier` does. Raises an error of the kind `unauthenticated` for a bad one."""

    async def verify(self, token: str) -> Claims: ...


@dataclass(frozen=True, slots=True)
class _Known:
    identity: Identity
    until: float  # monotonic


class Authenticator:
    """One process's knowledge of who is who. `tiers` are the names there are; an unknown one means the default."""

    def __init__(
        self,
        database: Database,
        *,
        tokens: Tokens | None,
        tiers: Collection[str],
        default_tier: str,
        known_seconds: float = KNOWN_SECONDS,
    ) -> None:
        self._database = database
        self._tokens = tokens
        self._tiers = frozenset(tiers)
        self._default_tier = default_tier
        self._known_seconds = known_seconds
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._noted: OrderedDict[str, float] = OrderedDict()
        self._notes: set[asyncio.Task[None]] = set()

    async def by_credential(self, credential: str) -> Identity:
        """Who shows this key or token. Raises an error of the kind `unauthenticated`."""
        digest = hash_of(credential)
        identity = self._remembered(digest)
        if identity is None:
            if is_key(credential):
                identity = await self._by_key(digest)
            elif self._tokens is not None:
                identity = await self._by_token(credential)
            else:
                raise KeyInvalid
            self._remember(digest, identity)
        if identity.key_id is not None:
            self._note(identity.key_id, lambda: self._database.write(note_use, str(identity.key_id)))
        return identity

    async def by_session(self, secret: str) -> Identity:
        """Who has this session. Raises `SessionEnded`."""
        digest = hash_of(secret)
        identity = self._remembered(digest)
        if identity is None:
            found = await self._database.read(find_session, digest)
            if not isinstance(found, Session):
                raise found
            identity = Identity(
                found.owner_id, granted(found.scopes), self._tier(found.tier), "session", found.expires_at, found.key_id
            )
            self._remember(digest, identity)
        return identity

    def forget(self) -> None:
        """Believe nothing that is remembered: something was revoked or ended here."""
        self._known.clear()

    async def close(self) -> None:
        """Let the last notes be written."""
        if self._notes:
            await asyncio.wait(self._notes, timeout=1)

    async def _by_key(self, digest: str) -> Identity:
        key = await self._database.read(authenticate_key, digest)
        if not isinstance(key, Key):
            raise key
        return Identity(key.owner_id, granted(key.scopes), self._tier(key.tier), "key", key.expires_at, key.id)

    async def _by_token(self, token: str) -> Identity:
        if self._tokens is None:
            raise KeyInvalid
        claims = await self._tokens.verify(token)
        found = await self._database.read(find_user, claims.issuer, claims.subject)
        tier = claims.tier if claims.tier in self._tiers else None
        if found is None:
            user = await self._database.write(see_user, claims.issuer, claims.subject, tier)
            log.info("user.appeared", owner_id=user.id)
        else:
            user, now = found
            if tier not in (None, user.tier) or (now - user.seen_at).total_seconds() > USE_NOTED_SECONDS:
                self._note(user.id, lambda: self._see(claims.issuer, claims.subject, tier))
        return Identity(user.id, claims.scopes, self._tier(tier or user.tier), "token", claims.expires_at)

    async def _see(self, issuer: str, subject: str, tier: str | None) -> None:
        await self._database.write(see_user, issuer, subject, tier)

    def _tier(self, name: str | None) -> str:
        return name if name in self._tiers else self._default_tier

    def _remembered(self, digest: str) -> Identity | None:
        known = self._known.get(digest)
        return known.identity if known is not None and time.monotonic() < known.until else None

    def _remember(self, digest: str, identity: Identity) -> None:
        seconds = self._known_seconds
        if identity.expires_at is not None:
            seconds = min(seconds, (identity.expires_at - datetime.now(UTC)).total_seconds())
        self._known[digest] = _Known(identity, time.monotonic() + seconds)
        self._known.move_to_end(digest)
        if len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)

    def _note(self, about: str, write: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Write something down in the background, at most once a minute; if it fails, nobody is worse off."""
        now = time.monotonic()
        if now - self._noted.get(about, float("-inf")) < USE_NOTED_SECONDS:
            return
        self._noted[about] = now
        self._noted.move_to_end(about)
        if len(self._noted) > MAX_KNOWN:
            self._noted.popitem(last=False)
        task = asyncio.create_task(self._written(write))
        self._notes.add(task)
        task.add_done_callback(self._notes.discard)

    async def _written(self, write: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            await write()
        except Unavailable as error:
            log.warning("use.not_noted", reason=error.detail)
