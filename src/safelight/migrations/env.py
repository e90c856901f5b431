"""Run by Alembic: connect and migrate in one transaction, so that a failure or a kill leaves everything as it was."""

from typing import Any

from alembic import context
from sqlalchemy import Connection, event, text

import safelight.bootstrap  # pyright: ignore[reportUnusedImport] - the slices with tables
import safelight.template  # noqa: F401  # pyright: ignore[reportUnusedImport]
from safelight.db import metadata, open_engine

engine = open_engine(context.config.attributes["database_url"])
if engine.dialect.name == "sqlite":
    # Python's driver would commit each statement that changes the schema. Ours is the transaction, and its lock keeps
    # two processes that start at once from migrating at once.

    @event.listens_for(engine, "connect")
    def _plain(connection: Any, record: Any) -> None:  # pyright: ignore[reportUnusedFunction]
        connection.isolation_level = None
        connection.execute("PRAGMA busy_timeout=60000")
        # The mode belongs to the file. Switching it needs the file to itself, so it is done here once.
        connection.execute("PRAGMA journal_mode=WAL")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:  # pyright: ignore[reportUnusedFunction]
        connection.exec_driver_sql("BEGIN IMMEDIATE")


with engine.connect() as connection:
    if connection.dialect.name == "postgresql":
        # Two processes that start at once must not migrate at once.
        connection.execute(text("SELECT pg_advisory_lock(7326001)"))
        connection.commit()
    context.configure(
        connection=connection,
        target_metadata=metadata,
        render_as_batch=True,
        compare_type=True,
        transactional_ddl=True,
    )
    with context.begin_transaction():
        context.run_migrations()
    connection.commit()
