"""The core: jobs, attempts, artifacts, workers, leases"""

from datetime import UTC, datetime

import sqlalchemy as sa
from alembic import op

from safelight.db import Instant, Json, RowId

revision = "0001_core"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "artifacts",
        sa.Column("id", RowId, nullable=False),
        sa.Column("job_id", RowId, nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("owner_id", sa.Text(), nullable=False),
        sa.Column("kind", sa.String(length=20), nullable=False),
        sa.Column("storage_key", sa.Text(), nullable=False),
        sa.Column("content_type", sa.String(length=100), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("width", sa.Integer(), nullable=False),
        sa.Column("height", sa.Integer(), nullable=False),
        sa.Column("thumbhash", sa.String(length=100), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=True),
        sa.Column("thumbnails", Json, nullable=False),
        sa.Column("created_at", Instant(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_artifacts")),
    )
    op.create_index(op.f("ix_artifacts_job_id"), "artifacts", ["job_id"], unique=False)

    op.create_table(
        "attempts",
        sa.Column("job_id", RowId, nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("worker_id", RowId, nullable=False),
        sa.Column("worker_name", sa.String(length=200), nullable=False),
        sa.Column("queue", sa.String(length=40), nullable=False),
        sa.Column("provider", sa.String(length=80), nullable=False),
        sa.Column("provider_job_id", sa.String(length=500), nullable=True),
        sa.Column("started_at", Instant(), nullable=False),
        sa.Column("finished_at", Instant(), nullable=True),
        sa.Column("outcome", sa.String(length=20), nullable=True),
        sa.Column("error", Json, nullable=True),
        sa.Column("started_version", sa.Integer(), nullable=False),
        sa.Column("ended_version", sa.Integer(), nullable=True),
        sa.PrimaryKeyConstraint("job_id", "number", name=op.f("pk_attempts")),
    )
    op.create_table(
        "idempotency_keys",
        sa.Column("owner_id", sa.String(length=200), nullable=False),
        sa.Column("key", sa.String(length=255), nullable=False),
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("job_id", RowId, nullable=False),
        sa.Column("created_at", Instant(), nullable=False),
        sa.PrimaryKeyConstraint("owner_id", "key", name=op.f("pk_idempotency_keys")),
    )
    op.create_index(op.f("ix_idempotency_keys_created_at"), "idempotency_keys", ["created_at"], unique=False)

    op.create_table(
        "jobs",
        sa.Column("id", RowId, nullable=False),
        sa.Column("kind", sa.String(length=40), nullable=False),
        sa.Column("owner_id", sa.String(length=200), nullable=False),
        sa.Column("status", sa.String(length=12), nullable=False),
        sa.Column("stage", sa.String(length=80), nullable=True),
        sa.Column("message", sa.Text(), nullable=True),
        sa.Column("progress", sa.Integer(), nullable=True),
        sa.Column("blocked_reason", sa.String(length=40), nullable=True),
        sa.Column("celery_task_id", RowId, nullable=False),
        sa.Column("batch_id", RowId, nullable=True),
        sa.Column("origin_job_id", RowId, nullable=True),
        sa.Column("request_id", sa.String(length=128), nullable=True),
        sa.Column("provider", sa.String(length=80), nullable=False),
        sa.Column("provider_job_id", sa.String(length=500), nullable=True),
        sa.Column("mocked", sa.Boolean(), nullable=False),
        sa.Column("prompt", sa.Text(), nullable=False),
        sa.Column("negative_prompt", sa.Text(), nullable=True),
        sa.Column("model", sa.String(length=300), nullable=True),
        sa.Column("checkpoint_model", sa.String(length=300), nullable=True),
        sa.Column("lora_models", Json, nullable=False),
        sa.Column("width", sa.Integer(), nullable=True),
        sa.Column("height", sa.Integer(), nullable=True),
        sa.Column("batch_size", sa.Integer(), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=True),
        sa.Column("sampler_params", Json, nullable=False),
        sa.Column("provider_options", Json, nullable=False),
        sa.Column("image_type", sa.String(length=80), nullable=True),
        sa.Column("project_id", sa.String(length=200), nullable=True),
        sa.Column("chapter_id", sa.String(length=200), nullable=True),
        sa.Column("script_id", sa.String(length=200), nullable=True),
        sa.Column("scene_number", sa.Integer(), nullable=True),
        sa.Column("character_id", sa.String(length=200), nullable=True),
        sa.Column("metadata", Json, nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("run_at", Instant(), nullable=False),
        sa.Column("start_deadline_at", Instant(), nullable=True),
        sa.Column("soft_limit_seconds", sa.Float(), nullable=False),
        sa.Column("hard_limit_seconds", sa.Float(), nullable=False),
        sa.Column("max_retries", sa.Integer(), nullable=False),
        sa.Column("queue", sa.String(length=40), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("retry_count", sa.Integer(), nullable=False),
        sa.Column("crash_count", sa.Integer(), nullable=False),
        sa.Column("hinted_at", Instant(), nullable=True),
        sa.Column("hint_count", sa.Integer(), nullable=False),
        sa.Column("worker_id", RowId, nullable=True),
        sa.Column("lease_until", Instant(), nullable=True),
        sa.Column("deadline_at", Instant(), nullable=True),
        sa.Column("submitting_at", Instant(), nullable=True),
        sa.Column("cancel_requested_at", Instant(), nullable=True),
        sa.Column("error", Json, nullable=True),
        sa.Column("created_at", Instant(), nullable=False),
        sa.Column("started_at", Instant(), nullable=True),
        sa.Column("finished_at", Instant(), nullable=True),
        sa.Column("updated_at", Instant(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobs")),
    )
    op.create_index(
        "ix_jobs_character",
        "jobs",
        ["character_id", "id"],
        unique=False,
        sqlite_where=sa.text("character_id IS NOT NULL"),
        postgresql_where=sa.text("character_id IS NOT NULL"),
    )
    op.create_index(
        "ix_jobs_comfyui_prompt",
        "jobs",
        ["provider_job_id"],
        unique=True,
        sqlite_where=sa.text("provider = 'comfyui'"),
        postgresql_where=sa.text("provider = 'comfyui'"),
    )
    op.create_index(
        "ix_jobs_due",
        "jobs",
        ["queue", sa.literal_column("priority DESC"), "run_at", "id"],
        unique=False,
        sqlite_where=sa.text("status = 'pending'"),
        postgresql_where=sa.text("status = 'pending'"),
    )
    op.create_index(
        "ix_jobs_lease",
        "jobs",
        ["lease_until"],
        unique=False,
        sqlite_where=sa.text("status = 'processing'"),
        postgresql_where=sa.text("status = 'processing'"),
    )
    op.create_index("ix_jobs_owner", "jobs", ["owner_id", "id"], unique=False)
    op.create_index("ix_jobs_owner_status", "jobs", ["owner_id", "status", "id"], unique=False)
    op.create_index(
        "ix_jobs_run_times",
        "jobs",
        ["provider", "model", "finished_at"],
        unique=False,
        sqlite_where=sa.text("status = 'completed'"),
        postgresql_where=sa.text("status = 'completed'"),
    )
    op.create_index(
        "ix_jobs_scene",
        "jobs",
        ["chapter_id", "scene_number", "id"],
        unique=False,
        sqlite_where=sa.text("chapter_id IS NOT NULL"),
        postgresql_where=sa.text("chapter_id IS NOT NULL"),
    )
    op.create_index(
        "ix_jobs_script",
        "jobs",
        ["script_id", "id"],
        unique=False,
        sqlite_where=sa.text("script_id IS NOT NULL"),
        postgresql_where=sa.text("script_id IS NOT NULL"),
    )
    op.create_index(
        "ix_jobs_start_deadline",
        "jobs",
        ["start_deadline_at"],
        unique=False,
        sqlite_where=sa.text("status = 'pending' AND start_deadline_at IS NOT NULL"),
        postgresql_where=sa.text("status = 'pending' AND start_deadline_at IS NOT NULL"),
    )

    op.create_table(
        "leases",
        sa.Column("name", sa.String(length=80), nullable=False),
        sa.Column("holder", RowId, nullable=False),
        sa.Column("until", Instant(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_leases")),
    )
    op.create_table(
        "workers",
        sa.Column("id", RowId, nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("queues", Json, nullable=False),
        sa.Column("slots", sa.Integer(), nullable=False),
        sa.Column("running", sa.Integer(), nullable=False),
        sa.Column("started_at", Instant(), nullable=False),
        sa.Column("seen_at", Instant(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_workers")),
    )

    lease = sa.table("leases", sa.column("name"), sa.column("holder"), sa.column("until", Instant()))
    long_ago = datetime(1970, 1, 1, tzinfo=UTC)
    op.bulk_insert(lease, [{"name": "dispatch", "holder": "00000000-0000-0000-0000-000000000000", "until": long_ago}])


def downgrade() -> None:
    for table in ("workers", "leases", "jobs", "idempotency_keys", "attempts", "artifacts"):
        op.drop_table(table)
