"""What joins stories and jobs: a row follows its newest job, in the transactions that accept and settle it.

A job is of a scene if it bears the id of a chapter and a scene number, else of a character if it bears the id of one;
how it was submitted makes no difference. The newest that was asked for wins: a picture that is finished later, but was
asked for earlier, changes nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from sqlalchemy import ColumnElement, Table, and_, delete, or_, select, update

from safelight.artifacts import artifacts, forget_inputs, get
from safelight.db import Tx, db_now
from safelight.errors import FieldError, SafelightError
from safelight.jobs import (
    Job,
    Jobs,
    NewBatch,
    NewJob,
    Submitted,
    SubmittedBatch,
    detach_scene,
    discard,
    jobs_about,
    open_jobs,
)
from safelight.stories.chapter import ChapterNotFound, chapters, close_gap, hold_chapter
from safelight.stories.character import Character, CharacterNotFound, characters, get_character
from safelight.stories.project import ProjectNotFound, hold_project, projects
from safelight.stories.scene import Scene, SceneNotFound, get_scene, scenes
from safelight.stories.subject import is_story_id, undrawn_scenes

PICTURE, IMPORT = "image.generate", "media.import"


class NotItsPicture(SafelightError):
    """This is no picture of it."""

    kind = "invalid"
    code = "not_its_picture"


class NothingToDraw(SafelightError):
    """Every scene of the chapter has a picture, or a job that draws one."""

    kind = "conflict"
    code = "nothing_to_draw"


@dataclass(frozen=True, slots=True)
class _Subject:
    """What a job is about: the rows of a table that have these values."""

    table: Table
    values: tuple[tuple[str, Any], ...]

    @property
    def condition(self) -> ColumnElement[bool]:
        return and_(*(self.table.c[name] == value for name, value in self.values))


def _subject_of(
    owner_id: str, chapter_id: str | None, scene_number: int | None, character_id: str | None
) -> _Subject | None:
    if scene_number is not None and chapter_id is not None:
        values = (("chapter_id", chapter_id), ("scene_number", scene_number), ("owner_id", owner_id))
        return _Subject(scenes, values) if is_story_id(chapter_id) else None
    return _Subject(characters, (("id", character_id), ("owner_id", owner_id))) if is_story_id(character_id) else None


# --- what follows jobs ------------------------------------------------------------------------------------------------


def on_accepted(tx: Tx, accepted: Sequence[Job]) -> None:
    """The rows that these new jobs are about wait for them."""
    newest: dict[_Subject, str] = {}
    for job in accepted:
        if job.kind != PICTURE:
            continue
        subject = _subject_of(job.owner_id, job.chapter_id, job.scene_number, job.character_id)
        if subject is not None:
            newest[subject] = max(job.id, newest.get(subject, ""))
    for subject in sorted(newest, key=str):  # two batches of the same chapter wait for each other in the same order
        table, job_id = subject.table, newest[subject]
        waits = update(table).where(subject.condition, _is_newest(table, table.c.image_job_id < job_id))
        tx.execute(waits.values(image_job_id=job_id, image_status="pending", image_error=None, updated_at=db_now()))


def on_settled(tx: Tx, job: Job) -> None:
    """A job ended: its row says so, and shows what it made."""
    if not job.is_terminal:
        return
    if job.kind == IMPORT:
        _end(tx, scenes, "media", scenes.c.media_job_id == job.id, job)
        return
    subject = _subject_of(job.owner_id, job.chapter_id, job.scene_number, job.character_id)
    if subject is None or job.kind != PICTURE:
        return
    table = subject.table
    if job.status == "completed":
        shown = update(table).where(subject.condition, or_(table.c.image_as_of.is_(None), table.c.image_as_of < job.id))
        tx.execute(shown.values(image_artifact_id=_first_of(job), image_as_of=job.id))
    _end(tx, table, "image", and_(subject.condition, _is_newest(table, table.c.image_job_id <= job.id)), job)


def _end(tx: Tx, table: Table, name: Literal["image", "media"], condition: ColumnElement[bool], job: Job) -> None:
    values: dict[str, Any] = {
        f"{name}_job_id": job.id,
        f"{name}_status": job.status,
        f"{name}_error": job.error if job.status == "failed" else None,
        "updated_at": db_now(),
    }
    if name == "media" and job.status == "completed":
        values["media_artifact_id"] = _first_of(job)
    tx.execute(update(table).where(condition).values(values))


def _is_newest(table: Table, is_older: ColumnElement[bool]) -> ColumnElement[bool]:
    return or_(table.c.image_job_id.is_(None), is_older)


def _first_of(job: Job) -> Any:
    made = select(artifacts.c.id).where(artifacts.c.job_id == job.id, artifacts.c.deleted_at.is_(None))
    return made.order_by(artifacts.c.position).limit(1).scalar_subquery()


def submit_picture(tx: Tx, jobs: Jobs, new: NewJob) -> Submitted | SafelightError:
    """Accept a job of a scene or character, which cannot be deleted or numbered anew in between."""
    values = new.values
    subject = _subject_of(new.owner_id, values["chapter_id"], values["scene_number"], values["character_id"])
    if subject is not None:
        there = select(subject.table.c.id).where(subject.condition).with_for_update()
        if tx.execute(there).one_or_none() is None:
            return SceneNotFound() if subject.table is scenes else CharacterNotFound()
    [outcome] = jobs.submit(tx, [new])
    return outcome


def submit_missing(tx: Tx, jobs: Jobs, chapter_id: str, new: NewBatch) -> SubmittedBatch | SafelightError:
    """Accept the jobs of those scenes that still show no picture and have no job under way.

    Raises `NothingToDraw`, so that nothing stays of the batch, if there are none.
    """
    chapter = hold_chapter(tx, chapter_id, new.owner_id)
    if isinstance(chapter, ChapterNotFound):
        return chapter
    missing = undrawn_scenes(tx, chapter_id, new.owner_id)
    if isinstance(missing, ChapterNotFound):
        return missing
    numbers = {drawn.scene.scene_number for drawn in missing}
    still = [each for each in new.jobs if each.values["scene_number"] in numbers]
    outcome = jobs.submit_batch(tx, replace(new, jobs=still))
    if isinstance(outcome, SubmittedBatch) and not outcome.job_ids:
        raise NothingToDraw
    return outcome


def expect_media(tx: Tx, scene_id: str, owner_id: str, job_id: str) -> SceneNotFound | None:
    """A media import for this scene was accepted in this transaction: its row follows that job from now on."""
    mine = update(scenes).where(scenes.c.id == scene_id, scenes.c.owner_id == owner_id)
    waits = mine.values(media_job_id=job_id, media_status="pending", media_error=None, updated_at=db_now())
    return None if tx.execute(waits).rowcount else SceneNotFound(f"There is no scene {scene_id}.")


# --- choosing ---------------------------------------------------------------------------------------------------------


def choose_scene_image(
    tx: Tx, scene_id: str, owner_id: str, artifact_id: str, moment_id: str
) -> Scene | SceneNotFound | NotItsPicture:
    """Show another of its pictures. `moment_id` is a fresh id: what was asked for before it replaces nothing."""
    scene = get_scene(tx, scene_id, owner_id)
    if isinstance(scene, SceneNotFound):
        return scene
    place = {"chapter_id": scene.chapter_id, "scene_number": scene.scene_number}
    wrong = _choose(tx, scenes, scene_id, owner_id, artifact_id, moment_id, place)
    return wrong or get_scene(tx, scene_id, owner_id)


def choose_portrait(
    tx: Tx, character_id: str, owner_id: str, artifact_id: str, moment_id: str
) -> Character | CharacterNotFound | NotItsPicture:
    """The same for a character."""
    character = get_character(tx, character_id, owner_id)
    if isinstance(character, CharacterNotFound):
        return character
    place = {"character_id": character_id}
    wrong = _choose(tx, characters, character_id, owner_id, artifact_id, moment_id, place)
    return wrong or get_character(tx, character_id, owner_id)


def _choose(
    tx: Tx, table: Table, row_id: str, owner_id: str, artifact_id: str, moment_id: str, place: dict[str, Any]
) -> NotItsPicture | None:
    artifact = get(tx, artifact_id)
    made = (
        []
        if artifact is None or artifact.job_id is None
        else jobs_about(tx, owner_id, {"id": artifact.job_id, **place})
    )
    if (
        artifact is None
        or not made
        or artifact.deleted_at is not None
        or not artifact.content_type.startswith("image/")
    ):
        detail = f"It has no picture {artifact_id}; those it has are listed under its images."
        return NotItsPicture(detail, errors=[FieldError("#/artifact_id", detail)])
    chosen = update(table).where(table.c.id == row_id)
    tx.execute(chosen.values(image_artifact_id=artifact_id, image_as_of=moment_id, updated_at=db_now()))
    return None


# --- deleting ---------------------------------------------------------------------------------------------------------
#
# Each returns the ids of the ended jobs that are to be deleted with their pictures: the rows go in this transaction,
# the pictures in bites after it. Jobs that have not ended are cancelled, and go when they have.


def delete_project(
    tx: Tx, jobs: Jobs, project_id: str, owner_id: str, *, with_images: bool
) -> list[str] | ProjectNotFound:
    """Delete a project with its chapters, scenes and characters."""
    project = hold_project(tx, project_id, owner_id)
    if isinstance(project, ProjectNotFound):
        return project
    found = set(jobs_about(tx, owner_id, {"project_id": project_id}))
    for chapter_id in tx.execute(select(chapters.c.id).where(chapters.c.project_id == project_id)).scalars().all():
        found |= _jobs_of_chapter(tx, owner_id, chapter_id)
    cast = tx.execute(select(characters.c.id).where(characters.c.project_id == project_id)).scalars().all()
    for character_id in cast:
        found |= _jobs_of_character(tx, owner_id, character_id)
    forget_inputs(tx, cast)
    tx.execute(delete(projects).where(projects.c.id == project_id))
    return _end_jobs(tx, jobs, owner_id, found, with_images=with_images)


def delete_chapter(
    tx: Tx, jobs: Jobs, chapter_id: str, owner_id: str, *, with_images: bool
) -> list[str] | ChapterNotFound:
    """Delete a chapter with its scenes."""
    chapter = hold_chapter(tx, chapter_id, owner_id)
    if isinstance(chapter, ChapterNotFound):
        return chapter
    found = _jobs_of_chapter(tx, owner_id, chapter_id)
    tx.execute(delete(chapters).where(chapters.c.id == chapter_id))
    close_gap(tx, chapter)
    return _end_jobs(tx, jobs, owner_id, found, with_images=with_images)


def delete_scene(tx: Tx, jobs: Jobs, scene_id: str, owner_id: str, *, with_images: bool) -> list[str] | SceneNotFound:
    """Delete a scene. What is kept of it stays with its chapter, without a number: that may be another scene's soon."""
    mine = delete(scenes).where(scenes.c.id == scene_id, scenes.c.owner_id == owner_id)
    row = tx.execute(mine.returning(scenes.c.chapter_id, scenes.c.scene_number, scenes.c.media_job_id)).one_or_none()
    if row is None:
        return SceneNotFound(f"There is no scene {scene_id}.")
    found = set(jobs_about(tx, owner_id, {"chapter_id": row.chapter_id, "scene_number": row.scene_number}))
    media = set() if row.media_job_id is None else set(jobs_about(tx, owner_id, {"id": row.media_job_id}))
    ended = _end_jobs(tx, jobs, owner_id, found | media, with_images=with_images)
    detach_scene(tx, owner_id, row.chapter_id, row.scene_number)
    return ended


def delete_character(
    tx: Tx, jobs: Jobs, character_id: str, owner_id: str, *, with_images: bool
) -> list[str] | CharacterNotFound:
    """Delete a character; it is in no scene any more."""
    mine = delete(characters).where(characters.c.id == character_id, characters.c.owner_id == owner_id)
    if tx.execute(mine).rowcount == 0:
        return CharacterNotFound(f"There is no character {character_id}.")
    forget_inputs(tx, [character_id])
    found = _jobs_of_character(tx, owner_id, character_id)
    return _end_jobs(tx, jobs, owner_id, found, with_images=with_images)


def _jobs_of_chapter(tx: Tx, owner_id: str, chapter_id: str) -> set[str]:
    of_media = select(scenes.c.media_job_id).where(
        scenes.c.chapter_id == chapter_id, scenes.c.media_job_id.is_not(None)
    )
    imports = set(tx.execute(of_media).scalars())
    return set(jobs_about(tx, owner_id, {"chapter_id": chapter_id})) | imports


def _jobs_of_character(tx: Tx, owner_id: str, character_id: str) -> set[str]:
    """Its portraits: a picture of a scene that it is in is the scene's."""
    return set(jobs_about(tx, owner_id, {"character_id": character_id, "scene_number": None}))


def _end_jobs(tx: Tx, jobs: Jobs, owner_id: str, found: set[str], *, with_images: bool) -> list[str]:
    ids = sorted(found)
    for job_id in open_jobs(tx, ids):
        jobs.cancel(tx, job_id, owner_id)
    return discard(tx, ids) if with_images else []
