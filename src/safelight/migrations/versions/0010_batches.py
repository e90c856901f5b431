"""Batches: jobs accepted together, and how far each had come before its present attempt"""

import sqlalchemy as sa
from alembic import op

from safelight.db import Instant, Json, RowId

revision = "0010_batches"
down_revision = "0009_templates"
branch_labels = None
depends_on = None

MEMBERS = sa.text("batch_id IS NOT NULL")


def upgrade() -> None:
    op.create_table(
        "batches",
        sa.Column("id", RowId, nullable=False),
        sa.Column("owner_id", sa.String(length=200), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=True),
        sa.Column("metadata", Json, nullable=False),
        sa.Column("origin_batch_id", RowId, nullable=True),
        sa.Column("total", sa.Integer(), nullable=False),
        sa.Column("created_at", Instant(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_batches")),
    )
    op.create_index("ix_batches_owner", "batches", ["owner_id", "id"])
    op.add_column("jobs", sa.Column("progress_reached", sa.Integer(), nullable=True))
    op.create_index(
        "ix_jobs_batch", "jobs", ["owner_id", "batch_id", "id"], sqlite_where=MEMBERS, postgresql_where=MEMBERS
    )
    op.execute("ALTER TABLE idempotency_keys RENAME COLUMN job_id TO made_id")


def downgrade() -> None:
    """The jobs of a batch stay, each for itself."""
    op.execute("ALTER TABLE idempotency_keys RENAME COLUMN made_id TO job_id")
    op.drop_index("ix_jobs_batch", "jobs")
    with op.batch_alter_table("jobs", recreate="never") as batch:
        batch.drop_column("progress_reached")
    op.drop_table("batches")
