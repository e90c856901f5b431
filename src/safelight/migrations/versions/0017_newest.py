"""Newest: lists, and the pictures of scenes and characters, go by the database's clock"""

import sqlalchemy as sa
from alembic import op

from safelight.db import Instant, RowId, moment_of

revision = "0017_newest"
down_revision = "0016_estimates"
branch_labels = None
depends_on = None

TABLES = ("scenes", "characters")
COLUMNS = ("image_as_of_time", "image_asked_at")
LIVING = "deleted_at IS NULL"
OF_CHAPTER = f"{LIVING} AND chapter_id IS NOT NULL"
INDEXES = (
    ("ix_jobs_owner", ("owner_id",), LIVING),
    ("ix_jobs_owner_status", ("owner_id", "status"), LIVING),
    ("ix_jobs_chapter", ("owner_id", "chapter_id"), OF_CHAPTER),
    ("ix_jobs_scene", ("owner_id", "chapter_id", "scene_number"), f"{OF_CHAPTER} AND scene_number IS NOT NULL"),
    ("ix_jobs_chapter_pictures", ("owner_id", "chapter_id", "kind"), f"status = 'completed' AND {OF_CHAPTER}"),
    ("ix_jobs_character", ("owner_id", "character_id"), f"{LIVING} AND character_id IS NOT NULL"),
    ("ix_jobs_project", ("owner_id", "project_id"), f"{LIVING} AND project_id IS NOT NULL"),
)

jobs = sa.table("jobs", sa.column("id", RowId), sa.column("created_at", Instant))


def upgrade() -> None:
    """What a scene shows, and its newest job, are dated by that job; a choice by its id, which was made for that."""
    _index("created_at", "id")
    for name in TABLES:
        for column in COLUMNS:
            op.add_column(name, sa.Column(column, Instant(), nullable=True))
        columns = [sa.column("id", RowId), sa.column("image_as_of", RowId), sa.column("image_job_id", RowId)]
        table = sa.table(name, *columns, *(sa.column(column, Instant) for column in COLUMNS))
        for column, of in zip(COLUMNS, ("image_as_of", "image_job_id"), strict=True):
            asked_at = sa.select(jobs.c.created_at).where(jobs.c.id == table.c[of]).scalar_subquery()
            op.execute(table.update().where(table.c[of].is_not(None)).values({column: asked_at}))
            undated = sa.select(table.c.id, table.c[of]).where(table.c[of].is_not(None), table.c[column].is_(None))
            for row_id, made_as in op.get_bind().execute(undated).all():
                op.execute(table.update().where(table.c.id == row_id).values({column: moment_of(made_as)}))


def downgrade() -> None:
    """Ids tell again what is newest."""
    _index("id")
    for name in TABLES:
        for column in COLUMNS:
            with op.batch_alter_table(name, recreate="never") as batch:
                batch.drop_column(column)


def _index(*order: str) -> None:
    for name, columns, where in INDEXES:
        op.drop_index(name, "jobs")
        condition = sa.text(where)
        op.create_index(name, "jobs", [*columns, *order], sqlite_where=condition, postgresql_where=condition)
