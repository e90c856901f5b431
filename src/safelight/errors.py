"""The errors people and programs can meet.

An error carries a *kind* (what sort of trouble, closed set) and a *code* (stable, for programs), never an HTTP status:
the door that shows it chooses the status. A class's docstring is its default sentence.
Errors of one slice stand beside the function that raises them and derive from `SafelightError`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

ErrorKind = Literal[
    "malformed",  # the request cannot be read
    "invalid",  # readable, but a value is wrong
    "unauthenticated",  # nobody knows who asks
    "forbidden",  # it is known, and may not
    "not_found",
    "gone",  # it was there and was deleted
    "conflict",  # the thing is not in a state that allows it
    "too_large",
    "rate_limited",
    "unavailable",  # a part we need is away; the same request may succeed later
    "internal",
]


@dataclass(frozen=True, slots=True)
class FieldError:
    """One wrong field: `pointer` is a JSON pointer into the body (`#/width`), `detail` says what would be right."""

    pointer: str
    detail: str


class SafelightError(Exception):
    """Something went wrong inside Safelight."""

    kind: ClassVar[ErrorKind] = "internal"
    code: ClassVar[str] = "internal_error"

    def __init__(
        self, detail: str | None = None, *, errors: Sequence[FieldError] = (), retry_after: float | None = None
    ) -> None:
        self.detail = detail or (type(self).__doc__ or "").strip().splitlines()[0]
        self.errors = tuple(errors)
        self.retry_after = retry_after
        super().__init__(self.detail)


class Invalid(SafelightError):
    """A value in the request is not acceptable."""

    kind = "invalid"
    code = "invalid_request"


class Unavailable(SafelightError):
    """A part of Safelight is away for the moment. Try again."""

    kind = "unavailable"
    code = "unavailable"

    def __init__(
        self, detail: str | None = None, *, errors: Sequence[FieldError] = (), retry_after: float | None = 2.0
    ) -> None:
        super().__init__(detail, errors=errors, retry_after=retry_after)
