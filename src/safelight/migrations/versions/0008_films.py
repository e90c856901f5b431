"""Films: videos and sounds are artifacts too"""

import sqlalchemy as sa
from alembic import op

from safelight.db import Json

revision = "0008_films"
down_revision = "0007_workflows"
branch_labels = None
depends_on = None

SHOWN = (("width", sa.Integer()), ("height", sa.Integer()), ("thumbhash", sa.String(length=100)))
COLUMNS = (("duration_seconds", sa.Float()), ("details", Json))
INDEXES = {
    "ix_artifacts_leftover": ("deleted_at", "deleted_at IS NOT NULL AND storage_key <> ''"),
    "ix_artifacts_buried": ("deleted_at", "deleted_at IS NOT NULL AND storage_key = ''"),
    "ix_artifacts_keep_until": ("keep_until", "keep_until IS NOT NULL AND deleted_at IS NULL"),
}


def upgrade() -> None:
    for name, kind in COLUMNS:
        op.add_column("artifacts", sa.Column(name, kind, nullable=True))
    _let_be_null(True)
    op.execute("UPDATE artifacts SET width = NULL, height = NULL, thumbhash = NULL WHERE kind = 'audio' AND width = 0")


def downgrade() -> None:
    """Sounds stay, as pictures without a size; what is known of files beside is forgotten."""
    op.execute("UPDATE artifacts SET width = 0, height = 0, thumbhash = '' WHERE width IS NULL")
    _let_be_null(False)
    for name, _ in COLUMNS:
        with op.batch_alter_table("artifacts", recreate="never") as batch:
            batch.drop_column(name)


def _let_be_null(nullable: bool) -> None:
    """SQLite makes the table anew for that, and with it only the indexes that it can read back whole."""
    for name in INDEXES:
        op.drop_index(name, "artifacts")
    with op.batch_alter_table("artifacts") as batch:
        for name, kind in SHOWN:
            batch.alter_column(name, existing_type=kind, nullable=nullable)
    for name, (column, condition) in INDEXES.items():
        where = sa.text(condition)
        op.create_index(name, "artifacts", [column], sqlite_where=where, postgresql_where=where)
