"""An API key: a secret that is shown once, and the row that knows it again.

Only the SHA-256 of the secret is stored. A slow password hash would add nothing: the secret is 256 random bits, which
nobody can find by guessing, however fast a guess is tried; and every request has to be checked in microseconds.
"""

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Column, Index, Row, String, Table

from safelight.accounts.identity import Scope
from safelight.accounts.user import MAX_OWNER
from safelight.db import Instant, Json, RowId, metadata
from safelight.errors import SafelightError

MARK = "sl_"  # what every secret begins with, so that scanners can find a leaked one
SHOWN = len(MARK) + 6  # characters of a secret that are kept, for people to tell their keys apart


class KeyInvalid(SafelightError):
    """This is not a key of this installation."""

    kind = "unauthenticated"
    code = "key_invalid"


class KeyExpired(SafelightError):
    """This key has expired. Make another one."""

    kind = "unauthenticated"
    code = "key_expired"


class KeyRevoked(SafelightError):
    """This key has been revoked."""

    kind = "unauthenticated"
    code = "key_revoked"


class KeyNotFound(SafelightError):
    """There is no such key."""

    kind = "not_found"
    code = "key_not_found"


@dataclass(frozen=True, slots=True)
class Key:
    """One key, without its secret: that is known only to whoever made it."""

    id: str
    owner_id: str
    name: str
    hash: str
    prefix: str
    scopes: list[Scope]
    tier: str | None
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    revoked_at: datetime | None

    @classmethod
    def of(cls, row: Row[*tuple[Any, ...]]) -> "Key":
        """From a row of all columns of the table, in order."""
        return cls(*row)


api_keys = Table(
    "api_keys",
    metadata,
    Column("id", RowId, primary_key=True),
    Column("owner_id", String(MAX_OWNER), nullable=False),
    Column("name", String(200), nullable=False),
    Column("hash", String(64), nullable=False),
    Column("prefix", String(20), nullable=False),
    Column("scopes", Json, nullable=False),
    Column("tier", String(40)),
    Column("created_at", Instant, nullable=False),
    Column("expires_at", Instant),
    Column("last_used_at", Instant),
    Column("revoked_at", Instant),
)
Index("ix_api_keys_hash", api_keys.c.hash, unique=True)
Index("ix_api_keys_owner", api_keys.c.owner_id, api_keys.c.id)


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key to be made. The secret stays outside: only its hash goes into the row. `tier` None: the default tier."""

    id: str
    owner_id: str
    name: str
    hash: str
    prefix: str
    scopes: tuple[Scope, ...]
    tier: str | None = None
    expires_in_seconds: float | None = None


def new_secret() -> str:
    """256 random bits, recognisable as a key of ours."""
    return MARK + secrets.token_urlsafe(32)


def hash_of(secret: str) -> str:
    """What is stored of a secret; the same for keys and sessions."""
    return hashlib.sha256(secret.encode()).hexdigest()


def is_key(credential: str) -> bool:
    """Whether a credential looks like a key rather than a token."""
    return credential.startswith(MARK)
