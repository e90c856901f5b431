"""Rows: transactions that are functions, on SQLite and PostgreSQL. Nothing else knows which one it is."""

from safelight.db.address import DatabaseUrlInvalid, make_file, parse_url, prove_file
from safelight.db.column import EPOCH, Instant, Json, RowId, db_now, later, metadata, moment_of, new_id, without
from safelight.db.database import MAX_BATCH, Database
from safelight.db.engine import DatabaseUnsuitable, open_engine
from safelight.db.statement import Prepared
from safelight.db.transaction import Tx
from safelight.db.trouble import DatabaseUnavailable

__all__ = [
    "EPOCH",
    "MAX_BATCH",
    "Database",
    "DatabaseUnavailable",
    "DatabaseUnsuitable",
    "DatabaseUrlInvalid",
    "Instant",
    "Json",
    "Prepared",
    "RowId",
    "Tx",
    "db_now",
    "later",
    "make_file",
    "metadata",
    "moment_of",
    "new_id",
    "open_engine",
    "parse_url",
    "prove_file",
    "without",
]
