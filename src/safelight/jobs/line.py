"""The lines of those who wait, one for each owner within each provider within each queue; they are taken in turn.

A job's place in its line is a moment, `line_at`: when it was first due, a minute earlier for each step of priority. So
an urgent job passes what came up to ten minutes before it, and nothing waits for ever. NULL: it is not due yet.

Nothing here walks along all that waits: each look goes from line to line through an index, and takes no more lines, and
no more of each, than there are free places.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest

import orjson
from sqlalchemy import ARRAY, Integer, String, Text, bindparam, select, text, update

from safelight.db import Prepared, RowId, Tx, db_now, later
from safelight.jobs import availability
from safelight.jobs.capacity import Capacity
from safelight.jobs.job import PRIORITY_SECONDS, Job, has_status, jobs

MAX_RELEASED = 500
MAX_LOOKS = 8  # lines at a limit are passed over, so many times as many as there are places
MIN_HEADS = 8  # of each line, so that one job at its limit does not hide the next
RIPENED = 500  # jobs whose time has come, in one round

Turns = dict[tuple[str, str], str]  # whose line was the last to have its turn, by queue and provider

_IN_LINE = "jobs.status = 'pending' AND jobs.hinted_at IS NULL AND jobs.line_at IS NOT NULL"
_HERE = f"{_IN_LINE} AND jobs.queue = :queue AND jobs.provider = :provider"

# One step along the index from each pair of queue and provider to the next: within the queue first. SQLite would walk
# through a whole queue for (queue, provider) > (:queue, :provider).
_PAIRS = f"""
    WITH RECURSIVE pair(queue, provider) AS (
        SELECT queue, provider FROM (
            SELECT queue, provider FROM jobs WHERE {_IN_LINE} ORDER BY queue, provider LIMIT 1
        ) AS first
        UNION ALL
        SELECT following.queue, following.provider FROM pair JOIN jobs AS following ON following.id = coalesce(
            (
                SELECT jobs.id FROM jobs WHERE {_IN_LINE} AND jobs.queue = pair.queue AND jobs.provider > pair.provider
                ORDER BY jobs.provider LIMIT 1
            ),
            (
                SELECT jobs.id FROM jobs WHERE {_IN_LINE} AND jobs.queue > pair.queue
                ORDER BY jobs.queue, jobs.provider LIMIT 1
            )
        )
    )
    SELECT pair.queue, pair.provider, (
        SELECT count(*) FROM (
            SELECT 1 FROM jobs
            WHERE {_IN_LINE} AND jobs.queue = pair.queue AND jobs.provider = pair.provider LIMIT :most
        ) AS counted
    ) AS waiting FROM pair
"""
PAIRS = text(_PAIRS).columns(queue=String, provider=String, waiting=Integer)
# And from each owner to the next.
OWNERS = text(f"""
    WITH RECURSIVE line(owner_id, number) AS (
        SELECT owner_id, 1 FROM (
            SELECT owner_id FROM jobs WHERE {_HERE} AND jobs.owner_id > :after ORDER BY owner_id LIMIT 1
        ) AS first
        UNION ALL
        SELECT (
            SELECT jobs.owner_id FROM jobs WHERE {_HERE} AND jobs.owner_id > line.owner_id
            ORDER BY jobs.owner_id LIMIT 1
        ), number + 1
        FROM line WHERE line.owner_id IS NOT NULL AND number < :most
    )
    SELECT owner_id FROM line WHERE owner_id IS NOT NULL
""").columns(owner_id=String)
_FIRST = f"{_HERE} AND jobs.owner_id = {{owner}} ORDER BY jobs.line_at, jobs.id LIMIT :each"
_HEAD = {"id": RowId, "owner_id": String, "owner_limit": Integer, "tier": String}
HEADS_SQLITE = text(f"""
    SELECT head.id, head.owner_id, head.owner_limit, head.tier FROM json_each(:owners) AS line
    JOIN jobs AS head ON head.id IN (SELECT jobs.id FROM jobs WHERE {_FIRST.format(owner="line.value")})
    ORDER BY line.key, head.line_at, head.id
""").columns(**_HEAD)
HEADS_POSTGRESQL = (
    text(f"""
    SELECT head.id, head.owner_id, head.owner_limit, head.tier
    FROM unnest(:owners) WITH ORDINALITY AS line(owner_id, place) CROSS JOIN LATERAL (
        SELECT id, owner_id, owner_limit, tier, line_at FROM jobs
        WHERE {_FIRST.format(owner="line.owner_id")} FOR UPDATE SKIP LOCKED
    ) AS head ORDER BY line.place, head.line_at, head.id
""")
    .bindparams(bindparam("owners", type_=ARRAY(Text)))
    .columns(**_HEAD)
)


@dataclass(frozen=True, slots=True)
class Head:
    """A job at the front of its line."""

    id: str
    owner_id: str
    owner_limit: int | None
    tier: str | None


@dataclass(frozen=True, slots=True)
class Line:
    """The first of an owner's jobs for a provider; `weight` of them go in each turn."""

    provider: str
    owner_id: str
    heads: deque[Head]
    weight: int


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


def release(tx: Tx, queue: str, providers: Sequence[str], room: int, capacity: Capacity, turns: Turns) -> list[Job]:
    """Choose up to `room` jobs of a queue, line by line, and mark them as released.

    `providers` are those that have a line. `turns` remembers whose line was the last, and the next round goes on there.
    """
    released: list[Job] = []
    for _ in range(MAX_LOOKS):
        looks = [
            _lines(tx, queue, provider, min(left, room - len(released)), capacity, turns)
            for provider in providers
            if (left := capacity.left(provider)) > 0
        ]
        lines = [line for line in chain.from_iterable(zip_longest(*(found for found, _ in looks))) if line is not None]
        capacity.count_owners(tx, [head for line in lines for head in line.heads])
        released += _mark(tx, _take_turns(queue, lines, room - len(released), capacity, turns), capacity)
        if len(released) >= room or not any(has_more for _, has_more in looks):
            break
    return released


def _lines(tx: Tx, queue: str, provider: str, most: int, capacity: Capacity, turns: Turns) -> tuple[list[Line], bool]:
    """The next lines whose turn it is, no more than `most`, and whether there are more."""
    here = {"queue": queue, "provider": provider}
    after = turns.get((queue, provider), "")
    owners = _owners(tx, here, after, most)
    if after and len(owners) < most:  # and round again, to where the last turn ended
        owners += [owner for owner in _owners(tx, here, "", most - len(owners)) if owner <= after]
    if not owners:
        return [], False
    each = min(most, max(MIN_HEADS, capacity.heaviest * -(-most // len(owners))))
    statement, given = (HEADS_POSTGRESQL, owners) if tx.is_postgresql else (HEADS_SQLITE, orjson.dumps(owners).decode())
    heads: dict[str, deque[Head]] = {owner: deque() for owner in owners}
    for row in tx.execute(statement, {**here, "owners": given, "each": each}):
        heads[row.owner_id].append(Head(*row))
    lines = [Line(provider, owner, line, capacity.weight(line[0].tier)) for owner, line in heads.items() if line]
    return lines, len(owners) == most


def _owners(tx: Tx, here: Mapping[str, str], after: str, most: int) -> list[str]:
    return list(tx.execute(OWNERS, {**here, "after": after, "most": most}).scalars()) if most > 0 else []


def _take_turns(queue: str, lines: Sequence[Line], room: int, capacity: Capacity, turns: Turns) -> list[Head]:
    """One turn after the other: of each line as many as its weight, as long as there is room."""
    chosen: list[Head] = []
    is_first = True
    while lines and len(chosen) < room:
        for line in lines:
            if len(chosen) == room:
                break
            if is_first:
                turns[queue, line.provider] = line.owner_id
            chosen += _next(line, min(line.weight, room - len(chosen)), capacity)
        lines = [line for line in lines if line.heads]
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
        .where(jobs.c.id.in_(ids), has_status("pending"), jobs.c.hinted_at.is_(None))
        .values(hinted_at=db_now(), hint_count=1)
        .returning(*jobs.c)
    )
    position = {job_id: index for index, job_id in enumerate(ids)}
    released = sorted((Job.of(row) for row in tx.execute(marked)), key=lambda job: position[job.id])
    for job in released:
        if job.provider in capacity.unprobed:
            capacity.unprobed.discard(job.provider)
            availability.set_probe(tx, job.provider, job.id)
    return released
