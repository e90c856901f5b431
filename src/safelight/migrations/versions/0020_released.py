"""Released: the moment a job was released bears that name"""

from alembic import op

revision = "0020_released"
down_revision = "0019_parameters"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Both databases change the indexes that name the column with it."""
    op.execute("ALTER TABLE jobs RENAME COLUMN hinted_at TO released_at")


def downgrade() -> None:
    """The old name."""
    op.execute("ALTER TABLE jobs RENAME COLUMN released_at TO hinted_at")
