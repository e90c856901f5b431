"""The rows as a judge reads them: past the service, straight from the database."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import NullPool, create_engine, func, select
from sqlalchemy.engine import Row
from sqlalchemy.exc import DBAPIError

from safelight.artifacts.artifact import artifacts
from safelight.db import db_now
from safelight.jobs.job import TERMINAL, Attempt, Job, attempts, jobs, leases, workers

Record = Row[*tuple[Any, ...]]


class Rows:
    """Reads only, on a connection of its own for each question, so that a database may come and go between them."""

    def __init__(self, url: str) -> None:
        self._engine = create_engine(url, poolclass=NullPool)

    def close(self) -> None:
        self._engine.dispose()

    def _all(self, statement: Any) -> Sequence[Record]:
        with self._engine.connect() as connection:
            return connection.execute(statement).all()

    def jobs(self, project: str) -> dict[str, Job]:
        """The jobs of an experiment."""
        return {row[0]: Job.of(row) for row in self._all(select(*jobs.c).where(jobs.c.project_id == project))}

    def job(self, job_id: str) -> Job:
        return Job.of(self._all(select(*jobs.c).where(jobs.c.id == job_id))[0])

    def unended(self, project: str) -> list[str] | None:
        """The jobs of an experiment that have not ended; None while the database cannot be asked."""
        try:
            return [
                row[0]
                for row in self._all(
                    select(jobs.c.id).where(jobs.c.project_id == project, jobs.c.status.not_in(TERMINAL))
                )
            ]
        except DBAPIError:
            return None

    def count(self, project: str, *statuses: str) -> int:
        query = select(func.count()).where(jobs.c.project_id == project, jobs.c.status.in_(statuses))
        return self._all(query)[0][0]

    def attempts(self, project: str) -> dict[str, list[Attempt]]:
        """Every attempt of an experiment's jobs, in order."""
        mine = select(jobs.c.id).where(jobs.c.project_id == project)
        query = select(*attempts.c).where(attempts.c.job_id.in_(mine))
        found: dict[str, list[Attempt]] = {}
        for row in self._all(query.order_by(attempts.c.job_id, attempts.c.number)):
            found.setdefault(row[0], []).append(Attempt(*row))
        return found

    def artifacts(self, project: str | None = None) -> dict[str, list[Record]]:
        """What is recorded, by job."""
        query = select(*artifacts.c)
        if project is not None:
            query = query.where(artifacts.c.job_id.in_(select(jobs.c.id).where(jobs.c.project_id == project)))
        found: dict[str, list[Record]] = {}
        for row in self._all(query.order_by(artifacts.c.job_id, artifacts.c.position)):
            found.setdefault(row.job_id, []).append(row)
        return found

    def recent_jobs(self, seconds: float) -> list[Job]:
        return [Job.of(row) for row in self._all(select(*jobs.c).where(jobs.c.created_at > db_now(-seconds)))]

    def workers(self, alive_seconds: float) -> dict[str, int]:
        """How many living workers serve each queue."""
        counts: dict[str, int] = {}
        for row in self._all(select(workers.c.queues).where(workers.c.seen_at > db_now(-alive_seconds))):
            for queue in row[0]:
                counts[queue] = counts.get(queue, 0) + 1
        return counts

    def is_idle(self) -> bool:
        """Whether no worker that was heard from lately says that it runs anything."""
        now = self._all(select(db_now()))[0][0]
        rows = self._all(select(workers.c.running, workers.c.seen_at))
        return all(row[0] == 0 for row in rows if now - row[1] < timedelta(seconds=2))

    def dispatcher(self) -> str | None:
        """Who holds the dispatch lease."""
        rows = self._all(select(leases.c.holder).where(leases.c.name == "dispatch", leases.c.until > db_now()))
        return rows[0][0] if rows else None
