"""What an attempt that failed comes to: another one, a place in the line again, or the end."""

import random
from collections.abc import Mapping
from typing import Any

from safelight.jobs import Defer, Failed, Settlement, TryAgain, Unreached, job_error
from safelight.providers.base import (
    ContentRejected,
    JobDropped,
    JobLost,
    NotTaken,
    ProviderCrashed,
    ProviderError,
    ProviderTimedOut,
    ProviderUnavailable,
    ProviderUnreachable,
    RateLimited,
    ResultMissing,
)
from safelight.worker.attempt import RunningAttempt

FOLLOWABLE = (ProviderUnavailable, ProviderTimedOut, ResultMissing)  # say nothing of a job that was accepted before
MOVABLE = (ProviderUnavailable, ProviderTimedOut, JobLost)  # another provider of the route may do better
FREE_ATTEMPTS = 20  # after so many, one that was dropped counts as well


class Judge:
    """Knows how long to wait before the first retry; each later one waits twice as long."""

    def __init__(self, retry_seconds: float) -> None:
        self._retry_seconds = retry_seconds

    def of(self, attempt: RunningAttempt, error: ProviderError) -> Settlement:
        """What the error means for the job; `attempt.verdict` is then what it tells of its provider."""
        job = attempt.job
        described = job_error(error.code, error.message, job, error.retryable, error.details)
        match error:
            case RateLimited():
                attempt.verdict = "worked"  # it answered
                return Defer(described, error.retry_after, keeps_provider_job=attempt.remote_id is not None)
            case ContentRejected():
                attempt.verdict = "worked"
            case ProviderUnreachable():
                return Unreached(described, keeps_provider_job=attempt.is_taken)
            case ProviderUnavailable() | ProviderTimedOut():
                attempt.verdict = "failed"
            case ProviderCrashed():
                return TryAgain(described, 0.0, is_last_if_again=True)
            case JobDropped():  # somebody else's doing; but not for ever
                return TryAgain(described, 0.0, counts=job.attempt >= FREE_ATTEMPTS)
            case JobLost() if job.provider_job_id is not None:
                return TryAgain(described, 0.0, counts=False)  # there was nothing to adopt: it begins anew
            case _:
                pass
        if not error.retryable:
            return Failed(described)
        keeps = isinstance(error, FOLLOWABLE) and not isinstance(error, NotTaken)
        has_paid_job = keeps and attempt.remote_id is not None and attempt.may_be_paid
        return self.again(
            attempt,
            described,
            0.0 if isinstance(error, JobLost) else error.retry_after,
            keeps_provider_job=keeps,
            may_move=isinstance(error, MOVABLE) and not error.may_have_cost and not has_paid_job,
        )

    def again(
        self,
        attempt: RunningAttempt,
        error: Mapping[str, Any],
        retry_after: float | None = None,
        *,
        keeps_provider_job: bool,
        may_move: bool = False,
    ) -> Settlement:
        """Another attempt: of the job that the provider has, if it has accepted one that is to be kept."""
        if retry_after is None:
            retry_after = self._retry_seconds * 2.0**attempt.job.retries_here * random.uniform(0.8, 1.2)
        return TryAgain(error, retry_after, keeps_provider_job and attempt.remote_id is not None, may_move)
