"""Fixtures of the contract tests: a job service at work on one database, and a second door to the same rows."""

from collections.abc import Iterator

import pytest

from jobs.builders import Desk
from safelight.db import Database


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = Database(database_url, readers=1)
    yield database
    database.close()


@pytest.fixture
def other_database(database_url: str) -> Iterator[Database]:
    """The same rows as another process sees them."""
    database = Database(database_url, readers=1)
    yield database
    database.close()


@pytest.fixture
def desk(database: Database) -> Desk:
    return Desk(database)
