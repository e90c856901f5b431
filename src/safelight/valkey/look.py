"""A first look at the server that a setting names: what can never work is told from what is only away."""

import asyncio
import contextlib
import ssl
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import hiredis

from safelight.errors import Invalid
from safelight.valkey.address import ValkeyAddress, ValkeyUrlInvalid
from safelight.valkey.client import ValkeyAway

LOOK_SECONDS = 3.0
VARIABLE = "SAFELIGHT_REDIS_URL"
PASSING = ("LOADING", "MASTERDOWN", "TRYAGAIN", "CLUSTERDOWN", "ERR max number of clients")  # over by themselves
NOTHING = object()


class RedisUnsuitable(Invalid):
    """The server that the Redis URL names can never work."""

    code = "redis_unsuitable"


async def require_redis(url: str, *, database: int) -> None:
    """Ask the server who it is. Raises `RedisUnsuitable` or `ValkeyUrlInvalid` with what to write instead, and
    `ValkeyAway`, with why, if nobody answers within a few seconds: whoever connects later may find it there."""
    try:
        address = ValkeyAddress.parse(url, database=database)
    except ValkeyUrlInvalid as error:
        raise ValkeyUrlInvalid(f"{VARIABLE}: {error.detail}") from None
    try:
        async with asyncio.timeout(LOOK_SECONDS):
            about = await _greet(address)
    except ssl.SSLCertVerificationError as error:
        reason = error.verify_message.rstrip(".")
        raise RedisUnsuitable(
            f"The certificate of Redis at {address} is not to be trusted ({reason}): write the file of its authority "
            f"into {VARIABLE}, as in rediss://HOST/0?ssl_ca_certs=/path/ca.pem."
        ) from error
    except (OSError, EOFError, TimeoutError) as error:
        if await _speaks_otherwise(address):
            right, wrong = ("redis", "rediss") if address.tls else ("rediss", "redis")
            speaks = "does not speak TLS" if address.tls else "speaks TLS"
            raise RedisUnsuitable(
                f"Redis at {address} {speaks}: write {right}:// instead of {wrong}:// in {VARIABLE}."
            ) from error
        raise ValkeyAway(f"Redis does not answer at {address} ({_reason(error)}): is {VARIABLE} right?") from error
    mode = about.get(b"mode")
    if mode in (b"cluster", b"sentinel"):
        kind = "a node of a cluster" if mode == b"cluster" else "a Sentinel"
        raise RedisUnsuitable(
            f"Redis at {address} is {kind}, which Safelight does not work on: name a single server in {VARIABLE} (a "
            "replicated one behind one address will do)."
        )


async def _greet(address: ValkeyAddress) -> Mapping[bytes, Any]:
    """What the server says of itself, after the password and the database were accepted."""
    reader, writer = await _connect(address)
    try:
        enter = () if address.password is None else ("AUTH", address.username, address.password)
        greeting = await _ask(address, reader, writer, "HELLO", 3, *enter)
        about: dict[bytes, Any] = greeting if isinstance(greeting, dict) else {}
        if about.get(b"mode") not in (b"cluster", b"sentinel"):
            await _ask(address, reader, writer, "SELECT", address.database)
        return about
    finally:
        writer.close()


async def _connect(address: ValkeyAddress) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if address.path is not None:
        return await asyncio.open_unix_connection(address.path)
    return await asyncio.open_connection(address.host, address.port, ssl=address.tls)


async def _ask(
    address: ValkeyAddress, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *command: str | int
) -> object:
    writer.write(hiredis.pack_command(command))  # pyright: ignore[reportArgumentType]  # the stub knows tuples of one
    parser = hiredis.Reader(notEnoughData=NOTHING)
    while (reply := _parsed(address, parser)) is NOTHING:
        chunk = await reader.read(4096)
        if not chunk:
            raise EOFError("it closed the connection without a word")
        if chunk[:2] == b"\x15\x03":  # an alert of TLS
            raise EOFError("it speaks TLS")
        parser.feed(chunk)
    if isinstance(reply, hiredis.ReplyError):
        _refuse(address, str(reply))
    return reply


def _parsed(address: ValkeyAddress, parser: hiredis.Reader) -> object:
    try:
        return parser.gets()
    except hiredis.ProtocolError:
        raise RedisUnsuitable(
            f"What answers at {address} is no Redis: write the address of a Redis or Valkey into {VARIABLE}, as in "
            "redis://127.0.0.1:6379."
        ) from None


def _refuse(address: ValkeyAddress, said: str) -> None:
    """What an error reply means, without the password that old servers quote."""
    name = said.partition(" ")[0]
    if said.startswith(PASSING):
        raise EOFError(said)
    if name in ("WRONGPASS", "NOAUTH") or "without any password" in said or "invalid password" in said:
        wrong = "asks for a password" if address.password is None else "does not accept the user or password"
        raise RedisUnsuitable(
            f"Redis at {address} {wrong}: write redis://:PASSWORD@HOST or redis://USER:PASSWORD@HOST in {VARIABLE}, "
            "with special characters percent-encoded."
        )
    if "unknown command" in said:
        raise RedisUnsuitable(f"Redis at {address} is too old: Redis 6 or newer is needed, or Valkey.")
    if "DB index" in said:
        raise RedisUnsuitable(
            f"Redis at {address} has no database {address.database}: write one that it has at the end of {VARIABLE}, "
            "as in redis://HOST/0."
        )
    told = said.replace(address.password, "***") if address.password else said
    raise RedisUnsuitable(f"Redis at {address} refuses us: {told}.")


async def _speaks_otherwise(address: ValkeyAddress) -> bool:
    """Whether a server that made nothing of us speaks TLS where the URL says that it does not, or the other way."""
    if address.path is not None:
        return False
    tls = None
    if address.tls is None:
        tls = ssl.create_default_context()
        tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    with contextlib.suppress(OSError, EOFError, TimeoutError):
        async with asyncio.timeout(LOOK_SECONDS):
            reader, writer = await _connect(replace(address, tls=tls))
            try:
                if tls is not None:
                    return True
                writer.write(b"PING\r\n")
                return (await reader.readline())[:1] in (b"+", b"-")
            finally:
                writer.close()
    return False


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {LOOK_SECONDS:g} s"
    return (error.strerror if isinstance(error, OSError) and error.strerror else str(error)) or type(error).__name__
