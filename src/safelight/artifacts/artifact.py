"""An artifact: the record of a stored file that a job made, or that somebody gave as its input."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, TypedDict

from sqlalchemy import BigInteger, Column, ColumnElement, Index, Integer, Row, String, Table, Text, select, text, update

from safelight.db import Instant, Json, RowId, Tx, db_now, metadata

artifacts = Table(
    "artifacts",
    metadata,
    Column("id", RowId, primary_key=True),
    Column("job_id", RowId, nullable=True, index=True),
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
    Column("deleted_at", Instant),
)
_leftover = text("deleted_at IS NOT NULL AND storage_key <> ''")
Index("ix_artifacts_leftover", artifacts.c.deleted_at, sqlite_where=_leftover, postgresql_where=_leftover)


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
    """One stored result of a job. `position` is its place in the batch, from 0; sizes are pixels and bytes.

    Of kind `input` it was uploaded and belongs to no job.
    """

    id: str
    job_id: str | None
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
    deleted_at: datetime | None = None  # a tombstone; its storage key stays until the files are gone


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
        statement = select(artifacts).where(artifacts.c.job_id.in_(found), artifacts.c.deleted_at.is_(None))
        for row in tx.execute(statement.order_by(artifacts.c.job_id, artifacts.c.attempt, artifacts.c.position)):
            found[row.job_id].append(_from_row(row))
    return found


def recorded_attempts(tx: Tx, job_ids: Iterable[str]) -> set[tuple[str, int]]:
    """The attempts of these jobs whose files are recorded, as (job id, attempt). A tombstone records no file."""
    statement = select(artifacts.c.job_id, artifacts.c.attempt).where(
        artifacts.c.job_id.in_(list(job_ids)), artifacts.c.deleted_at.is_(None)
    )
    return {(row.job_id, row.attempt) for row in tx.execute(statement.distinct())}


def recorded_uploads(tx: Tx, artifact_ids: Iterable[str]) -> set[str]:
    """Which of these uploads are recorded."""
    statement = select(artifacts.c.id).where(
        artifacts.c.id.in_(list(artifact_ids)), artifacts.c.job_id.is_(None), artifacts.c.deleted_at.is_(None)
    )
    return {row.id for row in tx.execute(statement)}


def known_files(
    tx: Tx, job_ids: Iterable[str], upload_ids: Iterable[str]
) -> Mapping[str, tuple[str, str | None, int | None]]:
    """Content type, SHA-256 and size by storage key, of everything these jobs and uploads recorded.

    Of thumbnails no hash is recorded.
    """
    of_these = artifacts.c.job_id.in_(list(job_ids)) | artifacts.c.id.in_(list(upload_ids))
    found: dict[str, tuple[str, str | None, int | None]] = {}
    for artifact in map(_from_row, tx.execute(select(artifacts).where(of_these, artifacts.c.deleted_at.is_(None)))):
        found[artifact.storage_key] = (artifact.content_type, artifact.sha256, artifact.size_bytes)
        for thumbnail in artifact.thumbnails:
            found[thumbnail["storage_key"]] = ("image/webp", None, thumbnail["size_bytes"])
    return found


# --- deletion: the row first, then the files; a crash between the two leaves a tombstone that still names them --------


def bury(tx: Tx, wanted: ColumnElement[bool]) -> list[Artifact]:
    """Make tombstones of the artifacts that meet the condition; returns them, with the files that are to go."""
    gone = (
        update(artifacts)
        .where(wanted, artifacts.c.deleted_at.is_(None))
        .values(deleted_at=db_now(), thumbhash="", sha256="", seed=None)
        .returning(*artifacts.c)
    )
    return [_from_row(row) for row in tx.execute(gone)]


def forget_files(tx: Tx, artifact_ids: Iterable[str]) -> None:
    """The files of these tombstones are gone."""
    gone = update(artifacts).where(artifacts.c.id.in_(list(artifact_ids)), artifacts.c.deleted_at.is_not(None))
    tx.execute(gone.values(storage_key="", thumbnails=[]))


def leftovers(tx: Tx, limit: int) -> list[Artifact]:
    """Tombstones whose files are still there: their deletion was interrupted, or the storage was away."""
    statement = select(artifacts).where(artifacts.c.deleted_at.is_not(None), artifacts.c.storage_key != "")
    return [_from_row(row) for row in tx.execute(statement.order_by(artifacts.c.deleted_at).limit(limit))]


def _as_row(artifact: Artifact) -> dict[str, Any]:
    return {name: getattr(artifact, name) for name in COLUMNS}


def _from_row(row: Row[Any]) -> Artifact:
    return Artifact(*(getattr(row, name) for name in COLUMNS))
