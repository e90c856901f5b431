"""Run by Alembic: connect and migrate in one transaction."""

from alembic import context
from sqlalchemy import create_engine, text

import safelight.artifacts  # pyright: ignore[reportUnusedImport] - the tables register themselves
import safelight.jobs  # noqa: F401  # pyright: ignore[reportUnusedImport]
from safelight.db import metadata

engine = create_engine(context.config.attributes["database_url"])
with engine.connect() as connection:
    if connection.dialect.name == "postgresql":
        # Two processes that start at once must not migrate at once.
        connection.execute(text("SELECT pg_advisory_lock(7326001)"))
        connection.commit()
    if connection.dialect.name == "sqlite":
        # The mode belongs to the file. Switching it needs the file to itself, so it is done here once.
        connection.execute(text("PRAGMA journal_mode=WAL"))
        connection.commit()
    context.configure(connection=connection, target_metadata=metadata, render_as_batch=True, compare_type=True)
    with context.begin_transaction():
        context.run_migrations()
    connection.commit()
engine.dispose()
