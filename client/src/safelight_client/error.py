"""What can go wrong between a program and Safelight: it said no, or it did not answer."""

from typing import Any

import httpx


class ClientError(Exception):
    """Anything this client raises on its own account."""


class Unreachable(ClientError):
    """No answer came, after every retry that made sense. The same call may succeed later."""


class ApiError(ClientError):
    """Safelight answered with an error, told as an RFC 9457 problem document.

    `code` is stable and meant for programs, `detail` is a sentence for people. `errors` names the wrong fields of a
    refused request, each `{"pointer": "#/width", "detail": "..."}`. `retryable` says whether the same request may
    succeed later; `retry_after` is the number of seconds the server asked for, if it did.
    """

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        errors: tuple[dict[str, Any], ...] = (),
        request_id: str | None = None,
        retryable: bool = False,
        retry_after: float | None = None,
    ) -> None:
        self.status = status
        self.code = code
        self.detail = detail
        self.errors = errors
        self.request_id = request_id
        self.retryable = retryable
        self.retry_after = retry_after
        super().__init__("\n".join([detail, *(f"  {each.get('pointer')}: {each.get('detail')}" for each in errors)]))

    @classmethod
    def from_response(cls, response: httpx.Response) -> "ApiError":
        """Read the problem document; an answer that is none (a proxy's page) still makes a sensible error."""
        try:
            body = response.json()
        except ValueError:
            body = None
        problem: dict[str, Any] = body if isinstance(body, dict) else {}
        found = problem.get("errors")
        errors = tuple(each for each in found if isinstance(each, dict)) if isinstance(found, list) else ()
        detail = problem.get("detail") or problem.get("title") or f"{response.status_code} {response.reason_phrase}"
        return cls(
            response.status_code,
            str(problem.get("code") or f"http_{response.status_code}"),
            str(detail),
            errors=errors,
            request_id=problem.get("request_id") or response.headers.get("X-Request-ID"),
            retryable=bool(problem.get("retryable", response.status_code in (429, 502, 503, 504))),
            retry_after=retry_after(response),
        )


def retry_after(response: httpx.Response) -> float | None:
    """The seconds of `Retry-After`. Its other form, a date, is not used by Safelight and is read as absent."""
    try:
        return max(0.0, float(response.headers["Retry-After"]))
    except (KeyError, ValueError):
        return None
