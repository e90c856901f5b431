"""What every request passes first: it gets an id and a log line, and whoever may not come in is turned away."""

import re
import time
from collections.abc import Mapping
from functools import lru_cache

import structlog
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bind_contextvars

from safelight.api.authentication import HEALTH
from safelight.api.body import Bodies, Gone, Incoming, replay, too_large
from safelight.api.media import artifacts
from safelight.api.origin import SAFE_METHODS, Origins
from safelight.api.prefix import set_prefix
from safelight.api.problems import problem, problem_of
from safelight.api.proxy import Proxies
from safelight.db import new_id
from safelight.errors import SafelightError

JOB_PATH = re.compile(r"/api/v1/generation-jobs/([0-9a-f-]{36})(?:/|$)")
KEY_IN_PATH = re.compile(r"(/files/|/webhooks/\w+/).+")
NOSNIFF = (b"x-content-type-options", b"nosniff")

log = structlog.get_logger()


class HostInvalid(SafelightError):
    """A request must say in one `Host` header which host it is meant for."""

    kind = "malformed"
    code = "invalid_host"


class WrongHost(SafelightError):
    """This service does not answer for such a host."""

    kind = "malformed"
    code = "wrong_host"


class Entrance:
    """Turns away foreign hosts, pages of other sites and bodies that are too large; answers HEAD as GET.

    Without accounts the loopback interface is the only lock, so a page elsewhere must not reach us under a name of its
    own (DNS rebinding): the Host header has to be one of ours. `*` among the hosts, which accounts allow, is any.
    Probes of health come under any name, and are told no more than a status then.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        hosts: frozenset[str],
        proxies: Proxies,
        origins: Origins,
        max_body_bytes: int,
        bodies: Bodies,
        larger: Mapping[str, int],
    ) -> None:
        """`larger`: the paths that take more than `max_body_bytes`, and how much."""
        self._app = app
        self._hosts = hosts
        self._proxies = proxies
        self._origins = origins
        self._max_body_bytes = max_body_bytes
        self._larger = larger
        self._bodies = bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers: dict[bytes, bytes] = dict(scope["headers"])
        given = headers.get(b"x-request-id")
        request_id = new_id() if given is None else _request_id(given)
        began = time.monotonic()
        refused: ASGIApp | None = None
        prefix = ""
        host = headers.get(b"host")
        try:
            forwarded = self._proxies.read(scope, headers)
            host, prefix = forwarded.host or host, forwarded.prefix
        except SafelightError as error:
            refused = problem_of(request_id, error)
        path: str = scope["path"]
        if path.endswith("/") and path != "/":
            scope["path"] = path = path[:-1]
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        state["host"] = host.decode("latin-1") if host else ""
        state["is_stranger"] = False
        state["is_head"] = is_head = scope["method"] == "HEAD"
        cors = self._origins.headers(headers.get(b"origin"))
        status = 0
        has_body = scope["method"] in ("POST", "PUT", "PATCH")
        waits_for_leave = headers.get(b"expect", b"").lower() == b"100-continue"
        incoming = Incoming(receive, self._bodies, waits_for_leave=waits_for_leave)

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                told = message["headers"] if not prefix else _moved(message["headers"], prefix)
                message["headers"] = [*told, (b"x-request-id", request_id.encode()), NOSNIFF, *cors]
            elif has_body and incoming.has_rest and not message.get("more_body", False):
                await send({"type": "http.response.body", "body": message.get("body", b""), "more_body": True})
                await incoming.drain()
                message = {"type": "http.response.body", "body": b""}
            await send(message)

        out: Send = answer
        inner = scope
        if is_head:
            inner, out = {**scope, "method": "GET"}, _headers_only(answer)
        state["server_send"] = out if is_head else send  # for streams of many small parts
        client: str | None = scope["client"][0] if scope["client"] else None
        about = JOB_PATH.match(path)
        job_ids = {} if about is None else {"job_id": about[1], "task_id": about[1]}
        # Each request has a context of its own, with which this ends.
        bind_contextvars(request_id=request_id, client=client, **job_ids)
        takes_files = artifacts.takes_file(path)  # and reads its body itself
        most = self._larger.get(path, self._max_body_bytes)
        if refused is None:
            refused = self._refuse(scope, headers, host, None if takes_files else most)
        channel = incoming.receive
        try:
            if refused is None and has_body and not takes_files:
                try:
                    channel = replay(await incoming.read(most), receive)
                    state["body_bytes"] = incoming.size
                except Gone:
                    return
                except SafelightError as error:
                    refused = _closing(request_id, error)
            if refused is not None:
                await refused(inner, channel, out)
            else:
                if prefix:
                    set_prefix(prefix)
                try:
                    await self._app(inner, channel, out)
                except Exception:
                    log.exception("request.broken")
                    if status:
                        raise
                    detail = "Something went wrong inside Safelight."
                    await problem(request_id, 500, "internal_error", detail)(inner, receive, out)
        finally:
            incoming.forget()
        log.debug(
            "request.answered",
            method=scope["method"],
            path=KEY_IN_PATH.sub(r"\1***", path),
            status=status,
            milliseconds=round((time.monotonic() - began) * 1000, 1),
        )

    def _refuse(
        self, scope: Scope, headers: dict[bytes, bytes], host: bytes | None, most_bytes: int | None
    ) -> ASGIApp | None:
        request_id: str = scope["state"]["request_id"]
        try:
            self._check_host(scope, headers, host)
            if scope["method"] == "OPTIONS" and b"access-control-request-method" in headers and b"origin" in headers:
                return self._origins.answer_preflight(
                    headers[b"origin"], headers.get(b"access-control-request-headers")
                )
            if scope["method"] not in SAFE_METHODS:
                self._origins.refuse_foreign(headers, host)
        except WrongHost as error:
            return problem(request_id, 421, error.code, error.detail)
        except SafelightError as error:
            return problem_of(request_id, error)
        encoding = headers.get(b"content-encoding", b"identity").decode("latin-1")
        if encoding.strip().lower() not in ("", "identity"):
            detail = f"Send the body as it is: Content-Encoding {encoding[:40]!r} is not taken here."
            accepted = {"Accept-Encoding": "identity", "Connection": "close"}
            return problem(request_id, 415, "unsupported_content_encoding", detail, headers=accepted)
        length = headers.get(b"content-length", b"0")
        if most_bytes is not None and length.isdigit() and (len(length) > 18 or int(length) > most_bytes):
            return _closing(request_id, too_large(most_bytes))
        return None

    def _check_host(self, scope: Scope, headers: dict[bytes, bytes], forwarded: bytes | None) -> None:
        if len(headers) < len(scope["headers"]) and sum(name == b"host" for name, _ in scope["headers"]) > 1:
            raise HostInvalid
        host = headers.get(b"host")
        is_probe = scope["path"] in HEALTH
        if host is None and scope["http_version"] != "1.0" and not is_probe:
            raise HostInvalid
        if "*" in self._hosts:
            return
        for called in (host,) if forwarded is host else (host, forwarded):
            name = _name(called or b"")
            if name in self._hosts:
                continue
            if not is_probe:
                raise WrongHost(
                    f"This service does not answer for the host {name[:100]!r}; its names are SAFELIGHT_ALLOWED_HOSTS."
                )
            scope["state"]["is_stranger"] = True


def _closing(request_id: str, error: SafelightError) -> Response:
    """The answer to a body that is not taken."""
    response = problem_of(request_id, error)
    response.headers["Connection"] = "close"
    return response


def _request_id(given: bytes) -> str:
    text = given.decode("latin-1")
    return text if re.fullmatch(r"[\w.:-]{1,128}", text) else new_id()


@lru_cache(maxsize=256)
def _name(host: bytes) -> str:
    return re.sub(r":\d*$", "", host.decode("latin-1")).lower()


def _moved(headers: list[tuple[bytes, bytes]], prefix: str) -> list[tuple[bytes, bytes]]:
    """Headers of ours as the client is to see them, below a path: what they lead to is a path on this host."""
    return [
        (name, prefix.encode() + value) if name == b"location" and value.startswith(b"/") else (name, value)
        for name, value in headers
    ]


def _headers_only(send: Send) -> Send:
    """A channel that ends the answer as soon as it has begun; the server then says that the client has left."""

    async def channel(message: Message) -> None:
        if message["type"] == "http.response.start":
            await send(message)
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    return channel
