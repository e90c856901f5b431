"""Which schema this version speaks, and the look every connection takes before it is used.

The revisions are the names of the files in `migrations/versions`, so nobody keeps a second list and no start loads
Alembic. A database that is away at the start is looked at when it is back, one that was restored from a backup or
migrated meanwhile when the next connection is made: no process works on tables it does not know.
"""

from pathlib import Path
from typing import Any

from safelight.db import Database, DatabaseUnavailable, DatabaseUnsuitable
from safelight.errors import Unavailable

REVISIONS: tuple[str, ...] = tuple(
    sorted(path.stem for path in (Path(__file__).parent / "migrations" / "versions").glob("[0-9]*.py"))
)


class SchemaOutdated(DatabaseUnavailable):
    """The database has an older schema than this version of Safelight needs: run `safelight migrate`."""

    code = "schema_outdated"


class SchemaTooNew(DatabaseUnavailable):
    """The database has a newer schema than this version of Safelight knows."""

    code = "schema_too_new"


def judge(revision: str | None) -> DatabaseUnavailable | None:
    """What stands in the way of working on a database of this revision; None if nothing does."""
    newest = REVISIONS[-1]
    if revision == newest:
        return None
    if revision is None:
        return SchemaOutdated("The database has no tables yet: run `safelight migrate`.")
    if revision in REVISIONS:
        return SchemaOutdated(
            f"The database has the schema {revision} and this version needs {newest}: run `safelight migrate`."
        )
    return SchemaTooNew(
        f"The database has the schema {revision}, and this version of Safelight is too old for it: it knows {newest} "
        "and older. Start the version that migrated the database, or a newer one."
    )


def admit(connection: Any) -> None:
    """Let a fresh DB-API connection in if the schema is ours. Raises `SchemaOutdated` or `SchemaTooNew`."""
    cursor = connection.cursor()
    try:
        cursor.execute("SELECT version_num FROM alembic_version")
        row = cursor.fetchone()
    except Exception as error:
        if getattr(error, "sqlstate", None) != "42P01" and "no such table" not in str(error):
            raise
        row = None
    finally:
        cursor.close()
    connection.rollback()
    problem = judge(None if row is None else row[0])
    if problem is not None:
        raise problem


async def require(database: Database) -> None:
    """Raise what is wrong with the database or its schema, if it answers; being away is no reason not to start."""
    try:
        await database.read(lambda tx: None)
    except (SchemaOutdated, SchemaTooNew, DatabaseUnsuitable):
        raise
    except Unavailable:
        return
