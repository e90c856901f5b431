"""Workflows: templates with their inputs, graphs of the caller's own, pictures to start from"""

import sqlalchemy as sa
from alembic import op

from safelight.db import Json

revision = "0007_workflows"
down_revision = "0006_unused_inputs"
branch_labels = None
depends_on = None

COLUMNS = (("template", sa.String(length=200)), ("inputs", Json), ("workflow", Json), ("input_images", Json))


def upgrade() -> None:
    for name, kind in COLUMNS:
        op.add_column("jobs", sa.Column(name, kind, nullable=True))


def downgrade() -> None:
    """Jobs that waited with a workflow are left with their other parameters."""
    for name, _ in COLUMNS:
        with op.batch_alter_table("jobs", recreate="never") as batch:
            batch.drop_column(name)
