"""Jobs by what they are about: a project, a chapter, a scene, a character. For the slices that keep those."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import Update, bindparam, select, update

from safelight.db import Tx, db_now
from safelight.jobs.job import TERMINAL, jobs

BITE = 500  # ids of one statement


def jobs_about(tx: Tx, owner_id: str, place: Mapping[str, str | int | None]) -> list[str]:
    """The ids of an owner's jobs that have these values in these columns, deleted ones left out."""
    there = [jobs.c[name].is_(None) if value is None else jobs.c[name] == value for name, value in place.items()]
    query = select(jobs.c.id).where(jobs.c.owner_id == owner_id, jobs.c.deleted_at.is_(None), *there)
    return list(tx.execute(query).scalars())


def open_jobs(tx: Tx, job_ids: Sequence[str]) -> list[str]:
    """Those of these that have not ended."""
    query = select(jobs.c.id).where(jobs.c.status.not_in(TERMINAL))
    return [job_id for some in _bites(job_ids) for job_id in tx.execute(query.where(jobs.c.id.in_(some))).scalars()]


def discard(tx: Tx, job_ids: Sequence[str]) -> list[str]:
    """Keep these no longer than until they have ended; returns those that have, to be deleted now."""
    due = update(jobs).where(jobs.c.deleted_at.is_(None)).values(keep_until=db_now())
    ended: list[str] = []
    for some in _bites(job_ids):
        rows = tx.execute(due.where(jobs.c.id.in_(some)).returning(jobs.c.id, jobs.c.status))
        ended += [row[0] for row in rows if row[1] in TERMINAL]
    return ended


def renumber_scenes(tx: Tx, owner_id: str, chapter_id: str, numbers: Mapping[int, int]) -> None:
    """The jobs of these scenes go with them to their new numbers, which may be other scenes' old ones."""
    # By way of numbers that no scene has, so that none is moved twice.
    rows = [{"b_old": old, "b_new": -1 - new} for old, new in numbers.items()]
    away = _of_chapter(owner_id, chapter_id).where(jobs.c.scene_number == bindparam("b_old"))
    tx.execute(away.values(scene_number=bindparam("b_new")), rows)
    there = _of_chapter(owner_id, chapter_id).where(jobs.c.scene_number < 0)
    tx.execute(there.values(scene_number=-1 - jobs.c.scene_number))


def detach_scene(tx: Tx, owner_id: str, chapter_id: str, scene_number: int) -> None:
    """The scene is gone: its jobs stay with the chapter, and another scene may have the number."""
    gone = _of_chapter(owner_id, chapter_id).where(jobs.c.scene_number == scene_number)
    tx.execute(gone.values(scene_number=None))


def _of_chapter(owner_id: str, chapter_id: str) -> Update:
    return update(jobs).where(jobs.c.owner_id == owner_id, jobs.c.chapter_id == chapter_id, jobs.c.deleted_at.is_(None))


def _bites(job_ids: Sequence[str]) -> Iterator[Sequence[Any]]:
    return (job_ids[start : start + BITE] for start in range(0, len(job_ids), BITE))
