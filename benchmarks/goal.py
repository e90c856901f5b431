"""What is aimed at: a floor and a target for each ratio, and what a set of samples says about them."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from benchmarks.sample import Sample

Verdict = Literal["target met", "floor met", "MISSED"]


@dataclass(frozen=True, slots=True)
class Goal:
    """One figure of one system, as it stands or divided by a peer's figure of the same case and round."""

    what: str
    workload: str
    metric: str
    floor: float
    target: float
    case: str = ""  # the case begins with this
    system: str = "safelight"
    peer: str | None = None
    higher_is_better: bool = False
    unit: str = "x"


@dataclass(frozen=True, slots=True)
class Score:
    """A goal held against one case: the median over rounds, and between what bounds it lay."""

    goal: Goal
    case: str
    value: float
    least: float
    most: float
    rounds: int

    @property
    def verdict(self) -> Verdict:
        def reaches(bound: float) -> bool:
            return self.value >= bound if self.goal.higher_is_better else self.value <= bound

        return "target met" if reaches(self.goal.target) else "floor met" if reaches(self.goal.floor) else "MISSED"


CELERY, DRAMATIQ = "celery prefork", "dramatiq threads"
FASTAPI, PER_CLIENT = "fastapi + .delay()", "sse-starlette"
GOALS = (
    Goal("throughput / Celery prefork", "throughput", "jobs_per_second", 2, 3, peer=CELERY, higher_is_better=True),
    Goal(
        "throughput / Dramatiq threads", "throughput", "jobs_per_second", 1.2, 2, peer=DRAMATIQ, higher_is_better=True
    ),
    Goal("worker CPU per job / Celery", "throughput", "worker_cpu_ms", 0.75, 0.4, peer=CELERY),
    Goal("submit to completed, p50 / Celery", "throughput", "low_load_p50_ms", 1, 0.75, peer=CELERY),
    Goal("1,000 waiting jobs / ideal 5 s", "waiting", "times_ideal", 1.3, 1.2, case="1000"),
    Goal("memory per worker process", "waiting", "pss_mb_per_process", 120, 120, case="1000", unit=" MB"),
    Goal("per further waiting job", "waiting", "kb_per_further_job", 45, 45, case="1000", unit=" KB"),
    Goal("memory per job that follows a provider", "following", "kb_per_job", 100, 60, case="500", unit=" KB"),
    Goal("SSE: CPU per event", "watching", "cpu_us_per_event", 0.6, 0.4, case="4000", peer=PER_CLIENT),
    Goal("SSE: p99", "watching", "p99_ms", 1, 1, case="4000", peer=PER_CLIENT),
    Goal("SSE: memory", "watching", "pss_mb", 1, 0.7, case="4000", peer=PER_CLIENT),
    Goal("SSE: delivered", "watching", "delivered_percent", 100, 100, case="4000", higher_is_better=True, unit=" %"),
    Goal("SSE: Redis connections", "watching", "redis_connections", 3, 3, case="4000", unit=""),
    Goal("POST / FastAPI", "requests", "requests_per_second", 2, 4, case="POST", peer=FASTAPI, higher_is_better=True),
    Goal("POST, p99 at 32 connections", "requests", "p99_ms", 20, 20, case="POST", unit=" ms"),
    Goal("GET / FastAPI", "requests", "requests_per_second", 1.5, 2, case="GET", peer=FASTAPI, higher_is_better=True),
    Goal("import of a page / yt-dlp", "imports", "seconds", 1.5, 1.2, case="page", peer="yt-dlp"),
    Goal("import of a file / yt-dlp", "imports", "seconds", 1, 0.7, case="file", peer="yt-dlp"),
    Goal("a picture stored: CPU / libvips", "pictures", "cpu_ms", 1.5, 1.2, peer="libvips"),
    Goal("SQLite flat out: p99 of a write", "contention", "write_p99_ms", 150, 70, unit=" ms"),
    Goal("SQLite flat out: lock errors", "contention", "lock_errors", 0, 0, unit=""),
)


def score(samples: Iterable[Sample], goals: Sequence[Goal] = GOALS) -> list[Score]:
    """Every goal against every case it speaks of; ratios are paired by round before the median is taken."""
    figures: dict[tuple[str, str, str], dict[int, Sample]] = defaultdict(dict)
    for sample in samples:
        figures[sample.workload, sample.case, sample.system][sample.round] = sample
    scores: list[Score] = []
    for goal in goals:
        for (workload, case, system), by_round in figures.items():
            if workload != goal.workload or system != goal.system or not case.startswith(goal.case):
                continue
            values = _values(goal, by_round, figures.get((workload, case, goal.peer), {}) if goal.peer else None)
            if values:
                scores.append(Score(goal, case, median(values), min(values), max(values), len(values)))
    return scores


def _values(goal: Goal, ours: dict[int, Sample], theirs: dict[int, Sample] | None) -> list[float]:
    found: list[float] = []
    for number, sample in ours.items():
        value = sample.values.get(goal.metric)
        if value is None:
            continue
        if theirs is None:
            found.append(value)
        elif number in theirs and theirs[number].values.get(goal.metric):
            found.append(value / theirs[number].values[goal.metric])
    return found
