"""What a start costs: the imports of a worker, of the API and of `--help`, and a whole stack until it is ready."""

import subprocess
import sys
import time
from collections.abc import Iterator
from resource import RUSAGE_CHILDREN, getrusage

from benchmarks.process import ROOT, cpu_seconds
from benchmarks.sample import Bench, Sample, turns

NAME = "starting"
COMMANDS = {
    "worker": ("benchmarks.systems.import_of", "worker"),
    "API": ("benchmarks.systems.import_of", "api"),
    "--help": ("safelight", "--help"),
}


def run(bench: Bench) -> Iterator[Sample]:
    for number, what in turns([*COMMANDS], bench.options.rounds):
        yield Sample(NAME, what, "safelight", number, {"cpu_seconds": _cpu_seconds(*COMMANDS[what])})
    for number in range(bench.options.rounds):
        yield Sample(NAME, "up, ready", "safelight", number, _up(bench, number))


def _cpu_seconds(*command: str) -> float:
    def spent() -> float:
        usage = getrusage(RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    before = spent()
    subprocess.run([sys.executable, "-m", *command], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return spent() - before


def _up(bench: Bench, number: int) -> dict[str, float]:
    """A fresh data directory each time: the schema is made, and a first job goes through."""
    ground = bench.ground
    folder = ground.folder / f"up-{number}"
    data = {"SAFELIGHT_DATA_DIR": str(folder), "SAFELIGHT_PORT": "0"}
    began = time.monotonic()
    with ground.start("safelight", "up", environment=data) as stack:
        while not (folder / "stack.json").exists():
            if not stack.is_alive or time.monotonic() - began > 300:
                raise RuntimeError(f"up did not become ready:\n{stack.tail()}")
            time.sleep(0.02)
        return {"seconds": time.monotonic() - began, "cpu_seconds": cpu_seconds([stack.pid])}
