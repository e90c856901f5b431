"""Templates of users on both databases: one of a name, whoever is quicker, and only its owner's."""

import asyncio

import pytest

from safelight import template
from safelight.db import Database
from safelight.template import StoredTemplate, TemplateExists, TooManyTemplates

pytestmark = pytest.mark.anyio
ONE, OTHER = {"title": "One", "ü": ["✨", 2**53 + 1]}, {"title": "Other"}


async def test_what_is_kept_is_given_back_to_its_owner_alone(database: Database) -> None:
    added = await database.write(template.add, "ada", "poster", ONE)
    assert isinstance(added, StoredTemplate) and (added.name, added.definition) == ("poster", ONE)
    assert await database.read(template.get, "ada", "poster") == added
    assert await database.read(template.get, "bob", "poster") is None
    assert not await database.write(template.remove, "bob", "poster")
    replaced = await database.write(template.put, "ada", "poster", OTHER)
    assert not isinstance(replaced, TooManyTemplates) and not replaced[1]
    assert (replaced[0].definition, replaced[0].created_at) == (OTHER, added.created_at)
    assert replaced[0].updated_at > added.updated_at
    await database.write(template.put, "ada", "banner", ONE)
    assert [each.name for each in await database.read(lambda tx: list(template.list_all(tx, "ada")))] == [
        "banner",
        "poster",
    ]
    assert await database.write(template.remove, "ada", "poster")
    assert not await database.write(template.remove, "ada", "poster")


async def test_of_many_at_once_one_is_added(database: Database, other_database: Database) -> None:
    databases = (database, other_database)
    adding = [databases[n % 2].write(template.add, "ada", "poster", {"number": n}) for n in range(8)]
    outcomes = await asyncio.gather(*adding)
    assert sum(isinstance(outcome, StoredTemplate) for outcome in outcomes) == 1
    assert sum(isinstance(outcome, TemplateExists) for outcome in outcomes) == 7
    putting = [databases[n % 2].write(template.put, "ada", "banner", {"number": n}) for n in range(8)]
    news = [outcome[1] for outcome in await asyncio.gather(*putting) if not isinstance(outcome, TooManyTemplates)]
    assert sorted(news) == [False] * 7 + [True]
