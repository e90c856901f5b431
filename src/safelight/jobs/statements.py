"""What each database is asked in words of its own: the steps of a job that are one statement here and several there.

One class for each, with the same methods; everything else is written once, in SQLAlchemy's words, beside what uses it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from safelight.artifacts import Artifact
from safelight.db import Tx
from safelight.jobs import statements_postgresql, statements_sqlite
from safelight.jobs.job import Claim, Job, Outcome
from safelight.jobs.step import End


class Statements(Protocol):
    """The words of one database."""

    def claim(self, tx: Tx, worker: Claim, ids: Sequence[str], *, is_alone: bool) -> list[Job]:
        """Take these of the worker's queue, as far as they can be taken, with a row for each attempt.

        The hints of the others are used up, were they worth nothing. `is_alone`: nothing else is in the transaction.
        """
        ...

    def end(self, tx: Tx, how: End, parameters: Mapping[str, Any], outcome: Outcome, error: Any) -> Job | None:
        """Take a step that ends an attempt, and end the attempt's row. None: it was not this attempt's to end."""
        ...

    def complete(self, tx: Tx, made: Mapping[tuple[str, int], Sequence[Artifact]], *, is_last: bool) -> Sequence[Job]:
        """Complete these attempts, by job and number, with all that belongs to it; returns those that could be.

        `is_last`: the transaction has nothing to do after it.
        """
        ...

    def note_remote_id(self, tx: Tx, job_id: str, attempt: int, remote_id: str, accepted_by: str | None) -> None:
        """Write into an attempt's row under which id the provider has it, and that this one was reached."""
        ...

    def write_progress(self, tx: Tx, news: Sequence[Sequence[Any]]) -> list[str]:
        """Of (job, attempt, progress, stage, message); returns the jobs whose row was this attempt's and free."""
        ...

    def heads(self, tx: Tx, here: Mapping[str, str], owners: Sequence[str], each: int) -> Sequence[Any]:
        """The first jobs of these owners' lines at a queue and provider: id, owner, his limit, tier."""
        ...

    def moved_on(self, tx: Tx, versions: Mapping[str, int]) -> list[str]:
        """The jobs that have passed the version given."""
        ...


def statements(tx: Tx) -> Statements:
    """Those of the transaction's database."""
    return _POSTGRESQL if tx.is_postgresql else _SQLITE


_POSTGRESQL = statements_postgresql.Postgresql()
_SQLITE = statements_sqlite.Sqlite()
