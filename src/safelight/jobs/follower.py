"""Rows of other slices that follow jobs: they change in the transactions that accept and settle these."""

from collections.abc import Sequence

from safelight.db import Tx
from safelight.jobs.job import Job, NewJob


class Follower:
    """What a slice does about jobs; it overrides what concerns it."""

    def concerns(self, job: Job) -> bool:
        """Whether the end of this job can matter to it, as far as that can be said without looking at rows."""
        return True

    def awaits(self, new: NewJob) -> bool:
        """Whether it is to be told that this job was accepted."""
        return False

    def accepted(self, tx: Tx, new: Sequence[Job]) -> None:
        """These jobs, which it awaits, were accepted."""

    def settled(self, tx: Tx, job: Job) -> None:
        """This job ended, or came back to the queue."""
