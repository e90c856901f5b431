"""Figures of one run, and the options every workload is given."""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from benchmarks.ground import Backend, Ground

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Sample:
    """What one system did once. Ratios are only ever made between samples of the same case and round."""

    workload: str
    case: str
    system: str
    round: int
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Options:
    """How much to do. `quick` only shows that everything runs."""

    rounds: int
    backends: Sequence[Backend]
    quick: bool

    def size(self, full: int, quick: int) -> int:
        return quick if self.quick else full


@dataclass(frozen=True, slots=True)
class Bench:
    """What a workload needs."""

    ground: Ground
    options: Options


def turns(systems: Sequence[T], rounds: int) -> Iterator[tuple[int, T]]:
    """Every system once a round, interleaved, each round beginning with another one."""
    for number in range(rounds):
        first = number % len(systems)
        for system in [*systems[first:], *systems[:first]]:
            yield number, system


def percentile(values: Iterable[float], share: float) -> float:
    """The nearest-rank percentile."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def twice(measure: Callable[[], T]) -> T:
    """Measure, and once more if a process of a system ended or hung; the second time it is an error."""
    try:
        return measure()
    except (RuntimeError, TimeoutError) as error:
        print(f"Once more: {error}", file=sys.stderr)
        return measure()
