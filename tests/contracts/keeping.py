"""Artifacts as their rows tell, and made older than they are."""

from typing import Any

from sqlalchemy import update

from jobs.builders import Desk
from safelight import artifacts as results
from safelight.artifacts import Artifact


async def artifact_row(desk: Desk, artifact_id: str) -> Artifact:
    found = await desk.database.read(results.get, artifact_id)
    assert found is not None
    return found


async def age(desk: Desk, artifact: Artifact, **values: Any) -> None:
    table = results.artifacts
    await desk.write(lambda tx: tx.execute(update(table).where(table.c.id == artifact.id).values(**values)) and None)
