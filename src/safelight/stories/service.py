"""What joins stories and jobs: a row follows its newest job, in the transactions that accept and settle it.

A job is of a scene if it bears the id of a chapter and a scene number, else of a character if it bears the id of one;
how it was submitted makes no difference. The newest that was asked for wins: a picture that is finished later, but was
asked for earlier, changes nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from sqlalchemy import Table, Update, and_, bindparam, delete, func, null, or_, select, update

from safelight.artifacts import artifacts, forget_inputs, get
from safelight.db import Instant, RowId, Tx, db_now
from safelight.errors import FieldError, SafelightError
from safelight.jobs import (
    Follower,
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


class _Rows:
    """What becomes of the row of a table that a job is about. Statements are built once, for they are run often."""

    def __init__(self, table: Table, *key: str) -> None:
        there = and_(*(table.c[name] == bindparam(f"b_{name}") for name in ("owner_id", *key)))
        job_id = bindparam("b_job_id", type_=RowId)
        made = select(artifacts.c.id).where(
            artifacts.c.job_id == job_id,
            artifacts.c.deleted_at.is_(None),
            artifacts.c.content_type.startswith("image/"),
        )
        asked_at = bindparam("b_asked_at", type_=Instant)
        c = table.c
        is_newest = or_(
            c.image_asked_at.is_(None),
            c.image_asked_at < asked_at,
            and_(c.image_asked_at == asked_at, c.image_job_id <= job_id),
        )
        is_later = or_(
            c.image_as_of_time.is_(None),
            c.image_as_of_time < asked_at,
            and_(c.image_as_of_time == asked_at, c.image_as_of < job_id),
        )
        asked = {"image_job_id": job_id, "image_asked_at": asked_at}
        self.hold = select(table.c.id).where(there).with_for_update()
        self.wait = (
            update(table)
            .where(there, is_newest)
            .values(**asked, image_status="pending", image_error=null(), updated_at=db_now())
        )
        first = made.order_by(artifacts.c.position).limit(1).scalar_subquery()
        self.show = (  # a job that made a video alone leaves the picture that is there
            update(table)
            .where(there, is_later)
            .values(
                image_artifact_id=func.coalesce(first, c.image_artifact_id),
                image_as_of=job_id,
                image_as_of_time=asked_at,
            )
        )
        self.end = (
            update(table)
            .where(there, is_newest)
            .values(
                **asked,
                image_status=bindparam("b_status"),
                image_error=bindparam("b_error", type_=table.c.image_error.type),
                updated_at=db_now(),
            )
        )


_SCENES, _CHARACTERS = _Rows(scenes, "chapter_id", "scene_number"), _Rows(characters, "id")


def _subject_of(job: Job | NewJob) -> tuple[_Rows, dict[str, Any]] | None:
    """The rows that a job is about, and the values of their key."""
    given: Callable[[str], Any] = job.values.get if isinstance(job, NewJob) else partial(getattr, job)
    chapter_id, scene_number, character_id = map(given, ("chapter_id", "scene_number", "character_id"))
    if scene_number is not None and chapter_id is not None:
        key = {"b_owner_id": job.owner_id, "b_chapter_id": chapter_id, "b_scene_number": scene_number}
        return (_SCENES, key) if is_story_id(chapter_id) else None
    return (_CHARACTERS, {"b_owner_id": job.owner_id, "b_id": character_id}) if is_story_id(character_id) else None


# --- what follows jobs ------------------------------------------------------------------------------------------------


class StoryFollower(Follower):
    """The rows of scenes and characters that jobs are about."""

    def concerns(self, job: Job) -> bool:
        return job.kind == IMPORT or _subject_of(job) is not None

    def awaits(self, new: NewJob) -> bool:
        return new.kind == PICTURE and _subject_of(new) is not None

    def accepted(self, tx: Tx, new: Sequence[Job]) -> None:
        """The rows that these new jobs are about wait for them."""
        waiting: dict[_Rows, list[dict[str, Any]]] = {}
        for each in new:
            subject = _subject_of(each)
            if subject is not None:
                waiting.setdefault(subject[0], []).append(subject[1] | _asked(each))
        for rows, parameters in waiting.items():
            # Two batches of the same rows wait for each other in the same order.
            tx.execute(rows.wait, sorted(parameters, key=lambda each: list(map(str, each.values()))))

    def settled(self, tx: Tx, job: Job) -> None:
        """A job ended: its row says so, and shows what it made."""
        if not job.is_terminal:
            return
        error = job.error if job.status == "failed" else None
        if job.kind == IMPORT:
            tx.execute(
                _END_MEDIA[job.status == "completed"], {"b_job_id": job.id, "b_status": job.status, "b_error": error}
            )
            return
        subject = _subject_of(job)
        if subject is None or job.kind != PICTURE:
            return
        rows, key = subject
        if job.status == "completed":
            tx.execute(rows.show, {**key, **_asked(job)})
        tx.execute(rows.end, {**key, **_asked(job), "b_status": job.status, "b_error": error})


def _asked(job: Job) -> dict[str, Any]:
    """Which job, and when it was asked for by the database's clock: ids tell the time of whoever made them."""
    return {"b_job_id": job.id, "b_asked_at": job.created_at}


def _end_media(*, is_made: bool) -> Update:
    job_id = bindparam("b_job_id", type_=RowId)
    made = select(artifacts.c.id).where(artifacts.c.job_id == job_id, artifacts.c.deleted_at.is_(None))
    first = made.order_by(artifacts.c.position).limit(1).scalar_subquery()
    ended = {
        "media_status": bindparam("b_status"),
        "media_error": bindparam("b_error", type_=scenes.c.media_error.type),
        "updated_at": db_now(),
        **({"media_artifact_id": first} if is_made else {}),
    }
    return update(scenes).where(scenes.c.media_job_id == job_id).values(ended)


_END_MEDIA = {is_made: _end_media(is_made=is_made) for is_made in (False, True)}


def submit_picture(tx: Tx, jobs: Jobs, new: NewJob) -> Submitted | SafelightError:
    """Accept a job of a scene or character, which cannot be deleted or numbered anew in between."""
    subject = _subject_of(new)
    if subject is not None and tx.execute(subject[0].hold, subject[1]).one_or_none() is None:
        return SceneNotFound() if subject[0] is _SCENES else CharacterNotFound()
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
    tx.execute(
        chosen.values(
            image_artifact_id=artifact_id, image_as_of=moment_id, image_as_of_time=db_now(), updated_at=db_now()
        )
    )
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
