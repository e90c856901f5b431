"""Uploads that nobody uses any more go, and so may old tombstones"""

import sqlalchemy as sa
from alembic import op

from safelight.db import Instant, RowId

revision = "0006_unused_inputs"
down_revision = "0005_availability"
branch_labels = None
depends_on = None

INDEXES = {
    "ix_artifacts_keep_until": ("artifacts", "keep_until", "keep_until IS NOT NULL AND deleted_at IS NULL"),
    "ix_artifacts_buried": ("artifacts", "deleted_at", "deleted_at IS NOT NULL AND storage_key = ''"),
    "ix_jobs_buried": ("jobs", "deleted_at", "deleted_at IS NOT NULL"),
}


def upgrade() -> None:
    op.add_column("artifacts", sa.Column("keep_until", Instant(), nullable=True))
    op.create_table(
        "job_inputs",
        sa.Column("artifact_id", RowId, nullable=False),
        sa.Column("job_id", RowId, nullable=False),
        sa.PrimaryKeyConstraint("artifact_id", "job_id", name=op.f("pk_job_inputs")),
    )
    op.create_index(op.f("ix_job_inputs_job_id"), "job_inputs", ["job_id"])
    for name, (table, column, condition) in INDEXES.items():
        where = sa.text(condition)
        op.create_index(name, table, [column], sqlite_where=where, postgresql_where=where)


def downgrade() -> None:
    for name, (table, _, _) in INDEXES.items():
        op.drop_index(name, table)
    op.drop_table("job_inputs")
    with op.batch_alter_table("artifacts", recreate="never") as batch:
        batch.drop_column("keep_until")
