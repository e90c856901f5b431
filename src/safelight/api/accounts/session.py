"""A browser's session: a key or token is traded for a cookie that no script can read."""

from datetime import UTC, datetime
from typing import Any, Literal, TypedDict

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from safelight.accounts import (
    How,
    Identity,
    Scope,
    Unauthenticated,
    csrf_token,
    end_session,
    hash_of,
    in_order,
    new_session_secret,
    open_session,
)
from safelight.api.authentication import CSRF_COOKIE, SESSION_COOKIE, SESSION_PATH, session_secret
from safelight.api.deps import Asker, World, json_response
from safelight.api.prefix import current_prefix

router = APIRouter(prefix=SESSION_PATH, tags=["accounts"])


class SessionView(BaseModel):
    """Who you are here."""

    owner_id: str = Field(examples=["ada"])
    scopes: list[Scope]
    tier: str | None = Field(description="null without accounts: nothing is limited")
    how: How
    expires_at: datetime | None = Field(description="Of the session, token or key; null if it does not expire")
    csrf_token: str | None = Field(description="With a cookie: what the header `X-CSRF-Token` must say")


@router.post("", operation_id="openSession", status_code=201, response_model=SessionView, summary="Open a session")
async def open_one(request: Request, world: World, asker: Asker) -> Response:
    """Trade the key or token of the `Authorization` header for a session cookie (HttpOnly, SameSite=Lax).

    The cookie `safelight_csrf` beside it may be read by scripts: send its value as `X-CSRF-Token` with whatever changes
    something.
    """
    if asker.how not in ("key", "token"):
        raise Unauthenticated("A session is opened with a key or token, in the Authorization header.")
    secret = new_session_secret()
    seconds = world.settings.session_hours * 3600
    session = await world.database.write(open_session, hash_of(secret), asker, seconds)
    opened = Identity(asker.owner_id, asker.scopes, asker.tier, "session", session.expires_at)
    response = json_response(_view(opened, secret), 201, {"Cache-Control": "no-store"})
    lifetime = max(0, int((session.expires_at - datetime.now(UTC)).total_seconds()))
    for name, value, is_hidden in ((SESSION_COOKIE, secret, True), (CSRF_COOKIE, csrf_token(secret), False)):
        response.set_cookie(name, value, lifetime, httponly=is_hidden, **_attributes(request))
    return response


@router.get("", operation_id="getSession", response_model=SessionView, summary="Who am I?")
async def show(request: Request, asker: Asker) -> Response:
    """Owner, scopes, tier, and the CSRF token where there is a session."""
    secret = session_secret(request.headers) if asker.how == "session" else None
    return json_response(_view(asker, secret), headers={"Cache-Control": "no-store"})


@router.delete("", operation_id="endSession", status_code=204, summary="End the session")
async def end(request: Request, world: World, asker: Asker) -> Response:
    """The cookie is worth nothing from now on, here at once and in other processes within five seconds."""
    secret = session_secret(request.headers)
    if secret is not None:
        await world.database.write(end_session, hash_of(secret))
        world.authenticator.forget()
    response = Response(None, 204)
    for name in (SESSION_COOKIE, CSRF_COOKIE):
        response.delete_cookie(name, **_attributes(request))
    return response


class _Attributes(TypedDict):
    path: str
    secure: bool
    samesite: Literal["lax"]


def _attributes(request: Request) -> _Attributes:
    """Sent back to this installation alone, should others stand on the same host."""
    return {"path": current_prefix() or "/", "secure": request.scope["scheme"] == "https", "samesite": "lax"}


def _view(identity: Identity, secret: str | None) -> dict[str, Any]:
    return {
        "owner_id": identity.owner_id,
        "scopes": in_order(identity.scopes),
        "tier": identity.tier,
        "how": identity.how,
        "expires_at": identity.expires_at,
        "csrf_token": None if secret is None else csrf_token(secret),
    }
