"""The schema's history. `migrate` moves a database along it, forward as a rule, back if that is asked for."""

from dataclasses import dataclass
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import inspect, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from safelight.db import make_file, open_engine, parse_url
from safelight.errors import SafelightError
from safelight.schema import REVISIONS, SchemaTooNew, judge

NEWEST = "head"
EMPTY = "base"  # before the first revision: no tables


__all__ = ["EMPTY", "NEWEST", "REVISIONS", "Migrated", "MigrationFailed", "check", "current", "migrate", "resolve"]


class MigrationFailed(SafelightError):
    """The database could not be brought to the schema of this version."""

    kind = "unavailable"
    code = "migration_failed"


@dataclass(frozen=True, slots=True)
class Migrated:
    """Where a database stood and where it stands now; None is a database without tables."""

    before: str | None
    after: str | None


def migrate(database_url: str, revision: str = NEWEST) -> Migrated:
    """Bring the database at `database_url` to `revision`, up or down, in one transaction.

    SQLite's file and folder are made if missing. Raises `MigrationFailed`, `FolderUnusable`, `DatabaseUnsuitable` or
    `DatabaseUrlInvalid`, or `SchemaTooNew` for a database that a newer version migrated: only that one knows the way
    back.
    """
    target = resolve(revision)
    make_file(parse_url(database_url))
    before = current(database_url)
    if isinstance(problem := judge(before), SchemaTooNew):
        raise problem
    config = alembic_config(database_url)
    try:
        if _place(target) >= _place(before):
            command.upgrade(config, target or EMPTY)
        else:
            command.downgrade(config, target or EMPTY)
    except (SQLAlchemyError, OSError) as error:
        reason = f"The database could not be migrated, and is as it was: {_reason(error)}."
        raise MigrationFailed(reason) from error
    return Migrated(before, current(database_url))


def current(database_url: str) -> str | None:
    """The revision of a database; None if it has no tables, or is a SQLite file that is not there yet."""
    url = parse_url(database_url)
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").exists():
        return None
    engine = open_engine(database_url)
    try:
        with engine.connect() as connection:
            if not inspect(connection).has_table("alembic_version"):
                return None
            return connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()
    except DBAPIError as error:
        raise MigrationFailed(f"The database cannot be used: {_reason(error)}.") from error
    finally:
        engine.dispose()


def check(database_url: str) -> SafelightError | None:
    """What is wrong with the schema of a database, with what to do about it. Raises `MigrationFailed` if it is away."""
    return judge(current(database_url))


def resolve(revision: str) -> str | None:
    """A revision by its name, the beginning of it, `head` or `base` (which is None)."""
    if revision == EMPTY:
        return None
    if revision == NEWEST:
        return REVISIONS[-1]
    found = [known for known in REVISIONS if known.startswith(revision)]
    if len(found) != 1:
        raise MigrationFailed(f"There is no schema {revision!r}; there are {', '.join(REVISIONS)}, head and base.")
    return found[0]


def alembic_config(database_url: str) -> Config:
    """Alembic's configuration, without an ini file."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["database_url"] = database_url
    return config


def _place(revision: str | None) -> int:
    return -1 if revision is None else REVISIONS.index(revision)


def _reason(error: Exception) -> str:
    lines = str(getattr(error, "orig", None) or error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
