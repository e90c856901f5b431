"""Unreachable: since when a provider cannot be reached and why, and the jobs that wait for one"""

import sqlalchemy as sa
from alembic import op

from safelight.db import Instant

revision = "0014_unreachable"
down_revision = "0013_tier"
branch_labels = None
depends_on = None

COLUMNS = (("unreachable_since", Instant()), ("unreachable_reason", sa.Text()))
WHERE = sa.text("status = 'pending' AND hinted_at IS NULL AND blocked_reason = 'provider_unreachable'")


def upgrade() -> None:
    for name, kind in COLUMNS:
        op.add_column("provider_states", sa.Column(name, kind, nullable=True))
    columns = ["provider", "run_at"]
    op.create_index("ix_jobs_out_of_reach", "jobs", columns, sqlite_where=WHERE, postgresql_where=WHERE)


def downgrade() -> None:
    """What could not be reached is a provider that failed; the next look says why its jobs wait."""
    op.drop_index("ix_jobs_out_of_reach", "jobs")
    for name, _ in COLUMNS:
        with op.batch_alter_table("provider_states", recreate="never") as batch:
            batch.drop_column(name)
