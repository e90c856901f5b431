"""Pages for people, and the files that they load: no word of theirs comes from elsewhere, none stands inline."""

import gzip
from dataclasses import dataclass
from hashlib import sha256

from starlette.requests import Request
from starlette.responses import Response

from safelight.api.deps import is_known

POLICY = (
    "default-src 'none'; style-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def page(html: str, policy: str = "") -> Response:
    """A page that may load its own styles, show images that stand in them, and what `policy` adds."""
    headers = {
        "Content-Security-Policy": f"{POLICY}; {policy}" if policy else POLICY,
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
        "Vary": "Accept",
    }
    return Response(html, 200, headers, "text/html")


@dataclass(frozen=True, slots=True)
class Asset:
    """A file that a page loads, kept compressed."""

    compressed: bytes
    content_type: str
    etag: str

    @classmethod
    def of(cls, compressed: bytes, content_type: str) -> "Asset":
        return cls(compressed, content_type, f'W/"{sha256(compressed).hexdigest()[:16]}"')

    def answer(self, request: Request) -> Response:
        """Asked for anew each time, sent again only when it has changed."""
        headers = {"ETag": self.etag, "Cache-Control": "no-cache", "Vary": "Accept-Encoding"}
        if is_known(request.headers.get("if-none-match"), self.etag):
            return Response(None, 304, headers)
        if "gzip" not in request.headers.get("accept-encoding", ""):
            return Response(gzip.decompress(self.compressed), 200, headers, self.content_type)
        return Response(self.compressed, 200, headers | {"Content-Encoding": "gzip"}, self.content_type)
