"""Templates: those of users, and with each job the definition it was submitted with"""

import sqlalchemy as sa
from alembic import op

from safelight.db import Instant, Json

revision = "0009_templates"
down_revision = "0008_films"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "workflow_templates",
        sa.Column("owner_id", sa.String(length=200), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("definition", Json, nullable=False),
        sa.Column("created_at", Instant(), nullable=False),
        sa.Column("updated_at", Instant(), nullable=False),
        sa.PrimaryKeyConstraint("owner_id", "name", name=op.f("pk_workflow_templates")),
    )
    op.add_column("jobs", sa.Column("template_definition", Json, nullable=True))


def downgrade() -> None:
    """Jobs that wait with a template of a user's are left with its name alone, which nobody knows any more."""
    with op.batch_alter_table("jobs", recreate="never") as batch:
        batch.drop_column("template_definition")
    op.drop_table("workflow_templates")
