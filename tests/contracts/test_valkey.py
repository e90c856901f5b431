"""The Valkey client against real servers: in order, at once, and back again after whatever happens to the server."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import pytest

from patience import PATIENCE_SECONDS
from safelight.valkey import LuaScript, Valkey, ValkeyAway, ValkeyError
from safelight.valkey import client as valkey_module
from servers import ValkeyServer
from tls import certificate, fronted, server_context

pytestmark = pytest.mark.anyio

MakeServer = Callable[..., ValkeyServer]
ADD = LuaScript("return redis.call('INCRBY', KEYS[1], ARGV[1])")


@contextlib.asynccontextmanager
async def connected(url: str, **options: Any) -> AsyncGenerator[Valkey, None]:
    client = Valkey(url, **options)
    await client.start()
    await client.wait_connected(PATIENCE_SECONDS)
    try:
        yield client
    finally:
        await client.close()


async def until(condition: Callable[[], bool], seconds: float = PATIENCE_SECONDS) -> float:
    """Wait for a condition; returns how long it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, "it did not happen in time"
        await asyncio.sleep(0.005)
    return time.monotonic() - began


# Commands


async def test_ten_thousand_replies_come_in_order(valkey: ValkeyServer) -> None:
    async with connected(valkey.url) as client:
        replies = await asyncio.gather(*[client.send("ECHO", number) for number in range(10_000)])
    assert replies == [str(number).encode() for number in range(10_000)]


async def test_commands_of_one_turn_leave_in_one_write(valkey: ValkeyServer) -> None:
    async with connected(valkey.url) as client:
        before = valkey.command("INFO", "stats")
        await asyncio.gather(*[client.send("INCR", "n") for _ in range(200)])
        after = valkey.command("INFO", "stats")
    assert reads(after) - reads(before) < 10


def reads(info: bytes) -> int:
    return int(info.partition(b"total_reads_processed:")[2].split()[0])


async def test_values_keep_their_types(valkey: ValkeyServer) -> None:
    async with connected(valkey.url) as client:
        assert await client.send("SET", "k", b"\x00\xff") == b"OK"
        assert await client.send("GET", b"k") == b"\x00\xff"
        assert await client.send("GET", "nothing") is None
        assert await client.send("HSET", "h", "a", 1, "b", 2.5) == 2
        assert await client.send("HGETALL", "h") == {b"a": b"1", b"b": b"2.5"}
        with pytest.raises(TypeError):
            client.send("SET", "k", None)  # pyright: ignore[reportArgumentType]
        assert await client.send("ECHO", "still in order") == b"still in order"


async def test_an_error_reply_is_raised_where_it_belongs(valkey: ValkeyServer) -> None:
    async with connected(valkey.url) as client:
        await client.send("SET", "text", "x")
        good, bad, later = client.send("GET", "text"), client.send("INCR", "text"), client.send("ECHO", "y")
        assert (await good, await later) == (b"x", b"y")
        with pytest.raises(ValkeyError, match="not an integer") as caught:
            await bad
    assert caught.value.name == "ERR"


async def test_a_post_is_executed_and_its_error_counted(valkey: ValkeyServer) -> None:
    async with connected(valkey.url) as client:
        assert client.post("SET", "text", "x")
        assert client.post("INCR", "text")
        assert await client.send("GET", "text") == b"x"
        assert (client.errors, client.dropped, client.lost) == (1, 0, 0)


async def test_posts_before_the_close_are_executed(valkey: ValkeyServer) -> None:
    async with connected(valkey.url) as client:
        for _ in range(1000):
            client.post("RPUSH", "list", bytes(20_000))  # more than the socket takes at once
    assert valkey.command("LLEN", "list") == 1000


async def test_a_caller_that_gave_up_does_not_disturb_the_order(valkey: ValkeyServer) -> None:
    async with connected(valkey.url) as client:
        replies = [client.send("ECHO", number) for number in range(100)]
        for reply in replies[::2]:
            reply.cancel()
        assert await asyncio.gather(*replies[1::2]) == [str(number).encode() for number in range(1, 100, 2)]


async def test_large_values_pass(valkey: ValkeyServer) -> None:
    body = bytes(range(256)) * 40_000
    async with connected(valkey.url) as client:
        for number in range(5):
            client.post("SET", f"large:{number}", body)
        assert await asyncio.gather(*[client.send("GET", f"large:{number}") for number in range(5)]) == [body] * 5


async def test_pending_replies_are_bounded(valkey_server: MakeServer) -> None:
    server = valkey_server()
    async with connected(server.url, max_pending=100, overdue_seconds=1) as client:
        server.freeze()
        assert sum(client.post("INCR", "n") for _ in range(150)) == 100
        assert client.dropped == 50
        with pytest.raises(ValkeyAway, match="does not keep up"):
            client.send("PING")
        server.thaw()
        await until(lambda: client.post("PING"))
        assert await client.send("GET", "n") == b"100"


async def test_unwritten_bytes_are_bounded(valkey_server: MakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(valkey_module, "UNWRITTEN_BYTES", 1_000_000)
    server = valkey_server()
    async with connected(server.url) as client:
        server.freeze()
        accepted = 0
        while client.post("SET", "k", bytes(100_000)):
            accepted += 1
            assert accepted < 1000
            await asyncio.sleep(0)
        server.thaw()
        await until(lambda: client.post("PING"))
        assert await client.send("STRLEN", "k") == 100_000
        assert client.lost == 0


# Away and back


async def test_without_a_server_everything_fails_at_once(tmp_path: Path) -> None:
    client = Valkey(f"unix://{tmp_path}/nothing.sock")
    await client.start()
    for _ in range(1000):  # none of them is awaited
        with pytest.raises(ValkeyAway):
            client.send("PING")
        assert not client.post("PING")
        assert not client.post_script(ADD, ["n"], [1])
    assert client.dropped == 2000
    with pytest.raises(ValkeyAway, match="No such file"):
        await client.wait_connected(0.2)
    assert not client.connected
    await client.close()


async def test_a_killed_server_is_found_again(valkey_server: MakeServer) -> None:
    server = valkey_server(tcp=True)
    heard: list[Any] = []
    connects: list[float] = []
    options: dict[str, Any] = {"on_push": heard.append, "on_connect": lambda: connects.append(time.monotonic())}
    async with connected(server.url, **options) as client:
        client.subscribe("news", b"other", "dropped")
        client.unsubscribe("dropped", "never asked for")
        assert await client.eval(ADD, ["n"], [1]) == 1
        await asyncio.gather(*[client.send("PING") for _ in range(10)])

        server.freeze()
        pending = [client.send("PING") for _ in range(10)]
        client.post("PING")
        await asyncio.sleep(0.01)
        server.kill()
        results = await asyncio.gather(*pending, return_exceptions=True)
        assert all(isinstance(result, ValkeyAway) for result in results)
        assert client.lost == 1
        assert not client.post("PING")

        client.subscribe("asked while away")
        await asyncio.sleep(0.3)
        server.start()
        await client.wait_connected(PATIENCE_SECONDS)
        assert await client.eval(ADD, ["n"], [1]) == 1, "the server forgot everything, the script came along"
        for channel in ("news", "other", "dropped", "asked while away"):
            await client.send("PUBLISH", channel, "x")
        await until(lambda: len(heard) == 3)
        assert [push[1] for push in heard] == [b"news", b"other", b"asked while away"]
        assert (len(connects), client.reconnects, client.last_error) == (2, 1, None)


async def test_a_frozen_server_is_noticed(valkey_server: MakeServer) -> None:
    server = valkey_server()
    async with connected(server.url, overdue_seconds=0.5) as client:
        server.freeze()
        with pytest.raises(ValkeyAway):
            await client.send("PING")
        assert not client.connected
        await until(lambda: client.last_error == "no answer within 0.5 s")
        server.thaw()
        await client.wait_connected(PATIENCE_SECONDS)
        assert await client.send("PING") == b"PONG"


async def test_a_frozen_server_is_noticed_without_traffic(
    valkey_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(valkey_module, "IDLE_SECONDS", 0.2)
    server = valkey_server(tcp=True)
    async with connected(server.url, overdue_seconds=0.3) as client:
        await asyncio.sleep(1)
        assert (client.reconnects, client.last_error) == (0, None), "being idle is no fault"
        server.freeze()
        await until(lambda: not client.connected)
        server.thaw()


async def test_a_stalled_loop_does_not_blame_the_server(valkey: ValkeyServer) -> None:
    async with connected(valkey.url, overdue_seconds=0.2) as client:
        reply = client.send("PING")
        await asyncio.sleep(0)
        time.sleep(1)  # noqa: ASYNC251  # our own process stands still
        assert await reply == b"PONG"
        assert client.reconnects == 0


async def test_a_closing_client_does_not_wait_for_a_frozen_server(valkey_server: MakeServer) -> None:
    server = valkey_server()
    async with asyncio.timeout(PATIENCE_SECONDS):
        async with connected(server.url, overdue_seconds=0.3) as client:
            server.freeze()
            client.post("PING")
    assert not client.connected
    server.thaw()


async def test_a_client_that_was_cut_off_comes_back(valkey: ValkeyServer) -> None:
    async with connected(valkey.url) as client:
        for number in range(1, 4):
            valkey.command("CLIENT", "KILL", "TYPE", "normal")
            await until(lambda expected=number: client.reconnects == expected)
        assert await client.send("PING") == b"PONG"


async def test_a_loading_server_is_not_connected_yet(valkey_server: MakeServer) -> None:
    server = valkey_server(aof=True)
    server.command("DEBUG", "POPULATE", 2000, "key", 10)
    server.command("CONFIG", "SET", "key-load-delay", "500")
    server.command("CONFIG", "SET", "loading-process-events-interval-bytes", "1024")
    async with connected(server.url) as client:
        reload = asyncio.create_task(asyncio.to_thread(server.command, "DEBUG", "RELOAD"))
        await until(lambda: server_is_loading(server))
        valkey_client = Valkey(server.url)
        await valkey_client.start()
        await until(lambda: "LOADING" in (valkey_client.last_error or ""))
        assert not valkey_client.connected
        await reload
        await valkey_client.wait_connected(5)
        await valkey_client.close()
        await until(lambda: client.connected)


def server_is_loading(server: ValkeyServer) -> bool:
    return b"loading:1" in server.command("INFO", "persistence")


# Subscriptions


async def test_one_connection_carries_commands_and_subscriptions(valkey: ValkeyServer) -> None:
    heard: list[Any] = []
    async with connected(valkey.url, on_push=heard.append) as client:
        replies: list[asyncio.Future[Any]] = []
        for number in range(500):
            client.subscribe(f"channel:{number}", "shared")
            replies.append(client.send("ECHO", number))
            client.post("PUBLISH", f"channel:{number}", number)
            client.unsubscribe(f"channel:{number}")
            replies.append(client.send("ECHO", -number))
        assert await asyncio.gather(*replies) == [str(n).encode() for number in range(500) for n in (number, -number)]
        await until(lambda: len(heard) == 500)
    assert heard == [[b"message", b"channel:%d" % number, b"%d" % number] for number in range(500)]


async def test_a_reply_shows_that_an_earlier_subscription_stands(valkey: ValkeyServer) -> None:
    heard: list[Any] = []
    async with connected(valkey.url, on_push=heard.append) as client:
        client.subscribe("news")
        await client.send("PING")
        assert valkey.command("PUBLISH", "news", "x") == 1
        await until(lambda: heard == [[b"message", b"news", b"x"]])


async def test_a_failing_listener_costs_nobody_else(valkey: ValkeyServer) -> None:
    def listen(push: list[Any]) -> None:
        raise LookupError(push)

    async with connected(valkey.url, on_push=listen) as client:
        client.subscribe("news")
        client.post("PUBLISH", "news", "x")
        assert await client.send("ECHO", "y") == b"y"
        assert await client.send("ECHO", "z") == b"z"


async def test_a_refused_subscription_does_not_disturb_the_order(valkey_server: MakeServer) -> None:
    server = valkey_server(tcp=True)
    server.command("ACL", "SETUSER", "narrow", "on", ">pw", "~*", "+@all", "resetchannels", "&open")
    url = server.url.replace("redis://", "redis://narrow:pw@")
    heard: list[Any] = []
    async with connected(url, on_push=heard.append) as client:
        client.subscribe("open")
        client.subscribe("closed", "also closed")
        assert await asyncio.gather(*[client.send("ECHO", n) for n in range(3)]) == [b"0", b"1", b"2"]
        client.unsubscribe("closed", "also closed")
        assert await client.send("PUBLISH", "open", "x") == 1
        await until(lambda: len(heard) == 1)
        assert client.errors == 1


# Scripts


async def test_scripts_run_by_digest_and_survive_a_flush(valkey: ValkeyServer) -> None:
    valkey.command("CONFIG", "RESETSTAT")  # the server is shared with other tests
    async with connected(valkey.url) as client:
        assert await asyncio.gather(*[client.eval(ADD, ["n"], [1]) for _ in range(100)]) == list(range(1, 101))
        calls = valkey.command("INFO", "commandstats")
        assert b"cmdstat_evalsha:calls=99," in calls

        valkey.command("SCRIPT", "FLUSH")
        assert sorted(await asyncio.gather(*[client.eval(ADD, ["n"], [1]) for _ in range(3)])) == [101, 102, 103]
        valkey.command("SCRIPT", "FLUSH")
        assert client.post_script(ADD, ["n"], [10])
        await client.send("PING")  # the post was refused by now and its second sending is under way
        assert await client.send("GET", "n") == b"113"
        assert client.errors == 0


async def test_a_script_with_a_mistake_is_reported(valkey: ValkeyServer) -> None:
    broken, failing = LuaScript("return ("), LuaScript("return redis.call('INCR', KEYS[1], 'too many')")
    async with connected(valkey.url) as client:
        for script in (broken, failing, broken, failing):
            with pytest.raises(ValkeyError):
                await client.eval(script, ["n"], [])
        assert client.post_script(broken, ["n"], [])
        assert await client.send("ECHO", "in order") == b"in order"
        await until(lambda: client.errors == 1)


# Ways in


@pytest.mark.parametrize("tcp", [False, True], ids=["unix", "tcp"])
async def test_databases_are_apart(valkey_server: MakeServer, tcp: bool) -> None:
    server = valkey_server(tcp=tcp)
    in_url = f"{server.url}/5" if tcp else f"{server.url}?db=5"
    async with (
        connected(server.url) as zero,
        connected(server.url, database=3) as three,
        connected(in_url, database=3) as five,
        connected(server.celery_url + ("/5" if tcp else "?virtual_host=5")) as also_five,
    ):
        for name, client in (("zero", zero), ("three", three), ("five", five)):
            await client.send("SET", "name", name)
        assert [await c.send("GET", "name") for c in (zero, three, five, also_five)] == [
            b"zero",
            b"three",
            b"five",
            b"five",
        ]


async def test_a_password_opens_and_is_never_shown(valkey_server: MakeServer) -> None:
    server = valkey_server(tcp=True, password="open-sesame")
    async with connected(server.url) as client:
        assert await client.send("PING") == b"PONG"
        assert "open-sesame" not in repr(client.address)

    for url, complaint in (
        (server.url.replace("sesame", "barley"), "WRONGPASS"),
        (server.url.replace(":open-sesame@", ""), "NOAUTH"),
        (server.url + "/99", "out of range"),
    ):
        client = Valkey(url)
        await client.start()
        await until(lambda client=client: client.last_error is not None)
        assert complaint in str(client.last_error)
        assert "open-" not in str(client.last_error)
        with pytest.raises(ValkeyAway, match=complaint):
            await client.wait_connected(0.05)
        await client.close()


@pytest.mark.parametrize(
    ("complaint", "shown"),
    [
        (
            "ERR unknown command `HELLO`, with args beginning with: `3`, `AUTH`, `default`, `hush`, ",
            "the server is too old: RESP3 needs Redis 6 or later, or Valkey",
        ),
        ("ERR syntax error near hush", "ERR syntax error near ***"),
    ],
)
async def test_a_server_that_quotes_the_password_is_not_quoted(tmp_path: Path, complaint: str, shown: str) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        writer.write(f"-{complaint}\r\n".encode())
        await reader.read(1000)
        writer.close()

    async with await asyncio.start_unix_server(answer, tmp_path / "old.sock"):
        client = Valkey(f"unix://:hush@{tmp_path}/old.sock")
        await client.start()
        await until(lambda: client.last_error is not None)
        assert client.last_error == shown
        await client.close()


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"+OK\r\n" * 50, b""])
async def test_something_that_is_not_redis_is_survived(tmp_path: Path, answer: bytes) -> None:
    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        writer.write(answer)
        writer.close()

    async with await asyncio.start_unix_server(speak, tmp_path / "other.sock"):
        client = Valkey(f"unix://{tmp_path}/other.sock")
        await client.start()
        await until(lambda: client.last_error is not None)
        assert not client.connected
        await client.close()


async def test_tls_checks_the_certificate(valkey_server: MakeServer, tmp_path: Path) -> None:
    """The bundled server has no TLS: a proxy in front of it does."""
    pem = certificate(tmp_path)
    async with fronted(valkey_server(), server_context(pem)) as port:
        for options in (f"ssl_ca_certs={pem}", "ssl_cert_reqs=none", "ssl_cert_reqs=CERT_NONE"):
            async with connected(f"rediss://localhost:{port}/2?{options}") as client:
                assert await client.send("PING") == b"PONG"
        strict = Valkey(f"rediss://localhost:{port}")
        await strict.start()
        await until(lambda: strict.last_error is not None)
        assert "CERTIFICATE_VERIFY_FAILED" in str(strict.last_error)
        await strict.close()
