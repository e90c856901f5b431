"""Who asks: found out before any route, so that no route can forget to.

Every path needs an identity, also one that does not exist, except those that are open: health, the pages that say what
this is, and signed links and webhooks, whose address is a key itself. It comes from a key or token in the
`Authorization` header or, in browsers, from the session cookie; then whatever changes something needs the CSRF header
too. Reading needs the scope `read`, changing something `write`; a route may ask for more. Without accounts everybody is
the one user there is, but for probes that call us by a name which is not ours.
"""

from collections.abc import Mapping
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import Request, cookie_parser
from starlette.types import ASGIApp, Receive, Scope, Send
from structlog.contextvars import bind_contextvars

from safelight.accounts import LOCAL, Authenticator, Identity, Unauthenticated, check_csrf
from safelight.api.origin import SAFE_METHODS
from safelight.api.problems import problem_of
from safelight.bootstrap import Safelight
from safelight.errors import SafelightError

SESSION_PATH = "/api/v1/session"
SESSION_COOKIE = "safelight_session"
CSRF_COOKIE = "safelight_csrf"
CSRF_HEADER = "x-csrf-token"

HEALTH = frozenset(f"{prefix}/health/{name}" for prefix in ("", "/api/v1") for name in ("live", "ready"))
OPEN = HEALTH | {"/", "/front.css", "/api/v1/docs", "/api/v1/openapi.json"}
DOCS = "/api/v1/docs/"
SIGNED_LINKS = "/api/v1/files/"
WEBHOOKS = "/webhooks/"  # their secret stands in the address


class Authentication:
    """Sets `identity` on the request's state, and turns away who has none or may not do this."""

    def __init__(self, app: ASGIApp, *, has_accounts: bool) -> None:
        self._app = app
        self._has_accounts = has_accounts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        state: dict[str, Any] = scope.setdefault("state", {})
        if not self._has_accounts:
            state["identity"] = None if state.get("is_stranger") else LOCAL
            await self._app(scope, receive, send)
            return
        try:
            state["identity"] = identity = await identify(scope)
        except SafelightError as error:
            state["identity"] = None
            if is_open(scope["path"]):
                await self._app(scope, receive, send)
            else:
                await problem_of(state.get("request_id", ""), error)(scope, receive, send)
            return
        bind_contextvars(owner_id=identity.owner_id)
        await self._app(scope, receive, send)


async def identify(scope: Scope) -> Identity:
    """Who sent this request. Raises an error of the kind `unauthenticated` or `forbidden`."""
    world: Safelight = scope["app"].state.safelight
    headers = Headers(scope=scope)
    method: str = scope.get("method", "GET")  # a websocket only opens
    credential = headers.get("authorization")
    if credential is not None:
        identity = await by_header(world.authenticator, credential)
    else:
        secret = session_secret(headers)
        if secret is None:
            raise Unauthenticated
        identity = await world.authenticator.by_session(secret)
        if method not in SAFE_METHODS:
            check_csrf(secret, headers.get(CSRF_HEADER))
    # A session is opened and ended by whoever may do anything at all.
    if scope["path"] != SESSION_PATH:
        identity.require("read" if method in SAFE_METHODS else "write")
    return identity


async def may_stay(request: Request) -> bool:
    """Whether somebody whose request has been open for a while would still be let in.

    Only a clear no is one: a database that is away puts nobody out.
    """
    world: Safelight = request.app.state.safelight
    try:
        if world.settings.has_accounts:
            await identify(request.scope)
    except SafelightError as error:
        return error.kind not in ("unauthenticated", "forbidden")
    return True


def is_open(path: str) -> bool:
    """Whether nobody has to say who they are there."""
    return path in OPEN or path.startswith((SIGNED_LINKS, WEBHOOKS, DOCS))


async def by_header(authenticator: Authenticator, value: str) -> Identity:
    """Who shows this `Authorization` header."""
    scheme, _, credential = value.partition(" ")
    credential = credential.strip()
    if scheme.lower() != "bearer" or not credential:
        raise Unauthenticated("The Authorization header must be `Bearer`, a space, and a key or token.")
    return await authenticator.by_credential(credential)


def session_secret(headers: Mapping[str, str]) -> str | None:
    """What the session cookie holds."""
    cookie = headers.get("cookie")
    return None if cookie is None else cookie_parser(cookie).get(SESSION_COOKIE) or None
