"""Workflow templates that users keep: a name, and the definition behind it, which belong to one owner.

What a definition says is not known here: the door lets the provider's own check pass it before it is stored. A job
bears the definition it was submitted with, so that nothing done here changes a job that was accepted.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Column, ColumnElement, Row, String, Table, and_, delete, func, select, update

from safelight.db import Instant, Json, Tx, db_now, metadata
from safelight.errors import SafelightError

MAX_TEMPLATES = 100  # of one owner


class TemplateNotFound(SafelightError):
    """There is no template of this name."""

    kind = "not_found"
    code = "template_not_found"


class TemplateExists(SafelightError):
    """You have a template of this name already."""

    kind = "conflict"
    code = "template_exists"


class TooManyTemplates(SafelightError):
    """You have as many templates as you may."""

    kind = "conflict"
    code = "too_many_templates"


@dataclass(frozen=True, slots=True)
class StoredTemplate:
    """An owner's template."""

    owner_id: str
    name: str
    definition: dict[str, Any]
    created_at: datetime
    updated_at: datetime

    @classmethod
    def of(cls, row: Row[*tuple[Any, ...]]) -> "StoredTemplate":
        """From a row of all columns of the table, in order."""
        return cls(*row)


workflow_templates = Table(
    "workflow_templates",
    metadata,
    Column("owner_id", String(200), primary_key=True),
    Column("name", String(64), primary_key=True),
    Column("definition", Json, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("updated_at", Instant, nullable=False),
)


def add(
    tx: Tx, owner_id: str, name: str, definition: Mapping[str, Any]
) -> StoredTemplate | TemplateExists | TooManyTemplates:
    """Keep a new template."""
    mine = select(func.count()).where(workflow_templates.c.owner_id == owner_id)
    if tx.execute(mine).scalar_one() >= MAX_TEMPLATES:
        return TooManyTemplates(f"You have {MAX_TEMPLATES} templates, which is as many as you may; delete one first.")
    fresh = tx.insert_if_free(workflow_templates).values(
        owner_id=owner_id, name=name, definition=dict(definition), created_at=db_now(), updated_at=db_now()
    )
    row = tx.execute(fresh.returning(*workflow_templates.c)).one_or_none()
    if row is None:
        return TemplateExists(f"You have a template {name} already; PUT it to replace it.")
    return StoredTemplate.of(row)


def put(
    tx: Tx, owner_id: str, name: str, definition: Mapping[str, Any]
) -> tuple[StoredTemplate, bool] | TooManyTemplates:
    """Replace a template, or keep a new one; and whether it is new."""
    change = update(workflow_templates).where(_is(owner_id, name)).returning(*workflow_templates.c)
    while True:
        row = tx.execute(change.values(definition=dict(definition), updated_at=db_now())).one_or_none()
        if row is not None:
            return StoredTemplate.of(row), False
        added = add(tx, owner_id, name, definition)
        if isinstance(added, TooManyTemplates):
            return added
        if isinstance(added, StoredTemplate):
            return added, True
        # PostgreSQL: it was added between the two statements.


def remove(tx: Tx, owner_id: str, name: str) -> bool:
    """Forget a template; whether there was one."""
    return tx.execute(delete(workflow_templates).where(_is(owner_id, name))).rowcount == 1


def get(tx: Tx, owner_id: str, name: str) -> StoredTemplate | None:
    """A template of this owner; another's does not exist for them."""
    row = tx.execute(select(*workflow_templates.c).where(_is(owner_id, name))).one_or_none()
    return None if row is None else StoredTemplate.of(row)


def list_all(tx: Tx, owner_id: str) -> Iterator[StoredTemplate]:
    """The templates of this owner, by name, one after the other: all at once are large."""
    mine = select(*workflow_templates.c).where(workflow_templates.c.owner_id == owner_id)
    return map(StoredTemplate.of, tx.execute(mine.order_by(workflow_templates.c.name)))


def _is(owner_id: str, name: str) -> ColumnElement[bool]:
    return and_(workflow_templates.c.owner_id == owner_id, workflow_templates.c.name == name)
