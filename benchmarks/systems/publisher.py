"""Publishes `per_second` events to each of many jobs, in slices of 5 ms; the payloads are the same for both servers."""

import asyncio
import json
import os
import sys
import time
from datetime import UTC, datetime

import orjson
import uvloop

from safelight import log
from safelight.stream import Stream
from safelight.valkey import Valkey
from safelight.watch import Message

SLICE_SECONDS = 0.005
VERSION = 2  # of the rows that `watching` makes: processing, first attempt


def payload_of(job_id: str, number: int) -> bytes:
    """A progress event as Safelight sends it; `message` carries the moment it was sent."""
    return orjson.dumps(
        {
            "type": "job.progress",
            "job_id": job_id,
            "task_id": job_id,
            "kind": "image.generate",
            "status": "processing",
            "is_terminal": False,
            "stage": "rendering",
            "message": f"t{time.monotonic_ns()}",
            "progress": number % 100,
            "attempt": 1,
            "retry_count": 0,
            "blocked_reason": None,
            "provider": "mock",
            "mocked": True,
            "project_id": None,
            "chapter_id": None,
            "scene_number": None,
            "character_id": None,
            "artifacts": [],
            "preview_url": None,
            "error": None,
            "at": datetime.now(UTC),
            "version": VERSION,
            "seq": number,
        }
    )


async def publish(style: str, ids: list[str], seconds: float, per_second: float, valkey: Valkey) -> int:
    stream = Stream(valkey, os.environ.get("BENCH_NAMESPACE", "safelight-test"))
    sent = 0
    total = int(len(ids) * per_second * seconds)
    began = time.monotonic()
    while sent < total:
        due = min(total, int((time.monotonic() - began) * len(ids) * per_second))
        for index in range(sent, due):
            job_id, number = ids[index % len(ids)], index // len(ids) + 1
            payload = payload_of(job_id, number)
            if style == "safelight":
                frame = b"event: job.progress\ndata: " + payload + b"\n\n"
                message = Message(VERSION, number, False, False, "job.progress", frame)
                stream.publish(job_id, job_id, message, payload, b'{"status":"PROGRESS"}')
            else:
                valkey.post("PUBLISH", f"task_updates:{job_id}", payload)
        sent = due
        await asyncio.sleep(SLICE_SECONDS)
    await valkey.send("PING")
    return sent


async def main(style: str) -> None:
    log.configure("warning", "json")
    loop = asyncio.get_running_loop()
    valkey = Valkey(os.environ["BENCH_REDIS_URL"], max_pending=200_000)
    await valkey.start()
    await valkey.wait_connected(5)
    print(json.dumps({"ready": True}), flush=True)
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        sent = await publish(style, valkey=valkey, **json.loads(line))
        print(json.dumps({"sent": sent, "refused": valkey.dropped + valkey.errors}), flush=True)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(sys.argv[1]))
