"""Estimates: what a job asks for as a key, and the provider's own time for it"""

import sqlalchemy as sa
from alembic import op

revision = "0016_estimates"
down_revision = "0015_lines"
branch_labels = None
depends_on = None

COLUMNS = (("estimate_key", sa.String(length=16)), ("run_seconds", sa.Float()))
LEARNT = "status = 'completed' AND estimate_key IS NOT NULL"


def upgrade() -> None:
    """Of jobs that are there already the key is not known: they do not count."""
    for name, kind in COLUMNS:
        op.add_column("jobs", sa.Column(name, kind, nullable=True))
    op.drop_index("ix_jobs_run_times", "jobs")
    _partial("ix_jobs_run_times", ("provider", "finished_at"), LEARNT)
    _partial("ix_jobs_estimate", ("estimate_key", "finished_at"), LEARNT)


def downgrade() -> None:
    for name in ("ix_jobs_estimate", "ix_jobs_run_times"):
        op.drop_index(name, "jobs")
    _partial("ix_jobs_run_times", ("provider", "model", "finished_at"), "status = 'completed'")
    for name, _ in COLUMNS:
        with op.batch_alter_table("jobs", recreate="never") as batch:
            batch.drop_column(name)


def _partial(name: str, columns: tuple[str, ...], where: str) -> None:
    op.create_index(name, "jobs", list(columns), sqlite_where=sa.text(where), postgresql_where=sa.text(where))
