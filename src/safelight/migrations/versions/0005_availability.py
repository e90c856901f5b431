"""Availability: pauses and breakers of providers, routes of jobs, and one index for all that waits"""

from typing import Any

import sqlalchemy as sa
from alembic import op

from safelight.db import Instant, Json, RowId

revision = "0005_availability"
down_revision = "0004_deletion"
branch_labels = None
depends_on = None

WAITING = "status = 'pending' AND hinted_at IS NULL"
COLUMNS = (("route", Json), ("skips", Json), ("blocked_until", Instant()))
LINE = (
    "queue",
    sa.literal_column("priority DESC"),
    "run_at",
    "id",
    "provider",
    "owner_id",
    "owner_limit",
    "blocked_reason",
    "blocked_until",
)


def upgrade() -> None:
    op.create_table(
        "provider_states",
        sa.Column("provider", sa.String(length=80), nullable=False),
        sa.Column("paused_until", Instant(), nullable=True),
        sa.Column("pause_reason", sa.Text(), nullable=True),
        sa.Column("breaker", sa.String(length=10), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("opened_at", Instant(), nullable=True),
        sa.Column("retry_at", Instant(), nullable=True),
        sa.Column("probe_job_id", RowId, nullable=True),
        sa.Column("updated_at", Instant(), nullable=False),
        sa.PrimaryKeyConstraint("provider", name=op.f("pk_provider_states")),
    )
    for name, kind in COLUMNS:
        op.add_column("jobs", sa.Column(name, kind, nullable=True))
    for name in ("ix_jobs_due", "ix_jobs_capped"):
        op.drop_index(name, "jobs")
    _partial("ix_jobs_waiting", LINE, WAITING)
    _partial("ix_jobs_released", ("queue", "hinted_at"), "status = 'pending' AND hinted_at IS NOT NULL")
    _partial("ix_jobs_routed", ("provider",), f"{WAITING} AND route IS NOT NULL")


def downgrade() -> None:
    """Pauses, breakers and ways on are forgotten: each job stays with the provider it has."""
    for name in ("ix_jobs_routed", "ix_jobs_released", "ix_jobs_waiting"):
        op.drop_index(name, "jobs")
    # Without making the table anew, which would lose what SQLAlchemy cannot read back of indexes.
    for name, _ in COLUMNS:
        with op.batch_alter_table("jobs", recreate="never") as batch:
            batch.drop_column(name)
    _partial("ix_jobs_due", ("queue", sa.literal_column("priority DESC"), "run_at", "id"), "status = 'pending'")
    _partial("ix_jobs_capped", ("queue", "run_at"), "status = 'pending' AND owner_limit IS NOT NULL")
    op.drop_table("provider_states")


def _partial(name: str, columns: tuple[Any, ...], where: str) -> None:
    op.create_index(name, "jobs", list(columns), sqlite_where=sa.text(where), postgresql_where=sa.text(where))
