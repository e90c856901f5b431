"""The durable work of a job as the peers do it, in SQLAlchemy Core: what anybody would write.

Submit: one INSERT, committed, then the queue's own message. Worker: UPDATE to processing (commit), four PUBLISH, UPDATE
to completed with a JSON result (commit), one PUBLISH. No leases, no attempts, no cancel, no recovery.
"""

import http.client
import os
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import orjson
import redis
from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    DateTime,
    Engine,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    bindparam,
    create_engine,
    event,
    insert,
    update,
)

metadata = MetaData()
jobs = Table(
    "bench_jobs",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("owner_id", String(200), nullable=False),
    Column("status", String(12), nullable=False),
    Column("progress", Integer),
    Column("provider", String(80), nullable=False),
    Column("provider_job_id", String(500)),
    Column("prompt", Text, nullable=False),
    Column("width", Integer),
    Column("height", Integer),
    Column("seed", BigInteger),
    Column("parameters", JSON, nullable=False),
    Column("result", JSON),
    Column("error", JSON),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("started_at", DateTime(timezone=True)),
    Column("finished_at", DateTime(timezone=True)),
)
Index("ix_bench_jobs_owner", jobs.c.owner_id, jobs.c.id)
Index("ix_bench_jobs_status", jobs.c.status, jobs.c.created_at)

INSERT = insert(jobs)
_BEGIN = update(jobs).where(jobs.c.id == bindparam("b_id")).values(status="processing")
_ACCEPTED = update(jobs).where(jobs.c.id == bindparam("b_id")).values(provider_job_id=bindparam("b_remote"))
_END = update(jobs).where(jobs.c.id == bindparam("b_id")).values(status="completed", progress=100)
RESULT = {"images": [{"path": "jobs/1/1.png", "width": 64, "height": 64, "size_bytes": 67, "sha256": "0" * 64}]}


def utc_now() -> datetime:
    return datetime.now(UTC)


def new_row() -> dict[str, Any]:
    return {
        "id": str(uuid.uuid4()),
        "owner_id": "local",
        "status": "pending",
        "provider": "null",
        "prompt": "a lighthouse at dusk",
        "width": 64,
        "height": 64,
        "seed": 7,
        "parameters": {},
        "created_at": utc_now(),
    }


@lru_cache(1)
def engine() -> Engine:
    """This process's engine; made at first use, which is after the fork in prefork workers."""
    url = os.environ["BENCH_DATABASE_URL"]
    made = create_engine(url, pool_size=20, max_overflow=0, pool_timeout=60)
    if made.dialect.name == "sqlite":
        level = os.environ.get("BENCH_SYNCHRONOUS", "FULL")

        def connect(connection: Any, record: Any) -> None:
            for pragma in ("busy_timeout=30000", "journal_mode=WAL", f"synchronous={level}"):
                connection.execute(f"PRAGMA {pragma}")

        event.listen(made, "connect", connect)
    return made


@lru_cache(1)
def publisher() -> "redis.Redis":
    return redis.Redis.from_url(os.environ["BENCH_REDIS_URL"], max_connections=1000)


def submit(send: Callable[[str], object]) -> str:
    """INSERT, commit, and the queue's message."""
    row = new_row()
    with engine().begin() as connection:
        connection.execute(INSERT, row)
    send(row["id"])
    return row["id"]


def carry_out(job_id: str) -> None:
    """The worker's part."""
    slow = os.environ.get("BENCH_SLOW_SERVER")
    with engine().begin() as connection:
        connection.execute(_BEGIN, {"b_id": job_id, "started_at": utc_now()})
    if slow:
        with engine().begin() as connection:
            connection.execute(_ACCEPTED, {"b_id": job_id, "b_remote": f"remote-{job_id}"})
        _wait_for(slow)
    for progress in (20, 40, 60, 80):
        _tell(job_id, "processing", progress)
    with engine().begin() as connection:
        connection.execute(_END, {"b_id": job_id, "finished_at": utc_now(), "result": RESULT})
    _tell(job_id, "completed", 100)


def _tell(job_id: str, status: str, progress: int) -> None:
    event = {"job_id": job_id, "status": status, "progress": progress, "is_terminal": status == "completed"}
    publisher().publish(f"task_updates:{job_id}", orjson.dumps(event))


def _wait_for(place: str) -> None:
    host, _, port = place.partition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=60)
    connection.request("GET", "/")
    connection.getresponse().read()
    connection.close()
