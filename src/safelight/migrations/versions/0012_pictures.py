"""Pictures: whether a file carries content credentials, and why it has no thumbnails"""

import sqlalchemy as sa
from alembic import op

revision = "0012_pictures"
down_revision = "0011_stories"
branch_labels = None
depends_on = None

COLUMNS = (("content_credentials", sa.String(length=10)), ("thumbnail_error", sa.Text()))


def upgrade() -> None:
    """Of files that are there already nobody knows it: both stay null."""
    for name, kind in COLUMNS:
        op.add_column("artifacts", sa.Column(name, kind, nullable=True))


def downgrade() -> None:
    """What is known of files beside is forgotten; an artifact without thumbnails stays one."""
    for name, _ in COLUMNS:
        with op.batch_alter_table("artifacts", recreate="never") as batch:
            batch.drop_column(name)
