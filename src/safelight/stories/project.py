"""A project: a title, and the style in which all its pictures are drawn."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Column, Index, String, Table, Text, insert, select, update

from safelight.db import Instant, RowId, Tx, db_now, metadata
from safelight.errors import SafelightError

projects = Table(
    "projects",
    metadata,
    Column("id", RowId, primary_key=True),
    Column("owner_id", String(200), nullable=False),
    Column("title", String(300), nullable=False),
    Column("style", Text, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("updated_at", Instant, nullable=False),
)
Index("ix_projects_owner", projects.c.owner_id, projects.c.id)


class ProjectNotFound(SafelightError):
    """There is no such project."""

    kind = "not_found"
    code = "project_not_found"


@dataclass(frozen=True, slots=True)
class Project:
    """One row of `projects`; `style` goes into the prompt of every picture of it."""

    id: str
    owner_id: str
    title: str
    style: str
    created_at: datetime
    updated_at: datetime


def create_project(tx: Tx, project_id: str, owner_id: str, title: str, style: str) -> Project:
    """A new project without chapters and characters."""
    values = {"id": project_id, "owner_id": owner_id, "title": title, "style": style}
    made = insert(projects).values(**values, created_at=db_now(), updated_at=db_now())
    return Project(*tx.execute(made.returning(*projects.c)).one())


def get_project(tx: Tx, project_id: str, owner_id: str) -> Project | ProjectNotFound:
    """A project of this owner; another's does not exist for them."""
    row = tx.execute(select(*projects.c).where(*_is(project_id, owner_id))).one_or_none()
    return ProjectNotFound(f"There is no project {project_id}.") if row is None else Project(*row)


def list_projects(tx: Tx, owner_id: str, before_id: str | None, limit: int) -> list[Project]:
    """Newest first."""
    older = [] if before_id is None else [projects.c.id < before_id]
    query = select(*projects.c).where(projects.c.owner_id == owner_id, *older)
    return [Project(*row) for row in tx.execute(query.order_by(projects.c.id.desc()).limit(limit))]


def change_project(tx: Tx, project_id: str, owner_id: str, changes: Mapping[str, Any]) -> Project | ProjectNotFound:
    """Set title or style; pictures that are there stay as they are."""
    changed = update(projects).where(*_is(project_id, owner_id)).values(**changes, updated_at=db_now())
    row = tx.execute(changed.returning(*projects.c)).one_or_none()
    return ProjectNotFound(f"There is no project {project_id}.") if row is None else Project(*row)


def hold_project(tx: Tx, project_id: str, owner_id: str) -> Project | ProjectNotFound:
    """The same as `get_project`, and until the end of the transaction nobody else adds to it or deletes it."""
    row = tx.execute(select(*projects.c).where(*_is(project_id, owner_id)).with_for_update()).one_or_none()
    return ProjectNotFound(f"There is no project {project_id}.") if row is None else Project(*row)


def _is(project_id: str, owner_id: str) -> tuple[Any, Any]:
    return projects.c.id == project_id, projects.c.owner_id == owner_id
