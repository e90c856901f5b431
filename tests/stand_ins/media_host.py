"""A web server of small real videos, and of every trouble that a download can meet."""

import threading
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from media import media
from patience import PATIENCE_SECONDS

CHOICE = b"""#EXTM3U
#EXT-X-STREAM-INF:BANDWIDTH=3000000,RESOLUTION=1280x720
/large.m3u8
#EXT-X-STREAM-INF:BANDWIDTH=800000,RESOLUTION=640x360
/list.m3u8
"""
GIB = 1024**3
PIECE = 4096


class MediaHost:
    """Listens from the moment it is made. `asked` are the requests: path, and value of `Range`."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str | None]] = []
        self.dripping = threading.Event()  # set when a slow video has begun
        self.released = threading.Event()  # lets slow videos go on to their end
        self.files: dict[str, tuple[str, bytes]] = {
            "/lighthouse.mp4": ("video/mp4", media("mp4")),
            "/lighthouse.webm": ("video/webm", media("webm")),
            "/silent.mp4": ("video/mp4", media("black.mp4")),
            "/sea.mp3": ("audio/mpeg", media("mp3")),
            "/fake.mp4": ("video/mp4", b"<html>This is no video.</html>" * 50),
            "/broken.mp4": ("video/mp4", media("mp4")[:32] + b"\0" * 5000),
            "/empty.mp4": ("video/mp4", b""),
            "/page.html": ("text/html", _page('<video src="/lighthouse.mp4"></video>')),
            "/slow.html": ("text/html", _page('<video src="/slow.mp4"></video>')),
            "/inner.html": ("text/html", _page('<video src="http://169.254.169.254/film.mp4"></video>')),
            "/fake.html": ("text/html", _page('<video src="/fake.mp4"></video>')),
            "/list.m3u8": ("application/vnd.apple.mpegurl", _list("/piece.ts")),
            "/large.m3u8": ("application/vnd.apple.mpegurl", _list("/large.ts")),
            "/large.ts": ("video/mp2t", media("ts")),
            "/choice.m3u8": ("application/vnd.apple.mpegurl", CHOICE),
            "/inner.m3u8": ("audio/x-mpegurl", _list("http://169.254.169.254/piece.ts")),
            "/forbidden.m3u8": ("application/vnd.apple.mpegurl", _list("/status?code=403")),
            "/gone.m3u8": ("application/vnd.apple.mpegurl", _list("/status?code=404")),
            "/drip.html": ("text/html", _page('<video src="/drip"></video>')),
            "/forbidden.html": ("text/html", _page('<video src="/status?code=403"></video>')),
            "/gone.html": ("text/html", _page('<video src="/status?code=404"></video>')),
            "/piece.ts": ("video/mp2t", media("ts")),
            "/words.html": ("text/html", _page("<p>Only words.</p>")),
        }
        host = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                try:
                    host.answer(self)
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True

            def do_HEAD(self) -> None:
                self.do_GET()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def reset(self) -> None:
        """As it was at the beginning."""
        self.asked.clear()
        self.dripping.clear()
        self.released.clear()

    def close(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """One request."""
        place = urlsplit(request.path)
        path, query = place.path, {name: values[0] for name, values in parse_qs(place.query).items()}
        self.asked.append((path, request.headers.get("Range")))
        whole = media("mp4")
        match path:
            case "/redirect":
                left = int(query.get("times", "1")) - 1
                to = query["to"] if left == 0 else f"/redirect?times={left}&to={query['to']}"
                _send(request, 302, "text/plain", b"", Location=to)
            case "/status":
                after = {"Retry-After": query["after"]} if "after" in query else {}
                _send(request, int(query["code"]), "text/plain", b"no", **after)
            case "/huge.mp4":
                _begin(request, 200, "video/mp4", 10 * GIB)
                request.wfile.write(whole)
                request.close_connection = True
            case "/endless.mp4":  # which says nothing of its length
                _begin(request, 200, "video/mp4", None)
                request.wfile.write(whole)
                while True:
                    request.wfile.write(bytes(65536))
            case "/short.mp4" | "/cut.mp4" | "/cut-again.mp4":  # promises more than it sends
                start = _start(request)
                if path == "/cut.mp4" and start > 0:
                    _send(request, 206, "video/mp4", whole[start:], **_rest(start, len(whole)))
                    return
                extra = {"Accept-Ranges": "bytes", "ETag": '"one"'} if path == "/cut.mp4" else {}
                _begin(request, 200, "video/mp4", len(whole), **extra)
                request.wfile.write(whole[: len(whole) // 2])
                request.close_connection = True
            case "/encoded":  # a file of ours, or so many megabytes of a page, encoded as it says
                of = query.get("of", "")
                data = self.files[of][1] if of else b"<html>" + bytes(int(query["megabytes"]) * 1_000_000)
                kind = self.files[of][0] if of else "text/html"
                name = query["as"]
                for _ in range(int(query.get("times", "1"))):
                    data = _encoded(data, name)
                header = ", ".join([name] * int(query.get("times", "1")))
                _send(request, 200, kind, data[: int(query.get("cut", len(data)))], **{"Content-Encoding": header})
            case "/named":
                _send(request, 200, "video/mp4", whole, **{"Content-Disposition": query["by"]})
            case "/typed":
                _send(request, 200, query["type"], b"II*\0 and what else a file of this type may hold" * 9)
            case "/drip":  # a byte at a time, for ever
                _begin(request, 200, query.get("type", "video/mp4"), len(whole))
                for at in range(len(whole)):
                    request.wfile.write(whole[at : at + 1])
                    request.wfile.flush()
                    self.dripping.set()
                    if self.released.wait(0.02):
                        break
            case "/drip-head":
                request.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
                while not self.released.wait(0.02):
                    request.wfile.write(b"x")
                    request.wfile.flush()
                request.close_connection = True
            case "/stuck":
                self.released.wait(PATIENCE_SECONDS)
                _send(request, 404, "text/plain", b"nothing after all")
            case "/slow.mp4":
                _begin(request, 200, "video/mp4", len(whole))
                for at in range(0, len(whole), PIECE):
                    request.wfile.write(whole[at : at + PIECE])
                    request.wfile.flush()
                    if at >= 2 * PIECE:
                        self.dripping.set()
                        self.released.wait(PATIENCE_SECONDS)
            case _ if path in self.files:
                content_type, data = self.files[path]
                start = _start(request)
                if start:
                    _send(request, 206, content_type, data[start:], **_rest(start, len(data)))
                else:
                    _send(request, 200, content_type, data, **{"Accept-Ranges": "bytes", "ETag": '"one"'})
            case _:
                _send(request, 404, "text/plain", b"nothing here")


def _encoded(data: bytes, name: str) -> bytes:
    wbits = {"gzip": 31, "x-gzip": 31, "deflate": 15, "raw": -15}.get(name)
    if wbits is None:
        return data
    encoder = zlib.compressobj(9, zlib.DEFLATED, wbits)
    return encoder.compress(data) + encoder.flush()


def _list(piece: str) -> bytes:
    head = "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:2\n#EXT-X-MEDIA-SEQUENCE:0\n"
    return f"{head}#EXTINF:2.0,\n{piece}\n#EXT-X-ENDLIST\n".encode()


def _page(body: str) -> bytes:
    return f"<html><head><title>A lighthouse</title></head><body>{body}</body></html>".encode()


def _start(request: BaseHTTPRequestHandler) -> int:
    return int(request.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])


def _rest(start: int, length: int) -> dict[str, str]:
    return {"Content-Range": f"bytes {start}-{length - 1}/{length}", "ETag": '"one"'}


def _begin(request: BaseHTTPRequestHandler, status: int, content_type: str, length: int | None, **headers: str) -> None:
    request.send_response(status)
    request.send_header("Content-Type", content_type)
    if length is None:
        request.send_header("Connection", "close")
        request.close_connection = True
    else:
        request.send_header("Content-Length", str(length))
    for name, value in headers.items():
        request.send_header(name, value)
    request.end_headers()


def _send(request: BaseHTTPRequestHandler, status: int, content_type: str, data: bytes, **headers: str) -> None:
    _begin(request, status, content_type, len(data), **headers)
    if request.command != "HEAD":
        request.wfile.write(data)
