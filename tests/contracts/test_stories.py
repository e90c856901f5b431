"""Stories on both databases: rows that follow their jobs, whatever comes first, and what is asked of a long history."""

import asyncio
import importlib
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, text

from jobs.builders import OWNER, Desk, completed, failed, new_job, try_again
from safelight import stories
from safelight.artifacts import ArtifactStore, bury_unused, insert
from safelight.artifacts import artifacts as artifact_rows
from safelight.db import Database, Tx, db_now, new_id
from safelight.errors import SafelightError
from safelight.jobs import (
    Completed,
    Filter,
    Job,
    Jobs,
    KeepFor,
    Retention,
    Submitted,
    discard,
    find,
    jobs_about,
)
from safelight.pictures import PictureWorkers
from safelight.storage import Storage
from safelight.stories import Character, NewScene, Scene, SceneNumberTaken

pytestmark = pytest.mark.anyio


class Shelf:
    """A story on a desk: one project with one chapter."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        desk.jobs = Jobs(desk.tape, [KeepFor(lambda tx, owner: 30), stories.StoryFollower()])
        self.project = self.chapter = ""

    async def open(self) -> "Shelf":
        self.project = (await self.desk.write(stories.create_project, new_id(), OWNER, "The keeper", "ink")).id
        self.chapter = (await self.write(stories.create_chapter, new_id(), OWNER, self.project, "One", None)).id
        return self

    async def write(self, fn: Any, *args: Any) -> Any:
        outcome = await self.desk.database.write(fn, *args)
        assert not isinstance(outcome, SafelightError), outcome
        return outcome

    async def scene(self, number: int | None = None) -> Scene:
        new = NewScene(new_id(), OWNER, self.chapter, number, "dusk", ())
        return await self.write(stories.create_scene, new)

    async def character(self) -> Character:
        return await self.write(stories.create_character, new_id(), OWNER, self.project, "Ada", "tall")

    async def look(self, scene: Scene) -> Scene:
        found = await self.desk.database.read(stories.get_scene, scene.id, OWNER)
        assert isinstance(found, Scene)
        return found

    async def face(self, character: Character) -> Character:
        found = await self.desk.database.read(stories.get_character, character.id, OWNER)
        assert isinstance(found, Character)
        return found

    async def drawn(self, number: int, **values: Any) -> Job:
        """A completed job of a scene."""
        job = await self.desk.running(chapter_id=self.chapter, scene_number=number, **values)
        ended = await self.desk.settle(job, completed(job))
        assert ended is not None
        return ended


@pytest.fixture
async def shelf(desk: Desk) -> Shelf:
    return await Shelf(desk).open()


async def test_a_row_follows_its_newest_job(shelf: Shelf) -> None:
    desk, scene = shelf.desk, await shelf.scene()
    job = await desk.submit(chapter_id=shelf.chapter, scene_number=1)
    assert ((now := (await shelf.look(scene)).image).status, now.job_id) == ("pending", job.id)
    running = await desk.run(job.id)
    assert (await shelf.look(scene)).image.status == "processing"
    await desk.settle(running, try_again(running))
    assert (await shelf.look(scene)).image.status == "pending"
    running = await desk.run(job.id)
    made = completed(running)
    assert await desk.settle(running, made) is not None
    now = (await shelf.look(scene)).image
    assert (now.status, now.artifact and now.artifact.id, now.error) == ("completed", made.artifacts[0].id, None)
    assert await desk.settle(running, failed(running)) is None  # a late writer
    assert (await shelf.look(scene)).image == now
    other = await desk.running(chapter_id=shelf.chapter, scene_number=1)
    await desk.settle(other, failed(other))
    then = (await shelf.look(scene)).image
    assert (then.status, then.job_id, then.artifact) == ("failed", other.id, now.artifact)
    assert then.error is not None and then.error["code"] == "content_rejected"


async def test_whichever_portrait_ends_first_the_one_asked_for_last_is_shown(shelf: Shelf) -> None:
    desk, character = shelf.desk, await shelf.character()
    older, newer = [await desk.running(character_id=character.id) for _ in range(2)]
    best = completed(newer)
    await desk.settle(newer, best)
    shown = (await shelf.face(character)).image
    await desk.settle(older, completed(older))
    assert (await shelf.face(character)).image == shown
    assert shown.artifact is not None and shown.artifact.id == best.artifacts[0].id
    older, newer = [await desk.running(character_id=character.id) for _ in range(2)]
    await desk.settle(newer, failed(newer))
    stopgap = completed(older)
    await desk.settle(older, stopgap)
    now = (await shelf.face(character)).image
    assert (now.status, now.job_id) == ("failed", newer.id)
    assert now.artifact is not None and now.artifact.id == stopgap.artifacts[0].id


# Hosts whose clocks differ: the first to ask runs an hour ahead, so its ids are the highest for an hour.


def id_of_a_host_ahead() -> str:
    ahead = int(time.time() * 1000 + 3600_000)
    return f"{ahead >> 16:08x}-{ahead & 0xFFFF:04x}-7{new_id()[15:]}"


@pytest.mark.parametrize("ends_last", ["older", "newer"])
async def test_the_newest_is_the_newest_by_the_clock_of_the_database(shelf: Shelf, ends_last: str) -> None:
    desk, scene, character = shelf.desk, await shelf.scene(), await shelf.character()
    subjects: list[dict[str, Any]] = [
        {"chapter_id": shelf.chapter, "scene_number": 1},
        {"character_id": character.id},
    ]
    for subject in subjects:
        older = await desk.running(job_id=id_of_a_host_ahead(), **subject)
        await asyncio.sleep(0.002)  # SQLite tells milliseconds
        newer = await desk.running(**subject)
        assert newer.id < older.id and newer.created_at > older.created_at
        made = completed(newer)
        ends: list[tuple[Job, Any]] = [(older, completed(older)), (newer, made)]
        for job, end in ends if ends_last == "newer" else reversed(ends):
            assert await desk.settle(job, end) is not None
        image = (await (shelf.look(scene) if "scene_number" in subject else shelf.face(character))).image
        assert (image.job_id, image.artifact and image.artifact.id) == (newer.id, made.artifacts[0].id)
        page = await desk.database.read(find, Filter(OWNER, kind=stories.PICTURE, limit=1, **subject))
        assert [job.id for job in page.jobs] == [newer.id]


async def test_a_choice_outlives_what_a_host_ahead_asked_for_before(shelf: Shelf) -> None:
    desk, scene = shelf.desk, await shelf.scene()
    drawn = await shelf.drawn(1)
    late = await desk.running(job_id=id_of_a_host_ahead(), chapter_id=shelf.chapter, scene_number=1)
    [shown] = await desk.artifacts(drawn.id)
    await asyncio.sleep(0.002)  # as above
    await shelf.write(stories.choose_scene_image, scene.id, OWNER, shown.id, new_id())
    await desk.settle(late, completed(late))
    now = (await shelf.look(scene)).image.artifact
    assert now is not None and now.id == shown.id


async def test_pages_go_by_the_clock_of_the_database(shelf: Shelf) -> None:
    jobs: list[Job] = []
    for number in range(6):  # by turns from a host ahead, and all at three moments
        job = await shelf.desk.submit(job_id=id_of_a_host_ahead() if number % 2 else None)
        await shelf.desk.change(job.id, created_at=db_now(-100.0 + number // 2))
        jobs.append(await shelf.desk.job(job.id))
    expected = [job.id for job in sorted(jobs, key=lambda job: (job.created_at, job.id), reverse=True)]
    found: list[str] = []
    while len(found) < 6:
        wanted = Filter(OWNER, limit=2, before_id=found[-1] if found else None)
        page = await shelf.desk.database.read(find, wanted)
        found += [job.id for job in page.jobs]
        assert page.more == (len(found) < 6)
    assert found == expected
    middle = expected[2]
    await shelf.write(forget, middle)  # its tombstone is gone: the cursor still means about the same
    page = await shelf.desk.database.read(find, Filter(OWNER, before_id=expected[1]))
    assert [job.id for job in page.jobs] == expected[3:]
    assert isinstance((await shelf.desk.database.read(find, Filter(OWNER, before_id=middle))).jobs, list)


def forget(tx: Tx, job_id: str) -> None:
    tx.execute(text("DELETE FROM jobs WHERE id = :id"), {"id": job_id})


async def test_a_video_is_no_picture(shelf: Shelf) -> None:
    scene, first = await shelf.scene(), await shelf.drawn(1)
    shown = (await shelf.look(scene)).image
    assert (shown.job_id, shown.artifact is not None) == (first.id, True)
    job = await shelf.desk.running(chapter_id=shelf.chapter, scene_number=1)
    video = replace(completed(job).artifacts[0], content_type="video/mp4")
    await shelf.desk.settle(job, Completed([video]))
    now = (await shelf.look(scene)).image
    assert (now.status, now.job_id, now.artifact) == ("completed", job.id, shown.artifact)


async def test_a_scene_with_somebody_in_it_is_not_their_portrait(shelf: Shelf) -> None:
    character, _ = await shelf.character(), await shelf.scene()
    await shelf.drawn(1, character_id=character.id)
    assert (await shelf.face(character)).image.job_id is None


@pytest.mark.parametrize("chapter", ["their own", "00000000-0000-7000-8000-00000000000A"])
async def test_ids_of_callers_are_left_alone(shelf: Shelf, chapter: str) -> None:
    job = await shelf.desk.running(chapter_id=chapter, scene_number=1, character_id="ada")
    assert await shelf.desk.settle(job, completed(job)) is not None


async def test_the_order_of_scenes_takes_their_jobs_along(shelf: Shelf) -> None:
    made = [await shelf.scene(number) for number in (1, 2, 3, 7)]
    drawn = {scene.id: (await shelf.drawn(scene.scene_number)).id for scene in made}
    order = [made[3].id, made[2].id, made[0].id, made[1].id]
    assert await shelf.desk.write(stories.order_scenes, shelf.chapter, OWNER, order) is None
    for number, scene_id in enumerate(order, 1):
        place = {"chapter_id": shelf.chapter, "scene_number": number}
        assert await shelf.desk.database.read(jobs_about, OWNER, place) == [drawn[scene_id]]
    # A job that runs meanwhile ends on the scene it was of.
    running = await shelf.desk.running(chapter_id=shelf.chapter, scene_number=4)
    await shelf.write(stories.change_scene, made[1].id, OWNER, {"scene_number": 40}, None)
    await shelf.desk.settle(running, completed(running))
    assert (await shelf.look(made[1])).image.job_id == running.id


async def test_no_scene_gets_a_number_that_nobody_can_name(shelf: Shelf) -> None:
    highest = await shelf.scene(stories.MAX_SCENE_NUMBER)
    assert highest.scene_number == stories.MAX_SCENE_NUMBER
    refused = await shelf.desk.write(stories.create_scene, NewScene(new_id(), OWNER, shelf.chapter, None, "dusk", ()))
    assert isinstance(refused, SceneNumberTaken) and "`scene_number`" in refused.detail
    assert (await shelf.scene(7)).scene_number == 7


async def test_one_of_two_scenes_with_one_number(shelf: Shelf, other_database: Database) -> None:
    news = [NewScene(new_id(), OWNER, shelf.chapter, 5, "dusk", ()) for _ in range(2)]
    databases = (shelf.desk.database, other_database)
    outcomes: Sequence[Any] = await asyncio.gather(
        *(database.write(stories.create_scene, new) for database, new in zip(databases, news, strict=True))
    )
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["Scene", "SceneNumberTaken"]
    assert isinstance(await shelf.desk.write(stories.create_scene, news[0]), SceneNumberTaken)


async def test_a_job_for_a_scene_that_went_meanwhile_is_not_accepted(shelf: Shelf) -> None:
    scene = await shelf.scene()
    new = new_job(chapter_id=shelf.chapter, scene_number=1, project_id=None, character_id=None)
    wanted = replace(new, values={"script_id": None, **new.values})
    assert isinstance(await shelf.desk.write(stories.submit_picture, shelf.desk.jobs, wanted), Submitted)
    await shelf.write(delete_scene(shelf.desk.jobs, scene.id, with_images=False))
    again = replace(wanted, id=new_id())
    assert isinstance(await shelf.desk.write(stories.submit_picture, shelf.desk.jobs, again), stories.SceneNotFound)
    assert await shelf.desk.database.read(jobs_about, OWNER, {"id": again.id}) == []


def delete_scene(jobs: Jobs, scene_id: str, *, with_images: bool) -> Callable[[Tx], Any]:
    return lambda tx: stories.delete_scene(tx, jobs, scene_id, OWNER, with_images=with_images)


async def test_what_was_to_be_deleted_goes_when_it_has_ended(shelf: Shelf, tmp_path: Path) -> None:
    scene = await shelf.scene()
    done = await shelf.drawn(1)
    running = await shelf.desk.running(chapter_id=shelf.chapter, scene_number=1)
    ended = await shelf.write(delete_scene(shelf.desk.jobs, scene.id, with_images=True))
    assert ended == [done.id]
    assert (await shelf.desk.job(running.id)).cancel_requested_at is not None
    # It was stored before its worker heard of the cancel.
    assert await shelf.desk.settle(running, completed(running)) is not None
    with PictureWorkers() as workers:
        store = ArtifactStore(Storage.open((tmp_path / "files").as_uri()), workers)
        retention = Retention(shelf.desk.database, store)
        await retention.delete_jobs(ended)
        assert (await shelf.desk.job(done.id)).deleted_at is not None
        assert (await shelf.desk.job(running.id)).deleted_at is None
        await retention.tidy()
    assert (await shelf.desk.job(running.id)).deleted_at is not None
    assert await shelf.desk.artifacts(running.id) == []


async def test_discarding_leaves_what_is_deleted_alone(shelf: Shelf) -> None:
    assert await shelf.desk.write(discard, []) == []
    assert await shelf.desk.write(discard, [new_id()]) == []


async def test_media_follow_the_last_import(shelf: Shelf) -> None:
    scene = await shelf.scene()
    first, second = [await shelf.desk.running() for _ in range(2)]
    for job in (first, second):
        await shelf.desk.change(job.id, kind="media.import")
        assert await shelf.desk.write(stories.expect_media, scene.id, OWNER, job.id) is None
    assert ((now := (await shelf.look(scene)).media).status, now.job_id) == ("processing", second.id)
    await shelf.desk.settle(first, completed(first))
    assert (await shelf.look(scene)).media.job_id == second.id
    made = completed(second)
    await shelf.desk.settle(second, made)
    now = await shelf.look(scene)
    assert (now.media.status, now.media.artifact and now.media.artifact.id) == ("completed", made.artifacts[0].id)
    assert now.image.status is None
    third = await shelf.desk.running()
    await shelf.desk.change(third.id, kind="media.import")
    await shelf.desk.write(stories.expect_media, scene.id, OWNER, third.id)
    await shelf.desk.settle(third, failed(third))
    media = (await shelf.look(scene)).media
    assert (media.status, media.artifact) == ("failed", now.media.artifact)
    assert media.error is not None and media.error["code"] == "content_rejected"
    wrong = await shelf.desk.write(stories.expect_media, scene.id, "eve", third.id)
    assert isinstance(wrong, stories.SceneNotFound)


async def test_an_upload_is_kept_while_a_character_is_drawn_from_it(shelf: Shelf) -> None:
    character, job = await shelf.character(), await shelf.desk.running()
    upload = replace(completed(job).artifacts[0], job_id=None, kind="input")
    await shelf.desk.write(insert, [upload])

    async def expired() -> list[str]:
        gone = await shelf.desk.write(bury_unused, artifact_rows.c.id == upload.id, 10)
        return [artifact.id for artifact in gone]

    for _ in range(2):  # twice the same is once
        assert (await shelf.write(stories.set_reference, character.id, OWNER, upload.id)).reference == upload
    assert await expired() == []
    wrong = await shelf.desk.write(stories.set_reference, character.id, OWNER, new_id())
    assert isinstance(wrong, SafelightError)
    assert await expired() == []
    await shelf.write(stories.set_reference, character.id, OWNER, None)
    assert await expired() == [upload.id]


# --- a long history ---------------------------------------------------------------------------------------------------


async def test_look_ups_walk_one_index(shelf: Shelf) -> None:
    """A chapter of thousands of jobs, whose scene was drawn first; and one whose pictures are among failures."""
    drawn = await shelf.drawn(1)
    lots: dict[tuple[str, str], int] = {
        (shelf.chapter, "failed"): 3000,
        ("rare", "failed"): 100,
        ("rare", "completed"): 3,
    }
    for (chapter_id, status), count in lots.items():
        many = [new_job(chapter_id=chapter_id, scene_number=3 + number % 50) for number in range(count)]
        await shelf.desk.write(shelf.desk.jobs.submit, many)
        await shelf.desk.write(end_waiting, status)
    await shelf.desk.write(lambda tx: tx.execute(text("ANALYZE")))
    newest = Filter(OWNER, kind=stories.PICTURE, chapter_id=shelf.chapter, scene_number=1, limit=1)
    page, plan = await shelf.desk.database.read(explained, newest)
    assert [job.id for job in page.jobs] == [drawn.id]
    assert_walks(plan, "ix_jobs_scene")
    page, plan = await shelf.desk.database.read(explained, Filter(OWNER, limit=50))
    assert_walks(plan, "ix_jobs_owner")
    pictures = Filter(OWNER, kind=stories.PICTURE, chapter_id="rare", statuses=["completed"], limit=50)
    page, plan = await shelf.desk.database.read(explained, pictures)
    assert len(page.jobs) == 3
    assert_walks(plan, "ix_jobs_chapter_pictures")


def end_waiting(tx: Tx, status: str) -> None:
    tx.execute(text("UPDATE jobs SET status = :status WHERE status = 'pending'"), {"status": status})


def explained(tx: Tx, wanted: Filter) -> tuple[Any, str]:
    """The page, and how the database finds its jobs."""
    asked: list[tuple[str, Any]] = []

    def note(connection: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        asked.append((statement, parameters))

    event.listen(tx._connection, "before_cursor_execute", note)
    page = find(tx, wanted)
    event.remove(tx._connection, "before_cursor_execute", note)
    explain = "EXPLAIN " if tx.is_postgresql else "EXPLAIN QUERY PLAN "
    lines = tx._connection.exec_driver_sql(explain + asked[0][0], asked[0][1]).all()
    return page, "\n".join(str(line[-1]) for line in lines)


def assert_walks(plan: str, index: str) -> None:
    assert index in plan, plan
    for costly in ("Sort", "TEMP B-TREE", "Seq Scan", "SCAN ", "Bitmap"):
        assert costly not in plan, plan


async def test_a_copy_to_another_database_takes_stories_along(sqlite_url: str, postgres_url: str) -> None:
    source = Database(sqlite_url, readers=1)
    shelf = await Shelf(Desk(source)).open()
    scene, character = await shelf.scene(), await shelf.character()
    await shelf.write(stories.change_scene, scene.id, OWNER, {}, [character.id])
    await shelf.drawn(1)
    before = await shelf.look(scene)
    source.close()
    transfer: Any = importlib.import_module("safelight.migrations.transfer")
    transfer.copy(sqlite_url, postgres_url, resume=False, force=True, progress=lambda *_: None)
    target = Database(postgres_url, readers=1)
    after = await target.read(stories.get_scene, scene.id, OWNER)
    target.close()
    assert after == before
