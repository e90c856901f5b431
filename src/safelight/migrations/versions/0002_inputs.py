"""Inputs: artifacts that were uploaded belong to no job"""

import sqlalchemy as sa
from alembic import op

from safelight.db import RowId

revision = "0002_inputs"
down_revision = "0001_core"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("artifacts") as table:
        table.alter_column("job_id", existing_type=RowId, nullable=True)


def downgrade() -> None:
    """Uploads are forgotten; their files stay and are collected as orphans by a later version."""
    artifacts = sa.table("artifacts", sa.column("job_id"))
    op.execute(artifacts.delete().where(artifacts.c.job_id.is_(None)))
    with op.batch_alter_table("artifacts") as table:
        table.alter_column("job_id", existing_type=RowId, nullable=False)
