"""A batch counted from the events of its jobs, and the ids that say what its watcher knows."""

from datetime import UTC, datetime

import pytest

from safelight.jobs import Batch, BatchProgress, Member, Position
from safelight.watch import BatchWatch, Message

pytestmark = pytest.mark.anyio
BATCH = Batch("b", "ada", None, {}, None, 3, datetime(2026, 3, 1, tzinfo=UTC))
WAITING = [Member(name, "pending", 0, 0, 1) for name in "abc"]


POSITIONS: list[tuple[list[int], int, str]] = [
    ([1], 0, "1~0"),
    ([1, 1, 1], 100, "1x3~100"),
    ([3] * 40 + [2, 1, 1], 7, "3x40.2.1x2~7"),
    ([12, 3, 12], 50, "12.3.12~50"),
    ([7] * 1000, 1, "7x1000~1"),
]
GARBAGE = ["", "x", "1", "1.~1", ".1~1", "1x~1", "1x2x3~1", "-1~1", "1" * 10, "1~", "1~1000"]


@pytest.mark.parametrize(("versions", "progress", "text"), POSITIONS)
def test_an_id_stands_for_all_that_is_known(versions: list[int], progress: int, text: str) -> None:
    assert str(Position(versions, progress)) == text
    assert Position.parse(text) == (versions, progress)


@pytest.mark.parametrize("text", [*GARBAGE, "end"])
def test_other_texts_stand_for_nothing(text: str) -> None:
    assert Position.parse(text) is None


@pytest.mark.parametrize("text", ["1x1001~1", "1x9999.1~1"])
def test_of_more_jobs_than_a_batch_may_have_nothing_is_known(text: str) -> None:
    assert Position.parse(text) == ((), 0)


def test_states_and_progress_are_counted() -> None:
    batch = BatchProgress(BATCH, WAITING)
    assert (batch.state.status, str(batch.position), batch.has_changed) == (
        "pending",
        "1x3~0",
        False,
    )
    batch.take_state("b", "job.started", 2)
    batch.take_progress("b", 50)
    news = batch.news()
    assert (news.status, news.progress, news.counts["processing"]) == ("processing", 16, 1)
    assert news.jobs == [{"job_id": "b", "status": "processing", "progress": 50, "version": 2}]
    assert not batch.has_changed and batch.news().jobs == []
    for job_id, end, version in (("b", "job.completed", 3), ("a", "job.cancelled", 2), ("c", "job.failed", 4)):
        batch.take_state(job_id, end, version)
    assert batch.state.is_terminal
    end = batch.end()
    assert (end.type, end.status, end.progress, str(batch.position)) == (
        "batch.failed",
        "failed",
        100,
        "2.3.4~100",
    )


def test_progress_never_goes_backwards() -> None:
    batch = BatchProgress(BATCH, [Member("a", "processing", 90, 2, 4), Member("b", "completed", 100, 1, 3), WAITING[2]])
    seen = [batch.state.progress]
    for event, version, progress in (
        ("", 4, 30),
        ("job.pending", 5, None),
        ("job.started", 6, 0),
        ("", 6, 95),
        ("job.failed", 7, None),
    ):
        if event:
            batch.take_state("a", event, version)
        else:
            batch.take_progress("a", progress)
        seen.append(batch.state.progress)
    assert seen == [63, 63, 63, 63, 65, 66]
    assert batch.state.status == "processing"
    assert BatchProgress(BATCH, WAITING, shown=40).progress == 40


def test_a_frame_is_an_event() -> None:
    batch = BatchProgress(BATCH, WAITING)
    frame = batch.snapshot().as_frame(batch.position)
    assert frame.startswith(b'id: 1x3~0\nevent: batch.snapshot\ndata: {"type":"batch.snapshot","batch_id":"b",')
    assert frame.endswith(b"\n\n") and frame.count(b"\n") == 4


# One watch


def state(version: int, *, end: bool = False) -> Message:
    return Message(version, 0, True, end, "job.completed" if end else "job.started", b"")


def news(version: int, seq: int, topic: str = "job.progress") -> Message:
    return Message(version, seq, False, False, topic, b"")


async def heard(watch: BatchWatch) -> list[tuple[str, int, int]]:
    return [(job_id, message.version, message.seq) for job_id, message in await watch.next(0.01)]


async def test_each_job_is_heard_in_order_and_its_gaps_are_told() -> None:
    gaps: list[str] = []
    watch = BatchWatch("b", gaps.append)
    watch.offer("a", state(2))  # before anybody knows where it stands
    watch.start({"a": 1, "b": 1})
    watch.offer("b", state(3))
    watch.offer("a", state(2))
    watch.offer("nobody", state(2))
    assert gaps == ["b"]
    assert await heard(watch) == [("a", 2, 0)]
    for message in (state(2), state(3, end=True), state(4)):
        watch.offer("b", message)
    assert await heard(watch) == [("b", 2, 0), ("b", 3, 0)]
    assert watch.versions == {"a": 2}  # an ended job is not asked about any more


async def test_of_progress_the_latest_is_told_when_there_is_a_state_or_time_is_up() -> None:
    watch = BatchWatch("b", lambda _: None)
    watch.start({"a": 2, "b": 2})
    for seq in (1, 2, 3):
        watch.offer("a", news(2, seq))
    watch.offer("a", news(2, 9, "job.preview"))
    assert await heard(watch) == [("a", 2, 3)]
    watch.offer("a", news(2, 4))
    watch.offer("b", state(3))
    assert [(job_id, message.version) for job_id, message in await watch.next(60)] == [("a", 2), ("b", 3)]
    assert await heard(watch) == []
