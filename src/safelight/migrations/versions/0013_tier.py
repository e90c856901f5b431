"""Tier: a job knows the tier it was submitted with, for the lines of its log"""

import sqlalchemy as sa
from alembic import op

revision = "0013_tier"
down_revision = "0012_pictures"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Of jobs that are there already nobody knows it: it stays null."""
    op.add_column("jobs", sa.Column("tier", sa.String(length=40), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("jobs", recreate="never") as batch:
        batch.drop_column("tier")
