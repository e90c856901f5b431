"""What the experiments found, for people, for programs and for the documentation."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict

from faults.trial import Outcome

COLUMNS = {
    "lost": "lost",
    "wrong_ends": "wrong ends",
    "double_ends": "double ends",
    "foreign_artifacts": "foreign artifacts",
    "double_submits": "unexplained submits",
    "missed_events": "events missed",
    "doubled_events": "doubled",
    "late_events": "after the end",
    "leftovers": "leftovers",
    "broken": "other",
}


def percentiles(seconds: Sequence[float]) -> str:
    """p50 / p95 / max, or nothing."""
    if not seconds:
        return ""
    line = sorted(seconds)
    return " / ".join(f"{value:.1f}" for value in (line[len(line) // 2], line[int(len(line) * 0.95)], line[-1]))


def merge(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """One row per experiment, over all its rounds, in the order of their first."""
    rows: dict[str, Outcome] = {}
    for outcome in outcomes:
        row = rows.setdefault(outcome.experiment, Outcome(outcome.experiment, outcome.seed))
        row.jobs += outcome.jobs
        row.faults += outcome.faults
        row.seconds += outcome.seconds
        row.detection += outcome.detection
        row.recovery += outcome.recovery
        row.skipped = outcome.skipped
        for name, count in outcome.findings.counts.items():
            setattr(row.findings, name, getattr(row.findings, name) + count)
        row.findings.sentences += [f"seed {outcome.seed}: {sentence}" for sentence in outcome.findings.sentences]
    return list(rows.values())


def rounds(outcomes: Iterable[Outcome]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for outcome in outcomes:
        counts[outcome.experiment] = counts.get(outcome.experiment, 0) + 1
    return counts


def table(outcomes: Sequence[Outcome]) -> list[list[str]]:
    """Head and rows, the last of them the sum."""
    head = ["experiment", "rounds", "jobs", "faults", *COLUMNS.values(), "noticed after s", "running again after s"]
    lines = [head]
    counted = rounds(outcomes)
    merged = merge(outcomes)
    for row in merged:
        if row.skipped is not None:
            lines.append([row.experiment, "0", *[""] * (len(head) - 3), f"skipped: {row.skipped}"])
            continue
        found = [str(row.findings.counts[name]) for name in COLUMNS]
        spans = [percentiles(row.detection), percentiles(row.recovery)]
        lines.append([row.experiment, str(counted[row.experiment]), str(row.jobs), str(row.faults), *found, *spans])
    sums = [str(sum(row.findings.counts[name] for row in merged)) for name in COLUMNS]
    jobs, faults = sum(row.jobs for row in merged), sum(row.faults for row in merged)
    every = [
        percentiles([s for row in merged for s in row.detection]),
        percentiles([s for row in merged for s in row.recovery]),
    ]
    made = sum(outcome.skipped is None for outcome in outcomes)
    lines.append(["all", str(made), str(jobs), str(faults), *sums, *every])
    return lines


def as_text(outcomes: Sequence[Outcome]) -> str:
    """The table for a terminal; its heads stand upright over narrow columns, so they are broken into words."""
    lines = table(outcomes)
    heads = [cell.split(" ") for cell in lines[0]]
    height = max(map(len, heads))
    top = [
        [cell[row - (height - len(cell))] if row >= height - len(cell) else "" for cell in heads]
        for row in range(height)
    ]
    body = lines[1:]
    skipped = [index for index, line in enumerate(body) if line[-1].startswith("skipped")]
    columns = [line for index, line in enumerate([*top, *body]) if index - height not in skipped]
    widths = [max(len(line[column]) for line in columns) for column in range(len(lines[0]))]

    def row(line: list[str]) -> str:
        if line[-1].startswith("skipped"):
            return f"{line[0]:<{widths[0]}}  {line[-1]}"
        cells = [
            f"{cell:<{width}}" if index == 0 else f"{cell:>{width}}"
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        return "  ".join(cells).rstrip()

    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    printed = [*(row(line) for line in top), rule, *(row(line) for line in body[:-1]), rule, row(body[-1])]
    found = [
        f"  {merged.experiment}, {sentence}" for merged in merge(outcomes) for sentence in merged.findings.sentences
    ]
    own = [line for outcome in _with_grid(outcomes) for line in ["", f"{outcome.experiment}:", *_aligned(outcome.grid)]]
    return "\n".join([*printed, *own, *(["", "What went wrong:", *found] if found else [])])


def _with_grid(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The last round of each experiment that has a table of its own."""
    return list({outcome.experiment: outcome for outcome in outcomes if outcome.grid}.values())


def _aligned(grid: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*grid, strict=True)]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in grid]


def as_markdown(outcomes: Sequence[Outcome], title: str) -> str:
    """The tables for the documentation."""
    written = [f"### {title}", "", *_piped(table(outcomes), "---:")]
    for outcome in _with_grid(outcomes):
        written += ["", f"### {outcome.experiment}", "", *_piped(outcome.grid, "---")]
    return "\n".join([*written, ""])


def _piped(lines: Sequence[Sequence[str]], rule: str) -> list[str]:
    return [f"| {' | '.join(line)} |" for line in [lines[0], ["---", *[rule] * (len(lines[0]) - 1)], *lines[1:]]]


def as_json(outcomes: Sequence[Outcome], **facts: object) -> str:
    """Everything, round by round."""
    return json.dumps({**facts, "rounds": [asdict(outcome) for outcome in outcomes]}, indent=1)
