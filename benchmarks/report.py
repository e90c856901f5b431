"""What the measurements say: tables for the terminal and for documents, and the result file."""

import json
import os
import platform
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.goal import Score, score
from benchmarks.sample import Sample

COLORS = {"target met": "green", "floor met": "yellow", "MISSED": "bold red"}
TITLES = {
    "throughput": "Throughput at saturation and latency at low load",
    "waiting": "Jobs that wait 5 s on HTTP, two worker processes",
    "following": "Jobs that follow a provider, one worker process",
    "watching": "SSE fan-out, 2 events a second each, one API process",
    "requests": "POST and GET at 32 connections, one API process",
    "contention": "SQLite: an API and two workers flat out",
    "tables": "One operation at a time, by the size of the table",
    "owners": "One operation at a time, by the number of owners with about a hundred jobs each",
    "authentication": "To find out who asks",
    "imports": "A video from a local server, by its URL and by a page that plays it",
    "pictures": "A picture from the provider's bytes to its record and files",
    "starting": "What a start costs",
}
HEADLINES: Mapping[str, tuple[str, ...]] = {  # whom to compare with, and the figures whose ratios stand first
    "throughput": ("celery prefork", "jobs_per_second", "worker_cpu_ms", "low_load_p50_ms"),
    "waiting": ("dramatiq 2x500 threads", "makespan_seconds"),
    "watching": ("sse-starlette", "cpu_us_per_event", "p99_ms"),
    "requests": ("fastapi + .delay()", "requests_per_second", "server_cpu_us"),
    "imports": ("yt-dlp", "seconds", "cpu_seconds"),
    "pictures": ("libvips", "cpu_ms"),
}


def document(samples: Sequence[Sample], *, rounds: int, quick: bool, versions: Mapping[str, str]) -> dict[str, Any]:
    """Everything a reader needs to judge and repeat the figures."""
    return {
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "rounds": rounds,
        "quick": quick,
        "machine": {
            "system": platform.system(),
            "cpus": os.cpu_count(),
            "python": platform.python_version(),
            "load_1m": round(os.getloadavg()[0], 2),
            **versions,
        },
        "scores": [
            {
                "what": found.goal.what,
                "case": found.case,
                "median": found.value,
                "least": found.least,
                "most": found.most,
                "rounds": found.rounds,
                "floor": found.goal.floor,
                "target": found.goal.target,
                "verdict": found.verdict,
            }
            for found in score(samples)
        ],
        "samples": [asdict(sample) for sample in samples],
    }


def samples_of(result: Mapping[str, Any]) -> list[Sample]:
    return [Sample(**sample) for sample in result["samples"]]


def save(result: Mapping[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1))


def show(samples: Sequence[Sample], console: Console) -> None:
    """The medians of every workload, then the goals."""
    for workload, title in TITLES.items():
        of_it = [sample for sample in samples if sample.workload == workload]
        if not of_it:
            continue
        _show(console, title, rows_of(workload, of_it))
    scores = score(samples)
    if scores:
        _show_goals(console, scores)


def rows_of(workload: str, samples: Sequence[Sample]) -> list[list[str]]:
    """The table of a workload as text."""
    if workload in ("tables", "owners"):
        return table_of_sizes(samples)
    peer, *headlines = HEADLINES.get(workload, ("",))
    return table_of(samples, peer, headlines)


def table_of(samples: Sequence[Sample], peer: str, headlines: Sequence[str]) -> list[list[str]]:
    """Rows of text, the head first: a row for each case and system, medians over rounds, the ratios to the peer."""
    metrics = list(dict.fromkeys(name for sample in samples for name in sample.values))
    groups: dict[tuple[str, str], dict[int, Sample]] = defaultdict(dict)
    for sample in samples:
        groups[sample.case, sample.system][sample.round] = sample
    rows = [["case", "system", *(f"{_words(name)} / {peer}" for name in headlines), *map(_words, metrics)]]
    for (case, system), by_round in sorted(groups.items(), key=lambda group: _order(group[0][0])):
        cells = [case, system]
        cells += [_ratio(by_round, groups.get((case, peer), {}), name) for name in headlines]
        cells += [_median([s.values[name] for s in by_round.values() if name in s.values]) for name in metrics]
        rows.append(cells)
    return rows


def table_of_sizes(samples: Sequence[Sample]) -> list[list[str]]:
    """A row for each operation, a column for each size of the table."""
    sizes = list(dict.fromkeys(sample.system for sample in samples))
    groups: dict[str, dict[str, dict[int, Sample]]] = defaultdict(lambda: defaultdict(dict))
    for sample in samples:
        groups[sample.case][sample.system][sample.round] = sample
    rows = [["operation", *(f"{size}, p50 ms" for size in sizes), *(f"{size}, p99 ms" for size in sizes), "p50 ratio"]]
    for case, by_size in groups.items():
        cells = [case]
        for metric in ("p50_ms", "p99_ms"):
            cells += [_median([s.values[metric] for s in by_size[size].values()], digits=2) for size in sizes]
        cells.append(_ratio(by_size[sizes[-1]], by_size[sizes[0]], "p50_ms"))
        rows.append(cells)
    return rows


def goals_table(scores: Iterable[Score]) -> list[list[str]]:
    rows = [["goal", "case", "median (least-most)", "floor", "target", ""]]
    for found in scores:
        goal, unit = found.goal, found.goal.unit
        sign = "≥" if goal.higher_is_better else "≤"
        spread = f"{_number(found.value)}{unit} ({_number(found.least)}-{_number(found.most)})"
        bounds = [f"{sign} {_number(bound)}{unit}" for bound in (goal.floor, goal.target)]
        rows.append([goal.what, found.case, spread, *bounds, found.verdict])
    return rows


def as_markdown(samples: Sequence[Sample]) -> str:
    """All tables for a document."""
    parts = ["### Goals", _markdown(goals_table(score(samples)))]
    for workload, title in TITLES.items():
        of_it = [sample for sample in samples if sample.workload == workload]
        if of_it:
            parts += [f"### {title}", _markdown(rows_of(workload, of_it))]
    return "\n\n".join(parts) + "\n"


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def _show(console: Console, title: str, rows: Sequence[Sequence[str]]) -> None:
    table = Table(title=title, title_justify="left", show_lines=False)
    for index, head in enumerate(rows[0]):
        table.add_column(head, justify="left" if index < 2 and not head.endswith("ms") else "right")
    for row in rows[1:]:
        table.add_row(*row)
    console.print(table)


def _show_goals(console: Console, scores: Sequence[Score]) -> None:
    rows = goals_table(scores)
    table = Table(title="Goals", title_justify="left")
    for index, head in enumerate(rows[0]):
        table.add_column(head, justify="left" if index in (0, 1, 5) else "right")
    for found, row in zip(scores, rows[1:], strict=True):
        table.add_row(*row, style=COLORS[found.verdict] if found.verdict != "target met" else None)
    console.print(table)


def _ratio(ours: Mapping[int, Sample], theirs: Mapping[int, Sample], metric: str) -> str:
    values = [
        sample.values[metric] / theirs[number].values[metric]
        for number, sample in ours.items()
        if number in theirs and theirs[number].values.get(metric)
    ]
    return f"{median(values):.2f} ({min(values):.2f}-{max(values):.2f})" if values else "-"


def _median(values: Sequence[float], digits: int = 1) -> str:
    if not values:
        return "-"
    value = median(values)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.{digits if abs(value) >= 10 else 2}f}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.2f}"


def _words(metric: str) -> str:
    return metric.replace("_", " ")


def _order(case: str) -> tuple[str, int, str]:
    number, _, rest = case.partition(" ")
    return (rest, int(number), "") if number.isdigit() else ("", 0, case)
