"""Fixtures of the contract tests: a job service at work on one database, and a second door to the same rows."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.builders import Desk
from safelight.artifacts import ArtifactStore
from safelight.db import Database
from safelight.jobs import Retention
from safelight.pictures import PictureWorkers
from safelight.storage import Storage


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


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage.open((tmp_path / "files").as_uri())


@pytest.fixture
def store(storage: Storage) -> Iterator[ArtifactStore]:
    with PictureWorkers() as workers:
        yield ArtifactStore(storage, workers)


@pytest.fixture
def retention(database: Database, store: ArtifactStore) -> Retention:
    return Retention(database, store)
