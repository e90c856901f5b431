"""Workers: a lease belongs to a worker, not to each of the jobs it runs"""

import sqlalchemy as sa
from alembic import op

from safelight.db import Instant

revision = "0018_workers"
down_revision = "0017_newest"
branch_labels = None
depends_on = None

PROCESSING = "status = 'processing'"
INDEXES = (
    ("ix_jobs_worker", "worker_id", PROCESSING),
    ("ix_jobs_cancel", "worker_id", f"{PROCESSING} AND cancel_requested_at IS NOT NULL"),
    ("ix_jobs_deadline", "deadline_at", PROCESSING),
)


def upgrade() -> None:
    """Workers of the version before keep what they run as long as they had it for."""
    op.add_column("workers", sa.Column("lease_until", Instant(), nullable=True))
    op.execute(
        "UPDATE workers SET lease_until = coalesce((SELECT max(jobs.lease_until) FROM jobs "
        "WHERE jobs.status = 'processing' AND jobs.worker_id = workers.id), seen_at)"
    )
    with op.batch_alter_table("workers") as batch:
        batch.alter_column("lease_until", existing_type=Instant(), nullable=False)
    op.drop_index("ix_jobs_lease", "jobs")
    _drop_column("jobs")
    for index in INDEXES:
        _partial(*index)


def downgrade() -> None:
    """Likewise; what has no worker is lost."""
    for name, _, _ in INDEXES:
        op.drop_index(name, "jobs")
    op.add_column("jobs", sa.Column("lease_until", Instant(), nullable=True))
    op.execute(
        "UPDATE jobs SET lease_until = coalesce((SELECT workers.lease_until FROM workers "
        "WHERE workers.id = jobs.worker_id), started_at) WHERE status = 'processing'"
    )
    _partial("ix_jobs_lease", "lease_until", PROCESSING)
    _drop_column("workers")


def _drop_column(table: str) -> None:
    with op.batch_alter_table(table, recreate="never") as batch:
        batch.drop_column("lease_until")


def _partial(name: str, column: str, where: str) -> None:
    op.create_index(name, "jobs", [column], sqlite_where=sa.text(where), postgresql_where=sa.text(where))
