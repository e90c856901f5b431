"""A scene: its number in its chapter, what it shows, who is in it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import (
    Column,
    ForeignKey,
    Index,
    Integer,
    String,
    Table,
    Text,
    bindparam,
    delete,
    insert,
    select,
    text,
    update,
)

from safelight.db import Instant, RowId, Tx, db_now, metadata
from safelight.errors import FieldError, SafelightError
from safelight.jobs import renumber_scenes
from safelight.stories.chapter import Chapter, ChapterNotFound, get_chapter, hold_chapter
from safelight.stories.character import characters
from safelight.stories.picture import Pictures, ShownPicture, columns

MAX_SCENES = 1000  # what one batch takes
MAX_SCENE_NUMBER = 1_000_000

scenes = Table(
    "scenes",
    metadata,
    Column("id", RowId, primary_key=True),
    Column("owner_id", String(200), nullable=False),
    Column("chapter_id", RowId, ForeignKey("chapters.id", ondelete="CASCADE"), nullable=False),
    Column("scene_number", Integer, nullable=False),
    Column("description", Text, nullable=False),
    *columns("image"),
    Column("image_as_of", RowId),  # the job that made what is shown, or an id of the moment when it was chosen
    Column("image_as_of_time", Instant),  # when that was asked for or chosen
    Column("image_asked_at", Instant),  # when `image_job_id` was
    *columns("media"),
    Column("created_at", Instant, nullable=False),
    Column("updated_at", Instant, nullable=False),
)
Index("ix_scenes_chapter", scenes.c.chapter_id, scenes.c.scene_number, unique=True)
_imports = text("media_job_id IS NOT NULL")
Index("ix_scenes_media_job", scenes.c.media_job_id, sqlite_where=_imports, postgresql_where=_imports)

scene_characters = Table(
    "scene_characters",
    metadata,
    Column("scene_id", RowId, ForeignKey("scenes.id", ondelete="CASCADE"), primary_key=True),
    Column("character_id", RowId, ForeignKey("characters.id", ondelete="CASCADE"), primary_key=True, index=True),
    Column("position", Integer, nullable=False),
)


class SceneNotFound(SafelightError):
    """There is no such scene."""

    kind = "not_found"
    code = "scene_not_found"


class SceneNumberTaken(SafelightError):
    """The chapter has another scene with this number."""

    kind = "conflict"
    code = "scene_number_taken"


class ChapterFull(SafelightError):
    """The chapter has as many scenes as it may."""

    kind = "conflict"
    code = "chapter_full"


class OrderIncomplete(SafelightError):
    """An order must name every scene of the chapter once."""

    kind = "invalid"
    code = "order_incomplete"


class CharactersUnknown(SafelightError):
    """A scene can have the characters of its own project."""

    kind = "invalid"
    code = "character_unknown"


@dataclass(frozen=True, slots=True)
class Scene:
    """A scene with the ids of its characters in their order, its picture, and the media imported for it."""

    id: str
    owner_id: str
    chapter_id: str
    scene_number: int
    description: str
    character_ids: Sequence[str]
    image: ShownPicture
    media: ShownPicture
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class NewScene:
    """A scene to be made; without a number it becomes the last of its chapter."""

    id: str
    owner_id: str
    chapter_id: str
    scene_number: int | None
    description: str
    character_ids: Sequence[str]


def create_scene(tx: Tx, new: NewScene) -> Scene | ChapterNotFound | SceneNumberTaken | ChapterFull | CharactersUnknown:
    """A new scene without a picture."""
    chapter = hold_chapter(tx, new.chapter_id, new.owner_id)
    if isinstance(chapter, ChapterNotFound):
        return chapter
    unknown = _unknown(tx, chapter, new.character_ids)
    if unknown is not None:
        return unknown
    numbers = set(tx.execute(select(scenes.c.scene_number).where(scenes.c.chapter_id == chapter.id)).scalars())
    if len(numbers) >= MAX_SCENES:
        return ChapterFull(f"A chapter may have {MAX_SCENES} scenes.")
    number = max(numbers, default=0) + 1 if new.scene_number is None else new.scene_number
    if number in numbers:
        return SceneNumberTaken(f"The chapter has another scene with the number {number}.")
    if number > MAX_SCENE_NUMBER:
        highest = f"The chapter has a scene with the highest number there is, {MAX_SCENE_NUMBER}"
        return SceneNumberTaken(f"{highest}: give the new one a `scene_number`, or number the scenes anew.")
    values = {
        "id": new.id,
        "owner_id": new.owner_id,
        "chapter_id": chapter.id,
        "scene_number": number,
        "description": new.description,
    }
    tx.execute(insert(scenes).values(**values, created_at=db_now(), updated_at=db_now()))
    _cast(tx, new.id, new.character_ids)
    return read_scenes(tx, scenes.c.id == new.id)[0]


def get_scene(tx: Tx, scene_id: str, owner_id: str) -> Scene | SceneNotFound:
    """A scene of this owner; another's does not exist for them."""
    found = read_scenes(tx, scenes.c.id == scene_id, scenes.c.owner_id == owner_id)
    return found[0] if found else SceneNotFound(f"There is no scene {scene_id}.")


def list_scenes(tx: Tx, chapter_id: str, owner_id: str, after_number: int, limit: int) -> list[Scene] | ChapterNotFound:
    """By number."""
    chapter = get_chapter(tx, chapter_id, owner_id)
    if isinstance(chapter, ChapterNotFound):
        return chapter
    return read_scenes(tx, scenes.c.chapter_id == chapter_id, scenes.c.scene_number > after_number, limit=limit)


def change_scene(
    tx: Tx, scene_id: str, owner_id: str, changes: Mapping[str, Any], character_ids: Sequence[str] | None
) -> Scene | SceneNotFound | SceneNumberTaken | CharactersUnknown:
    """Set number, description, characters. The jobs of a scene go with it to its new number."""
    scene = get_scene(tx, scene_id, owner_id)
    if isinstance(scene, SceneNotFound):
        return scene
    chapter = hold_chapter(tx, scene.chapter_id, owner_id)
    scene = get_scene(tx, scene_id, owner_id)
    if isinstance(chapter, ChapterNotFound) or isinstance(scene, SceneNotFound):
        return SceneNotFound(f"There is no scene {scene_id}.")
    unknown = _unknown(tx, chapter, character_ids or ())
    if unknown is not None:
        return unknown
    number: int = changes.get("scene_number", scene.scene_number)
    if number != scene.scene_number:
        same = select(scenes.c.id).where(scenes.c.chapter_id == chapter.id, scenes.c.scene_number == number)
        if tx.execute(same).one_or_none() is not None:
            return SceneNumberTaken(f"The chapter has another scene with the number {number}.")
        renumber_scenes(tx, owner_id, chapter.id, {scene.scene_number: number})
    if character_ids is not None:
        tx.execute(delete(scene_characters).where(scene_characters.c.scene_id == scene_id))
        _cast(tx, scene_id, character_ids)
    tx.execute(update(scenes).where(scenes.c.id == scene_id).values(**changes, updated_at=db_now()))
    return read_scenes(tx, scenes.c.id == scene_id)[0]


def order_scenes(
    tx: Tx, chapter_id: str, owner_id: str, scene_ids: Sequence[str]
) -> ChapterNotFound | OrderIncomplete | None:
    """Number the scenes of a chapter from 1 in this order. Their jobs go with them."""
    chapter = hold_chapter(tx, chapter_id, owner_id)
    if isinstance(chapter, ChapterNotFound):
        return chapter
    query = select(scenes.c.id, scenes.c.scene_number).where(scenes.c.chapter_id == chapter_id)
    stood: dict[str, int] = {row[0]: row[1] for row in tx.execute(query)}
    if len(scene_ids) != len(stood) or set(scene_ids) != stood.keys():
        detail = f"The order must name each of the chapter's {len(stood)} scenes once, and no other."
        return OrderIncomplete(detail, errors=[FieldError("#/scene_ids", detail)])
    moved = {scene_id: number for number, scene_id in enumerate(scene_ids, 1) if stood[scene_id] != number}
    if moved:
        # By way of numbers that no scene has: no two may have the same at any moment.
        rows = [{"b_id": scene_id, "b_number": -number} for scene_id, number in moved.items()]
        to = update(scenes).where(scenes.c.id == bindparam("b_id")).values(scene_number=bindparam("b_number"))
        tx.execute(to, rows)
        there = update(scenes).where(scenes.c.chapter_id == chapter_id, scenes.c.scene_number < 0)
        tx.execute(there.values(scene_number=-scenes.c.scene_number, updated_at=db_now()))
        renumber_scenes(tx, owner_id, chapter_id, {stood[scene_id]: number for scene_id, number in moved.items()})
    return None


def read_scenes(tx: Tx, *conditions: Any, limit: int | None = None) -> list[Scene]:
    """Those that meet the conditions, by number."""
    query = select(scenes).where(*conditions).order_by(scenes.c.scene_number).limit(limit)
    rows = tx.execute(query).mappings().all()
    pictures = Pictures(tx, rows, "image", "media")
    casts: dict[str, list[str]] = {row["id"]: [] for row in rows}
    if rows:
        query = select(scene_characters.c.scene_id, scene_characters.c.character_id)
        query = query.where(scene_characters.c.scene_id.in_(casts)).order_by(scene_characters.c.position)
        for scene_id, character_id in tx.execute(query):
            casts[scene_id].append(character_id)
    return [
        Scene(
            id=row["id"],
            owner_id=row["owner_id"],
            chapter_id=row["chapter_id"],
            scene_number=row["scene_number"],
            description=row["description"],
            character_ids=casts[row["id"]],
            image=pictures.of(row, "image"),
            media=pictures.of(row, "media"),
            created_at=row["created_at"],
            updated_at=row["updated_at"],
        )
        for row in rows
    ]


def _unknown(tx: Tx, chapter: Chapter, character_ids: Sequence[str]) -> CharactersUnknown | None:
    if not character_ids:
        return None
    query = select(characters.c.id).where(
        characters.c.id.in_(character_ids), characters.c.project_id == chapter.project_id
    )
    known = set(tx.execute(query.with_for_update(read=True)).scalars())
    errors = [
        FieldError(f"#/character_ids/{place}", f"The project has no character {character_id}.")
        for place, character_id in enumerate(character_ids)
        if character_id not in known
    ]
    return CharactersUnknown(errors[0].detail, errors=errors) if errors else None


def _cast(tx: Tx, scene_id: str, character_ids: Sequence[str]) -> None:
    rows = [
        {"scene_id": scene_id, "character_id": character_id, "position": place}
        for place, character_id in enumerate(character_ids)
    ]
    if rows:
        tx.execute(insert(scene_characters), rows)
