"""Where a database is: the URLs people have at hand, read in one place, and refused with what to write instead."""

import errno
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote

from sqlalchemy.engine import URL

from safelight.errors import Invalid
from safelight.folder import FolderUnusable, open_folder, open_private

POSTGRESQL = re.compile(r"(postgres|postgresql)(\+(asyncpg|psycopg|psycopg2|psycopg2cffi|psycopg_async|pg8000))?")
SQLITE = re.compile(r"sqlite(\+(pysqlite|aiosqlite))?")
HOST = re.compile(r"(?P<host>\[[^\]]*\]|[^:\[\]]*)(:(?P<port>\d*))?")
FORMS = "write sqlite:////path/safelight.db or postgresql://user:password@host/database"
ENCODED = "percent-encode what is special in its user and password: / is %2F, ? is %3F, # is %23, @ is %40, % is %25"
SQLITE_HEADER = b"SQLite format 3\0"
SSL_MODES = {"true": "require", "1": "require", "false": "disable", "0": "disable"}  # of the drivers that say `ssl`


class DatabaseUrlInvalid(Invalid):
    """The database URL cannot be read."""

    code = "database_url_invalid"


def parse_url(url: str) -> URL:
    """Read a database URL, of any driver and in libpq's form too (several hosts, `%2F` for a socket's folder).

    Raises `DatabaseUrlInvalid`, which never quotes the URL: it holds a password as a rule.
    """
    text = url.strip()
    if text[:1] in ("'", '"'):
        raise DatabaseUrlInvalid(
            "The database URL begins with a quotation mark, which is part of it here: leave it out."
        )
    scheme, separator, rest = text.partition("://")
    if not separator:
        raise DatabaseUrlInvalid(f"The database URL has no scheme: {FORMS}.")
    if SQLITE.fullmatch(scheme.lower()):
        return _sqlite(rest)
    if POSTGRESQL.fullmatch(scheme.lower()):
        return _postgresql(rest)
    raise DatabaseUrlInvalid(f"The database URL begins with {scheme[:40]!r}, which is not supported: {FORMS}.")


def prove_file(url: URL) -> None:
    """For a start on SQLite: prove that its folder can be written and that its file, if there is one, is a database.

    Raises `FolderUnusable`. Without effect on PostgreSQL.
    """
    if url.get_backend_name() != "sqlite":
        return
    file = Path(url.database or "")
    remedy = "name another file with SAFELIGHT_DATABASE_URL, or another folder with --data-dir"
    open_folder(file.parent, "folder of the database", remedy)
    try:
        with file.open("r+b") as opened:
            head = opened.read(len(SQLITE_HEADER))
    except FileNotFoundError:
        return
    except OSError as error:
        reasons = {errno.EISDIR: "it is a folder, not a file", errno.EACCES: "this user may not write it"}
        reason = reasons.get(error.errno or 0, error.strerror)
        raise FolderUnusable(f"The database {file} cannot be used: {reason}; {remedy}.") from error
    if head and head != SQLITE_HEADER:
        raise FolderUnusable(f"The database {file} cannot be used: it is not a file of SQLite's; {remedy}.")


def make_file(url: URL) -> None:
    """Make SQLite's file, if it is not there, for its owner's eyes alone: its log and index take the mode from it."""
    prove_file(url)
    if url.get_backend_name() == "sqlite":
        os.close(open_private(Path(url.database or ""), os.O_RDWR))


def _sqlite(rest: str) -> URL:
    if not rest.startswith("/"):
        raise DatabaseUrlInvalid(
            "The database URL of SQLite needs a third slash before its path, and a fourth where that begins at the "
            "root: write sqlite:///safelight.db or sqlite:////var/lib/safelight.db."
        )
    path = rest[1:]
    if not path or path.startswith((":memory:", "file:")):
        raise DatabaseUrlInvalid("The database URL must name a file of SQLite's: write sqlite:////path/safelight.db.")
    if re.search(r"\?\w+=", path):
        raise DatabaseUrlInvalid(
            "The database URL of SQLite takes no options: leave out what follows the question mark."
        )
    return URL.create("sqlite", database=path)


def _postgresql(rest: str) -> URL:
    authority, mark, tail = re.match(r"([^/?#]*)([/?#]?)(.*)", rest, re.DOTALL).groups()  # pyright: ignore[reportOptionalMemberAccess]
    path, _, query = tail.partition("?") if mark == "/" else ("", "", tail)
    if mark == "#" or "@" in path or "#" in path or "/" in path:
        raise DatabaseUrlInvalid(f"The database URL cannot be read: {ENCODED}.")
    login, at, places = authority.rpartition("@")  # a host has no @, so that a raw one can only be in the password
    user, colon, password = login.partition(":")
    options = _options(query)
    hosts, ports = _places(places)
    if hosts and "host" not in options:
        options["host"] = ",".join(hosts)
        if any(ports):
            options["port"] = ",".join(port or "5432" for port in ports)
    return URL.create(
        "postgresql+psycopg",
        username=unquote(user) if at else None,
        password=unquote(password) if colon else None,
        database=unquote(path) or None,
        query=options,
    )


def _places(text: str) -> tuple[list[str], list[str]]:
    hosts: list[str] = []
    ports: list[str] = []
    for place in text.split(",") if text else ():
        found = HOST.fullmatch(place)
        port = (found["port"] or "") if found else ""
        if found is None or (port and not 0 < int(port) < 65536):
            raise DatabaseUrlInvalid(f"The database URL cannot be read: check its host and port, and {ENCODED}.")
        hosts.append(unquote(found["host"]).strip("[]") or "localhost")
        ports.append(port)
    return hosts, ports


def _options(query: str) -> dict[str, Any]:
    if not query:
        return {}
    from psycopg.pq import Conninfo  # noqa: PLC0415 - SQLite needs no psycopg to be imported

    known = {option.keyword.decode() for option in Conninfo.get_defaults()}
    options: dict[str, Any] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name == "ssl":
            options["sslmode"] = SSL_MODES.get(value.lower(), value)
        elif name not in known:
            raise DatabaseUrlInvalid(
                f"The database URL has the option {name[:40]!r}, which PostgreSQL does not know: leave it out, or "
                "write one of libpq's, as in ?sslmode=require."
            )
        elif name == "host" and "host" in options:
            options["host"] = (*_several(options["host"]), value)
        else:
            options[name] = value
    return options


def _several(value: str | tuple[str, ...]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else value
