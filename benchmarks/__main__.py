"""`./run bench`: measures Safelight beside its peers, interleaved, and says which goals are met.

Linux only: CPU and memory are read from /proc. Everything listens on loopback and ends with this process.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console

from benchmarks import report
from benchmarks.ground import BACKENDS, Backend, Ground, versions
from benchmarks.plot import plot
from benchmarks.process import ROOT
from benchmarks.sample import Bench, Options, Sample
from benchmarks.workloads import (
    authentication,
    backlog,
    contention,
    following,
    imports,
    largest,
    owners,
    pictures,
    requests,
    starting,
    storyboard,
    tables,
    throughput,
    waiting,
    watching,
)

WORKLOADS: dict[str, Callable[[Bench], Iterator[Sample]]] = {
    module.NAME: module.run
    for module in (
        throughput,
        requests,
        contention,
        watching,
        waiting,
        following,
        tables,
        owners,
        authentication,
        backlog,
        storyboard,
        imports,
        largest,
        pictures,
        starting,
    )
}
PEERS = ("dramatiq", "aiosqlite", "asyncpg", "greenlet")


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    missing = [name for name in PEERS if find_spec(name) is None]
    if not sys.platform.startswith("linux") or missing:
        needed = f" and the packages {', '.join(missing)}" if missing else ""
        print(f"The benchmarks need Linux{needed} (dependency group `bench`).", file=sys.stderr)
        return 2
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    backends: list[Backend] = [backend for backend in BACKENDS if options.database in (backend, "both")]
    samples: list[Sample] = []
    broken: list[str] = []
    rounds = 1 if options.quick else options.rounds
    with Ground(backends, patience=0.2 if options.quick else 10.0) as ground:
        bench = Bench(ground, Options(rounds, backends, options.quick))
        found = versions(ground)
        try:
            for name in options.only or WORKLOADS:
                began = time.monotonic()
                try:
                    for sample in WORKLOADS[name](bench):
                        samples.append(sample)
                        if not options.quiet:
                            _tell(console, sample)
                except (RuntimeError, TimeoutError) as error:  # what was measured so far must not be lost with it
                    broken.append(f"{name}: {error}")
                console.print(f"[dim]{name}: {time.monotonic() - began:.0f} s[/dim]")
        except KeyboardInterrupt:
            console.print("[yellow]Interrupted: what there is so far.[/yellow]")
    result = report.document(samples, rounds=rounds, quick=options.quick, versions=found) | {"broken": broken}
    report.save(result, options.output)
    if options.markdown:
        options.markdown.write_text(report.as_markdown(samples))
    if options.plots:
        for path in plot(samples, options.plots):
            console.print(f"[dim]{path}[/dim]")
    report.show(samples, console)
    console.print(f"Everything measured stands in {options.output}")
    for reason in broken:
        console.print(f"[red]Not finished: {reason}[/red]")
    return 1 if broken else 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="./run bench",
        description="Measure Safelight beside Celery, Dramatiq and FastAPI, interleaved, against its goals.",
        epilog="Example: ./run bench --only throughput requests --database sqlite --rounds 7",
    )
    parser.add_argument("--rounds", type=int, default=5, help="how often each system takes its turn (default 5)")
    parser.add_argument(
        "--only", nargs="+", action="extend", choices=list(WORKLOADS), help="these workloads (default: all)"
    )
    parser.add_argument("--database", choices=[*BACKENDS, "both"], default="both")
    parser.add_argument("--quick", action="store_true", help="one round of tiny sizes: shows that everything runs")
    parser.add_argument("--quiet", action="store_true", help="no line for each measurement")
    day = datetime.now(UTC).date().isoformat()
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / f"{day}.json")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the tables there")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="also write SVGs there (needs matplotlib)")
    return parser.parse_args(arguments)


def _tell(console: Console, sample: Sample) -> None:
    figures = ", ".join(f"{name} {value:,.4g}" for name, value in list(sample.values.items())[:4])
    console.print(f"[dim]{sample.workload} {sample.case} | {sample.system} {sample.round + 1} | {figures}[/dim]")


if __name__ == "__main__":
    sys.exit(main())
