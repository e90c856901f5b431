"""Engines on the two databases, and what every connection is: UTF-8 on both ends, or refused."""

from collections.abc import Callable
from typing import Any

import orjson
from sqlalchemy import Engine, NullPool, create_engine
from sqlalchemy import event as sa_event

from safelight.db.address import parse_url
from safelight.db.trouble import DatabaseUnavailable

UTF8 = {"UTF8", "UNICODE", "UTF-8"}


class DatabaseUnsuitable(DatabaseUnavailable):
    """The database cannot hold what people write."""

    code = "database_unsuitable"


def open_engine(url: str, *, session: str = "", connect_args: dict[str, Any] | None = None, **options: Any) -> Engine:
    """An engine without a pool, whose JSON is orjson's. Raises `DatabaseUrlInvalid`.

    On PostgreSQL `session` are settings as in `-c statement_timeout=10000`, before those that the URL has of its own;
    what the URL says of anything in `connect_args` goes before it.
    """
    parsed = parse_url(url)
    given = dict(connect_args or {})
    if parsed.get_backend_name() == "postgresql":
        asked = {name: value for name, value in parsed.query.items() if name in given}
        own = parsed.query.get("options", "")
        settings = " ".join(part for part in (session, own if isinstance(own, str) else " ".join(own)) if part)
        # A client's encoding may come from its environment, and a database's own may be none at all.
        given |= asked | {"client_encoding": "utf8"} | ({"options": settings} if settings else {})
    engine = create_engine(
        parsed,
        poolclass=NullPool,
        json_serializer=_dumps,
        json_deserializer=orjson.loads,
        connect_args=given,
        **options,
    )
    if parsed.get_backend_name() == "postgresql":
        admit_with(engine, require_utf8)
    return engine


def admit_with(engine: Engine, admit: Callable[[Any], None]) -> None:
    """Show every new DB-API connection of the engine to `admit`, which may refuse it by raising."""

    def connect(connection: Any, record: Any) -> None:
        try:
            admit(connection)
        except BaseException:
            connection.close()  # nobody else would
            raise

    sa_event.listen(engine, "connect", connect)


def require_utf8(connection: Any) -> None:
    """Raise `DatabaseUnsuitable` for a PostgreSQL database that has another encoding: it could not hold every text."""
    encoding: str = connection.info.parameter_status("server_encoding") or _asked(connection)
    if encoding.upper() not in UTF8:
        name = connection.info.dbname
        raise DatabaseUnsuitable(
            f"The database {name!r} has the encoding {encoding}, which cannot hold every text: make one with "
            f"CREATE DATABASE {name}_utf8 ENCODING 'UTF8' TEMPLATE template0, and name that in SAFELIGHT_DATABASE_URL."
        )


def _asked(connection: Any) -> str:
    """For a pooler that does not pass on what the server says of itself as it connects."""
    encoding = connection.execute("SHOW server_encoding").fetchone()[0]
    connection.rollback()
    return encoding


def _dumps(value: Any) -> str:
    return orjson.dumps(value).decode()
