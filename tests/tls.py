"""TLS for servers that have none: a certificate of our own, and a front that speaks TLS before a Valkey."""

import asyncio
import contextlib
import shutil
import ssl
import subprocess
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from threading import Thread

import pytest

from servers import ValkeyServer


def certificate(folder: Path) -> Path:
    """One file with a self-signed certificate for localhost and its key; it is its own authority."""
    path, key = folder / "localhost.pem", folder / "localhost.key"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    command += f" -addext subjectAltName=DNS:localhost -keyout {key} -out {path}"
    if not shutil.which("openssl") or subprocess.run(command.split(), capture_output=True, check=False).returncode:
        pytest.skip("openssl cannot make a certificate here")
    path.write_bytes(path.read_bytes() + key.read_bytes())
    return path


def server_context(pem: Path, *, asks_for_one: bool = False) -> ssl.SSLContext:
    """Shows the certificate; `asks_for_one`: and takes nobody without it."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pem)
    if asks_for_one:
        context.load_verify_locations(pem)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


@asynccontextmanager
async def fronted(server: ValkeyServer, context: ssl.SSLContext) -> AsyncGenerator[int]:
    """The port where a Valkey answers by TLS."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
        writer.close()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_unix_connection(server.socket_path)
        await asyncio.gather(pump(reader, inner_writer), pump(inner_reader, writer))

    async with await asyncio.start_server(forward, "127.0.0.1", 0, ssl=context) as proxy:
        yield proxy.sockets[0].getsockname()[1]


@contextmanager
def fronted_in_a_thread(server: ValkeyServer, context: ssl.SSLContext) -> Generator[int]:
    """The same for other processes."""
    loop = asyncio.new_event_loop()
    thread = Thread(target=loop.run_forever, daemon=True)
    thread.start()
    front = fronted(server, context)
    try:
        yield asyncio.run_coroutine_threadsafe(front.__aenter__(), loop).result()
        asyncio.run_coroutine_threadsafe(front.__aexit__(None, None, None), loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
