"""What a connection may do before anybody knows who is there: heads, slow senders, idle ones, too many."""

import json
import shutil
import socket
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from api_service import Api, eventually, settings_for

from servers import ValkeyServer

POST = b"POST /api/v1/generation-jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
GET = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture(scope="module")
def api(api_valkey: ValkeyServer, sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    folder = tmp_path_factory.mktemp("connections")
    url = f"sqlite:///{shutil.copy(sqlite_template, folder / 'safelight.db')}"
    bounds = {"head_seconds": 0.2, "body_seconds": 0.2, "body_bytes_per_second": 10**6, "keep_alive_seconds": 1}
    running = Api(settings_for(folder, api_valkey, url, max_head_bytes=8192, max_connections=20, **bounds))
    yield running
    running.close()


@contextmanager
def connected(api: Api) -> Generator[socket.socket]:
    with socket.create_connection(("127.0.0.1", api.port), timeout=60) as connection:
        yield connection


def answer(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """What is said until the other side closes."""
    told = b""
    while part := connection.recv(65536):
        told += part
    head, _, body = told.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    return int(first.split()[1]) if first else 0, headers, body


def send_for_ever(connection: socket.socket, begin: bytes, more: bytes) -> None:
    """Until nobody takes it any more, and no more than 50 MB."""
    connection.sendall(begin)
    try:
        for _ in range(50 * 1024 * 1024 // len(more)):
            connection.sendall(more)
    except OSError:
        return
    raise AssertionError("everything was taken")


@pytest.mark.parametrize(
    ("begin", "more"),
    [
        (GET + b"X-Long: ", b"a" * 65536),
        (GET, b"X-Many: 1\r\n" * 1000),
        (b"GET /", b"a" * 65536),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n0\r\n", b"X-Trailer: 1\r\n" * 1000),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n1;", b"extension" * 1000),
    ],
    ids=["one header", "many headers", "the first line", "trailers", "a chunk's extension"],
)
def test_a_head_without_an_end_is_not_kept(api: Api, begin: bytes, more: bytes) -> None:
    used = time.process_time()
    with connected(api) as connection:
        send_for_ever(connection, begin, more)
    assert time.process_time() - used < 5
    assert httpx.get(f"{api.url}/health/live", timeout=60).status_code == 200


@pytest.mark.parametrize(
    "head",
    [
        GET + b"X-Long: " + b"a" * 10_000 + b"\r\n\r\n",
        GET + b"X-Many: 1\r\n" * 1000 + b"\r\n",
        b"GET /health/live?" + b"a" * 10_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        GET + b"X-Long: " + b"a" * 10_000,
    ],
    ids=["one header", "many headers", "the first line", "no end yet"],
)
def test_a_head_that_is_too_large_is_told(api: Api, head: bytes) -> None:
    with connected(api) as connection:
        connection.sendall(head)
        status, headers, body = answer(connection)
    assert (status, headers["content-type"], headers["connection"]) == (431, "application/problem+json", "close")
    assert json.loads(body)["code"] == "head_too_large"
    assert "8192 bytes" in json.loads(body)["detail"]


def test_a_head_within_the_bound_is_taken(api: Api) -> None:
    assert httpx.get(f"{api.url}/health/live", headers={"X-Long": "a" * 7000}, timeout=60).status_code == 200


@pytest.mark.parametrize(
    ("named", "header", "expected"),
    [
        (b"http://evil.example", b"localhost", 421),
        (b"HTTP://localhost@evil.example:80", b"localhost", 421),
        (b"http://localhost:1", b"evil.example", 404),
    ],
)
def test_an_absolute_target_says_which_host_is_meant(api: Api, named: bytes, header: bytes, expected: int) -> None:
    with connected(api) as connection:
        connection.sendall(b"GET %b/nothing HTTP/1.1\r\nHost: %b\r\n\r\n" % (named, header))
        status, _, _ = answer(connection)
    assert status == expected


def test_what_is_no_http_is_told_as_a_problem(api: Api) -> None:
    with connected(api) as connection:
        connection.sendall(b"what is this\r\n\r\n")
        status, _, body = answer(connection)
    assert (status, json.loads(body)["code"]) == (400, "malformed_http")


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"", "head_too_slow"),
        (GET, "head_too_slow"),
        (GET + b"Accept: */*\r\n\r\n" + GET, "head_too_slow"),
        (POST + b"Content-Length: 100\r\n\r\n{", "body_too_slow"),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n", "body_too_slow"),
    ],
    ids=["nothing", "half a head", "half a second head", "half a body", "half a chunked body"],
)
def test_what_does_not_arrive_is_not_waited_for(api: Api, sent: bytes, code: str) -> None:
    with connected(api) as connection:
        first, _, rest = sent.partition(b"Accept: */*\r\n\r\n")
        connection.sendall(first + (b"\r\n" if rest else b""))
        if rest:
            connection.recv(65536)
            connection.sendall(rest)
        status, _, body = answer(connection)
    assert (status, json.loads(body)["code"], json.loads(body)["retryable"]) == (408, code, True)


def trickle(connection: socket.socket, piece: bytes) -> None:
    """Send a piece every tenth of a second until the other side closes."""
    connection.settimeout(0.1)

    def is_over() -> bool:
        try:
            connection.sendall(piece)
            return connection.recv(65536) == b""
        except TimeoutError:
            return False
        except OSError:
            return True

    eventually(is_over, "the connection is closed")


@pytest.mark.parametrize(
    ("begin", "piece"),
    [(GET + b"X-Slow: ", b"a"), (b"", b"\r\n"), (POST + b"Content-Length: 100000\r\n\r\n", b"{")],
    ids=["a head", "empty lines", "a body"],
)
def test_a_trickle_is_no_progress(api: Api, begin: bytes, piece: bytes) -> None:
    with connected(api) as connection:
        connection.sendall(begin)
        trickle(connection, piece)


def test_an_idle_connection_is_closed(api: Api) -> None:
    with connected(api) as connection:
        connection.sendall(GET + b"\r\n")
        status, _, _ = answer(connection)
    assert status == 200


def test_a_slow_stream_is_not_an_idle_connection(api: Api) -> None:
    job = httpx.post(
        f"{api.url}/api/v1/generation-jobs", json={"prompt": "x", "run_at": "2027-11-01T00:00:00Z"}, timeout=60
    ).json()
    with httpx.stream("GET", f"{api.url}/api/v1/generation-jobs/{job['id']}/events", timeout=60) as stream:
        lines = stream.iter_lines()
        next(lines)
        for asked in (GET, POST + b"Content-Length: 9\r\n\r\n", GET + b"\r\n"):  # longer than any bound of this service
            with connected(api) as other:
                other.sendall(asked)
                answer(other)
        httpx.post(f"{api.url}/api/v1/generation-jobs/{job['id']}/cancel", timeout=60)
        assert any("cancelled" in line for line in lines)


def test_there_are_not_more_connections_than_the_bound(api: Api) -> None:
    held = [socket.create_connection(("127.0.0.1", api.port), timeout=60) for _ in range(25)]
    try:
        told = [answer(connection) for connection in held]
    finally:
        for connection in held:
            connection.close()
    codes = [json.loads(body)["code"] for _, _, body in told]
    assert codes.count("too_many_connections") >= 5
    assert {status for status, _, _ in told} == {503, 408}

    def is_free() -> bool:
        return httpx.get(f"{api.url}/health/live", timeout=60).status_code == 200

    eventually(is_free, "there is room again")
