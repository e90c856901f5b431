"""How the picture of a scene or a character stands: the columns, and what is read from them.

A row names its newest job, how that ended or that it is open, and the picture it shows. What an open job is doing
stands in the job alone, whether the picture is still there in its artifact alone: both are looked up, so a row cannot
go on telling of a picture that was deleted.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Column, RowMapping, String, select

from safelight.artifacts import Artifact, living
from safelight.db import Json, RowId, Tx
from safelight.jobs import Status
from safelight.jobs.job import jobs

OPEN: tuple[Status, ...] = ("pending", "processing")


@dataclass(frozen=True, slots=True)
class ShownPicture:
    """`status` and `job_id` are the newest job's, `error` why it failed; `artifact` is what is shown now.

    Without a status nothing was asked for, or what was made is deleted.
    """

    status: Status | None
    job_id: str | None
    artifact: Artifact | None
    error: dict[str, Any] | None

    @property
    def is_missing(self) -> bool:
        """Nothing is shown, and nothing is under way."""
        return self.artifact is None and self.status not in OPEN


def columns(name: str) -> list[Column[Any]]:
    """Of a table whose rows have a picture of this name."""
    return [
        Column(f"{name}_status", String(12)),
        Column(f"{name}_job_id", RowId),
        Column(f"{name}_artifact_id", RowId),
        Column(f"{name}_error", Json),
    ]


class Pictures:
    """The pictures of these names that some rows have, looked up together; and other artifacts beside them."""

    def __init__(self, tx: Tx, rows: Sequence[RowMapping], *names: str, besides: Iterable[str | None] = ()) -> None:
        shown: set[str | None] = {row[f"{name}_artifact_id"] for row in rows for name in names} | set(besides)
        self._artifacts = living(tx, [artifact_id for artifact_id in shown if artifact_id is not None])
        going_on = {row[f"{name}_job_id"] for row in rows for name in names if row[f"{name}_status"] in OPEN}
        self._statuses: dict[str, Status] = {}
        if going_on:
            query = select(jobs.c.id, jobs.c.status).where(jobs.c.id.in_(going_on))
            self._statuses = {row[0]: row[1] for row in tx.execute(query)}

    def artifact(self, artifact_id: str | None) -> Artifact | None:
        return self._artifacts.get(artifact_id or "")

    def of(self, row: RowMapping, name: str) -> ShownPicture:
        artifact = self.artifact(row[f"{name}_artifact_id"])
        job_id: str | None = row[f"{name}_job_id"]
        status: Status | None = row[f"{name}_status"]
        if job_id is not None:
            status = self._statuses.get(job_id) or status
        if status == "completed" and artifact is None:
            status = None
        return ShownPicture(status, job_id, artifact, row[f"{name}_error"])
