"""An artifact: the record of a stored file that a job made, or that somebody gave as its input."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, TypedDict

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Float,
    FromClause,
    Index,
    Insert,
    Integer,
    Row,
    String,
    Table,
    Text,
    bindparam,
    column,
    delete,
    func,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB

from safelight.db import Instant, Json, Prepared, RowId, Tx, db_now, metadata
from safelight.pictures import Credentials

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
    Column("width", Integer, nullable=True),
    Column("height", Integer, nullable=True),
    Column("thumbhash", String(100), nullable=True),
    Column("seed", BigInteger, nullable=True),
    Column("thumbnails", Json, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("deleted_at", Instant),
    Column("keep_until", Instant),
    Column("duration_seconds", Float, nullable=True),
    Column("details", Json, nullable=True),
    Column("content_credentials", String(10), nullable=True),
    Column("thumbnail_error", Text, nullable=True),
)
_leftover = text("deleted_at IS NOT NULL AND storage_key <> ''")
Index("ix_artifacts_leftover", artifacts.c.deleted_at, sqlite_where=_leftover, postgresql_where=_leftover)
_buried = text("deleted_at IS NOT NULL AND storage_key = ''")
Index("ix_artifacts_buried", artifacts.c.deleted_at, sqlite_where=_buried, postgresql_where=_buried)
_ends = text("keep_until IS NOT NULL AND deleted_at IS NULL")
Index("ix_artifacts_keep_until", artifacts.c.keep_until, sqlite_where=_ends, postgresql_where=_ends)

# Which jobs, and which characters of stories, were given which uploads: those stay for as long as one of these does.
job_inputs = Table(
    "job_inputs",
    metadata,
    Column("artifact_id", RowId, primary_key=True),
    Column("job_id", RowId, primary_key=True, index=True),
)


class Thumbnail(TypedDict):
    """A stored WebP thumbnail, as it stands in the row.

    `width` is its name: 256 or 512, and 1280 for the poster of a video. `pixel_width` is what it really has: a small
    picture's thumbnails are no larger than itself, and may be one and the same file.
    """

    width: int
    storage_key: str
    size_bytes: int
    pixel_width: int
    pixel_height: int


@dataclass(frozen=True, slots=True)
class Artifact:
    """One stored result of a job: an `image`, a `video` or an `audio`, by its kind.

    `position` is its place in the batch, from 0; sizes are pixels (as shown; none of a sound) and bytes. `details` hold
    what is known beside: codecs and such, and what its provider told of it.

    Of kind `input` it was uploaded and belongs to no job; then `keep_until` says when it may go if no job was given it.
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
    width: int | None
    height: int | None
    thumbhash: str | None
    seed: int | None
    thumbnails: list[Thumbnail]
    created_at: datetime
    deleted_at: datetime | None = None  # a tombstone; its storage key stays until the files are gone
    keep_until: datetime | None = None
    duration_seconds: float | None = None
    details: Mapping[str, Any] | None = None
    content_credentials: Credentials | None = None  # None: stored before anybody looked
    thumbnail_error: str | None = None  # why there are no thumbnails, if some should be


DAY_SECONDS = 86_400.0
PICTURES = ("image", "input")  # the kinds that a job may start from
COLUMNS = tuple(field.name for field in fields(Artifact))


_INSERT = Prepared(artifacts.insert(), columns=COLUMNS)


def insertion_for(won: FromClause) -> Insert:
    """A part of a statement (PostgreSQL): record those of `b_made`, a list of rows, that are of attempts in `won`."""
    columns = (column(name, artifacts.c[name].type) for name in COLUMNS)
    made = func.jsonb_to_recordset(bindparam("b_made", type_=JSONB)).table_valued(*columns)
    made = made.render_derived(name="made", with_types=True)
    theirs = select(*made.c).where(made.c.job_id == won.c.id, made.c.attempt == won.c.attempt)
    return artifacts.insert().from_select(list(COLUMNS), theirs)


def insert(tx: Tx, stored: Iterable[Artifact]) -> None:
    """Record stored files: the winning attempt's, in the transaction that completes the job."""
    rows = as_rows(stored)
    if rows:
        tx.run_many(_INSERT, rows)


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


def living(tx: Tx, artifact_ids: Iterable[str]) -> dict[str, Artifact]:
    """Those of these artifacts that are there, by id."""
    wanted = list(artifact_ids)
    if not wanted:
        return {}
    there = select(artifacts).where(artifacts.c.id.in_(wanted), artifacts.c.deleted_at.is_(None))
    return {artifact.id: artifact for artifact in map(_from_row, tx.execute(there))}


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


# --- uploads: kept for as long as a job needs them --------------------------------------------------------------------


def give_inputs(tx: Tx, job_id: str, owner_id: str, artifact_ids: Iterable[str]) -> set[str]:
    """Note that a new job was given these of its owner's pictures; returns those that are not there, or are none.

    For the transaction that inserts the job: from its commit on, none of them is taken for unused.
    """
    wanted = set(artifact_ids)
    there = select(artifacts.c.id).where(
        artifacts.c.id.in_(wanted),
        artifacts.c.owner_id == owner_id,
        artifacts.c.deleted_at.is_(None),
        artifacts.c.kind.in_(PICTURES),
    )
    found = set(tx.execute(there.with_for_update(read=True)).scalars()) if wanted else set[str]()
    if found:
        rows = [{"artifact_id": artifact_id, "job_id": job_id} for artifact_id in sorted(found)]
        tx.execute(job_inputs.insert(), rows)
    return wanted - found


def forget_inputs(tx: Tx, job_ids: Iterable[str]) -> None:
    """These jobs need their inputs no more."""
    tx.execute(delete(job_inputs).where(job_inputs.c.job_id.in_(list(job_ids))))


def unused_uploads(wanted: ColumnElement[bool]) -> ColumnElement[bool]:
    """The condition of an upload that is there, that no job was given, and that meets `wanted`."""
    given = select(job_inputs.c.job_id).where(job_inputs.c.artifact_id == artifacts.c.id).exists()
    return artifacts.c.job_id.is_(None) & artifacts.c.deleted_at.is_(None) & wanted & ~given


def bury_unused(tx: Tx, wanted: ColumnElement[bool], limit: int) -> list[Artifact]:
    """Make tombstones of at most so many unused uploads; what another process is using is left to it.

    Locked first and looked at again then: a job may have been given one in between.
    """
    unused = select(artifacts.c.id).where(unused_uploads(wanted)).order_by(artifacts.c.keep_until).limit(limit)
    locked = list(tx.execute(unused.with_for_update(skip_locked=True)).scalars())
    return bury(tx, artifacts.c.id.in_(locked) & unused_uploads(wanted)) if locked else []


# --- deletion: the row first, then the files; a crash between the two leaves a tombstone that still names them --------


def bury(tx: Tx, wanted: ColumnElement[bool]) -> list[Artifact]:
    """Make tombstones of the artifacts that meet the condition; returns them, with the files that are to go."""
    gone = (
        update(artifacts)
        .where(wanted, artifacts.c.deleted_at.is_(None))
        .values(
            deleted_at=db_now(), thumbhash="", sha256="", seed=None, keep_until=None, details=None, thumbnail_error=None
        )
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


def purge_tombstones(tx: Tx, days: float, limit: int) -> int:
    """Forget at most so many tombstones of so many days ago whose files are gone; returns how many."""
    bite = select(artifacts.c.id).where(_buried_before(days)).order_by(artifacts.c.deleted_at).limit(limit)
    return tx.execute(delete(artifacts).where(artifacts.c.id.in_(bite))).rowcount


def count_tombstones(tx: Tx, days: float) -> int:
    """How many tombstones `purge_tombstones` finds in all."""
    return tx.execute(select(func.count()).select_from(artifacts).where(_buried_before(days))).scalar_one()


def _buried_before(days: float) -> ColumnElement[bool]:
    is_old = artifacts.c.deleted_at < db_now(-days * DAY_SECONDS)
    return artifacts.c.deleted_at.is_not(None) & (artifacts.c.storage_key == "") & is_old


def as_rows(stored: Iterable[Artifact]) -> list[dict[str, Any]]:
    """Their rows, by the names of the columns."""
    return [{name: getattr(artifact, name) for name in COLUMNS} for artifact in stored]


def _from_row(row: Row[Any]) -> Artifact:
    return Artifact(*(getattr(row, name) for name in COLUMNS))
