"""Keys, sessions and users on both databases, and what an authenticator remembers of them."""

import asyncio
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select, update

from accounts.identity_provider import AUDIENCE, ISSUER, SECRET, shared_token
from safelight.accounts import (
    SHOWN,
    Authenticator,
    Identity,
    Key,
    KeyInvalid,
    KeyNotFound,
    NewKey,
    ScopeMissing,
    SessionEnded,
    create_key,
    end_session,
    hash_of,
    list_keys,
    new_secret,
    new_session_secret,
    open_session,
    purge_sessions,
    revoke_key,
)
from safelight.accounts.key import KeyExpired, KeyRevoked, api_keys
from safelight.accounts.service import find_session, note_use, see_user
from safelight.accounts.session import Session, check_csrf, csrf_token, sessions
from safelight.accounts.token import TokenVerifier
from safelight.accounts.user import users
from safelight.db import Database, Tx, db_now, new_id

pytestmark = pytest.mark.anyio


def door(database: Database, known_seconds: float = 5.0) -> Authenticator:
    tokens = TokenVerifier(audience=AUDIENCE, issuer=ISSUER, secret=SECRET)
    return Authenticator(
        database, tokens=tokens, tiers=["free", "pro"], default_tier="free", known_seconds=known_seconds
    )


async def make(database: Database, secret: str, **changes: object) -> Key:
    new = NewKey(new_id(), "ada", "laptop", hash_of(secret), secret[:SHOWN], ("read", "write"))
    return await database.write(create_key, replace(new, **changes))  # pyright: ignore[reportArgumentType]


def set_key(tx: Tx, key_id: str, **values: object) -> None:
    tx.execute(update(api_keys).where(api_keys.c.id == key_id).values(**values))


async def test_a_key_opens_the_door(database: Database) -> None:
    secret = new_secret()
    key = await make(database, secret, tier="pro", expires_in_seconds=3600.0)
    who = await door(database).by_credential(secret)
    assert who == Identity("ada", frozenset({"read", "write"}), "pro", "key", key.expires_at, key.id)
    assert key.expires_at is not None
    assert abs(key.expires_at - datetime.now(UTC) - timedelta(hours=1)) < timedelta(seconds=10)


async def test_only_a_hash_is_kept(database: Database) -> None:
    secret = new_secret()
    await make(database, secret)
    row = await database.read(lambda tx: tx.execute(select(api_keys)).one())
    assert secret not in str(row)
    assert secret[SHOWN:] not in str(row)
    assert row.prefix == secret[:SHOWN]
    assert len(secret) >= 43


async def test_bad_keys(database: Database) -> None:
    authenticator = door(database)
    for credential, error in (
        ("sl_nonsense", KeyInvalid),
        ("sl_" + "x" * 100_000, KeyInvalid),
        ("sl_ä\0\ud800".encode("utf-8", "replace").decode(), KeyInvalid),
    ):
        with pytest.raises(error):
            await authenticator.by_credential(credential)
    expired = new_secret()
    await make(database, expired, expires_in_seconds=-1.0)
    with pytest.raises(KeyExpired):
        await authenticator.by_credential(expired)


async def test_a_key_is_believed_for_a_moment_after_it_was_revoked_elsewhere(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = new_secret()
    key = await make(database, secret)
    here, elsewhere = door(database), door(database, known_seconds=600)
    for authenticator in (here, elsewhere):
        await authenticator.by_credential(secret)
    assert isinstance(await database.write(revoke_key, key.id, "ada"), Key)
    here.forget()
    with pytest.raises(KeyRevoked):
        await here.by_credential(secret)
    await elsewhere.by_credential(secret)
    later = time.monotonic() + 601
    monkeypatch.setattr(time, "monotonic", lambda: later)
    with pytest.raises(KeyRevoked):
        await elsewhere.by_credential(secret)


async def test_a_key_that_expires_while_it_is_remembered(database: Database) -> None:
    secret = new_secret()
    await make(database, secret, expires_in_seconds=3)
    authenticator = door(database, known_seconds=600)
    await authenticator.by_credential(secret)
    await asyncio.sleep(3)
    with pytest.raises(KeyExpired):
        await authenticator.by_credential(secret)


async def test_a_remembered_key_costs_no_query(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = new_secret()
    await make(database, secret)
    reads = 0
    read = database.read

    async def counted(*args: object) -> object:
        nonlocal reads
        reads += 1
        return await read(*args)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(database, "read", counted)
    authenticator = door(database)
    for _ in range(50):
        await authenticator.by_credential(secret)
    assert reads == 1


async def test_last_use_is_noted_once_a_minute(database: Database) -> None:
    secret = new_secret()
    key = await make(database, secret)
    assert key.last_used_at is None
    authenticator = door(database)
    for _ in range(3):
        await authenticator.by_credential(secret)
    await authenticator.close()
    [first] = await database.read(list_keys, "ada")
    assert first.last_used_at is not None
    await database.write(note_use, key.id)
    assert await database.read(list_keys, "ada") == [first]
    await database.write(lambda tx: set_key(tx, key.id, last_used_at=db_now(-61.0)))
    await database.write(note_use, key.id)
    [later] = await database.read(list_keys, "ada")
    assert later.last_used_at is not None
    assert later.last_used_at >= first.last_used_at


async def test_anothers_key_does_not_exist(database: Database) -> None:
    mine, theirs = await make(database, new_secret()), await make(database, new_secret(), owner_id="bob")
    assert await database.read(list_keys, "ada") == [mine]
    assert await database.read(list_keys) == [theirs, mine]
    assert isinstance(await database.write(revoke_key, theirs.id, "ada"), KeyNotFound)
    assert isinstance(await database.write(revoke_key, new_id(), "ada"), KeyNotFound)
    once = await database.write(revoke_key, theirs.id, "bob")
    assert isinstance(once, Key)
    assert await database.write(revoke_key, theirs.id) == once


async def test_a_tier_that_is_gone_means_the_default(database: Database) -> None:
    secret = new_secret()
    await make(database, secret, tier="platinum")
    assert (await door(database).by_credential(secret)).tier == "free"


def test_scopes_include_the_lower_ones() -> None:
    reader = Identity("ada", frozenset({"read"}), "free", "key")
    reader.require("read")
    with pytest.raises(ScopeMissing, match="`write`"):
        reader.require("write")


# Sessions


async def test_a_session(database: Database) -> None:
    ada = Identity("ada", frozenset({"read"}), "pro", "token", datetime.now(UTC) + timedelta(minutes=5))
    secret = new_session_secret()
    session = await database.write(open_session, hash_of(secret), ada, 3600.0)
    who = await door(database).by_session(secret)
    assert who == Identity("ada", frozenset({"read"}), "pro", "session", session.expires_at, None)
    row = await database.read(lambda tx: tx.execute(select(sessions)).one())
    assert secret not in str(row)
    with pytest.raises(SessionEnded):
        await door(database).by_session(new_session_secret())
    await database.write(end_session, hash_of(secret))
    await database.write(end_session, hash_of(secret))
    with pytest.raises(SessionEnded):
        await door(database).by_session(secret)


async def test_a_session_ends_with_its_key(database: Database) -> None:
    key_secret, secret = new_secret(), new_session_secret()
    key = await make(database, key_secret, expires_in_seconds=60.0)
    who = await door(database).by_credential(key_secret)
    session = await database.write(open_session, hash_of(secret), who, 3600.0)
    assert session.expires_at == key.expires_at
    assert isinstance(await database.read(find_session, hash_of(secret)), Session)
    await database.write(revoke_key, key.id)
    assert isinstance(await database.read(find_session, hash_of(secret)), SessionEnded)


async def test_sessions_run_out(database: Database) -> None:
    ada = Identity("ada", frozenset({"read"}), None, "token")
    await database.write(open_session, hash_of("old"), ada, -1.0)
    await database.write(open_session, hash_of("new"), ada, 60.0)
    assert isinstance(await database.read(find_session, hash_of("old")), SessionEnded)
    assert await database.write(purge_sessions) == 1
    assert isinstance(await database.read(find_session, hash_of("new")), Session)


def test_csrf_tokens_belong_to_one_session() -> None:
    one, other = new_session_secret(), new_session_secret()
    check_csrf(one, csrf_token(one))
    assert one not in csrf_token(one)
    for wrong in (None, "", one, csrf_token(other), csrf_token(one)[:-1], "ä"):
        with pytest.raises(Exception, match="X-CSRF-Token"):
            check_csrf(one, wrong)


# Users


async def test_a_user_appears_with_the_first_token(database: Database) -> None:
    authenticator = door(database)
    who = await authenticator.by_credential(shared_token(tier="pro"))
    assert (who.owner_id, who.tier, who.how) == ("ada", "pro", "token")
    assert (await authenticator.by_credential(shared_token())).tier == "pro"  # this one does not say; the user has it
    assert (await authenticator.by_credential(shared_token(tier="nonsense"))).tier == "pro"
    await authenticator.by_credential(shared_token(tier="free"))
    await authenticator.close()
    row = await database.read(lambda tx: tx.execute(select(users)).one())
    assert (row.id, row.issuer, row.subject, row.tier) == ("ada", ISSUER, "ada", "free")


async def test_a_token_never_makes_somebody_an_owner_of_what_is_there(database: Database) -> None:
    await make(database, new_secret())  # of an owner called ada, who has nothing to do with the provider's ada
    authenticator = door(database)
    stranger = await authenticator.by_credential(shared_token())
    assert stranger.owner_id != "ada"
    assert (await door(database).by_credential(shared_token())).owner_id == stranger.owner_id
    assert (await authenticator.by_credential(shared_token(sub="local"))).owner_id != "local"
    other = await database.write(see_user, "https://other.example", "ada", None)
    assert other.id not in ("ada", stranger.owner_id)


async def test_two_processes_see_a_user_for_the_first_time(database: Database) -> None:
    seen = await asyncio.gather(*(database.write(see_user, ISSUER, "ada", None) for _ in range(10)))
    assert {user.id for user in seen} == {"ada"}
