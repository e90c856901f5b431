"""A character: a name, a look, a portrait, and a picture that portraits are drawn from."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Column, ForeignKey, Index, String, Table, Text, func, insert, select, update

from safelight.artifacts import Artifact, forget_inputs, give_inputs, living
from safelight.db import Instant, RowId, Tx, db_now, metadata
from safelight.errors import FieldError, SafelightError
from safelight.stories.chapter import ProjectFull
from safelight.stories.picture import Pictures, ShownPicture, columns
from safelight.stories.project import ProjectNotFound, get_project, hold_project

MAX_CHARACTERS = 1000

characters = Table(
    "characters",
    metadata,
    Column("id", RowId, primary_key=True),
    Column("owner_id", String(200), nullable=False),
    Column("project_id", RowId, ForeignKey("projects.id", ondelete="CASCADE"), nullable=False),
    Column("name", String(200), nullable=False),
    Column("description", Text, nullable=False),
    *columns("image"),
    Column("image_as_of", RowId),  # as of scenes
    Column("image_as_of_time", Instant),  # when that was asked for or chosen
    Column("image_asked_at", Instant),  # when `image_job_id` was
    Column("reference_artifact_id", RowId),
    Column("created_at", Instant, nullable=False),
    Column("updated_at", Instant, nullable=False),
)
Index("ix_characters_project", characters.c.project_id, characters.c.id)


class CharacterNotFound(SafelightError):
    """There is no such character."""

    kind = "not_found"
    code = "character_not_found"


class ReferenceMissing(SafelightError):
    """There is no such picture to draw from."""

    kind = "invalid"
    code = "reference_unknown"


@dataclass(frozen=True, slots=True)
class Character:
    """A character with its portrait and its reference picture."""

    id: str
    owner_id: str
    project_id: str
    name: str
    description: str
    image: ShownPicture
    reference: Artifact | None
    created_at: datetime
    updated_at: datetime


def create_character(
    tx: Tx, character_id: str, owner_id: str, project_id: str, name: str, description: str
) -> Character | ProjectNotFound | ProjectFull:
    """A new character without a portrait."""
    project = hold_project(tx, project_id, owner_id)
    if isinstance(project, ProjectNotFound):
        return project
    if tx.execute(select(func.count()).where(characters.c.project_id == project_id)).scalar_one() >= MAX_CHARACTERS:
        return ProjectFull(f"A project may have {MAX_CHARACTERS} characters.")
    values = {
        "id": character_id,
        "owner_id": owner_id,
        "project_id": project_id,
        "name": name,
        "description": description,
    }
    tx.execute(insert(characters).values(**values, created_at=db_now(), updated_at=db_now()))
    return read_characters(tx, characters.c.id == character_id)[0]


def get_character(tx: Tx, character_id: str, owner_id: str) -> Character | CharacterNotFound:
    """A character of this owner; another's does not exist for them."""
    found = read_characters(tx, characters.c.id == character_id, characters.c.owner_id == owner_id)
    return found[0] if found else CharacterNotFound(f"There is no character {character_id}.")


def list_characters(
    tx: Tx, project_id: str, owner_id: str, after_id: str | None, limit: int
) -> list[Character] | ProjectNotFound:
    """In the order in which they were made."""
    project = get_project(tx, project_id, owner_id)
    if isinstance(project, ProjectNotFound):
        return project
    later = [] if after_id is None else [characters.c.id > after_id]
    return read_characters(tx, characters.c.project_id == project_id, *later, limit=limit)


def change_character(
    tx: Tx, character_id: str, owner_id: str, changes: Mapping[str, Any]
) -> Character | CharacterNotFound:
    """Set name or description; pictures that are there stay as they are."""
    mine = update(characters).where(characters.c.id == character_id, characters.c.owner_id == owner_id)
    tx.execute(mine.values(**changes, updated_at=db_now()))
    return get_character(tx, character_id, owner_id)


def set_reference(
    tx: Tx, character_id: str, owner_id: str, artifact_id: str | None
) -> Character | CharacterNotFound | ReferenceMissing:
    """Draw portraits from this picture of the owner's from now on, or from none.

    An upload is kept for as long as the character needs it; what a job made is kept as long as its job.
    """
    mine = select(characters.c.id).where(characters.c.id == character_id, characters.c.owner_id == owner_id)
    if tx.execute(mine.with_for_update()).one_or_none() is None:
        return CharacterNotFound(f"There is no character {character_id}.")
    if artifact_id is not None:
        artifact = living(tx, [artifact_id]).get(artifact_id)
        if artifact is None or artifact.owner_id != owner_id or not artifact.content_type.startswith("image/"):
            return _missing(artifact_id)
    forget_inputs(tx, [character_id])
    if artifact_id is not None and give_inputs(tx, character_id, owner_id, [artifact_id]):
        raise _missing(artifact_id)  # it went this very moment
    set_it = update(characters).where(characters.c.id == character_id)
    tx.execute(set_it.values(reference_artifact_id=artifact_id, updated_at=db_now()))
    return get_character(tx, character_id, owner_id)


def _missing(artifact_id: str) -> ReferenceMissing:
    detail = f"There is no picture {artifact_id} of yours."
    return ReferenceMissing(detail, errors=[FieldError("#/artifact_id", detail)])


def read_characters(tx: Tx, *conditions: Any, limit: int | None = None) -> list[Character]:
    """Those that meet the conditions, in the order in which they were made."""
    rows = tx.execute(select(characters).where(*conditions).order_by(characters.c.id).limit(limit)).mappings().all()
    pictures = Pictures(tx, rows, "image", besides=[row["reference_artifact_id"] for row in rows])
    return [
        Character(
            id=row["id"],
            owner_id=row["owner_id"],
            project_id=row["project_id"],
            name=row["name"],
            description=row["description"],
            image=pictures.of(row, "image"),
            reference=pictures.artifact(row["reference_artifact_id"]),
            created_at=row["created_at"],
            updated_at=row["updated_at"],
        )
        for row in rows
    ]
