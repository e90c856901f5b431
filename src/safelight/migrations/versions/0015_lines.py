"""Lines: jobs that wait stand in lines by owner, and dispatch publishes how it stands"""

from typing import Any

import sqlalchemy as sa
from alembic import op

from safelight.db import Instant, Json

revision = "0015_lines"
down_revision = "0014_unreachable"
branch_labels = None
depends_on = None

WAITING = "status = 'pending' AND hinted_at IS NULL"
OLD_LINE = (
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
    """What is due stands in its line at once; the rest comes there when its time has come."""
    op.add_column("leases", sa.Column("published", Json, nullable=True))
    op.add_column("jobs", sa.Column("line_at", Instant(), nullable=True))
    op.add_column("jobs", sa.Column("queued_at", Instant(), nullable=True))
    is_postgresql = op.get_bind().dialect.name == "postgresql"
    minutes = "interval '1 minute'" if is_postgresql else "60000000"
    now = "now()" if is_postgresql else "CAST((julianday('now') - 2440587.5) * 86400000.0 AS INTEGER) * 1000"
    op.execute("UPDATE jobs SET queued_at = run_at")
    op.execute(
        f"UPDATE jobs SET line_at = run_at - priority * {minutes} "  # noqa: S608 - ours
        f"WHERE status = 'pending' AND run_at <= {now}"
    )
    for name in ("ix_jobs_waiting", "ix_jobs_out_of_reach", "ix_jobs_routed"):
        op.drop_index(name, "jobs")
    _drop_columns("jobs", "blocked_reason", "blocked_until")
    _partial(
        "ix_jobs_line",
        ("queue", "provider", "owner_id", "line_at", "id"),
        f"{WAITING} AND line_at IS NOT NULL",
    )
    _partial("ix_jobs_scheduled", ("run_at",), "status = 'pending' AND line_at IS NULL")
    _partial("ix_jobs_waiting", ("provider", "queued_at"), WAITING)
    _partial("ix_jobs_routed", ("provider", "id"), f"{WAITING} AND route IS NOT NULL")


def downgrade() -> None:
    """Reasons to wait are found out again by the next round of dispatch."""
    for name in ("ix_jobs_waiting", "ix_jobs_routed", "ix_jobs_scheduled", "ix_jobs_line"):
        op.drop_index(name, "jobs")
    _drop_columns("jobs", "line_at", "queued_at")
    _drop_columns("leases", "published")
    op.add_column("jobs", sa.Column("blocked_reason", sa.String(length=40), nullable=True))
    op.add_column("jobs", sa.Column("blocked_until", Instant(), nullable=True))
    _partial("ix_jobs_waiting", OLD_LINE, WAITING)
    _partial("ix_jobs_out_of_reach", ("provider", "run_at"), f"{WAITING} AND blocked_reason = 'provider_unreachable'")
    _partial("ix_jobs_routed", ("provider",), f"{WAITING} AND route IS NOT NULL")


def _drop_columns(table: str, *names: str) -> None:
    # Without making the table anew, which would lose what SQLAlchemy cannot read back of indexes.
    for name in names:
        with op.batch_alter_table(table, recreate="never") as batch:
            batch.drop_column(name)


def _partial(name: str, columns: tuple[Any, ...], where: str) -> None:
    op.create_index(name, "jobs", list(columns), sqlite_where=sa.text(where), postgresql_where=sa.text(where))
