"""SSE clients in a process of their own: each follows one path; how long events took is read from the events."""

import asyncio
import json
import re
import sys
import time
from typing import Any

import uvloop

from benchmarks.load import request_bytes

SENT_AT = re.compile(rb'"message":"(?:t|[^"]*, step )(\d+)(?:"| of )')  # nanoseconds, as words or as a step's number
END_OF_EVENT = re.compile(rb"\n\n|\r\n\r\n")  # sse-starlette ends its lines as HTTP does
AT_ONCE = 200  # connections being opened at a time
TAIL_BYTES = 64
CONNECT_SECONDS = 120.0  # all of them together


class Watcher(asyncio.Protocol):
    """One client. Its latencies are nanoseconds from publishing to here."""

    def __init__(self, request: bytes, latencies: list[int]) -> None:
        self._request = request
        self._latencies = latencies
        self._rest = b""
        self._transport: Any = None
        self.is_lost = False
        self.told = asyncio.get_running_loop().create_future()  # the first event, or what stands for it

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if not self.told.done():
            self._rest += data
            if END_OF_EVENT.search(self._rest.partition(b"\r\n\r\n")[2]):
                self._rest = b""
                self.told.set_result(None)
            return
        now = time.monotonic_ns()
        data = self._rest + data
        end = 0
        for match in SENT_AT.finditer(data):
            self._latencies.append(now - int(match[1]))
            end = match.end()
        self._rest = data[max(end, len(data) - TAIL_BYTES) :]

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True
        if not self.told.done():
            self.told.set_exception(exc or ConnectionResetError("closed"))

    def close(self) -> None:
        self._transport.abort()


async def watch(paths: list[str], port: int) -> None:
    loop = asyncio.get_running_loop()
    latencies: list[int] = []
    watchers: list[Watcher] = []
    async with asyncio.timeout(CONNECT_SECONDS):
        for start in range(0, len(paths), AT_ONCE):
            some: list[Watcher] = []
            for path in paths[start : start + AT_ONCE]:
                request = request_bytes("GET", path, port, b"")
                _, watcher = await loop.create_connection(lambda r=request: Watcher(r, latencies), "127.0.0.1", port)
                some.append(watcher)
            await asyncio.gather(*(watcher.told for watcher in some))
            watchers += some
    print(json.dumps({"watching": len(watchers)}), flush=True)
    await loop.run_in_executor(None, sys.stdin.readline)
    lost = sum(watcher.is_lost for watcher in watchers)
    print(json.dumps({"latencies_ms": [round(ns / 1e6, 3) for ns in latencies], "lost": lost}), flush=True)
    for watcher in watchers:
        watcher.close()


async def main() -> None:
    line = await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    await watch(**json.loads(line))


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
