"""Whoever stands still must not draw wrong conclusions afterwards, and must not be waited for without end."""

import asyncio
import contextlib
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlalchemy.engine import make_url

from faults.proxy import FreezingProxy
from jobs.builders import Desk
from patience import PATIENCE_SECONDS
from safelight.db import Database, DatabaseUnavailable, Tx, lane, new_id
from safelight.jobs import Caps, Dispatcher
from servers import PostgresServer

pytestmark = pytest.mark.anyio
BEAT_SECONDS = 0.2


def ask(tx: Tx) -> int:
    return tx.execute(select(1)).scalar_one()


async def nothing() -> None:
    pass


async def test_after_a_standstill_heartbeats_come_before_judgement(sqlite_url: str) -> None:
    """The machine slept, or the database stood still: all leases ran out at once, and nobody died."""
    with contextlib.closing(Database(sqlite_url)) as database:
        desk = Desk(database)
        dispatcher = Dispatcher(
            database,
            desk.jobs,
            holder=new_id(),
            hint=lambda job: None,
            can_hint=lambda: True,
            caps=Caps(),
            beat_seconds=BEAT_SECONDS,
            rehint_seconds=5,
            housekeeping=nothing,
        )
        await dispatcher._tick()
        job = await desk.running()
        await desk.lease_ends(-1.0)
        assert dispatcher._looked_at is not None
        dispatcher._looked_at -= timedelta(minutes=5)  # so long ago was the last look
        await dispatcher._tick()
        assert (await desk.job(job.id)).status == "processing"
        await asyncio.sleep(2.5 * BEAT_SECONDS)
        await dispatcher._tick()
        assert (await desk.job(job.id)).status == "pending", "nobody renewed the lease: it was lost after all"


async def test_a_connection_that_went_dead_is_given_up(
    postgres_server: Callable[[], PostgresServer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half-open: nothing comes any more and nothing says so. New connections are well."""
    monkeypatch.setattr(lane, "QUEUE_TIMEOUT_SECONDS", 0.2)
    monkeypatch.setattr(lane, "STUCK_SECONDS", 0.3)
    server = postgres_server()
    url = make_url(server.url("postgres")).set(query={"host": str(tmp_path)})
    with (
        contextlib.closing(FreezingProxy(tmp_path / ".s.PGSQL.5432", server.directory / ".s.PGSQL.5432")) as proxy,
        contextlib.closing(Database(url.render_as_string(hide_password=False), readers=1)) as database,
    ):
        for ask_in in (database.read, database.write, database.write_urgently):
            assert await ask_in(ask) == 1
        proxy.freeze()
        async with asyncio.timeout(PATIENCE_SECONDS):
            for ask_in in (database.read, database.write, database.write_urgently):
                try:
                    assert await ask_in(ask) == 1
                except DatabaseUnavailable:
                    assert await ask_in(ask) == 1
