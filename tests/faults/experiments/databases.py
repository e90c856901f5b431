"""The database gone, cut off, read-only, locked or on a full disk: jobs wait, none is lost, none is paid for twice."""

import contextlib
import sqlite3
import time

import psycopg
from sqlalchemy.engine import make_url

from faults.lab import FaultyStack, faulty
from faults.stack import until
from faults.trial import Experiment, Skipped, Trial
from servers import PostgresServer

CRASHES = ("worker_lost",)


def _load(trial: Trial, count: int, longest: float = 1.0) -> list[str]:
    random = trial.random
    return [
        trial.submit(
            random.uniform(0.0, longest),
            script={"latency_seconds": random.uniform(0.0, 0.3), "paid": random.random() < 0.5},
            watch=random.choice((None, 0, 1)),
            codes=CRASHES,
        )
        for _ in range(count)
    ]


def _server(stack: FaultyStack) -> PostgresServer:
    assert stack.postgres is not None
    return stack.postgres


def _execute(stack: FaultyStack, *statements: str) -> None:
    conninfo = _server(stack).conninfo.format(database="postgres")
    with psycopg.connect(conninfo, autocommit=True, options="-c default_transaction_read_only=off") as connection:
        for statement in statements:
            connection.execute(statement.encode())


TERMINATE = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'safelight'"


def killed(trial: Trial) -> None:
    stack = faulty(trial)
    stack.crew(io=2, local=2)
    for _ in range(trial.pick(1, 4)):
        _load(trial, trial.pick(8, 15))
        trial.pause(0.0, 0.6)
        trial.fault("kill PostgreSQL")
        _server(stack).kill()
        trial.pause(0.0, trial.pick(1.0, 5.0))
        _server(stack).start()
        trial.probe()
    trial.wait_ended()
    trial.expect_nobody_lost()


def restarted(trial: Trial) -> None:
    stack = faulty(trial)
    stack.crew(io=2, local=2)
    for _ in range(trial.pick(1, 4)):
        _load(trial, 10)
        trial.fault("restart PostgreSQL")
        _server(stack).restart()
    trial.probe()
    trial.wait_ended()
    trial.expect_nobody_lost()


def hanging(trial: Trial) -> None:
    """Frozen for longer than leases last: no worker may believe that the others died."""
    stack = faulty(trial)
    stack.crew(io=2, local=2)
    for _ in range(trial.pick(1, 3)):
        _load(trial, 8, 2.0)
        trial.fault("SIGSTOP PostgreSQL")
        _server(stack).freeze()
        trial.pause(2.0, trial.pick(3.0, 15.0))
        _server(stack).thaw()
        trial.probe()
    trial.wait_ended()
    trial.expect_nobody_lost()


def terminated(trial: Trial) -> None:
    stack = faulty(trial)
    stack.crew(io=2, local=2)
    for _ in range(trial.pick(5, 25)):
        _load(trial, 3)
        trial.fault("terminate all backends")
        _execute(stack, TERMINATE)
        trial.pause(0.0, 0.4)
    trial.probe()
    trial.wait_ended()
    trial.expect_nobody_lost()


def read_only(trial: Trial) -> None:
    stack = faulty(trial)
    stack.crew(io=2, local=2)
    for _ in range(trial.pick(1, 3)):
        _load(trial, 10, 2.0)
        trial.fault("read-only")
        _execute(stack, "ALTER DATABASE safelight SET default_transaction_read_only = on", TERMINATE)
        trial.pause(1.0, trial.pick(2.0, 6.0))
        _execute(stack, "ALTER DATABASE safelight RESET default_transaction_read_only", TERMINATE)
        trial.probe()
    trial.wait_ended()
    trial.expect_nobody_lost()


def locked(trial: Trial) -> None:
    """Another process, one that knows nothing of our lock file, holds SQLite's write lock.

    Whoever waits for that lock does so for up to 5 s, longer than the short leases here leave for a heartbeat, so a
    job may be taken for lost; it is adopted then, and nothing else may come of it.
    """
    stack = faulty(trial)
    stack.crew(io=2, local=2)
    for _ in range(trial.pick(1, 2)):
        _load(trial, 8, 2.0)
        path = make_url(stack.database_url).database
        assert path is not None
        trial.fault("lock SQLite")
        with contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=20)) as other:
            other.execute("BEGIN IMMEDIATE")
            trial.pause(*trial.pick((3.0, 4.0), (28.0, 32.0)))
            other.execute("COMMIT")
        trial.probe()


def disk_full(trial: Trial) -> None:
    """No room: for rows (on SQLite) and pictures alike."""
    stack = faulty(trial)
    if stack.disk is None:
        raise Skipped("a small disk cannot be mounted here (needs root)")
    stack.crew(io=2, local=2)
    for _ in range(trial.pick(1, 4)):
        ids = _load(trial, 10, 2.0)
        for job_id in ids:
            trial.may_end(job_id, codes=("storage_unavailable", "database_unavailable"))
        trial.wait_processing(ids[:1])
        trial.fault("fill the disk")
        stack.disk.fill()
        trial.pause(1.0, trial.pick(2.0, 6.0))
        stack.disk.free()
        trial.probe()


def files_unwritable(trial: Trial) -> None:
    """The storage refuses pictures for a while, the database is well: finished work waits and is not paid again."""
    stack = faulty(trial)
    stack.crew(io=2, local=2)
    for _ in range(trial.pick(1, 3)):
        jobs, aside = stack.files / "jobs", stack.files.with_name("files-aside")
        until(jobs.exists, what="the first picture") if trial.submit() else None
        trial.wait_ended()
        ids = [trial.submit(trial.random.uniform(0.3, 1.0), script={"paid": True}, watch=0) for _ in range(6)]
        trial.wait_processing(ids, accepted=True)
        trial.fault("take the storage away")
        stack.files.rename(aside)
        stack.files.write_bytes(b"not a folder")
        time.sleep(0.8)
        stack.files.unlink()
        aside.rename(stack.files)
        trial.probe()
    trial.wait_ended()
    trial.expect_nobody_lost()


DATABASES = (
    Experiment("postgres-killed", "PostgreSQL is killed and started", killed, database="postgresql", short=True),
    Experiment("postgres-restarted", "PostgreSQL is restarted in order", restarted, database="postgresql"),
    Experiment("postgres-hanging", "PostgreSQL stands still for longer than leases", hanging, database="postgresql"),
    Experiment("postgres-terminated", "all backends are terminated", terminated, database="postgresql"),
    Experiment("postgres-read-only", "PostgreSQL takes no writes", read_only, database="postgresql"),
    Experiment("sqlite-locked", "another process locks SQLite for 30 s (in short: 3 s)", locked, database="sqlite"),
    Experiment("disk-full", "the disk with database and pictures is full", disk_full),
    Experiment("files-unwritable", "the place for pictures is gone for a while", files_unwritable),
)
