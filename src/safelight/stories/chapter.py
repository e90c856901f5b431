"""A chapter: its place in its project, a title, the script it was written from."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Column, ForeignKey, Index, Integer, String, Table, Text, bindparam, func, insert, select, update

from safelight.db import Instant, RowId, Tx, db_now, metadata
from safelight.errors import SafelightError
from safelight.stories.project import ProjectNotFound, get_project, hold_project

MAX_CHAPTERS = 1000

chapters = Table(
    "chapters",
    metadata,
    Column("id", RowId, primary_key=True),
    Column("owner_id", String(200), nullable=False),
    Column("project_id", RowId, ForeignKey("projects.id", ondelete="CASCADE"), nullable=False),
    Column("position", Integer, nullable=False),
    Column("title", String(300), nullable=False),
    Column("script", Text),
    Column("created_at", Instant, nullable=False),
    Column("updated_at", Instant, nullable=False),
)
Index("ix_chapters_project", chapters.c.project_id, chapters.c.position)


class ChapterNotFound(SafelightError):
    """There is no such chapter."""

    kind = "not_found"
    code = "chapter_not_found"


class ProjectFull(SafelightError):
    """The project has as many chapters or characters as it may."""

    kind = "conflict"
    code = "project_full"


@dataclass(frozen=True, slots=True)
class Chapter:
    """One row of `chapters`. `position` counts from 1, without gaps."""

    id: str
    owner_id: str
    project_id: str
    position: int
    title: str
    script: str | None
    created_at: datetime
    updated_at: datetime


def create_chapter(
    tx: Tx, chapter_id: str, owner_id: str, project_id: str, title: str, script: str | None
) -> Chapter | ProjectNotFound | ProjectFull:
    """A new chapter at the end of its project."""
    project = hold_project(tx, project_id, owner_id)
    if isinstance(project, ProjectNotFound):
        return project
    count = tx.execute(select(func.count()).where(chapters.c.project_id == project_id)).scalar_one()
    if count >= MAX_CHAPTERS:
        return ProjectFull(f"A project may have {MAX_CHAPTERS} chapters.")
    values = {
        "id": chapter_id,
        "owner_id": owner_id,
        "project_id": project_id,
        "position": count + 1,
        "title": title,
        "script": script,
    }
    made = insert(chapters).values(**values, created_at=db_now(), updated_at=db_now())
    return Chapter(*tx.execute(made.returning(*chapters.c)).one())


def get_chapter(tx: Tx, chapter_id: str, owner_id: str) -> Chapter | ChapterNotFound:
    """A chapter of this owner; another's does not exist for them."""
    return find_chapter(tx, chapter_id, owner_id) or ChapterNotFound(f"There is no chapter {chapter_id}.")


def find_chapter(tx: Tx, chapter_id: str, owner_id: str) -> Chapter | ChapterNotFound | None:
    """The same, telling a chapter of somebody else (`ChapterNotFound`) from an id that no chapter has (None)."""
    row = tx.execute(select(*chapters.c).where(chapters.c.id == chapter_id)).one_or_none()
    if row is None:
        return None
    chapter = Chapter(*row)
    return chapter if chapter.owner_id == owner_id else ChapterNotFound(f"There is no chapter {chapter_id}.")


def hold_chapter(tx: Tx, chapter_id: str, owner_id: str) -> Chapter | ChapterNotFound:
    """As `get_chapter`; until the end of the transaction nobody else numbers its scenes or deletes it."""
    mine = select(*chapters.c).where(chapters.c.id == chapter_id, chapters.c.owner_id == owner_id)
    row = tx.execute(mine.with_for_update()).one_or_none()
    return ChapterNotFound(f"There is no chapter {chapter_id}.") if row is None else Chapter(*row)


def list_chapters(
    tx: Tx, project_id: str, owner_id: str, after_position: int, limit: int
) -> list[Chapter] | ProjectNotFound:
    """In their order."""
    project = get_project(tx, project_id, owner_id)
    if isinstance(project, ProjectNotFound):
        return project
    query = select(*chapters.c).where(chapters.c.project_id == project_id, chapters.c.position > after_position)
    return [Chapter(*row) for row in tx.execute(query.order_by(chapters.c.position).limit(limit))]


def change_chapter(
    tx: Tx, chapter_id: str, owner_id: str, changes: Mapping[str, Any], position: int | None
) -> Chapter | ChapterNotFound:
    """Set title or script, and move it to a position (beyond the last: to the end); the others make room."""
    chapter = get_chapter(tx, chapter_id, owner_id)
    if isinstance(chapter, ChapterNotFound):
        return chapter
    if position is not None:
        _move(tx, chapter, position)
    changed = update(chapters).where(chapters.c.id == chapter_id).values(**changes, updated_at=db_now())
    row = tx.execute(changed.returning(*chapters.c)).one_or_none()
    return ChapterNotFound(f"There is no chapter {chapter_id}.") if row is None else Chapter(*row)


def close_gap(tx: Tx, chapter: Chapter) -> None:
    """A chapter is gone: those after it move up. The project is held."""
    later = update(chapters).where(chapters.c.project_id == chapter.project_id, chapters.c.position > chapter.position)
    tx.execute(later.values(position=chapters.c.position - 1))


def _move(tx: Tx, chapter: Chapter, position: int) -> None:
    hold_project(tx, chapter.project_id, chapter.owner_id)
    query = select(chapters.c.id, chapters.c.position).where(chapters.c.project_id == chapter.project_id)
    stood: dict[str, int] = {row[0]: row[1] for row in tx.execute(query.order_by(chapters.c.position))}
    order = [chapter_id for chapter_id in stood if chapter_id != chapter.id]
    order.insert(position - 1, chapter.id)
    moved = [
        {"b_id": chapter_id, "b_position": place}
        for place, chapter_id in enumerate(order, 1)
        if stood.get(chapter_id) != place
    ]
    if moved:
        to = update(chapters).where(chapters.c.id == bindparam("b_id")).values(position=bindparam("b_position"))
        tx.execute(to, moved)
