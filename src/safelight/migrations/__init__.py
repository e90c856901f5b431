"""The schema's history. `migrate` brings a database to the newest version."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import make_url

from safelight.errors import SafelightError


class MigrationFailed(SafelightError):
    """The database could not be brought to the schema of this version."""

    kind = "unavailable"
    code = "migration_failed"


def migrate(database_url: str, revision: str = "head") -> None:
    """Upgrade the database at `database_url` to `revision`; SQLite's file and folder are made if missing."""
    url = make_url(database_url)
    if url.get_backend_name() == "sqlite" and url.database:
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    command.upgrade(alembic_config(database_url), revision)


def alembic_config(database_url: str) -> Config:
    """Alembic's configuration, without an ini file."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.attributes["database_url"] = database_url
    return config
