"""Pages of other sites: which may read our answers (CORS), and that the others can change nothing."""

from collections.abc import Mapping, Sequence

from starlette.responses import Response

from safelight.errors import SafelightError

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
METHODS = "GET, HEAD, POST, PUT, PATCH, DELETE"
EXPOSED = (
    "Location, Retry-After, ETag, X-Request-Id, Idempotency-Replayed, Preference-Applied, RateLimit, RateLimit-Policy, "
    "Content-Range, Content-Disposition, Accept-Ranges, WWW-Authenticate, Allow"
)
PREFLIGHT_SECONDS = "600"
VARY = (b"vary", b"Origin")


class OriginForbidden(SafelightError):
    """A page of another site may change nothing here."""

    kind = "forbidden"
    code = "origin_forbidden"


class Origins:
    """The origins whose pages may use this API from a browser, as in `https://app.example.com`."""

    def __init__(self, allowed: Sequence[str]) -> None:
        self._headers: dict[bytes, list[tuple[bytes, bytes]]] = {
            origin.encode(): [
                (b"access-control-allow-origin", origin.encode()),
                (b"access-control-allow-credentials", b"true"),
                (b"access-control-expose-headers", EXPOSED.encode()),
                VARY,
            ]
            for origin in allowed
        }
        # What is kept for a page of our own must not be given to one that would need the headers.
        self._others: list[tuple[bytes, bytes]] = [VARY] if allowed else []

    def headers(self, origin: bytes | None) -> list[tuple[bytes, bytes]]:
        """What every answer to this origin bears."""
        return self._others if origin is None else self._headers.get(origin, self._others)

    def answer_preflight(self, origin: bytes, asked_headers: bytes | None) -> Response:
        """What the page may do. Raises `OriginForbidden`."""
        if origin not in self._headers:
            raise OriginForbidden(
                f"Pages of {origin.decode('latin-1')[:100]!r} may not use this API; those that may are "
                "SAFELIGHT_CORS_ORIGINS."
            )
        headers = {
            "Access-Control-Allow-Methods": METHODS,
            "Access-Control-Max-Age": PREFLIGHT_SECONDS,
            "Vary": "Access-Control-Request-Headers",
        }
        if asked_headers:
            headers["Access-Control-Allow-Headers"] = asked_headers.decode("latin-1")
        return Response(None, 204, headers)

    def refuse_foreign(self, headers: Mapping[bytes, bytes], host: bytes | None) -> None:
        """For what changes something: raise `OriginForbidden` if it comes from a page of a site that is not allowed.

        Browsers say where a request comes from, by `Sec-Fetch-Site` or at least by `Origin`; programs say neither. What
        brings a key or token in a header cannot have been sent behind its owner's back: no other page knows it.
        `host` is the name that the client used. The rules are those of Go's `http.CrossOriginProtection`.
        """
        origin, site = headers.get(b"origin"), headers.get(b"sec-fetch-site")
        if (origin is None and site is None) or b"authorization" in headers:
            return
        if site in (b"same-origin", b"none") or origin in self._headers:
            return
        if site is None and origin is not None and origin.partition(b"://")[2].lower() == (host or b"").lower():
            return
        who = "Another site's page" if origin is None else f"A page of {origin.decode('latin-1')[:100]!r}"
        raise OriginForbidden(f"{who} may change nothing here; those that may are SAFELIGHT_CORS_ORIGINS.")
