"""Fixtures of the accounts' tests."""

from collections.abc import Iterator

import pytest

from accounts.identity_provider import IdentityProvider
from safelight.db import Database


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = Database(database_url, readers=1)
    yield database
    database.close()


@pytest.fixture
def provider() -> Iterator[IdentityProvider]:
    provider = IdentityProvider()
    yield provider
    provider.close()
