"""A session: what a browser has instead of a key, in a cookie that its scripts cannot read.

A cookie is sent by the browser on its own, so a page elsewhere could make it act. Whatever changes something therefore
has to repeat a second value in a header, which only scripts of our own origin can read. It is derived from the
session's secret (and the secret cannot be had from it), so that nothing more has to be stored or looked up.
"""

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Column, Row, String, Table

from safelight.accounts.identity import Scope
from safelight.accounts.user import MAX_OWNER
from safelight.db import Instant, Json, RowId, metadata
from safelight.errors import SafelightError


class SessionEnded(SafelightError):
    """This session has ended. Open another one."""

    kind = "unauthenticated"
    code = "session_ended"


class CsrfMissing(SafelightError):
    """With a session cookie, what changes something needs the header X-CSRF-Token; `GET /api/v1/session` tells it."""

    kind = "forbidden"
    code = "csrf_missing"


@dataclass(frozen=True, slots=True)
class Session:
    """One session, without its secret. It ends with the key it was opened with, if it was one."""

    hash: str
    owner_id: str
    key_id: str | None
    scopes: list[Scope]
    tier: str | None
    created_at: datetime
    expires_at: datetime

    @classmethod
    def of(cls, row: Row[*tuple[Any, ...]]) -> "Session":
        """From a row of all columns of the table, in order."""
        return cls(*row)


sessions = Table(
    "sessions",
    metadata,
    Column("hash", String(64), primary_key=True),
    Column("owner_id", String(MAX_OWNER), nullable=False),
    Column("key_id", RowId),
    Column("scopes", Json, nullable=False),
    Column("tier", String(40)),
    Column("created_at", Instant, nullable=False),
    Column("expires_at", Instant, nullable=False, index=True),
)


def new_session_secret() -> str:
    """256 random bits."""
    return secrets.token_urlsafe(32)


def csrf_token(secret: str) -> str:
    """The second value that belongs to this session."""
    return hmac.new(secret.encode(), b"safelight csrf", hashlib.sha256).hexdigest()


def check_csrf(secret: str, given: str | None) -> None:
    """Raises `CsrfMissing` unless the header's value belongs to the cookie's."""
    if given is None or not hmac.compare_digest(csrf_token(secret).encode(), given.encode()):
        raise CsrfMissing
