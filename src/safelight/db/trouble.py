"""What an error of the driver means: that one function is in trouble, or the database."""

from sqlalchemy.exc import DBAPIError

from safelight.errors import Unavailable

RETRY_ALONE = {"40001", "40P01"}  # PostgreSQL: serialization failure, deadlock
BUSY = RETRY_ALONE | {"55P03"}  # and a row that was locked for too long


class DatabaseUnavailable(Unavailable):
    """The database cannot be used at the moment."""

    code = "database_unavailable"


def _sqlstate(error: BaseException) -> str | None:
    return getattr(error.orig, "sqlstate", None) if isinstance(error, DBAPIError) else None


def wants_retry(error: BaseException) -> bool:
    return _sqlstate(error) in RETRY_ALONE


def is_unusable(error: BaseException) -> bool:
    """Whether the database, rather than one function, is in trouble."""
    if not isinstance(error, DBAPIError) or wants_retry(error):
        return False
    kind = type(error.orig).__name__ if error.orig is not None else ""
    return (
        error.connection_invalidated
        or kind in {"OperationalError", "InterfaceError", "InternalError"}
        or isinstance(error.orig, ConnectionError)
        or (_sqlstate(error) or "").startswith(("08", "25", "53", "57", "58"))
        or _sqlstate(error) in {"42P01", "42703"}
    )


def judge(error: BaseException) -> BaseException:
    """What the caller of one function is told."""
    return explain(error) if _sqlstate(error) in BUSY else error


def explain(error: BaseException) -> DatabaseUnavailable:
    text = str(getattr(error, "orig", error)).strip().splitlines()[0:1]
    reason = text[0] if text else type(error).__name__
    if "no such table" in reason or "no such column" in reason or _sqlstate(error) in {"42P01", "42703"}:
        reason += " (is the schema up to date? run `safelight migrate`)"
    elif "disk is full" in reason or _sqlstate(error) == "53100":
        reason = "the disk that holds the database is full"
    return DatabaseUnavailable(f"The database cannot be used: {reason}.")
