"""HTTP load from a process of its own: `connections` keep-alive connections, each asking again after every answer.

Our own, since PyPI carries none of wrk, oha and bombardier, and Locust is far slower Python. Speaks with its parent by
lines on stdin and stdout. asyncio protocols over uvloop and httptools: a request costs this process a few dozen
microseconds, so that it is the server that is measured.
"""

import asyncio
import json
import sys
import time
from collections.abc import Mapping
from typing import Any

import httptools
import uvloop


class Connection(asyncio.Protocol):
    """One connection that sends the next request as soon as the last one was answered."""

    def __init__(self, load: "Load", number: int) -> None:
        self._load = load
        self._number = number
        self._transport: Any = None
        self._parser: Any = None
        self._sent = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._send()

    def _send(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._sent = time.perf_counter()
        self._transport.write(self._load.next_request())

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        self._load.answered(time.perf_counter() - self._sent, self._parser.get_status_code())
        if self._load.is_over:
            self._transport.close()
        else:
            asyncio.get_running_loop().call_soon(self._send)  # the parser is still in use

    def connection_lost(self, exc: Exception | None) -> None:
        self._load.closed(unexpected=not self._load.is_over)


class Load:
    def __init__(self, requests: list[bytes], connections: int) -> None:
        self._requests = requests
        self._position = 0
        self._open = connections
        self.times: list[float] = []
        self.statuses: dict[int, int] = {}
        self.broken = 0
        self.is_over = False
        self.finished = asyncio.Event()

    def next_request(self) -> bytes:
        self._position += 1
        return self._requests[self._position % len(self._requests)]

    def answered(self, seconds: float, status: int) -> None:
        self.times.append(seconds)
        self.statuses[status] = self.statuses.get(status, 0) + 1

    def closed(self, *, unexpected: bool) -> None:
        self.broken += unexpected
        self._open -= 1
        if self._open == 0:
            self.finished.set()


def request_bytes(method: str, path: str, port: int, body: bytes, headers: Mapping[str, str] | None = None) -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
    if body:
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return f"{head}\r\n".encode() + body


async def load(
    method: str,
    paths: list[str],
    port: int,
    body: str,
    connections: int,
    seconds: float,
    headers: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    requests = [request_bytes(method, path, port, body.encode(), headers) for path in paths]
    made = Load(requests, connections)
    loop = asyncio.get_running_loop()
    began = time.perf_counter()
    for number in range(connections):
        await loop.create_connection(lambda number=number: Connection(made, number), "127.0.0.1", port)
    await asyncio.sleep(seconds)
    made.is_over = True
    elapsed = time.perf_counter() - began
    in_time = len(made.times)
    try:
        async with asyncio.timeout(30):
            await made.finished.wait()
    except TimeoutError:
        made.broken += 1
    return {
        "seconds": elapsed,
        "answers": in_time,
        "times": made.times,
        "statuses": made.statuses,
        "broken": made.broken,
    }


async def main() -> None:
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        print(json.dumps(await load(**json.loads(line))), flush=True)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
