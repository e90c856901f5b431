"""API keys over HTTP: make, list, revoke. The owner's own; an administrator of the machine has `safelight keys`."""

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import BaseModel, Field
from starlette.responses import Response

from safelight.accounts import (
    SHOWN,
    Identity,
    Key,
    NewKey,
    Scope,
    create_key,
    hash_of,
    in_order,
    list_keys,
    new_secret,
    revoke_key,
)
from safelight.api.body import JsonRoute
from safelight.api.deps import Asker, IdCursor, ItemId, Limit, World, json_response, read_id_cursor
from safelight.api.fields import Body
from safelight.api.problems import refusals
from safelight.api.rate import RATED
from safelight.bounds import Name, Number
from safelight.db import new_id

DAY_SECONDS = 86400.0

router = APIRouter(prefix="/api/v1/keys", tags=["accounts"], route_class=JsonRoute)


async def _admin(asker: Asker) -> Identity:
    asker.require("admin")
    return asker


Admin = Annotated[Identity, Depends(_admin)]


class KeyRequest(Body):
    """A key to be made."""

    name: Name = Field(max_length=200, description="For people, to tell their keys apart", examples=["laptop"])
    scopes: list[Scope] = Field(["read", "write"], min_length=1, description="Each includes the ones before it")
    expires_in_days: Number | None = Field(None, gt=0, le=36500, description="Default: never")


class KeyView(BaseModel):
    """A key, without its secret."""

    id: str
    name: str = Field(examples=["laptop"])
    prefix: str = Field(description="How its secret begins", examples=["sl_Zx81Qk"])
    scopes: list[Scope]
    tier: str | None = Field(description="null: the installation's default tier")
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None = Field(description="Kept to the minute")
    revoked_at: datetime | None


class NewKeyView(KeyView):
    """A key just made, with its secret: the only time that it is told."""

    secret: str = Field(examples=["sl_Zx81Qk_the_rest_of_it"])


class KeyList(BaseModel):
    """A page of keys, newest first; `next_cursor` asks for the next."""

    items: list[KeyView]
    next_cursor: str | None


@router.post(
    "",
    operation_id="createKey",
    status_code=201,
    response_model=NewKeyView,
    summary="Make an API key",
    dependencies=RATED,
    responses=refusals(429),
)
async def make(body: KeyRequest, world: World, admin: Admin) -> Response:
    """It belongs to you, and to your tier. The answer alone holds the secret; only its hash is kept."""
    secret = new_secret()
    new = NewKey(
        id=new_id(),
        owner_id=admin.owner_id,
        name=body.name,
        hash=hash_of(secret),
        prefix=secret[:SHOWN],
        scopes=tuple(body.scopes),
        tier=admin.tier,
        expires_in_seconds=None if body.expires_in_days is None else body.expires_in_days * DAY_SECONDS,
    )
    key = await world.database.write(create_key, new)
    return json_response(view_of(key) | {"secret": secret}, 201, {"Cache-Control": "no-store"})


@router.get("", operation_id="listKeys", response_model=KeyList, summary="Your API keys, newest first")
async def list_all(world: World, admin: Admin, cursor: IdCursor = None, limit: Limit = 50) -> Response:
    """A page of them, revoked and expired ones too."""
    before_id = read_id_cursor(cursor)
    found = await world.database.read(lambda tx: list_keys(tx, admin.owner_id, before_id=before_id, limit=limit + 1))
    shown = found[:limit]
    next_cursor = shown[-1].id if len(found) > limit else None
    content = {"items": [view_of(key) for key in shown], "next_cursor": next_cursor}
    return json_response(content, headers={"Cache-Control": "no-store"})


@router.delete("/{id}", operation_id="revokeKey", status_code=204, summary="Revoke an API key")
async def revoke(key_id: ItemId, world: World, admin: Admin) -> Response:
    """It opens nothing from now on, here at once and in other processes within five seconds; nor do its sessions."""
    outcome = await world.database.write(revoke_key, key_id, admin.owner_id)
    if not isinstance(outcome, Key):
        raise outcome
    world.authenticator.forget()
    return Response(None, 204)


def view_of(key: Key) -> dict[str, Any]:
    """The fields of `KeyView`, ready to be encoded."""
    return {
        "id": key.id,
        "name": key.name,
        "prefix": key.prefix,
        "scopes": in_order(key.scopes),
        "tier": key.tier,
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "last_used_at": key.last_used_at,
        "revoked_at": key.revoked_at,
    }
