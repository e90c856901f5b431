"""A key for a minute: where there are accounts, the supervisor's own probe has to show one like everybody else."""

import contextlib
from collections.abc import AsyncGenerator

from safelight.config import Settings

OWNER = "safelight-probe"
KEY_SECONDS = 60.0


@contextlib.asynccontextmanager
async def passing_key(settings: Settings) -> AsyncGenerator[str | None]:
    """A key that is gone at the end, and would expire soon anyway; None without accounts."""
    if not settings.has_accounts:
        yield None
        return
    # A supervisor without accounts never touches the database and need not carry it.
    from safelight.accounts import SHOWN, NewKey, create_key, forget_key, hash_of, new_secret  # noqa: PLC0415
    from safelight.db import Database, new_id  # noqa: PLC0415

    database = Database(settings.database_url, readers=1)
    secret = new_secret()
    key = NewKey(
        id=new_id(),
        owner_id=OWNER,
        name="probe of safelight up",
        hash=hash_of(secret),
        prefix=secret[:SHOWN],
        scopes=("write",),
        expires_in_seconds=KEY_SECONDS,
    )
    try:
        await database.write(create_key, key)
        yield secret
        await database.write(forget_key, key.id)
    finally:
        database.close()
