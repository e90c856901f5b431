"""The column types both databases share, their clock, and ids."""

import os
import time
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import JSON, BigInteger, MetaData, String
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP, UUID
from sqlalchemy.engine.interfaces import Dialect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeDecorator, TypeEngine

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
LAST_MILLISECOND = 253_402_300_799_999  # that a datetime can hold
MICROSECOND = timedelta(microseconds=1)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


class Instant(TypeDecorator[datetime]):
    """A moment as an aware UTC datetime: `timestamptz` on PostgreSQL, integer microseconds since 1970 on SQLite."""

    impl = BigInteger
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name == "postgresql":
            return dialect.type_descriptor(TIMESTAMP(timezone=True))
        return dialect.type_descriptor(BigInteger())

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:
        if value is None or dialect.name == "postgresql":
            return value
        return (value - EPOCH) // MICROSECOND

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if dialect.name == "postgresql":
            return value.astimezone(UTC)
        return EPOCH + timedelta(microseconds=value)


RowId = String(36).with_variant(UUID(as_uuid=False), "postgresql")
Json = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")


class db_now(FunctionElement[datetime]):  # noqa: N801 - reads as the SQL function it is
    """The database's clock, optionally moved by a number or column of seconds: `db_now()`, `db_now(30)`."""

    inherit_cache = True
    type = Instant()
    name = "db_now"


@compiles(db_now, "sqlite")
def _sqlite_now(element: db_now, compiler: SQLCompiler, **kw: Any) -> str:
    # SQLite 3.40 has no unixepoch('subsec'); julianday gives milliseconds.
    now = "CAST((julianday('now') - 2440587.5) * 86400000.0 AS INTEGER) * 1000"
    moved = compiler.process(element.clauses, **kw)
    return f"({now} + CAST(({moved}) * 1000000 AS INTEGER))" if moved else f"({now})"


@compiles(db_now, "postgresql")
def _postgresql_now(element: db_now, compiler: SQLCompiler, **kw: Any) -> str:
    moved = compiler.process(element.clauses, **kw)
    return f"(statement_timestamp() + ({moved}) * interval '1 second')" if moved else "statement_timestamp()"


class later(FunctionElement[datetime]):  # noqa: N801 - as above
    """A moment and a number of seconds: `later(jobs.c.run_at, 60)`."""

    inherit_cache = True
    type = Instant()
    name = "later"


@compiles(later, "sqlite")
def _sqlite_later(element: later, compiler: SQLCompiler, **kw: Any) -> str:
    moment, seconds = (compiler.process(part, **kw) for part in element.clauses)
    return f"({moment} + CAST(({seconds}) * 1000000 AS INTEGER))"


@compiles(later, "postgresql")
def _postgresql_later(element: later, compiler: SQLCompiler, **kw: Any) -> str:
    moment, seconds = (compiler.process(part, **kw) for part in element.clauses)
    return f"({moment} + ({seconds}) * interval '1 second')"


class without(FunctionElement[Any]):  # noqa: N801 - as above
    """A JSON object without some of its members: `without(jobs.c.parameters, "workflow")`."""

    inherit_cache = True
    name = "without"


@compiles(without, "sqlite")
def _sqlite_without(element: without, compiler: SQLCompiler, **kw: Any) -> str:
    value, *members = (compiler.process(part, **kw) for part in element.clauses)
    paths = ", ".join(f"'$.' || {member}" for member in members)
    return f"json_remove({value}, {paths})"


@compiles(without, "postgresql")
def _postgresql_without(element: without, compiler: SQLCompiler, **kw: Any) -> str:
    return f"({' - '.join(compiler.process(part, **kw) for part in element.clauses)})"


def moment_of(row_id: str) -> datetime:
    """When a UUIDv7 was made, by the clock of the process that made it."""
    milliseconds = int(row_id.replace("-", "")[:12], 16)
    return EPOCH + timedelta(milliseconds=min(milliseconds, LAST_MILLISECOND))


def new_id() -> str:
    """A UUIDv7 (RFC 9562, clock as fine as that allows): ids sort by creation time, to a quarter of a microsecond."""
    milliseconds, nanoseconds = divmod(time.time_ns(), 1_000_000)
    value = (
        milliseconds << 80
        | 0x7 << 76
        | (nanoseconds * 4096 // 1_000_000) << 64
        | 0b10 << 62
        | int.from_bytes(os.urandom(8)) >> 2
    )
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
