"""A process that imports: `python -m benchmarks.systems.importer safelight|yt-dlp FOLDER`, told URLs by lines on stdin.

`safelight` is the provider as a worker runs it, to the output that it hands over; `yt-dlp` the bare command.
Each answers how long it took and how many bytes came.
"""

import asyncio
import json
import subprocess
import sys
import time
from contextlib import aclosing
from ipaddress import ip_network
from pathlib import Path

import uvloop

from safelight import log
from safelight.artifacts import find_ffmpeg
from safelight.providers.base import Generation, Limits, Output, Parameters
from safelight.providers.media_import import MediaImport, Workspace


async def import_by_provider(provider: MediaImport, url: str) -> int:
    size = 0
    order = Generation("bench", 1, Parameters("media.import", "", provider_options={"url": url}), 600)
    async with aclosing(provider.generate(order)) as updates:
        async for update in updates:
            if isinstance(update, Output) and isinstance(update.data, Path):
                size = update.data.stat().st_size
    return size


def import_by_command(folder: Path, url: str) -> int:
    target = folder / "bare"
    options = ["--ignore-config", "--no-cache-dir", "--quiet", "--no-warnings", "--ffmpeg-location", find_ffmpeg()]
    subprocess.run([sys.executable, "-m", "yt_dlp", *options, "-o", str(target), "--", url], check=True)
    size = target.stat().st_size
    target.unlink()
    return size


def main(system: str, folder: Path) -> None:
    log.configure("warning", "json")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        provider = MediaImport(
            workspace=Workspace(folder / "imports", keep_free_bytes=0, quota_bytes=None),
            ffmpeg=find_ffmpeg(),
            limits=Limits(600, 660),
            networks=[ip_network("127.0.0.1/32")],
        )
        print(json.dumps({"ready": True}), flush=True)
        for line in sys.stdin:
            url: str = json.loads(line)["url"]
            began = time.monotonic()
            if system == "safelight":
                size = runner.run(import_by_provider(provider, url))
            else:
                size = import_by_command(folder, url)
            print(json.dumps({"seconds": time.monotonic() - began, "bytes": size}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
