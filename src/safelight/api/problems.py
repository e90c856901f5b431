"""Errors as RFC 9457 problem details: one table from kind to status, one shape for all."""

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, get_args

import orjson
import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, Field, ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from safelight.api.body import FieldTwice
from safelight.api.method import allowed_methods
from safelight.errors import ErrorKind, FieldError, Invalid, SafelightError
from safelight.suggestion import did_you_mean

STATUS: Mapping[ErrorKind, int] = {
    "malformed": 400,
    "unauthenticated": 401,
    "forbidden": 403,
    "invalid": 422,
    "not_found": 404,
    "gone": 410,
    "conflict": 409,
    "too_large": 413,
    "rate_limited": 429,
    "unavailable": 503,
    "internal": 500,
}
TITLES = {
    400: "The request cannot be read",
    401: "Not authenticated",
    403: "Not permitted",
    404: "Not found",
    405: "Method not allowed",
    409: "Not possible in this state",
    408: "Too slow",
    410: "Deleted",
    413: "Too large",
    415: "Unsupported type",
    416: "Range not satisfiable",
    421: "Wrong host",
    422: "A value is not acceptable",
    429: "Too many requests",
    431: "Headers too large",
    500: "Internal error",
    503: "Unavailable at the moment",
}
RETRYABLE = {408, 429, 503}
TOLD = {401, 403, 413, 415, 421, 422, 429}  # to the log: somebody was turned away, or what they brought
JSON_TYPE = re.compile(r"\s*application/([\w.+-]+\+)?json\s*(;|$)", re.IGNORECASE)
MAX_ERRORS = 50  # told of one request
BAD_CREDENTIAL = ', error="invalid_token"'

log = structlog.get_logger()


class ProblemError(BaseModel):
    """One wrong field."""

    pointer: str = Field(description="JSON pointer into the body, as `#/width`", examples=["#/width"])
    detail: str = Field(examples=["Input should be less than or equal to 8192"])


class Problem(BaseModel):
    """What went wrong (RFC 9457). `code` is stable and meant for programs, `detail` for people."""

    type: str = Field(examples=["urn:safelight:problem:invalid_request"])
    title: str
    status: int
    detail: str
    code: str = Field(examples=["invalid_request"])
    errors: list[ProblemError] = []
    request_id: str
    retryable: bool = Field(description="Whether the same request may succeed later")


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For `responses` of a route: what it can answer besides that which `document` tells of every route alike."""
    return {status: {"model": Problem} for status in statuses}


def problem(
    request_id: str,
    status: int,
    code: str,
    detail: str,
    *,
    errors: Sequence[FieldError] = (),
    retry_after: float | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """A problem as a response."""
    if status in TOLD:
        log.info("request.refused", status=status, code=code, reason=detail)
    if len(errors) > MAX_ERRORS:
        detail = f"{detail} ({MAX_ERRORS} of {len(errors)} errors are told.)"
    body = {
        "type": f"urn:safelight:problem:{code}",
        "title": TITLES.get(status, "Error"),
        "status": status,
        "detail": detail,
        "code": code,
        "errors": [{"pointer": error.pointer, "detail": error.detail} for error in errors[:MAX_ERRORS]],
        "request_id": request_id,
        "retryable": status in RETRYABLE,
    }
    response = Response(
        orjson.dumps(body), status, {"Cache-Control": "no-store", **(headers or {})}, "application/problem+json"
    )
    if retry_after is not None:
        response.headers["Retry-After"] = str(max(1, round(retry_after)))
    return response


def problem_of(request_id: str, error: SafelightError) -> Response:
    """An error as a response."""
    status = STATUS[error.kind]
    if status >= 500:
        log.warning("request.failed", code=error.code, reason=error.detail)
    headers: dict[str, str] = {}
    if status == 401:
        why = "" if error.code == "unauthenticated" else BAD_CREDENTIAL  # RFC 6750
        headers["WWW-Authenticate"] = f'Bearer realm="safelight"{why}'
    return problem(
        request_id,
        status,
        error.code,
        error.detail,
        errors=error.errors,
        retry_after=error.retry_after,
        headers=headers,
    )


def install(app: FastAPI) -> None:
    """Let every error of the app be shown as a problem."""

    @app.exception_handler(SafelightError)
    def on_error(request: Request, error: SafelightError) -> Response:  # pyright: ignore[reportUnusedFunction]
        return problem_of(request.state.request_id, error)

    @app.exception_handler(RequestValidationError)
    def on_invalid(request: Request, error: RequestValidationError) -> Response:  # pyright: ignore[reportUnusedFunction]
        return _invalid(request, error.errors())

    @app.exception_handler(HTTPException)
    def on_http(request: Request, error: HTTPException) -> Response:  # pyright: ignore[reportUnusedFunction]
        headers, allowed = error.headers, ""
        if error.status_code == 405:
            allowed = ", ".join(allowed_methods(app.routes, request.scope))
            headers = {"Allow": allowed}
            if request.method == "OPTIONS":
                return Response(None, 204, headers)
        codes = {400: "malformed_json", 404: "not_found", 405: "method_not_allowed"}
        method = "HEAD" if request.state.is_head else request.method
        details = {
            400: _unreadable(error.__cause__),
            404: f"There is nothing at {request.url.path}.",
            405: f"{method} is not possible at {request.url.path}; {allowed} are.",
        }
        return problem(
            request.state.request_id,
            error.status_code,
            codes.get(error.status_code, "http_error"),
            details.get(error.status_code, str(error.detail)),
            headers=headers,
        )


def _unreadable(reason: BaseException | None) -> str:
    """Why a body that claims to be JSON could not be read as such."""
    if isinstance(reason, RecursionError):
        return "The JSON of the body is nested too deeply."
    if isinstance(reason, FieldTwice):
        return f"The field {str(reason)[:80]!r} stands twice in one object of the JSON; give it once."
    if isinstance(reason, ValueError) and not isinstance(reason, UnicodeError):
        return f"A number in the body is too long: it may have {sys.get_int_max_str_digits()} digits."
    return "The body is not JSON in UTF-8."


def _invalid(request: Request, found: Sequence[Any]) -> Response:
    request_id: str = request.state.request_id
    first = found[0]
    if first["type"] == "json_invalid":
        reason = first.get("ctx", {}).get("error", "")
        return problem(request_id, 400, "malformed_json", f"The body is not JSON: {reason}.")
    declared = request.headers.get("content-type", "")
    if first["loc"][0] == "body" and JSON_TYPE.match(declared) is None:  # so nobody has read it as such
        asked = "Send the body as JSON, with the header Content-Type: application/json"
        if not declared:
            return problem(request_id, 400, "not_json", f"{asked}.")
        accepted = {"Accept": "application/json"}
        detail = f"{asked}, not {declared[:80]!r}."
        return problem(request_id, 415, "unsupported_media_type", detail, headers=accepted)
    route: Any = request.scope.get("route")
    field = route.body_field if isinstance(route, APIRoute) else None
    errors = _field_errors(found, () if field is None else _models_in(field.field_info.annotation))
    in_path = first["loc"][0] in ("path", "query", "header")
    return problem(request_id, 422 if not in_path else 400, "invalid_request", _summary(errors), errors=errors)


def invalid_body(found: ValidationError, model: type[BaseModel]) -> Invalid:
    """The same for a body that a route checks itself; the places that pydantic tells begin at the body."""
    told = [{**error, "loc": ("body", *error["loc"])} for error in found.errors()[:MAX_ERRORS]]
    return invalid_fields(_field_errors(told, [model]))


def invalid_fields(errors: Sequence[FieldError]) -> Invalid:
    """The error that tells of these fields; the first of them in its sentence."""
    return Invalid(_summary(errors), errors=errors)


def _summary(errors: Sequence[FieldError]) -> str:
    return "; ".join(f"{error.pointer.lstrip('#/') or 'body'}: {error.detail}" for error in errors[:3])


def _pointer(location: Sequence[str | int]) -> str:
    where, *rest = location
    if where == "body":
        return "".join(["#", *("/" + str(part).replace("~", "~0").replace("/", "~1") for part in rest)])
    return "/".join(str(part) for part in rest)


def _field_errors(found: Sequence[Any], models: Sequence[type[BaseModel]]) -> list[FieldError]:
    """What is wrong with a body of one of these models. What was meant is looked for as often as errors are told."""
    errors = [FieldError(_pointer(error["loc"]), _sentence(error)) for error in found]
    for place, error in enumerate(found[:MAX_ERRORS]):
        if error["type"] == "extra_forbidden":
            _, *path, name = error["loc"]
            if meant := did_you_mean(name, _fields_at(path, models)):
                errors[place] = replace(errors[place], detail=f"{errors[place].detail}.{meant}")
    return errors


def _fields_at(path: Sequence[str | int], models: Sequence[type[BaseModel]]) -> list[str]:
    """The fields of what stands there in a body. Places in lists and the like lead to no other model."""
    for part in path:
        inner = [model.model_fields[part].annotation for model in models if part in model.model_fields]
        if inner:
            models = [found for annotation in inner for found in _models_in(annotation)]
    return [name for model in models for name in model.model_fields]


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """The models that a type is made of: `list[Scene] | None` of `Scene`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in get_args(annotation) for model in _models_in(inner)]


def _sentence(error: Mapping[str, Any]) -> str:
    if error["type"] == "extra_forbidden":
        return "There is no such field"
    if error["type"] == "missing":
        return "This field is required"
    if error["type"] == "model_attributes_type":
        return "This must be a JSON object"
    if error["type"] == "string_unicode":
        return "This must be text that UTF-8 can write: it contains half of a surrogate pair"
    message: str = error["msg"]
    return message.removeprefix("Value error, ").replace(" after validation", "")
