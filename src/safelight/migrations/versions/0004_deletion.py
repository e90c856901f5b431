"""Deletion and retention: tombstones, and until when a job is kept"""

import sqlalchemy as sa
from alembic import op

from safelight.db import Instant

revision = "0004_deletion"
down_revision = "0003_accounts"
branch_labels = None
depends_on = None

# Lists read one owner's living jobs, newest first: the tombstones of those who deleted much stay out of their way.
LISTS = {
    "ix_jobs_owner": ("owner_id", "id"),
    "ix_jobs_owner_status": ("owner_id", "status", "id"),
}
LISTS_BY = {"ix_jobs_chapter": "chapter_id", "ix_jobs_character": "character_id", "ix_jobs_project": "project_id"}
EARLIER = {"ix_jobs_scene": ("chapter_id", "scene_number", "id"), "ix_jobs_character": ("character_id", "id")}


def upgrade() -> None:
    op.add_column("jobs", sa.Column("keep_until", Instant(), nullable=True))
    op.add_column("jobs", sa.Column("deleted_at", Instant(), nullable=True))
    op.add_column("artifacts", sa.Column("deleted_at", Instant(), nullable=True))
    for name in (*LISTS, *EARLIER):
        op.drop_index(name, "jobs")
    for name, columns in LISTS.items():
        _partial(name, "jobs", columns, "deleted_at IS NULL")
    for name, column in LISTS_BY.items():
        _partial(name, "jobs", ("owner_id", column, "id"), f"deleted_at IS NULL AND {column} IS NOT NULL")
    _partial("ix_jobs_keep_until", "jobs", ("keep_until",), "keep_until IS NOT NULL AND deleted_at IS NULL")
    _partial("ix_artifacts_leftover", "artifacts", ("deleted_at",), "deleted_at IS NOT NULL AND storage_key <> ''")


def downgrade() -> None:
    """What was deleted must not come back as an empty job: tombstones go. Their files are gone or go as orphans."""
    op.execute("DELETE FROM artifacts WHERE deleted_at IS NOT NULL")
    op.execute("DELETE FROM jobs WHERE deleted_at IS NOT NULL")
    op.drop_index("ix_artifacts_leftover", "artifacts")
    for name in ("ix_jobs_keep_until", *LISTS, *LISTS_BY):
        op.drop_index(name, "jobs")
    # Without making the tables anew, which would lose what SQLAlchemy cannot read back of indexes.
    for table, column in (("artifacts", "deleted_at"), ("jobs", "deleted_at"), ("jobs", "keep_until")):
        with op.batch_alter_table(table, recreate="never") as batch:
            batch.drop_column(column)
    for name, columns in LISTS.items():
        op.create_index(name, "jobs", list(columns))
    for name, columns in EARLIER.items():
        _partial(name, "jobs", columns, f"{columns[0]} IS NOT NULL")


def _partial(name: str, table: str, columns: tuple[str, ...], where: str) -> None:
    op.create_index(name, table, list(columns), sqlite_where=sa.text(where), postgresql_where=sa.text(where))
