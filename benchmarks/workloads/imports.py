"""A video from a local server: our import beside bare yt-dlp, by its plain URL and by a page that plays it."""

import struct
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from benchmarks.ground import free_port
from benchmarks.process import cpu_seconds
from benchmarks.sample import Bench, Sample, turns
from benchmarks.workloads.requests import wait_for_http
from safelight.artifacts import find_ffmpeg

NAME = "imports"
SYSTEMS = ("safelight", "yt-dlp")
PATHS = {"file": "film.mp4", "page": "page.html"}


def run(bench: Bench) -> Iterator[Sample]:
    ground, megabytes = bench.ground, bench.options.size(256, 1)
    folder = ground.folder / "videos"
    size = _make_videos(folder, megabytes)
    port = free_port()
    with ExitStack() as stack:
        serve = (str(port), "--bind", "127.0.0.1", "--directory", str(folder))
        server = stack.enter_context(ground.start("http.server", *serve, environment={}))
        importers = {
            name: stack.enter_context(
                ground.start("benchmarks.systems.importer", name, str(ground.folder), environment={}, speaks=True)
            )
            for name in SYSTEMS
        }
        for importer in importers.values():
            importer.hear()
        wait_for_http(port, server)
        for case, path in [*PATHS.items()][bench.options.size(0, 1) :]:
            for number, name in turns(SYSTEMS, bench.options.rounds):
                importer = importers[name]
                before = cpu_seconds([importer.pid])
                done = importer.ask(url=f"http://127.0.0.1:{port}/{path}")
                if done["bytes"] != size:
                    raise RuntimeError(f"{name} imported {done['bytes']} bytes of {size}")
                values = {
                    "seconds": done["seconds"],
                    "cpu_seconds": cpu_seconds([importer.pid]) - before,
                    "megabytes_per_second": size / 1e6 / done["seconds"],
                }
                yield Sample(NAME, f"{case}, {megabytes} MB", name, number, values)


def _make_videos(folder: Path, megabytes: int) -> int:
    """A short video that is as long in bytes as wanted, and a page; its size."""
    folder.mkdir(exist_ok=True)
    video = folder / "film.mp4"
    sources = ("-f", "lavfi", "-i", "testsrc=d=2:s=128x72:r=10")
    subprocess.run([find_ffmpeg(), "-v", "error", "-y", *sources, "-c:v", "libx264", str(video)], check=True)
    with video.open("ab") as file:
        padding = megabytes * 1_000_000
        file.write(struct.pack(">I4s", padding, b"free") + bytes(padding - 8))
    (folder / "page.html").write_text('<html><title>A video</title><video src="/film.mp4"></video></html>')
    return video.stat().st_size
