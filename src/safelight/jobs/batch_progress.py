"""What becomes known about a batch: how it stands, kept in step with the events of its jobs.

A batch has no numbers of its own, so the id of an event is all that its watcher knows: the version of each job, in
their order, runs of equal ones put together, and the progress told, as `3x40.2.1x9~81`. From it every state that was
missed can be found, exactly, and no progress told later is less.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from typing import Any, Literal, NamedTuple

import orjson

from safelight.jobs.batch import MAX_BATCH_JOBS, Batch, BatchState, Member
from safelight.jobs.job import STATUSES, TERMINAL, Status

BatchEventType = Literal["batch.snapshot", "batch.progress", "batch.completed", "batch.failed", "batch.cancelled"]

BATCH_ENDS: dict[Status, BatchEventType] = {
    "completed": "batch.completed",
    "failed": "batch.failed",
    "cancelled": "batch.cancelled",
}
STATUS_OF: dict[str, Status] = {
    "job.pending": "pending",
    "job.started": "processing",
    "job.completed": "completed",
    "job.failed": "failed",
    "job.cancelled": "cancelled",
}
END_ID = "end"  # the id of the terminal event
_RUN = r"[0-9]{1,9}(x[0-9]{1,4})?"
POSITION = rf"{_RUN}(\.{_RUN})*~[0-9]{{1,3}}"  # the form of every other id
LONGEST_POSITION = 16 * MAX_BATCH_JOBS  # characters


class Position(NamedTuple):
    """What a watcher knows; as a text, the id of the event that told it the last of that."""

    versions: Sequence[int]
    progress: int

    def __str__(self) -> str:
        runs = ((version, len(list(run))) for version, run in groupby(self.versions))
        text = ".".join(f"{version}x{length}" if length > 1 else str(version) for version, length in runs)
        return f"{text}~{self.progress}"

    @classmethod
    def parse(cls, text: str) -> "Position | None":
        """The position of an id; None if it is none."""
        if len(text) > LONGEST_POSITION or re.fullmatch(POSITION, text) is None:
            return None
        runs, _, progress = text.partition("~")
        versions: list[int] = []
        for run in runs.split("."):
            version, _, length = run.partition("x")
            versions += [int(version)] * int(length or 1)
            if len(versions) > MAX_BATCH_JOBS:
                return cls((), 0)  # of no batch that there can be
        return cls(versions, min(100, int(progress)))


@dataclass(frozen=True, slots=True)
class BatchEvent:
    """One event of a batch. `jobs` tells of all its jobs in a snapshot, in their order, and in `batch.progress` of
    those that came further: each its `job_id`, `status`, `progress` and `version`.
    """

    type: BatchEventType
    batch_id: str
    status: Status
    is_terminal: bool
    counts: dict[Status, int]
    total: int
    progress: int
    jobs: Sequence[dict[str, Any]]
    at: datetime

    def as_frame(self, event_id: Position | str) -> bytes:
        """The finished SSE frame."""
        return (
            f"id: {event_id}\nevent: {self.type}\ndata: ".encode()
            + orjson.dumps(self, option=orjson.OPT_UTC_Z)
            + b"\n\n"
        )


class BatchProgress:
    """How far a batch came, for one watcher. It never goes backwards: a job counts as far as it ever came, an ended one
    as 100.
    """

    def __init__(self, batch: Batch, members: Sequence[Member], shown: int = 0) -> None:
        """`shown` is the progress that the watcher has seen."""
        self._batch = batch
        self._shown = shown
        self._status: dict[str, Status] = {member.job_id: member.status for member in members}
        self._version = {member.job_id: member.version for member in members}
        self._progress = {member.job_id: 100 if member.is_terminal else member.progress for member in members}
        self._counts: dict[Status, int] = dict.fromkeys(STATUSES, 0)
        for member in members:
            self._counts[member.status] += 1
        self._has_begun = any(member.attempt for member in members)
        self._open_progress = sum(member.progress for member in members if not member.is_terminal)
        self._came_further: dict[str, None] = {}
        self._has_changed = False

    @property
    def state(self) -> BatchState:
        return BatchState(self._counts, self._open_progress, self._has_begun)

    @property
    def progress(self) -> int:
        """0-100, and never less than it was."""
        self._shown = max(self._shown, self.state.progress)
        return self._shown

    @property
    def position(self) -> Position:
        """What is known by now."""
        return Position(list(self._version.values()), self.progress)

    @property
    def has_changed(self) -> bool:
        """Whether there is something to tell since the last `batch.progress`."""
        return self._has_changed

    def take_state(self, job_id: str, event_type: str, version: int) -> None:
        """A state event of a job."""
        before, status = self._status[job_id], STATUS_OF[event_type]
        self._status[job_id], self._version[job_id] = status, version
        self._counts[before] -= 1
        self._counts[status] += 1
        self._has_begun = self._has_begun or status == "processing"
        if status in TERMINAL and before not in TERMINAL:
            self._open_progress -= self._progress[job_id]
            self._progress[job_id] = 100
            self._came_further.pop(job_id, None)
        self._has_changed = True

    def take_progress(self, job_id: str, progress: int | None) -> None:
        """News of how far a job is."""
        further = (progress or 0) - self._progress[job_id]
        if further > 0:
            self._progress[job_id] += further
            self._open_progress += further
            self._came_further[job_id] = None
            self._has_changed = True

    def snapshot(self) -> BatchEvent:
        """How it stands, with all of its jobs."""
        return self._event("batch.snapshot", self._status)

    def news(self) -> BatchEvent:
        """How it stands, with the jobs that came further since this was last told."""
        further, self._came_further, self._has_changed = self._came_further, {}, False
        return self._event("batch.progress", further)

    def end(self) -> BatchEvent:
        """The terminal event, once the last job has ended."""
        return self._event(BATCH_ENDS[self.state.status], ())

    def _event(self, kind: BatchEventType, job_ids: Iterable[str]) -> BatchEvent:
        state = self.state
        return BatchEvent(
            type=kind,
            batch_id=self._batch.id,
            status=state.status,
            is_terminal=state.is_terminal,
            counts=dict(self._counts),
            total=self._batch.total,
            progress=self.progress,
            jobs=[
                {
                    "job_id": job_id,
                    "status": self._status[job_id],
                    "progress": self._progress[job_id],
                    "version": self._version[job_id],
                }
                for job_id in job_ids
            ],
            at=datetime.now(UTC),
        )
