"""A process that stores pictures: `python -m benchmarks.systems.picture_store safelight|libvips FOLDER`, told how many
by lines on stdin.

`safelight` is what a worker does between a provider's bytes and the record: the head judged, content credentials looked
for, decoded, two thumbnails, ThumbHash, marks, SHA-256, files in the storage, on disk. `libvips` does by hand what
cannot be left out of it: decoded once, the same two thumbnails, SHA-256, three files, on disk.
"""

import asyncio
import hashlib
import json
import os
import sys
import time
from pathlib import Path

import pyvips
import uvloop

from safelight import log
from safelight.artifacts import ArtifactStore
from safelight.pictures import Mark, PictureWorkers
from safelight.storage import Storage

SIDE = 1024
WEBP = {"Q": 80, "effort": 2, "keep": "none"}
MARK = Mark({"parameters": "a lighthouse at dusk\nSteps: 30, Sampler: euler, CFG scale: 7, Seed: 1, Size: 1024x1024"})


def photograph() -> bytes:
    """A PNG of 2 MB: gradients, and the grain that makes a picture as hard to compress as one."""
    ramps = pyvips.Image.xyz(SIDE, SIDE)
    grain = pyvips.Image.gaussnoise(SIDE, SIDE, mean=0, sigma=6, seed=1).gaussblur(1)
    bands = (ramps[0] / 4).bandjoin([ramps[1] / 4, (ramps[0] + ramps[1]) / 8])
    return (bands + grain).cast("uchar").copy(interpretation="srgb").pngsave_buffer(compression=4)


def store_by_hand(folder: Path, name: str, data: bytes) -> str:
    picture = pyvips.Image.new_from_buffer(data, "", access="sequential", fail_on="error")
    large = picture.thumbnail_image(512).copy_memory()
    small = large.thumbnail_image(256)
    (folder / name).mkdir()
    for file, content in (
        ("0.png", data),
        ("0_512.webp", large.webpsave_buffer(**WEBP)),
        ("0_256.webp", small.webpsave_buffer(**WEBP)),
    ):
        with (folder / name / file).open("wb") as target:
            target.write(content)
            target.flush()
            os.fsync(target.fileno())
    return hashlib.sha256(data).hexdigest()


async def store_as_shipped(folder: Path, batch: int, count: int, data: bytes) -> None:
    with PictureWorkers() as pictures:
        store = ArtifactStore(Storage.open(folder.as_uri()), pictures)
        for number in range(count):
            job_id = f"{batch:08d}-0000-7000-8000-{number:012d}"
            await store.store(job_id=job_id, attempt=1, position=0, owner_id="bench", data=data, mark=MARK, seed=number)


def main(system: str, folder: Path) -> None:
    log.configure("warning", "json")
    pyvips.concurrency_set(1)
    data = photograph()
    folder.mkdir(exist_ok=True)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps({"bytes": len(data)}), flush=True)
        for batch, line in enumerate(sys.stdin):
            count: int = json.loads(line)["count"]
            began, cpu_began = time.monotonic(), time.process_time()
            if system == "safelight":
                runner.run(store_as_shipped(folder, batch, count, data))
            else:
                for number in range(count):
                    store_by_hand(folder, f"{batch}-{number}", data)
            done = {"seconds": time.monotonic() - began, "cpu_seconds": time.process_time() - cpu_began}
            print(json.dumps(done), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
