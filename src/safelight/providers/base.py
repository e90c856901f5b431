"""The provider contract: what a plug-in that generates must offer, and what it may say.

A provider is given a `Generation` (values only) and answers with an async generator of updates. It knows nothing of
jobs, rows, queues or events; the runner alone turns its updates into state. Register one under the entry point group
`safelight.providers`.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

from safelight.providers.parameters import Capabilities, InputImage, Parameters
from safelight.providers.parameters import Limits as Limits
from safelight.providers.parameters import Lora as Lora

CONTRACT = 2  # a plug-in says which it was written for; 1: its options stood in `Parameters.options`

# --- what is asked ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Generation:
    """One attempt's order. `job_id` and `attempt` may serve as idempotency key where the provider takes one.

    `woken` is set when somebody says that there is news (a webhook): ask the provider now,
    however long the pause was to be.
    """

    job_id: str
    attempt: int
    parameters: Parameters
    soft_limit_seconds: float
    images: tuple[InputImage, ...] = ()
    woken: asyncio.Event = field(default_factory=asyncio.Event, compare=False)


# --- what is told -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Submitting:
    """The next step may cost money. The runner writes this down before it asks for the next update."""


@dataclass(frozen=True, slots=True)
class Reserved:
    """The job will be sent under this id, which is ours to choose: look for it before sending it again.

    For services that take an id from us. The runner writes it down before it asks for the next update; send the job
    then, and yield nothing more before the service has answered. Another one may follow if this one came to nothing.
    """

    remote_id: str


@dataclass(frozen=True, slots=True)
class Accepted:
    """The provider has the job under this id. Written down at once, so that a later attempt adopts it."""

    remote_id: str


@dataclass(frozen=True, slots=True)
class Progress:
    """Where it stands. `percent` is 0-100, None if unknown; `stage` is a machine word, `message` for people.

    `is_waiting`: the provider has not begun with it; that time says nothing of how long the next one takes.
    """

    percent: int | None
    stage: str
    message: str
    is_waiting: bool = False


@dataclass(frozen=True, slots=True)
class Preview:
    """A small picture of the unfinished result."""

    data: bytes
    content_type: str


@dataclass(frozen=True, slots=True)
class Output:
    """One finished result, as bytes or as a local file: a picture, a video or a sound.

    A file is the runner's from here on: it is streamed into the storage, whatever its size, and removed. What it is,
    its content says; the `content_type` is what the provider takes it for. `seed` is the one that made this very
    result, if known. `details` (JSON) are kept with it: `title`, `source_url`, ...
    """

    data: bytes | Path
    content_type: str
    seed: int | None = None
    details: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def read(self) -> bytes:
        """Its bytes; a file is read whole."""
        return self.data if isinstance(self.data, bytes) else self.data.read_bytes()


Update = Submitting | Reserved | Accepted | Progress | Preview | Output


# --- what can go wrong ------------------------------------------------------------------------------------------------
#
#   ProviderError
#   ├── InvalidParameters   never again        422 at submit, or refused later by the provider
#   ├── ContentRejected     never again
#   ├── RateLimited         later              retry_after wins over our own delays
#   ├── ProviderUnavailable later              after Accepted: by following the job that it has
#   │   └── NotTaken        later, anew        it was told under which id, and never had it
#   │       └── ProviderUnreachable  once it can be reached; counts as no retry
#   ├── ProviderTimedOut    later              as unavailable
#   ├── JobLost             later, anew        the provider forgot a job it had accepted
#   │   ├── JobDropped      later, anew        before it began with it; counts as no retry
#   │   └── ProviderCrashed once more          its server died over it
#   ├── GenerationFailed    later, anew        the provider took it and failed at it
#   ├── BadOutput           later, anew        empty, corrupt or not what was asked
#   │   └── ResultMissing   later              not where the provider says: ask it again, make nothing again
#   └── UnknownOutcome      never blindly      it may have been carried out and charged


class ProviderError(Exception):
    """The provider failed."""

    code: ClassVar[str] = "provider_error"
    retryable: ClassVar[bool] = False
    may_have_cost: ClassVar[bool] = False

    def __init__(
        self,
        message: str | None = None,
        *,
        retry_after: float | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        self.message = message or (type(self).__doc__ or "").strip().splitlines()[0]
        self.retry_after = retry_after
        self.details = dict(details or {})
        super().__init__(self.message)


class InvalidParameters(ProviderError):
    """The provider cannot work with these parameters.

    `field` is the name of the wrong field in the submit body (dotted below it, `provider_options.mock`). `others` are
    further faults of the same parameters: `Faults` gathers them.
    """

    code = "invalid_request"

    def __init__(
        self,
        message: str,
        *,
        field: str = "",
        details: Mapping[str, Any] | None = None,
        others: "Sequence[InvalidParameters]" = (),
    ) -> None:
        super().__init__(message, details=details)
        self.field = field
        self.others = tuple(others)

    @property
    def faults(self) -> "Sequence[InvalidParameters]":
        """Itself, and the others."""
        return (self, *self.others)


class Faults:
    """Gathers what is wrong with parameters, so that all of it is told at once:

    faults = Faults()
    if parameters.width > 2048:
        faults.add("The width must be at most 2048 pixels.", field="width")
    with faults:  # what is raised within goes to the others
        check_options(parameters.provider_options)  # raises InvalidParameters
    faults.refuse()
    """

    def __init__(self) -> None:
        self._found: list[InvalidParameters] = []

    def add(self, message: str, *, field: str = "") -> None:
        """One more."""
        self._found.append(InvalidParameters(message, field=field))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, InvalidParameters):
            self._found += error.faults
            return True
        return False

    def refuse(self) -> None:
        """Raise `InvalidParameters` with all that was found, if anything was."""
        if self._found:
            first, *others = self._found
            raise InvalidParameters(first.message, field=first.field, details=first.details, others=others)


class ContentRejected(ProviderError):
    """The provider refuses this content."""

    code = "content_rejected"


class RateLimited(ProviderError):
    """The provider asks us to slow down."""

    code = "rate_limited"
    retryable = True


class ProviderUnavailable(ProviderError):
    """The provider cannot be reached or fails on its side."""

    code = "provider_unavailable"
    retryable = True


class NotTaken(ProviderUnavailable):
    """The provider cannot be reached, and has not got the job."""


class ProviderUnreachable(NotTaken):
    """The provider cannot be reached: nobody answers at its address, so nothing was sent that could be paid for."""


class ProviderTimedOut(ProviderError):
    """The provider did not answer in time."""

    code = "provider_timed_out"
    retryable = True


class JobLost(ProviderError):
    """The provider no longer knows the job it had accepted."""

    code = "provider_job_lost"
    retryable = True


class ProviderCrashed(JobLost):
    """The provider's server died while it worked on the job. The second time the job fails: it may be the reason."""

    code = "provider_crashed"


class JobDropped(JobLost):
    """The provider's server died before it began with the job, which is sent again and loses no retry."""


class GenerationFailed(ProviderError):
    """The provider took the job and failed at it."""

    code = "generation_failed"
    retryable = True
    may_have_cost = True


class BadOutput(ProviderError):
    """The provider delivered something that is not a usable result."""

    code = "bad_output"
    retryable = True
    may_have_cost = True


class ResultMissing(BadOutput):
    """The result is not where the provider says."""

    code = "result_missing"


class UnknownOutcome(ProviderError):
    """The request may have been carried out, and nobody can tell."""

    code = "unknown_outcome"
    may_have_cost = True


# --- the port ---------------------------------------------------------------------------------------------------------


class Provider(ABC):
    """A plug-in that generates. All methods must be safe to call concurrently on one event loop.

    `contract` is the number of the contract that it was written for; a plug-in written for another one is not used.
    """

    contract: ClassVar[int] = 1

    @property
    @abstractmethod
    def capabilities(self) -> Capabilities: ...

    @abstractmethod
    def check(self, parameters: Parameters) -> Parameters:
        """Check offline and at once; return the parameters with defaults filled in. Raises `InvalidParameters`."""

    @abstractmethod
    def generate(self, generation: Generation) -> AsyncGenerator[Update]:
        """Carry the order out. Raises `ProviderError`."""

    async def verify(self, parameters: Parameters) -> None:  # noqa: B027 - a provider that needs none of these has none
        """Check what only the provider's servers know (models, nodes), from what is remembered or within a second.

        Raises `InvalidParameters`. A server that does not answer is no reason: the attempt will see.
        """

    async def resume(self, generation: Generation, remote_id: str) -> AsyncGenerator[Update]:
        """Follow a job the provider accepted for an earlier attempt. Raises `JobLost` if it is gone.

        Of an id that was only `Reserved`, find out whether the job was received, and send it if not.
        """
        raise JobLost
        yield

    def takes_seed(self, parameters: Parameters) -> bool:
        """Whether a seed makes a difference to these checked parameters. Else the job is given none, and shows none."""
        return self.capabilities.seeds

    async def cancel(self, remote_id: str) -> None:  # noqa: B027
        """Ask the provider to stop; unknown and finished jobs are no error."""

    async def health(self) -> str | None:
        """None if well, else one sentence for people."""
        return None

    async def warnings(self) -> Sequence[str]:
        """What will stop working unless somebody does something, in sentences: a model that is shut down soon.

        Asked in the background, twice a day. It may take half a minute.
        """
        return ()

    async def models(self) -> Mapping[str, Sequence[str]]:
        """The names that can be asked for, by kind (`checkpoints`, `loras`, ...)."""
        return {"models": self.capabilities.models}

    async def models_by_server(self) -> Mapping[str, Mapping[str, Sequence[str]]]:
        """The same for each of its servers, by address; empty where there are none to tell apart."""
        return {}

    async def close(self) -> None:  # noqa: B027
        """End connections; nothing is asked of it afterwards."""
