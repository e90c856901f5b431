"""The first look at a Redis: what can never work is refused in one sentence, what is only away is told as that."""

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path

import pytest

from safelight.valkey import RedisUnsuitable, ValkeyAway, ValkeyUrlInvalid, require_redis
from servers import ValkeyServer, free_port
from tls import certificate, server_context

pytestmark = pytest.mark.anyio
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class ClusterNode(ValkeyServer):
    """A node of a cluster, alone."""

    def command_line(self) -> list[str]:
        bus = free_port()  # else 10,000 above the other, which may be none
        return [*super().command_line(), "--cluster-enabled", "yes", "--cluster-port", str(bus)]


class Sentinel(ValkeyServer):
    """One that watches nobody."""

    def command_line(self) -> list[str]:
        file = self.directory / "sentinel.conf"
        file.touch()
        program, *options = super().command_line()
        return [program, str(file), "--sentinel", *options]


@contextlib.asynccontextmanager
async def listening(serve: Serve, tls: ssl.SSLContext | None = None) -> AsyncGenerator[int]:
    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls) as server:
        yield server.sockets[0].getsockname()[1]


async def refused(url: str, database: int = 0) -> str:
    with pytest.raises(RedisUnsuitable) as error:
        await require_redis(url, database=database)
    assert "SAFELIGHT_REDIS_URL" in error.value.detail and "secret" not in error.value.detail
    assert "\n" not in error.value.detail
    return error.value.detail


async def test_a_single_server_is_fine(valkey_server: Callable[..., ValkeyServer]) -> None:
    await require_redis(valkey_server().url, database=4)
    await require_redis(valkey_server(tcp=True, password="p@ss").url.replace("p@ss", "p%40ss"), database=4)


async def test_a_cluster_is_refused() -> None:
    node = ClusterNode(tcp=True)
    try:
        assert "is a node of a cluster" in await refused(node.url, database=4)
    finally:
        node.close()


async def test_so_is_a_sentinel(tmp_path: Path) -> None:
    sentinel = Sentinel(tcp=True)
    try:
        assert "is a Sentinel" in await refused(sentinel.url)
    finally:
        sentinel.close()


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("sentinel://127.0.0.1:26379/mymaster", "no Sentinel"),
        ("redis+sentinel://:secret@one:26379,two:26379/mymaster/0", "no Sentinel"),
        ("redis+cluster://127.0.0.1:7000", "no cluster"),
    ],
)
async def test_their_urls_are_told_what_to_write_instead(url: str, what: str) -> None:
    with pytest.raises(ValkeyUrlInvalid) as error:
        await require_redis(url, database=0)
    assert f"SAFELIGHT_REDIS_URL: Safelight asks {what}" in error.value.detail
    assert "redis://HOST:6379/0" in error.value.detail and "secret" not in error.value.detail


async def test_a_wrong_password_and_a_wrong_database(valkey_server: Callable[..., ValkeyServer]) -> None:
    locked = valkey_server(tcp=True, password="open")
    place = f"127.0.0.1:{locked.port}"
    assert "asks for a password" in await refused(f"redis://{place}")
    assert "does not accept the user or password" in await refused(f"redis://:secret@{place}")
    assert "has no database 99" in await refused(f"redis://:open@{place}/99")


async def test_tls_where_the_url_says_none_and_the_other_way(
    valkey_server: Callable[..., ValkeyServer], tmp_path: Path
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with listening(serve, server_context(certificate(tmp_path))) as port:
        assert "speaks TLS: write rediss://" in await refused(f"redis://127.0.0.1:{port}")
        assert "ssl_ca_certs=" in await refused(f"rediss://localhost:{port}")
    plain = valkey_server(tcp=True)
    assert "does not speak TLS: write redis://" in await refused(f"rediss://127.0.0.1:{plain.port}")


NO_REDIS = [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-OpenSSH_9.9\r\n", b"220 mail ready\r\n"]


@pytest.mark.parametrize("said", NO_REDIS)
async def test_what_is_no_redis(said: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said)
        await writer.drain()
        await reader.read()
        writer.close()

    async with listening(serve) as port:
        assert "is no Redis" in await refused(f"redis://127.0.0.1:{port}")


async def test_one_that_is_away_is_told_as_that(valkey_server: Callable[..., ValkeyServer]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        threading.Thread(target=lambda: listener.accept()[0].close(), daemon=True).start()
        with pytest.raises(ValkeyAway, match=r"closed the connection|reset"):
            await require_redis(f"redis://127.0.0.1:{port}", database=0)
    with pytest.raises(
        ValkeyAway, match=rf"does not answer at 127\.0\.0\.1:{port} \(.*\): is SAFELIGHT_REDIS_URL right"
    ):
        await require_redis(f"redis://127.0.0.1:{port}", database=0)
    with pytest.raises(ValkeyUrlInvalid, match="must begin with redis://"):
        await require_redis("http://127.0.0.1:6379", database=0)
