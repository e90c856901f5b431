"""A picture from the provider's bytes to its record and files, beside bare libvips."""

from collections.abc import Iterator
from contextlib import ExitStack

from benchmarks.sample import Bench, Sample, turns

NAME = "pictures"
SYSTEMS = ("safelight", "libvips")


def run(bench: Bench) -> Iterator[Sample]:
    ground, count = bench.ground, bench.options.size(40, 2)
    with ExitStack() as stack:
        stores = {
            name: stack.enter_context(
                ground.start(
                    "benchmarks.systems.picture_store", name, str(ground.folder / name), environment={}, speaks=True
                )
            )
            for name in SYSTEMS
        }
        for store in stores.values():
            store.hear()
            store.ask(count=1)  # what is loaded once
        for number, name in turns(SYSTEMS, bench.options.rounds):
            done = stores[name].ask(count=count)
            values = {"cpu_ms": done["cpu_seconds"] * 1000 / count, "ms": done["seconds"] * 1000 / count}
            yield Sample(NAME, "PNG, 1024x1024", name, number, values)
