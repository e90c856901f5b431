"""The lines of those who wait, one for each owner within each provider within each queue; they are taken in turn.

A job's place in its line is a moment, `line_at`: when it was first due, a minute earlier for each step of priority. So
an urgent job passes what came up to ten minutes before it, and nothing waits for ever. NULL: it is not due yet.

Nothing here walks along all that waits: each look goes from line to line through an index, and takes no more lines, and
no more of each, than there are free places.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice, zip_longest

from sqlalchemy import Integer, String, select, text, update

from safelight.db import Prepared, Tx, db_now, later
from safelight.jobs import availability
from safelight.jobs.capacity import Capacity
from safelight.jobs.job import PRIORITY_SECONDS, Job, has_status, jobs
from safelight.jobs.statements import statements
from safelight.jobs.step import HERE, IN_LINE

MAX_RELEASED = 500
MIN_LINES = 32  # looked at together, because some may be at a limit
MAX_LOOKS = 8  # in one round, at a provider; the next goes on there
MIN_HEADS = 4  # of each line, so that one job at its limit does not hide the next
RIPENED = 500  # jobs whose time has come, in one round


# One step along the index from each pair of queue and provider to the next: within the queue first. SQLite would walk
# through a whole queue for (queue, provider) > (:queue, :provider).
_PAIRS = f"""
    WITH RECURSIVE pair(queue, provider) AS (
        SELECT queue, provider FROM (
            SELECT queue, provider FROM jobs WHERE {IN_LINE} ORDER BY queue, provider LIMIT 1
        ) AS first
        UNION ALL
        SELECT following.queue, following.provider FROM pair JOIN jobs AS following ON following.id = coalesce(
            (
                SELECT jobs.id FROM jobs WHERE {IN_LINE} AND jobs.queue = pair.queue AND jobs.provider > pair.provider
                ORDER BY jobs.provider LIMIT 1
            ),
            (
                SELECT jobs.id FROM jobs WHERE {IN_LINE} AND jobs.queue > pair.queue
                ORDER BY jobs.queue, jobs.provider LIMIT 1
            )
        )
    )
    SELECT pair.queue, pair.provider, (
        SELECT count(*) FROM (
            SELECT 1 FROM jobs
            WHERE {IN_LINE} AND jobs.queue = pair.queue AND jobs.provider = pair.provider LIMIT :most
        ) AS counted
    ) AS waiting FROM pair
"""
PAIRS = text(_PAIRS).columns(queue=String, provider=String, waiting=Integer)
# And from each owner to the next, in the database's own order, which may be none that Python knows.
_OWNERS = f"""
    WITH RECURSIVE line(owner_id, number) AS (
        SELECT owner_id, 1 FROM (
            SELECT owner_id FROM jobs WHERE {HERE} AND jobs.owner_id > :after {{upto}} ORDER BY owner_id LIMIT 1
        ) AS first
        UNION ALL
        SELECT (
            SELECT jobs.owner_id FROM jobs WHERE {HERE} AND jobs.owner_id > line.owner_id {{upto}}
            ORDER BY jobs.owner_id LIMIT 1
        ), number + 1
        FROM line WHERE line.owner_id IS NOT NULL AND number < :most
    )
    SELECT owner_id FROM line WHERE owner_id IS NOT NULL
"""
OWNERS_AFTER = text(_OWNERS.format(upto="")).columns(owner_id=String)
OWNERS_UP_TO = text(_OWNERS.format(upto="AND jobs.owner_id <= :upto")).columns(owner_id=String)


@dataclass(frozen=True, slots=True)
class Head:
    """A job at the front of its line."""

    id: str
    owner_id: str
    owner_limit: int | None
    tier: str | None


@dataclass(slots=True)
class Line:
    """The first of an owner's jobs for a provider; `weight` of them go in each turn, `left` in this one."""

    provider: str
    owner_id: str
    heads: deque[Head]
    weight: int
    left: int


@dataclass(slots=True)
class Turns:
    """Where the last round ended: the provider of each queue, and of each of its providers the owner, with how many of
    his jobs went in the turn that he has."""

    providers: dict[str, str] = field(default_factory=dict[str, str])
    owners: dict[tuple[str, str], tuple[str, int]] = field(default_factory=dict[tuple[str, str], tuple[str, int]])

    def in_order(self, queue: str, providers: Sequence[str]) -> list[str]:
        """These, beginning after the one that was the last."""
        last = self.providers.get(queue, "")
        return sorted(providers, key=lambda provider: (provider <= last, provider))

    def note(self, queue: str, line: Line, count: int) -> None:
        """So many more of a line went; none: it was passed over."""
        owner, used = self.owners.get((queue, line.provider), ("", 0))
        self.owners[queue, line.provider] = line.owner_id, count + (used if owner == line.owner_id else 0)
        if count:
            self.providers[queue] = line.provider


def count_waiting(tx: Tx, most: int) -> dict[tuple[str, str], int]:
    """How many due jobs wait, by queue and provider; no more than `most` of each are counted."""
    return {(row.queue, row.provider): row.waiting for row in tx.execute(PAIRS, {"most": most})}


def ripen(tx: Tx) -> bool:
    """Put a bite of the jobs whose time has come into their lines. True: there may be more."""
    ids = [row[0] for row in tx.run(_RIPE, {})]
    if ids:
        place = later(jobs.c.queued_at, -PRIORITY_SECONDS * jobs.c.priority)
        tx.execute(update(jobs).where(jobs.c.id.in_(ids), has_status("pending")).values(line_at=place))
    return len(ids) == RIPENED


SCHEDULED = text("jobs.status = 'pending' AND jobs.line_at IS NULL")
_RIPE = Prepared(select(jobs.c.id).where(SCHEDULED, jobs.c.run_at <= db_now()).order_by(jobs.c.run_at).limit(RIPENED))


def release(
    tx: Tx, queue: str, providers: Sequence[str], room: int, capacity: Capacity, turns: Turns
) -> tuple[list[Job], bool]:
    """Choose up to `room` jobs of a queue, line by line, and mark them as released. True: lines were left unlooked at.

    `providers` are those that have a line. `turns` remembers where it ended, and the next round goes on there.
    """
    released: list[Job] = []
    walks = {provider: _walk(tx, queue, provider, room, capacity, turns) for provider in providers}
    for _ in range(MAX_LOOKS):
        found: list[list[Line]] = []
        for provider in turns.in_order(queue, list(walks)):
            lines = next(walks[provider], None) if capacity.left(provider) > 0 else None
            if lines is None:
                del walks[provider]
            else:
                found.append(lines)
        lines = [line for line in chain.from_iterable(zip_longest(*found)) if line is not None]
        capacity.count_owners(tx, [head for line in lines for head in line.heads])
        released += _mark(tx, _take_turns(queue, lines, room - len(released), capacity, turns), capacity)
        if len(released) >= room or not walks:
            break
    return released, len(released) < room and bool(walks)


def _walk(tx: Tx, queue: str, provider: str, room: int, capacity: Capacity, turns: Turns) -> Iterator[list[Line]]:
    """Once round the lines of a provider, some at a time, from the one whose turn it is."""
    start, used = turns.owners.get((queue, provider), ("", 0))
    most = max(room, MIN_LINES)
    here = {"queue": queue, "provider": provider}
    has_begun = used > 0 and capacity.heaviest > 1  # its turn may not be over
    circle = _circle(tx, here, start, most)
    owners = [start] if has_begun else []
    while some := [*owners, *islice(circle, most - len(owners))]:
        if has_begun:
            some = list(dict.fromkeys(some))  # it comes again at the end
        yield _lines(tx, here, some, room, capacity, {start: used} if has_begun else {})
        owners, has_begun = [], False


def _circle(tx: Tx, here: Mapping[str, str], start: str, most: int) -> Iterator[str]:
    for statement, bounds, after in ((OWNERS_AFTER, {}, start), (OWNERS_UP_TO, {"upto": start}, "")):
        count = most
        while count == most:
            owners = list(tx.execute(statement, {**here, **bounds, "after": after, "most": most}).scalars())
            yield from owners
            count, after = len(owners), owners[-1] if owners else after


def _lines(
    tx: Tx, here: Mapping[str, str], owners: Sequence[str], room: int, capacity: Capacity, used: Mapping[str, int]
) -> list[Line]:
    each = max(MIN_HEADS, capacity.heaviest * -(-room // len(owners)))
    heads: dict[str, deque[Head]] = {owner: deque() for owner in owners}
    for row in statements(tx).heads(tx, here, owners, each):
        heads[row.owner_id].append(Head(*row))
    lines: list[Line] = []
    for owner, line in heads.items():
        if line:
            weight = capacity.weight(line[0].tier)
            lines.append(Line(here["provider"], owner, line, weight, max(0, weight - used.get(owner, 0))))
    return lines


def _take_turns(queue: str, lines: Sequence[Line], room: int, capacity: Capacity, turns: Turns) -> list[Head]:
    """One turn after the other: of each line as many as its weight, as long as there is room."""
    chosen: list[Head] = []
    is_first = True
    while lines and len(chosen) < room:
        lines = [line for line in lines if line.heads and capacity.left(line.provider) > 0]
        for line in lines:
            if len(chosen) == room:
                break
            if capacity.left(line.provider) <= 0:
                continue
            taken = list(_next(line, min(line.left, room - len(chosen)), capacity))
            chosen += taken
            if is_first or taken:
                turns.note(queue, line, len(taken))
            line.left = line.weight
        is_first = False
    return chosen


def _next(line: Line, count: int, capacity: Capacity) -> Iterator[Head]:
    while line.heads and count:
        head = line.heads.popleft()
        if capacity.take(line.provider, head.owner_id, head.owner_limit):
            count -= 1
            yield head


def _mark(tx: Tx, heads: Sequence[Head], capacity: Capacity) -> list[Job]:
    ids = [head.id for head in heads]
    if not ids:
        return []
    marked = (
        update(jobs)
        .where(jobs.c.id.in_(ids), has_status("pending"), jobs.c.released_at.is_(None))
        .values(released_at=db_now(), hint_count=1)
        .returning(*jobs.c)
    )
    position = {job_id: index for index, job_id in enumerate(ids)}
    released = sorted((Job.of(row) for row in tx.execute(marked)), key=lambda job: position[job.id])
    for job in released:
        if job.provider in capacity.unprobed:
            capacity.unprobed.discard(job.provider)
            availability.set_probe(tx, job.provider, job.id)
    return released
