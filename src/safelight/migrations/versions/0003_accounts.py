"""Accounts: users, API keys, sessions; the cap of jobs at once that a job was submitted under"""

import sqlalchemy as sa
from alembic import op

from safelight.db import Instant, Json, RowId

revision = "0003_accounts"
down_revision = "0002_inputs"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "users",
        sa.Column("id", sa.String(length=200), nullable=False),
        sa.Column("issuer", sa.String(length=255), nullable=True),
        sa.Column("subject", sa.String(length=255), nullable=True),
        sa.Column("tier", sa.String(length=40), nullable=True),
        sa.Column("created_at", Instant(), nullable=False),
        sa.Column("seen_at", Instant(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_users")),
    )
    op.create_index("ix_users_subject", "users", ["issuer", "subject"], unique=True)

    op.create_table(
        "api_keys",
        sa.Column("id", RowId, nullable=False),
        sa.Column("owner_id", sa.String(length=200), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.Column("prefix", sa.String(length=20), nullable=False),
        sa.Column("scopes", Json, nullable=False),
        sa.Column("tier", sa.String(length=40), nullable=True),
        sa.Column("created_at", Instant(), nullable=False),
        sa.Column("expires_at", Instant(), nullable=True),
        sa.Column("last_used_at", Instant(), nullable=True),
        sa.Column("revoked_at", Instant(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_keys")),
    )
    op.create_index("ix_api_keys_hash", "api_keys", ["hash"], unique=True)
    op.create_index("ix_api_keys_owner", "api_keys", ["owner_id", "id"], unique=False)

    op.create_table(
        "sessions",
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.Column("owner_id", sa.String(length=200), nullable=False),
        sa.Column("key_id", RowId, nullable=True),
        sa.Column("scopes", Json, nullable=False),
        sa.Column("tier", sa.String(length=40), nullable=True),
        sa.Column("created_at", Instant(), nullable=False),
        sa.Column("expires_at", Instant(), nullable=False),
        sa.PrimaryKeyConstraint("hash", name=op.f("pk_sessions")),
    )
    op.create_index(op.f("ix_sessions_expires_at"), "sessions", ["expires_at"], unique=False)

    op.add_column("jobs", sa.Column("owner_limit", sa.Integer(), nullable=True))
    op.create_index(
        "ix_jobs_capped",
        "jobs",
        ["queue", "run_at"],
        unique=False,
        sqlite_where=sa.text("status = 'pending' AND owner_limit IS NOT NULL"),
        postgresql_where=sa.text("status = 'pending' AND owner_limit IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_index("ix_jobs_capped", "jobs")
    op.drop_column("jobs", "owner_limit")
    for table in ("sessions", "api_keys", "users"):
        op.drop_table(table)
