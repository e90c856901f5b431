"""The query of a request: what a route does not take is refused by name, like a field of a body."""

from collections import Counter
from typing import Any, get_args, get_origin

from fastapi import Request
from fastapi.dependencies.models import Dependant
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute

from safelight.suggestion import did_you_mean, listed

FOREIGN = "/webhooks/"  # whoever calls there has an address from us, and may add to it what it likes


async def known_query(request: Request) -> None:
    """Refuse parameters that the route does not have, and a second value where it takes one."""
    route: Any = request.scope.get("route")
    if (
        not request.scope["query_string"]
        or not isinstance(route, APIRoute)
        or not route.include_in_schema
        or route.path.startswith(FOREIGN)
    ):
        return
    takes = _parameters(route.dependant)
    errors: list[dict[str, Any]] = []
    for name, times in Counter(name for name, _ in request.query_params.multi_items()).items():
        if name not in takes:
            meant = did_you_mean(name, takes) or (f" There are {listed(takes)}." if takes else " This path takes none.")
            errors.append(_error(name[:80], f"There is no such parameter.{meant}"))
        elif times > 1 and not takes[name]:
            errors.append(_error(name, f"Give this parameter once, not {times} times"))
    if errors:
        raise RequestValidationError(errors)


def _parameters(dependant: Dependant) -> dict[str, bool]:
    """The names of the parameters, and whether each may be repeated."""
    takes = {field.alias: _is_list(field.field_info.annotation) for field in dependant.query_params}
    for each in dependant.dependencies:
        takes |= _parameters(each)
    return takes


def _is_list(annotation: Any) -> bool:
    return any(get_origin(one) is list for one in (annotation, *get_args(annotation)))


def _error(name: str, message: str) -> dict[str, Any]:
    return {"type": "query", "loc": ("query", name), "msg": message, "input": None}
