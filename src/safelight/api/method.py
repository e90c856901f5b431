"""Which methods a path takes."""

from collections.abc import Iterable

from starlette.routing import BaseRoute, Match
from starlette.types import Scope

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")


def allowed_methods(routes: Iterable[BaseRoute], scope: Scope) -> list[str]:
    """Over all routes of the path: one method's route does not know the others. Empty if there is nothing there."""
    routes = list(routes)
    asked = {"type": "http", "path": scope["path"], "query_string": b"", "headers": [], "state": {}, "root_path": ""}
    found = [
        method
        for method in METHODS
        if any(route.matches(asked | {"method": method})[0] is Match.FULL for route in routes)
    ]
    if "GET" in found:
        found.append("HEAD")
    return [*found, "OPTIONS"] if found else []
