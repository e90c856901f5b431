"""A user: who owns things. One appears with the first key made for it, or the first valid token it shows."""

import uuid
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Column, Index, Row, String, Table

from safelight.accounts.identity import LOCAL_OWNER
from safelight.db import Instant, metadata

MAX_OWNER = 200
MAX_ISSUER = MAX_SUBJECT = 255


@dataclass(frozen=True, slots=True)
class User:
    """`id` is the owner id that all rows bear. `issuer` and `subject` are those of its tokens, if it has any."""

    id: str
    issuer: str | None
    subject: str | None
    tier: str | None
    created_at: datetime
    seen_at: datetime

    @classmethod
    def of(cls, row: Row[*tuple[Any, ...]]) -> "User":
        """From a row of all columns of the table, in order."""
        return cls(*row)


users = Table(
    "users",
    metadata,
    Column("id", String(MAX_OWNER), primary_key=True),
    Column("issuer", String(MAX_ISSUER)),
    Column("subject", String(MAX_SUBJECT)),
    Column("tier", String(40)),
    Column("created_at", Instant, nullable=False),
    Column("seen_at", Instant, nullable=False),
)
Index("ix_users_subject", users.c.issuer, users.c.subject, unique=True)


def is_owner_id(value: str) -> bool:
    """Whether a text can be an owner id: printable, without spaces around it, not too long."""
    return 0 < len(value) <= MAX_OWNER and value.isprintable() and value == value.strip()


def owner_ids(issuer: str, subject: str) -> tuple[str, ...]:
    """The owner ids a new user may get, best first.

    The subject itself is what the host application knows its user by. But it must never make somebody the owner of
    what is there already (an owner of keys, the local user), and then an id is derived instead.
    """
    derived = str(uuid.uuid5(uuid.NAMESPACE_URL, f"{issuer}#{subject}"))
    return (subject, derived) if is_owner_id(subject) and subject != LOCAL_OWNER else (derived,)
