"""What a person sees of a job while it develops: a live bar on a terminal, plain lines elsewhere."""

import math
import os
import sys
from types import TracebackType
from typing import Any, Protocol, Self

import click

from safelight.estimate import expected_seconds


class Display(Protocol):
    """Shows the latest state of one job. A context manager; everything goes to stderr."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def show(self, job: dict[str, Any]) -> None:
        """A newer view of the job, or as much of it as an event told."""
        ...

    def say(self, text: str) -> None:
        """A sentence, above the bar where there is one."""
        ...


def open_display() -> Display:
    """The live bar where it can be drawn and is wanted, else lines."""
    if sys.stderr.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb":
        return LiveDisplay()
    return LineDisplay()


class LineDisplay:
    """A line whenever something changes that a person would want to read in a log."""

    def __init__(self) -> None:
        self._last = ("", "", 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def show(self, job: dict[str, Any]) -> None:
        """At most one line per status, stage and quarter."""
        progress = job.get("progress")
        state = (str(job.get("status")), str(job.get("stage") or ""), int((progress or 0) // 25))
        if state == self._last or job.get("is_terminal"):
            return
        self._last = state
        percent = "" if progress is None else f" {progress:.0f} %"
        self.say(f"{job.get('status')}:{percent} {describe(job)}{estimate(job)}")

    def say(self, text: str) -> None:
        """A line."""
        click.echo(text, err=True)


class LiveDisplay:
    """One row that moves: spinner, what it is doing, bar, percent, elapsed and what remains as far as it is known."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn

        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[estimate]}"),
            console=Console(stderr=True),
            transient=True,
        )
        self._row = self._progress.add_task("submitted", total=None, estimate="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def show(self, job: dict[str, Any]) -> None:
        """Move the row."""
        from rich.markup import escape

        progress = job.get("progress")
        self._progress.update(
            self._row,
            description=escape(describe(job)),
            total=None if progress is None else 100,
            completed=progress or 0,
            estimate=estimate(job),
        )

    def say(self, text: str) -> None:
        """A line above the row."""
        self._progress.console.print(text, markup=False, highlight=False)


def describe(job: dict[str, Any]) -> str:
    """What the job is doing now, in a few words."""
    if job.get("status") == "pending" and job.get("blocked_reason"):
        return f"waiting ({job['blocked_reason']})"
    return str(job.get("message") or job.get("stage") or job.get("status") or "")


def estimate(job: dict[str, Any]) -> str:
    """What learnt durations and the job's own pace say remains; nothing is promised before anything is known."""
    if job.get("is_terminal") or job.get("kind") == "media.import":  # which says itself what is left
        return ""
    eta = job.get("eta") or {}
    run_seconds, running = eta.get("run_seconds"), job.get("running_seconds")
    if running is not None:
        run_seconds = expected_seconds(run_seconds, job.get("progress"), running)
    if run_seconds is None:
        return "  estimating"
    if running is None:
        return f"  about {math.ceil((eta.get('wait_seconds') or 0) + run_seconds)} s"
    remaining = math.ceil(run_seconds - running)
    return f"  about {remaining} s left" if remaining > 0 else "  longer than usual"
