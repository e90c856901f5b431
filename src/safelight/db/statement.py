"""Statements that are built once and run often, past what SQLAlchemy does again for each execution.

SQLAlchemy compiles them and knows their types; the driver runs them. For the statements a job passes through on its way
that is a third of the time and of the processor.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Executable
from sqlalchemy.dialects.postgresql import psycopg
from sqlalchemy.engine import Dialect
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql.compiler import SQLCompiler

Processor = Callable[[Any], Any]


class Prepared:
    """A Core statement with its parameters bound by name; `columns` names those of an INSERT without values.

    A list cannot be one of its parameters (an array can), and its rows are plain tuples in the order of its columns.
    """

    def __init__(self, statement: Executable, columns: Sequence[str] | None = None) -> None:
        self._statement = statement
        self._columns = columns
        self._compiled: dict[str, _Compiled] = {}

    def run(self, connection: Connection, parameters: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        """The rows it gives back. Raises what SQLAlchemy would (`DBAPIError` and those below it)."""
        return self._for(connection.dialect).run(connection, parameters)

    def run_many(self, connection: Connection, parameters: Sequence[Mapping[str, Any]]) -> None:
        """Run it for each of these; it gives no rows back."""
        self._for(connection.dialect).run_many(connection, parameters)

    def run_each(self, connection: Connection, parameters: Sequence[Mapping[str, Any]]) -> list[tuple[Any, ...]]:
        """The one row that each of these gives back, in their order; on PostgreSQL in one journey."""
        compiled = self._for(connection.dialect)
        if connection.dialect.name == "postgresql" and len(parameters) > 1:
            return compiled.run_pipelined(connection, parameters)
        return [row for each in parameters for row in compiled.run(connection, each)]

    def _for(self, dialect: Dialect) -> "_Compiled":
        compiled = self._compiled.get(dialect.name)
        if compiled is None:
            compiled = self._compiled[dialect.name] = _Compiled(self._statement, self._columns, dialect)
        return compiled


@contextmanager
def driver_cursor(connection: Connection, sql: str) -> Generator[Any]:
    """The driver's own cursor, to run `sql` past SQLAlchemy. Raises what SQLAlchemy would (`DBAPIError`)."""
    driver: Any = connection.connection.driver_connection
    cursor: Any = None
    try:
        dbapi: Any = connection.dialect.loaded_dbapi
        cursor = dbapi.RawCursor(driver) if connection.dialect.name == "postgresql" else driver.cursor()
        yield cursor
        cursor.close()
    except connection.dialect.loaded_dbapi.Error as error:
        lost = connection.dialect.is_disconnect(error, driver, cursor)
        if lost:
            connection.invalidate(error)
        raise DBAPIError.instance(
            sql,
            None,
            error,
            connection.dialect.loaded_dbapi.Error,
            connection_invalidated=lost,
            dialect=connection.dialect,
        ) from error


class _Compiled:
    def __init__(self, statement: Any, columns: Sequence[str] | None, dialect: Dialect) -> None:
        # psycopg's own placeholders are looked for again at each execution of a statement with more than 50 of them;
        # PostgreSQL's are not (`RawCursor`).
        positional = psycopg.dialect(paramstyle="numeric_dollar") if dialect.name == "postgresql" else dialect
        compiled: SQLCompiler = statement.compile(dialect=positional, column_keys=columns)
        self._sql = compiled.string
        self._names: Sequence[str] = compiled.positiontup or ()
        fixed: dict[str, Any] = {}
        asked: list[tuple[str, str, Processor | None]] = []
        for name, bind in compiled.binds.items():
            process: Processor | None = bind.type.dialect_impl(dialect).bind_processor(dialect)
            if bind.required:
                asked.append((name, bind.key, process))
            else:
                value = bind.effective_value
                fixed[name] = value if process is None else process(value)
        self._fixed = fixed
        self._asked = asked
        self._dialect = dialect
        self._types = [column.type.dialect_impl(dialect) for column in getattr(statement, "exported_columns", ())]
        self._processors: list[tuple[int, Processor]] | None = None  # known with the first row's description

    def bound(self, parameters: Mapping[str, Any]) -> list[Any]:
        values = dict(self._fixed)
        for name, key, process in self._asked:
            value = parameters[key]
            values[name] = value if process is None else process(value)
        return [values[name] for name in self._names]

    def run(self, connection: Connection, parameters: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        with driver_cursor(connection, self._sql) as cursor:
            cursor.execute(self._sql, self.bound(parameters))
            return self._processed(cursor, cursor.fetchall()) if self._types else []

    def run_many(self, connection: Connection, parameters: Sequence[Mapping[str, Any]]) -> None:
        with driver_cursor(connection, self._sql) as cursor:
            cursor.executemany(self._sql, [self.bound(each) for each in parameters])

    def run_pipelined(self, connection: Connection, parameters: Sequence[Mapping[str, Any]]) -> list[tuple[Any, ...]]:
        with driver_cursor(connection, self._sql) as cursor:
            cursor.executemany(self._sql, [self.bound(each) for each in parameters], returning=True)
            rows = [cursor.fetchone()]
            while cursor.nextset():
                rows.append(cursor.fetchone())
            return self._processed(cursor, rows)

    def _processed(self, cursor: Any, rows: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        if self._processors is None:
            self._processors = self._processors_of(cursor.description or ())
        return [_processed(row, self._processors) for row in rows]

    def _processors_of(self, description: Sequence[Any]) -> list[tuple[int, Processor]]:
        made = [
            (place, known.result_processor(self._dialect, told[1]))
            for place, (known, told) in enumerate(zip(self._types, description, strict=False))
        ]
        return [(place, process) for place, process in made if process is not None]


def _processed(row: tuple[Any, ...], processors: Sequence[tuple[int, Processor]]) -> tuple[Any, ...]:
    values = list(row)
    for place, process in processors:
        values[place] = process(values[place])
    return tuple(values)
