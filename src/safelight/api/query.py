"""The query of a request: what a route does not take is refused by name, like a field of a body."""

from collections import Counter
from typing import Any, get_args, get_origin
from urllib.parse import unquote_to_bytes

from fastapi import Request
from fastapi.dependencies.models import Dependant
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute

from safelight.api.problems import MAX_ERRORS
from safelight.suggestion import did_you_mean, listed

FOREIGN = "/webhooks/"  # whoever calls there has an address from us, and may add to it what it likes
NOT_UTF8 = "This must be UTF-8 in percent-encoding, as %C3%BC for ü"
REPLACED = "\ufffd"  # what stands there instead, once the path and the query were read


async def known_query(request: Request) -> None:
    """Refuse parameters that the route does not have, a second value where it takes one, and what is not UTF-8."""
    route: Any = request.scope.get("route")
    if not isinstance(route, APIRoute) or not route.include_in_schema or route.path.startswith(FOREIGN):
        return
    errors: list[dict[str, Any]] = []
    if not _is_utf8(request.scope["raw_path"]):
        errors += [_error(name, NOT_UTF8, "path") for name, value in request.path_params.items() if REPLACED in value]
    query: bytes = request.scope["query_string"]
    takes = _parameters(route.dependant) if query else {}
    if not _is_utf8(query):
        errors += [_error(name[:80], NOT_UTF8) for name, value in request.query_params.items() if REPLACED in value]
    for name, times in Counter(name for name, _ in request.query_params.multi_items()).items():
        if name not in takes:
            meant = did_you_mean(name, takes) or (f" There are {listed(takes)}." if takes else " This path takes none.")
            errors.append(_error(name[:80], f"There is no such parameter.{meant}"))
        elif times > 1 and not takes[name]:
            errors.append(_error(name, f"Give this parameter once, not {times} times"))
        if len(errors) == MAX_ERRORS:  # looking for what was meant takes its time
            break
    if errors:
        raise RequestValidationError(errors)


def _is_utf8(quoted: bytes) -> bool:
    if b"%" not in quoted:
        return True
    try:
        unquote_to_bytes(quoted).decode()
    except UnicodeDecodeError:
        return False
    return True


def _parameters(dependant: Dependant) -> dict[str, bool]:
    """The names of the parameters, and whether each may be repeated."""
    takes = {field.alias: _is_list(field.field_info.annotation) for field in dependant.query_params}
    for each in dependant.dependencies:
        takes |= _parameters(each)
    return takes


def _is_list(annotation: Any) -> bool:
    return any(get_origin(one) is list for one in (annotation, *get_args(annotation)))


def _error(name: str, message: str, where: str = "query") -> dict[str, Any]:
    return {"type": where, "loc": (where, name), "msg": message, "input": None}
