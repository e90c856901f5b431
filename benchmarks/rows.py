"""Fills Safelight's tables quickly, in SQL, with jobs as an installation would have them after a while."""

from typing import Any, Literal

import sqlalchemy
from sqlalchemy import Connection

from safelight.jobs.job import jobs

OPEN_ROWS = 200  # half pending, half processing, whatever the size: a long history, not a long queue
WORKER = "00000000-0000-7000-8000-000000000001"  # runs what is processing
KNOWN_KIND = "0123456789abcdef"  # the estimate key of all that is completed
_YEAR_MS = 365 * 86_400_000
_SQLITE_ID = "printf('%08x-%04x-7000-8000-%012x', {ms} >> 16, {ms} & 65535, n)"
_POSTGRESQL_ID = (
    "(lpad(to_hex(({ms})::bigint >> 16), 8, '0') || '-' || lpad(to_hex(({ms})::bigint & 65535), 4, '0') "
    "|| '-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid"
)
_PARAMETERS = (
    "'kind', 'image.generate', 'prompt', {prompt}, "
    "'model', 'darkroom', 'width', 1024, 'height', 1024, 'batch_size', 1, 'seed', n, "
    "'sampler_params', {object}('steps', 20)"
)


def job_id(number: int, count: int, now_ms: int) -> str:
    """The id of the n-th of `count` rows (from 1), as the SQL below makes it."""
    ms = now_ms - _YEAR_MS + _step(count) * number
    return f"{ms >> 16:08x}-{ms & 65535:04x}-7000-8000-{number:012x}"


def _step(count: int) -> int:
    """Milliseconds between two jobs: `count` of them fill a year."""
    return max(1, _YEAR_MS // (count + 1))


def owner_of(number: int, owners: int) -> str:
    """Whose the n-th row is."""
    return f"owner-{number % owners}" if owners else "local"


def fill(
    url: str,
    count: int,
    now_ms: int,
    *,
    only: Literal["processing", "pending"] | None = None,
    owners: int = 0,
    at_limit: int = 0,
) -> None:
    """`count` jobs over the last year: mostly completed, each completed one with an attempt and an artifact.

    `only` makes them all running, under a lease that does not end, or all waiting. So many `owners` take turns, and
    each has a row among the users; without, all belong to `local`. The first `at_limit` are of one who may run none.
    """
    engine = sqlalchemy.create_engine(url)
    lite = engine.dialect.name == "sqlite"
    ms = f"({now_ms - _YEAR_MS} + {_step(count)} * n)"
    columns = _columns(ms, count, now_ms, lite=lite, only=only)
    if at_limit:
        columns["owner_id"] = f"CASE WHEN n <= {at_limit} THEN 'at the limit' ELSE 'local' END"
        columns["owner_limit"] = f"CASE WHEN n <= {at_limit} THEN 0 END"
    if owners:
        columns["owner_id"] = f"'owner-' || (n % {owners})"
    series = (
        f"WITH RECURSIVE series(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM series WHERE n < {count})"  # noqa: S608 - ours
        if lite
        else f"WITH series(n) AS (SELECT generate_series(1, {count})::bigint)"
    )
    with engine.begin() as connection:
        if lite:
            for pragma in ("cache_size=-400000", "temp_store=MEMORY"):
                connection.exec_driver_sql(f"PRAGMA {pragma}")
        run = connection.exec_driver_sql
        # Indexes are made once the rows are there: ten times quicker.
        made = _without_indexes(connection) if count > 50_000 else []
        names = ", ".join(f'"{name}"' for name in columns)
        insert = f"{series} INSERT INTO jobs ({names}) SELECT {', '.join(columns.values())} FROM series"  # noqa: S608
        run(_escaped(insert, lite=lite))
        if only is None:
            _add_results(connection, lite=lite)
        if owners:
            _add_users(connection)
        for statement in made:
            run(statement)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)" if lite else "VACUUM ANALYZE")
        if lite:
            connection.exec_driver_sql("PRAGMA optimize")
    engine.dispose()


def _columns(ms: str, count: int, now_ms: int, *, lite: bool, only: str | None) -> dict[str, str]:
    """Every column of `jobs` as an SQL expression over `n`."""

    def at(milliseconds: str) -> str:
        return f"({milliseconds}) * 1000" if lite else f"to_timestamp(({milliseconds}) / 1000.0)"

    later = at(str(now_ms + _YEAR_MS))
    first_open, half = count - OPEN_ROWS, OPEN_ROWS // 2
    ended = f"n <= {first_open}"
    status = (
        f"CASE WHEN {ended} THEN CASE n % 50 WHEN 7 THEN 'failed' WHEN 8 THEN 'cancelled' ELSE 'completed' END "
        f"WHEN n <= {first_open + half} THEN 'pending' ELSE 'processing' END"
    )
    running = f"n > {first_open + half}"
    if only is not None:
        ended, status, running = "1 = 0", f"'{only}'", "1 = 1" if only == "processing" else "1 = 0"
    text = "" if lite else "::jsonb"
    worker = _worker(lite)
    build = "json_object" if lite else "jsonb_build_object"
    prompt = "'a lighthouse at dusk, number ' || n || ', with a storm coming in from the north and a small boat'"
    identity = (_SQLITE_ID if lite else _POSTGRESQL_ID).format(ms=ms)
    values: dict[str, str] = {
        "id": identity,
        "kind": "'image.generate'",
        "owner_id": "'local'",
        "status": status,
        "stage": f"CASE WHEN {ended} THEN 'completed' ELSE 'starting' END",
        "message": f"CASE WHEN {ended} THEN 'Completed' ELSE 'Starting' END",
        "progress": f"CASE WHEN {ended} THEN 100 ELSE 0 END",
        "celery_task_id": identity,
        "provider": "CASE WHEN n % 1000 = 3 THEN 'comfyui' ELSE 'mock' END",
        "provider_job_id": "'remote-' || n",
        "mocked": "1" if lite else "true",
        "prompt": prompt,
        "parameters": f"{build}({_PARAMETERS.format(object=build, prompt=prompt)})",
        "image_type": "'scene'",
        "project_id": "'project-' || (n % 20)",
        "chapter_id": "'chapter-' || (n % 400)",
        "script_id": "'script-' || (n % 40)",
        "scene_number": "(n / 400) % 30",
        "character_id": "CASE WHEN n % 3 = 0 THEN 'character-' || (n % 300) END",
        "metadata": f'\'{{"user":"42"}}\'{text}',
        "priority": "0",
        "run_at": at(ms),
        "queued_at": at(ms),
        "line_at": at(ms),
        "soft_limit_seconds": "300",
        "hard_limit_seconds": "330",
        "max_retries": "3",
        "queue": "'image_generation'",
        "attempt": f"CASE WHEN {ended} OR {running} THEN 1 ELSE 0 END",
        "retry_count": "0",
        "crash_count": "0",
        "hint_count": "0",
        "worker_id": f"CASE WHEN {running} THEN {worker} END",
        "estimate_key": f"CASE WHEN {ended} THEN '{KNOWN_KIND}' END",
        "deadline_at": f"CASE WHEN {running} THEN {later} END",
        "created_at": at(ms),
        "started_at": f"CASE WHEN {ended} OR {running} THEN {at(ms + ' + 40')} END",
        "finished_at": f"CASE WHEN {ended} THEN {at(ms + ' + 8000')} END",
        "updated_at": at(ms),
        "version": f"CASE WHEN {ended} THEN 3 WHEN {running} THEN 2 ELSE 1 END",
    }
    return {column.name: values[column.name] for column in jobs.columns if column.name in values}


def _worker(lite: bool) -> str:
    return f"'{WORKER}'" + ("" if lite else "::uuid")


def _add_results(connection: Connection, *, lite: bool) -> None:
    completed = "FROM jobs WHERE status = 'completed'"
    worker = _worker(lite)
    connection.exec_driver_sql(
        "INSERT INTO attempts (job_id, number, worker_id, worker_name, queue, provider, started_at, finished_at, "
        f"outcome, started_version, ended_version) SELECT id, 1, {worker}, 'io-1', queue, provider, started_at, "
        f"finished_at, 'completed', 2, 3 {completed}"
    )
    text = "" if lite else "::jsonb"
    connection.exec_driver_sql(
        "INSERT INTO artifacts (id, job_id, attempt, position, owner_id, kind, storage_key, content_type, size_bytes, "
        "sha256, width, height, thumbhash, seed, thumbnails, created_at) SELECT id, id, 1, 0, owner_id, 'image', "
        "'jobs/' || id || '/1/0.png', 'image/png', 400000, '0123456789abcdef0123456789abcdef', width, height, "
        f"'2fcZFIB3iId/h3iJh4aIYJ2V8g==', seed, '[]'{text}, finished_at {completed}"
    )


def _add_users(connection: Connection) -> None:
    connection.exec_driver_sql(
        "INSERT INTO users (id, tier, created_at, seen_at) SELECT owner_id, 'free', min(created_at), max(created_at) "
        "FROM jobs GROUP BY owner_id"
    )


def _without_indexes(connection: Connection) -> list[str]:
    """Drop the tables' indexes (not their keys) and return the statements that make them again."""
    if connection.dialect.name == "sqlite":
        query = "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL"
    else:
        query = (
            "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' AND indexname NOT LIKE 'pk_%%' "
            "AND tablename IN ('jobs', 'artifacts', 'attempts')"
        )
    found: list[Any] = list(connection.exec_driver_sql(query))
    for name, _ in found:
        connection.exec_driver_sql(f'DROP INDEX "{name}"')
    return [statement for _, statement in found]


def _escaped(statement: str, *, lite: bool) -> str:
    """psycopg reads a bare % as a placeholder."""
    return statement if lite else statement.replace("%", "%%")
