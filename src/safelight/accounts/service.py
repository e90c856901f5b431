"""What can be done about accounts. Every function is a transaction; refusals that are expected are returned."""

from datetime import datetime
from typing import Any

from sqlalchemy import Float, and_, bindparam, delete, func, insert, or_, select, update

from safelight.accounts.identity import Identity, in_order
from safelight.accounts.key import Key, KeyExpired, KeyInvalid, KeyNotFound, KeyRevoked, NewKey, api_keys
from safelight.accounts.session import Session, SessionEnded, sessions
from safelight.accounts.user import User, owner_ids, users
from safelight.db import Tx, db_now

USE_NOTED_SECONDS = 60.0


# --- keys -------------------------------------------------------------------------------------------------------------


def create_key(tx: Tx, new: NewKey) -> Key:
    """Make a key, and its owner if it is new."""
    _insert_user(tx, new.owner_id, None, None, new.tier)
    if new.tier is not None:
        tx.execute(update(users).where(users.c.id == new.owner_id).values(tier=new.tier))
    row = tx.execute(
        insert(api_keys)
        .values(created_at=db_now(), expires_at=db_now(bindparam("expires_in", type_=Float)))
        .returning(*api_keys.c),
        {
            "id": new.id,
            "owner_id": new.owner_id,
            "name": new.name,
            "hash": new.hash,
            "prefix": new.prefix,
            "scopes": in_order(new.scopes),
            "tier": new.tier,
            "expires_in": new.expires_in_seconds,
        },
    ).one()
    return Key.of(row)


def list_keys(
    tx: Tx, owner_id: str | None = None, *, before_id: str | None = None, limit: int | None = None
) -> list[Key]:
    """The keys of an owner, or of all, newest first; revoked ones too."""
    query = select(*api_keys.c).order_by(api_keys.c.id.desc()).limit(limit)
    if owner_id is not None:
        query = query.where(api_keys.c.owner_id == owner_id)
    if before_id is not None:
        query = query.where(api_keys.c.id < before_id)
    return [Key.of(row) for row in tx.execute(query)]


def revoke_key(tx: Tx, key_id: str, owner_id: str | None = None) -> Key | KeyNotFound:
    """End a key and the sessions opened with it. Revoking twice changes nothing; another's key does not exist."""
    ended = func.coalesce(api_keys.c.revoked_at, db_now())
    revoked = update(api_keys).where(api_keys.c.id == key_id).values(revoked_at=ended).returning(*api_keys.c)
    if owner_id is not None:
        revoked = revoked.where(api_keys.c.owner_id == owner_id)
    row = tx.execute(revoked).one_or_none()
    return KeyNotFound() if row is None else Key.of(row)


def forget_key(tx: Tx, key_id: str) -> None:
    """Remove a key without a trace: only for one that was made for a moment."""
    tx.execute(delete(api_keys).where(api_keys.c.id == key_id))


def authenticate_key(tx: Tx, key_hash: str) -> Key | KeyInvalid | KeyExpired | KeyRevoked:
    """The key of a secret, by its hash, if it is good: one indexed read."""
    found = tx.execute(_KEY_BY_HASH, {"b_hash": key_hash}).one_or_none()
    if found is None:
        return KeyInvalid()
    *columns, now = found
    key = Key(*columns)
    if key.revoked_at is not None:
        return KeyRevoked()
    if key.expires_at is not None and key.expires_at <= now:
        return KeyExpired()
    return key


_KEY_BY_HASH = select(*api_keys.c, db_now()).where(api_keys.c.hash == bindparam("b_hash"))


def note_use(tx: Tx, key_id: str) -> None:
    """Write down that a key is in use, at most once a minute, whoever asks."""
    unnoted = or_(api_keys.c.last_used_at.is_(None), api_keys.c.last_used_at < db_now(-USE_NOTED_SECONDS))
    tx.execute(update(api_keys).where(api_keys.c.id == key_id, unnoted).values(last_used_at=db_now()))


# --- sessions ---------------------------------------------------------------------------------------------------------


def open_session(tx: Tx, session_hash: str, identity: Identity, seconds: float) -> Session:
    """A session with what the identity may do, for so long, but not longer than the key behind it."""
    values: dict[str, Any] = {
        "hash": session_hash,
        "owner_id": identity.owner_id,
        "key_id": identity.key_id,
        "scopes": in_order(identity.scopes),
        "tier": identity.tier,
    }
    made = insert(sessions).values(created_at=db_now(), expires_at=db_now(seconds)).returning(*sessions.c)
    session = Session.of(tx.execute(made, values).one())
    latest = identity.expires_at if identity.how == "key" else None
    if latest is None or latest >= session.expires_at:
        return session
    cut = update(sessions).where(sessions.c.hash == session_hash).values(expires_at=latest).returning(*sessions.c)
    return Session.of(tx.execute(cut).one())


def find_session(tx: Tx, session_hash: str) -> Session | SessionEnded:
    """The session of a cookie, by its hash, if it has not ended, nor the key it was opened with."""
    found = tx.execute(_SESSION_BY_HASH, {"b_hash": session_hash}).one_or_none()
    if found is None:
        return SessionEnded()
    *columns, revoked_at, now = found
    session = Session(*columns)
    return SessionEnded() if revoked_at is not None or session.expires_at <= now else session


_SESSION_BY_HASH = (
    select(*sessions.c, api_keys.c.revoked_at, db_now())
    .select_from(sessions.outerjoin(api_keys, api_keys.c.id == sessions.c.key_id))
    .where(sessions.c.hash == bindparam("b_hash"))
)


def end_session(tx: Tx, session_hash: str) -> None:
    """End a session. One that has ended already is no mistake."""
    tx.execute(delete(sessions).where(sessions.c.hash == session_hash))


def purge_sessions(tx: Tx) -> int:
    """Forget the sessions that have run out."""
    return tx.execute(delete(sessions).where(sessions.c.expires_at < db_now())).rowcount


# --- users ------------------------------------------------------------------------------------------------------------


def find_user(tx: Tx, issuer: str, subject: str) -> tuple[User, datetime] | None:
    """The user of a token, if it was seen before, and the time now."""
    found = tx.execute(_USER_BY_SUBJECT, {"b_issuer": issuer, "b_subject": subject}).one_or_none()
    if found is None:
        return None
    *columns, now = found
    return User(*columns), now


_USER_BY_SUBJECT = select(*users.c, db_now()).where(
    users.c.issuer == bindparam("b_issuer"), users.c.subject == bindparam("b_subject")
)


def see_user(tx: Tx, issuer: str, subject: str, tier: str | None) -> User:
    """Write down that a user was here, and who it is if this is the first time. A tier of None changes none."""
    mine = and_(users.c.issuer == issuer, users.c.subject == subject)
    new_tier = func.coalesce(tier, users.c.tier)
    seen = update(users).where(mine).values(seen_at=db_now(), tier=new_tier).returning(*users.c)
    for owner_id in owner_ids(issuer, subject):
        row = tx.execute(seen).one_or_none()
        if row is not None:
            return User.of(row)
        _insert_user(tx, owner_id, issuer, subject, tier)
    return User.of(tx.execute(seen).one())


def tier_of(tx: Tx, owner_id: str) -> str | None:
    """The tier that is written down for an owner; None means the default."""
    return tx.execute(select(users.c.tier).where(users.c.id == owner_id)).scalar_one_or_none()


def _insert_user(tx: Tx, owner_id: str, issuer: str | None, subject: str | None, tier: str | None) -> None:
    """A new row, unless the owner id is taken or the user was seen already."""
    fresh = tx.insert_if_free(users).values(created_at=db_now(), seen_at=db_now())
    tx.execute(fresh, {"id": owner_id, "issuer": issuer, "subject": subject, "tier": tier})
