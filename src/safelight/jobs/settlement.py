"""How an attempt can end, as its runner tells it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from safelight.artifacts import Artifact
from safelight.jobs.job import Job


@dataclass(frozen=True, slots=True)
class Completed:
    """The results are stored; their rows are written together with the status."""

    artifacts: Sequence[Artifact]


@dataclass(frozen=True, slots=True)
class Failed:
    """It will not be tried again."""

    error: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Cancelled:
    """Its owner asked for it."""


@dataclass(frozen=True, slots=True)
class TryAgain:
    """A transient failure: another attempt after `after_seconds`, while its provider has retries left.

    It adopts the provider's job if that may be well (`keeps_provider_job`): what failed was the way to it, or was on
    our side. Without retries left it goes to the next provider of its route, if it `may_move`, or else it has failed.
    One that only found that there is nothing to adopt is not counted as a try (`counts`). `is_last_if_again`: it has
    failed if an earlier attempt ended with the same code.
    """

    error: Mapping[str, Any]
    after_seconds: float
    keeps_provider_job: bool = False
    may_move: bool = False
    counts: bool = True
    is_last_if_again: bool = False


@dataclass(frozen=True, slots=True)
class Defer:
    """The provider asks everybody to wait for `after_seconds` (None: it did not say how long).

    It is paused for all its jobs, and this one takes its place in the line again: that counts as no retry.
    """

    error: Mapping[str, Any]
    after_seconds: float | None
    keeps_provider_job: bool = False


@dataclass(frozen=True, slots=True)
class Unreached:
    """The provider cannot be reached: nothing is started there until it can, and this job takes its place in the line
    again, which counts as no retry. It adopts what the provider has already, if anything (`keeps_provider_job`).
    """

    error: Mapping[str, Any]
    keeps_provider_job: bool = False


@dataclass(frozen=True, slots=True)
class HandBack:
    """The worker is leaving; nothing is wrong with the job."""


Settlement = Completed | Failed | Cancelled | TryAgain | Defer | Unreached | HandBack


def job_error(
    code: str, message: str, job: Job, retryable: bool, details: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Why an attempt or job failed, in its one shape. `retryable`: the same request may succeed if sent again."""
    return {
        "code": code,
        "message": message,
        "retryable": retryable,
        "provider": job.provider,
        "attempt": job.attempt,
        "details": dict(details or {}),
    }


def time_limit_error(job: Job) -> dict[str, Any]:
    """The error of an attempt that took longer than it may."""
    message = f"The attempt took longer than its limit of {job.soft_limit_seconds:g} s."
    return job_error("time_limit_exceeded", message, job, True)
