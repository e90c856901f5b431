"""Stories: projects, chapters, scenes, characters; jobs by scene, and a chapter's pictures"""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from alembic import op

from safelight.db import Instant, Json, RowId

revision = "0011_stories"
down_revision = "0010_batches"
branch_labels = None
depends_on = None

LIVING = "deleted_at IS NULL AND chapter_id IS NOT NULL"


def _own(*columns: sa.Column[Any]) -> list[sa.Column[Any]]:
    """What every table of stories has."""
    return [
        sa.Column("id", RowId, nullable=False),
        sa.Column("owner_id", sa.String(length=200), nullable=False),
        *columns,
        sa.Column("created_at", Instant(), nullable=False),
        sa.Column("updated_at", Instant(), nullable=False),
    ]


def _picture(name: str) -> list[sa.Column[Any]]:
    return [
        sa.Column(f"{name}_status", sa.String(length=12), nullable=True),
        sa.Column(f"{name}_job_id", RowId, nullable=True),
        sa.Column(f"{name}_artifact_id", RowId, nullable=True),
        sa.Column(f"{name}_error", Json, nullable=True),
    ]


def _make(name: str, columns: Sequence[sa.Column[Any]], **parents: str) -> None:
    op.create_table(
        name,
        *columns,
        sa.PrimaryKeyConstraint("id", name=op.f(f"pk_{name}")),
        *(
            sa.ForeignKeyConstraint([column], [f"{parent}.id"], ondelete="CASCADE")
            for column, parent in parents.items()
        ),
    )


def upgrade() -> None:
    _make("projects", _own(sa.Column("title", sa.String(length=300), nullable=False), _text("style")))
    _make(
        "chapters",
        _own(
            sa.Column("project_id", RowId, nullable=False),
            sa.Column("position", sa.Integer(), nullable=False),
            sa.Column("title", sa.String(length=300), nullable=False),
            sa.Column("script", sa.Text(), nullable=True),
        ),
        project_id="projects",
    )
    _make(
        "characters",
        _own(
            sa.Column("project_id", RowId, nullable=False),
            sa.Column("name", sa.String(length=200), nullable=False),
            _text("description"),
            *_picture("image"),
            sa.Column("image_as_of", RowId, nullable=True),
            sa.Column("reference_artifact_id", RowId, nullable=True),
        ),
        project_id="projects",
    )
    _make(
        "scenes",
        _own(
            sa.Column("chapter_id", RowId, nullable=False),
            sa.Column("scene_number", sa.Integer(), nullable=False),
            _text("description"),
            *_picture("image"),
            sa.Column("image_as_of", RowId, nullable=True),
            *_picture("media"),
        ),
        chapter_id="chapters",
    )
    op.create_table(
        "scene_characters",
        sa.Column("scene_id", RowId, nullable=False),
        sa.Column("character_id", RowId, nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("scene_id", "character_id", name=op.f("pk_scene_characters")),
        sa.ForeignKeyConstraint(["scene_id"], ["scenes.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["character_id"], ["characters.id"], ondelete="CASCADE"),
    )
    op.create_index("ix_projects_owner", "projects", ["owner_id", "id"])
    op.create_index("ix_chapters_project", "chapters", ["project_id", "position"])
    op.create_index("ix_characters_project", "characters", ["project_id", "id"])
    op.create_index("ix_scenes_chapter", "scenes", ["chapter_id", "scene_number"], unique=True)
    op.create_index("ix_scene_characters_character_id", "scene_characters", ["character_id"])
    _partial("ix_scenes_media_job", "scenes", ("media_job_id",), "media_job_id IS NOT NULL")
    _partial(
        "ix_jobs_scene",
        "jobs",
        ("owner_id", "chapter_id", "scene_number", "id"),
        f"{LIVING} AND scene_number IS NOT NULL",
    )
    _partial(
        "ix_jobs_chapter_pictures",
        "jobs",
        ("owner_id", "chapter_id", "kind", "id"),
        f"status = 'completed' AND {LIVING}",
    )


def downgrade() -> None:
    """Stories go; their jobs and pictures stay."""
    for name in ("ix_jobs_chapter_pictures", "ix_jobs_scene"):
        op.drop_index(name, "jobs")
    for name in ("scene_characters", "scenes", "characters", "chapters", "projects"):
        op.drop_table(name)


def _text(name: str) -> sa.Column[Any]:
    return sa.Column(name, sa.Text(), nullable=False)


def _partial(name: str, table: str, columns: tuple[str, ...], where: str) -> None:
    op.create_index(name, table, list(columns), sqlite_where=sa.text(where), postgresql_where=sa.text(where))
