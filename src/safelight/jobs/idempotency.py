"""Idempotency keys: a request sent again makes nothing new. A key is its owner's own and is kept for a day."""

from sqlalchemy import Column, ColumnElement, String, Table, and_, delete, select, tuple_

from safelight.db import Instant, RowId, Tx, db_now, metadata
from safelight.errors import SafelightError

IDEMPOTENCY_SECONDS = 24 * 3600.0
PURGE_BITE = 1000

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("owner_id", String(200), primary_key=True),
    Column("key", String(255), primary_key=True),
    Column("fingerprint", String(64), nullable=False),
    Column("made_id", RowId, nullable=False),  # the job or the batch
    Column("created_at", Instant, nullable=False, index=True),
)


class IdempotencyKeyReused(SafelightError):
    """This Idempotency-Key was used before with another body."""

    kind = "invalid"
    code = "idempotency_key_reused"


def reserve(tx: Tx, owner_id: str, key: str, fingerprint: str, made_id: str) -> str | IdempotencyKeyReused | None:
    """Reserve the key for what is about to be made; if it was taken, the id of what it was taken for."""
    same = _same(owner_id, key)
    tx.execute(delete(idempotency_keys).where(same, idempotency_keys.c.created_at < db_now(-IDEMPOTENCY_SECONDS)))
    free = tx.insert_if_free(idempotency_keys).values(created_at=db_now())
    row = {"owner_id": owner_id, "key": key, "fingerprint": fingerprint, "made_id": made_id}
    if tx.execute(free.returning(idempotency_keys.c.key), row).first() is not None:
        return None
    known, first_id = tx.execute(select(idempotency_keys.c.fingerprint, idempotency_keys.c.made_id).where(same)).one()
    return first_id if known == fingerprint else IdempotencyKeyReused()


def give_back(tx: Tx, owner_id: str, key: str) -> None:
    """Nothing was made after all: the key may be used for another body."""
    tx.execute(delete(idempotency_keys).where(_same(owner_id, key)))


def purge_idempotency_keys(tx: Tx) -> bool:
    """Forget a bite of the keys older than a day. True: there may be more."""
    keys = idempotency_keys.c
    old = select(keys.owner_id, keys.key).where(keys.created_at < db_now(-IDEMPOTENCY_SECONDS)).limit(PURGE_BITE)
    return tx.execute(delete(idempotency_keys).where(tuple_(keys.owner_id, keys.key).in_(old))).rowcount == PURGE_BITE


def _same(owner_id: str, key: str) -> ColumnElement[bool]:
    return and_(idempotency_keys.c.owner_id == owner_id, idempotency_keys.c.key == key)
