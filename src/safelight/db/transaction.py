"""An open transaction, as the functions that are one see it."""

import select
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, CursorResult, Executable, Table
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError

from safelight.db.statement import Prepared
from safelight.db.trouble import explain

PSYCOPG_IDLE = 0  # no transaction; SQLite needs no psycopg to be imported
Rows = CursorResult[*tuple[Any, ...]]


class Tx:
    """Given to the functions of `Database.write` and `read`, and of no use after them."""

    __slots__ = ("_connection", "_is_only", "_notes")

    def __init__(self, connection: Connection, notes: list[Callable[[], None]], *, is_only: bool = False) -> None:
        self._connection = connection
        self._notes = notes
        self._is_only = is_only  # nothing but one function given to `write_one` runs in it

    @property
    def is_postgresql(self) -> bool:
        return self._connection.dialect.name == "postgresql"

    def execute(
        self, statement: Executable, parameters: dict[str, Any] | Sequence[dict[str, Any]] | None = None
    ) -> Rows:
        return self._connection.execute(statement, parameters)

    def insert_if_free(self, table: Table) -> postgresql.Insert | sqlite.Insert:
        """An INSERT that does nothing where a unique key is taken."""
        dialect = postgresql if self.is_postgresql else sqlite
        return dialect.insert(table).on_conflict_do_nothing()

    def run(self, statement: Prepared, parameters: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        """The rows that a prepared statement gives back."""
        return statement.run(self._connection, parameters)

    def run_last(self, statement: Prepared, parameters: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        """Run the statement that a function given to `write_one` ends with.

        On PostgreSQL, if it is also the first and nobody shares the transaction, it commits itself: one journey instead
        of three. What the function did after it would be another transaction.
        """
        if not self._is_only or not self.is_postgresql:
            return self.run(statement, parameters)
        driver: Any = self._connection.connection.driver_connection
        if driver.pgconn.transaction_status != PSYCOPG_IDLE or _has_spoken(driver):
            return self.run(statement, parameters)
        driver.autocommit = True
        try:
            return self.run(statement, parameters)
        except DBAPIError as error:
            if error.connection_invalidated:  # nobody knows whether it was committed: it must not be run again
                raise explain(error) from error
            raise
        finally:
            if not driver.closed:
                driver.autocommit = False

    def run_many(self, statement: Prepared, parameters: Sequence[Mapping[str, Any]]) -> None:
        """Run a prepared statement for each of these."""
        statement.run_many(self._connection, parameters)

    def run_each(self, statement: Prepared, parameters: Sequence[Mapping[str, Any]]) -> list[tuple[Any, ...]]:
        """The one row that a prepared statement gives back for each of these."""
        return statement.run_each(self._connection, parameters)

    def on_commit(self, note: Callable[[], None]) -> None:
        """Run `note()` on the event loop once this is committed. Nobody waits for it and it must not block."""
        self._notes.append(note)


def _has_spoken(driver: Any) -> bool:
    """Whether the server said something unasked: as a rule that it is gone, which a BEGIN finds out at no risk."""
    ear = select.poll()
    ear.register(driver.fileno(), select.POLLIN)
    return bool(ear.poll(0))
