"""The figures as pictures, with matplotlib if it is there."""

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.sample import Sample

OURS, THEIRS = "#c2410c", "#94a3b8"
CHARTS: Sequence[tuple[str, str, str, str, str]] = (
    # file, workload, metric, the case contains, title
    ("throughput", "throughput", "jobs_per_second", "", "Jobs a second at saturation (more is better)"),
    ("cpu", "throughput", "worker_cpu_ms", "", "Worker CPU, ms a job (less is better)"),
    ("latency", "throughput", "low_load_p50_ms", "", "Submit to completed at low load, p50 ms (less is better)"),
    ("waiting", "waiting", "makespan_seconds", "1000", "1,000 jobs that wait 5 s: seconds until all are done"),
    ("watching", "watching", "cpu_us_per_event", "", "SSE: server CPU per delivered event, µs (less is better)"),
    ("requests", "requests", "requests_per_second", "", "Requests a second, 32 connections (more is better)"),
)


def plot(samples: Sequence[Sample], folder: Path) -> list[Path]:
    """One SVG for each chart that has data; none without matplotlib."""
    if find_spec("matplotlib") is None:
        return []
    matplotlib: Any = import_module("matplotlib")
    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "safelight", "font.size": 9})
    figures: Any = import_module("matplotlib.figure")
    folder.mkdir(parents=True, exist_ok=True)
    made: list[Path] = []
    for name, workload, metric, case, title in CHARTS:
        of_it = [s for s in samples if s.workload == workload and case in s.case and metric in s.values]
        if of_it:
            made.append(folder / f"bench-{name}.svg")
            _bars(figures.Figure(), of_it, metric, title, made[-1])
    return made


def _bars(figure: Any, samples: Sequence[Sample], metric: str, title: str, path: Path) -> None:
    cases = list(dict.fromkeys(sample.case for sample in samples))
    heights = [len({sample.system for sample in samples if sample.case == case}) for case in cases]
    figure.set_size_inches(6.4, 0.6 + 0.24 * sum(heights) + 0.3 * len(cases))
    axes = figure.add_subplot()
    labels: list[str] = []
    position = 0.0
    ticks: list[float] = []
    for case in cases:
        systems = sorted({s.system for s in samples if s.case == case}, key=lambda name: (name != "safelight", name))
        for system in systems:
            values = [s.values[metric] for s in samples if s.case == case and s.system == system]
            middle = median(values)
            spread = [[middle - min(values)], [max(values) - middle]]
            color = OURS if system.startswith("safelight") else THEIRS
            axes.barh(position, middle, 0.8, color=color, xerr=spread, error_kw={"lw": 0.8, "ecolor": "#334155"})
            axes.annotate(
                f" {middle:,.3g}" if middle < 1000 else f" {middle:,.0f}", (max(values), position), va="center"
            )
            labels.append(f"{system} · {case}")
            ticks.append(position)
            position += 1
        position += 0.6
    axes.set_yticks(ticks, labels)
    axes.invert_yaxis()
    axes.margins(x=0.14)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, loc="left", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
