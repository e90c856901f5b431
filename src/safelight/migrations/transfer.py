"""Moves an installation from one database to another, whichever two kinds they are: `safelight db copy`.

It walks the tables as the code knows them, reads one snapshot of the source in batches and lets the column types do the
conversion. Rows keep their ids and versions, so running jobs are handed over as they are (their leases run out and
dispatch recovers them) and watchers resume where they were.
"""

import contextlib
import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Table, delete, event, func, insert, select, text, tuple_
from sqlalchemy.exc import SQLAlchemyError

import safelight.bootstrap  # pyright: ignore[reportUnusedImport] - the slices with tables
import safelight.template  # noqa: F401  # pyright: ignore[reportUnusedImport]
from safelight.db import db_now, metadata, open_engine, parse_url
from safelight.errors import SafelightError
from safelight.jobs.job import leases, workers
from safelight.migrations import check, migrate

BATCH_ROWS = 1000
ALIVE_SECONDS = 30.0
MOMENTARY = (leases, workers)  # who holds what at this moment: of no use to the processes on another database

Progress = Callable[[str, int, int], None]  # table, rows done, rows in all


class CopyRefused(SafelightError):
    """This database cannot be copied to that one."""

    kind = "conflict"
    code = "copy_refused"


class CopyFailed(SafelightError):
    """The copy broke off. What is copied stays; go on with `--resume`."""

    kind = "unavailable"
    code = "copy_failed"


def copy(source_url: str, target_url: str, *, resume: bool, force: bool, progress: Progress) -> dict[str, int]:
    """Copy every row and verify the counts; returns rows by table.

    Raises `CopyRefused` if the two do not fit, if something still works on the source (unless `force`), or if the
    target has rows already (unless `resume`, which skips those that are there), and `CopyFailed` on the way.
    """
    _check_urls(source_url, target_url)
    try:
        with _opened(source_url, reads=True) as source, _opened(target_url) as target:
            if not force:
                _check_rest(source)
            seeded = _seeds()
            totals = {table.name: _count(source, table) for table in tables()}
            _check_empty(target, seeded, resume=resume)
            for table in tables():
                done = 0
                progress(table.name, 0, totals[table.name])
                for rows in _batches(source, table):
                    _put(target, table, rows, resume=resume)
                    done += len(rows)
                    progress(table.name, done, totals[table.name])
            _verify(target, totals)
        _analyze(target_url)
    except SQLAlchemyError as error:
        lines = str(getattr(error, "orig", None) or error).strip().splitlines()
        reason = lines[0].rstrip(".") if lines else type(error).__name__
        raise CopyFailed(f"The copy broke off: {reason}. What is copied stays; go on with --resume.") from error
    return totals


def tables() -> list[Table]:
    """What is copied, in an order that foreign keys allow."""
    return [table for table in metadata.sorted_tables if table not in MOMENTARY]


def _check_urls(source_url: str, target_url: str) -> None:
    for name, url in (("source", source_url), ("target", target_url)):
        problem = check(url)
        if problem is not None:
            hint = "" if name == "source" else " (with SAFELIGHT_DATABASE_URL set to the target)"
            raise CopyRefused(f"The {name}: {problem.detail}{hint}")
    if parse_url(source_url) == parse_url(target_url):
        raise CopyRefused("The two databases are the same.")


def _check_rest(source: Connection) -> None:
    alive = select(workers.c.name).where(workers.c.seen_at > db_now(-ALIVE_SECONDS))
    names = sorted(source.execute(alive).scalars())
    held = source.execute(select(func.count()).select_from(leases).where(leases.c.until > db_now())).scalar_one()
    if names or held:
        who = f"workers ({', '.join(names)})" if names else "an API or a worker"
        raise CopyRefused(
            f"The source is in use: {who} spoke less than {ALIVE_SECONDS:g} s ago. What is written during the copy "
            "would be missing. Stop the service first, or insist with --force."
        )


def _check_empty(target: Connection, seeded: dict[str, int], *, resume: bool) -> None:
    """A fresh target has only what the migrations put there, which makes room for the source's own."""
    filled = [table.name for table in tables() if _count(target, table) > seeded[table.name]]
    if filled and not resume:
        raise CopyRefused(
            f"The target is not empty: there are rows in {', '.join(filled)}. If they are from a copy that broke off, "
            "go on with --resume."
        )
    if not filled:
        for table in reversed(tables()):
            target.execute(delete(table))
        target.commit()


def _seeds() -> dict[str, int]:
    """How many rows the migrations alone put into each table."""
    with tempfile.TemporaryDirectory(prefix="safelight-") as folder:
        url = f"sqlite:///{Path(folder) / 'fresh.db'}"
        migrate(url)
        with _opened(url, reads=True) as fresh:
            return {table.name: _count(fresh, table) for table in tables()}


def _batches(source: Connection, table: Table) -> Iterator[list[dict[str, Any]]]:
    query = select(table).order_by(*table.primary_key.columns)
    with source.execution_options(yield_per=BATCH_ROWS).execute(query) as found:
        for rows in found.mappings().partitions():
            yield [dict(row) for row in rows]


def _put(target: Connection, table: Table, rows: list[dict[str, Any]], *, resume: bool) -> None:
    if resume:
        key = list(table.primary_key.columns)
        keys = [tuple(row[column.name] for column in key) for row in rows]
        wanted = key[0].in_([one for (one,) in keys]) if len(key) == 1 else tuple_(*key).in_(keys)
        there = {tuple(row) for row in target.execute(select(*key).where(wanted))}
        rows = [row for row, own in zip(rows, keys, strict=True) if own not in there]
    if rows:
        target.execute(insert(table), rows)
    target.commit()


def _verify(target: Connection, totals: dict[str, int]) -> None:
    wrong = [
        f"{name}: {found} instead of {total}"
        for name, total in totals.items()
        if (found := _count(target, metadata.tables[name])) != total
    ]
    if wrong:
        raise CopyFailed(f"The target does not have the source's rows: {'; '.join(wrong)}.")


def _count(connection: Connection, table: Table) -> int:
    return connection.execute(select(func.count()).select_from(table)).scalar_one()


def _analyze(url: str) -> None:
    """A new table has no statistics, and PostgreSQL would plan its first hours without."""
    engine = open_engine(url)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ANALYZE"))
    engine.dispose()


@contextlib.contextmanager
def _opened(url: str, *, reads: bool = False) -> Generator[Connection]:
    """A connection; one that `reads` sees a single snapshot from its first query on."""
    options: dict[str, Any] = {}
    is_sqlite = parse_url(url).get_backend_name() == "sqlite"
    if reads and not is_sqlite:
        options["isolation_level"] = "REPEATABLE READ"
    engine = open_engine(url, **options)
    if is_sqlite:  # Python's driver would begin nothing for a query

        @event.listens_for(engine, "connect")
        def _plain(connection: Any, record: Any) -> None:  # pyright: ignore[reportUnusedFunction]
            connection.isolation_level = None
            connection.execute("PRAGMA busy_timeout=60000")

        @event.listens_for(engine, "begin")
        def _begin(connection: Connection) -> None:  # pyright: ignore[reportUnusedFunction]
            connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")

    with engine.connect() as connection:
        yield connection
    engine.dispose()
