"""An artifact: the record of a stored file that a job made."""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, TypedDict

from sqlalchemy import BigInteger, Column, Integer, Row, String, Table, Text, select

from safelight.db import Instant, Json, RowId, Tx, metadata

artifacts = Table(
    "artifacts",
    metadata,
    Column("id", RowId, primary_key=True),
    Column("job_id", RowId, nullable=False, index=True),
    Column("attempt", Integer, nullable=False),
    Column("position", Integer, nullable=False),
    Column("owner_id", Text, nullable=False),
    Column("kind", String(20), nullable=False),
    Column("storage_key", Text, nullable=False),
    Column("content_type", String(100), nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("width", Integer, nullable=False),
    Column("height", Integer, nullable=False),
    Column("thumbhash", String(100), nullable=False),
    Column("seed", BigInteger, nullable=True),
    Column("thumbnails", Json, nullable=False),
    Column("created_at", Instant, nullable=False),
)


class Thumbnail(TypedDict):
    """A stored WebP thumbnail, as it stands in the row.

    `width` is its name (256 or 512), `pixel_width` what it really has: a small picture's thumbnails are no larger than
    itself, and may be one and the same file.
    """

    width: int
    storage_key: str
    size_bytes: int
    pixel_width: int
    pixel_height: int


@dataclass(frozen=True, slots=True)
class Artifact:
    """One stored result of a job. `position` is its place in the batch, from 0; sizes are pixels and bytes."""

    id: str
    job_id: str
    attempt: int
    position: int
    owner_id: str
    kind: str
    storage_key: str
    content_type: str
    size_bytes: int
    sha256: str
    width: int
    height: int
    thumbhash: str
    seed: int | None
    thumbnails: list[Thumbnail]
    created_at: datetime


COLUMNS = tuple(field.name for field in fields(Artifact))


def insert(tx: Tx, stored: Iterable[Artifact]) -> None:
    """Record stored files: the winning attempt's, in the transaction that completes the job."""
    rows = [_as_row(artifact) for artifact in stored]
    if rows:
        tx.execute(artifacts.insert(), rows)


def get(tx: Tx, artifact_id: str) -> Artifact | None:
    """The artifact of this id."""
    row = tx.execute(select(artifacts).where(artifacts.c.id == artifact_id)).one_or_none()
    return None if row is None else _from_row(row)


def of_jobs(tx: Tx, job_ids: Iterable[str]) -> dict[str, list[Artifact]]:
    """The artifacts of each of these jobs in batch order; a job without any has an empty list."""
    found: dict[str, list[Artifact]] = {job_id: [] for job_id in job_ids}
    if found:
        statement = select(artifacts).where(artifacts.c.job_id.in_(found))
        for row in tx.execute(statement.order_by(artifacts.c.job_id, artifacts.c.attempt, artifacts.c.position)):
            artifact = _from_row(row)
            found[artifact.job_id].append(artifact)
    return found


def recorded_attempts(tx: Tx, job_ids: Iterable[str]) -> set[tuple[str, int]]:
    """The attempts of these jobs whose files are recorded, as (job id, attempt)."""
    statement = select(artifacts.c.job_id, artifacts.c.attempt).where(artifacts.c.job_id.in_(list(job_ids)))
    return {(row.job_id, row.attempt) for row in tx.execute(statement.distinct())}


def _as_row(artifact: Artifact) -> dict[str, Any]:
    return {name: getattr(artifact, name) for name in COLUMNS}


def _from_row(row: Row[Any]) -> Artifact:
    return Artifact(*(getattr(row, name) for name in COLUMNS))
