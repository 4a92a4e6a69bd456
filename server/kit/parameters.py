"""Query parameters that no route knows are refused: a misspelt filter must not answer with everything."""

from __future__ import annotations

from fastapi import Request
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute

from server.kit.problem import invalid


def refuse_unknown_parameters(request: Request) -> None:
    """A dependency of every route of the API.

    Raises:
        Problem: invalid-request, naming the parameter and those that there are.
    """
    route = request.scope.get("route")
    if not request.query_params or not isinstance(route, APIRoute):
        return
    known = sorted(_known(route.dependant))
    for name in request.query_params:
        if name not in known:
            raise invalid(name[:80], f"unknown parameter: this route knows {', '.join(known) or 'none'}")


def _known(dependant: Dependant) -> set[str]:
    """Names of the query parameters of a route and of what it depends on."""
    found = {field.alias for field in dependant.query_params}
    return found.union(*(_known(inner) for inner in dependant.dependencies))
