"""Refuses query parameters that a call does not take, like unknown fields of a body."""

from fastapi import Request
from fastapi.routing import APIRoute
from pydantic import BaseModel

from app.errors import UnknownField


def only_declared_query(request: Request) -> None:
    """Raises UnknownField for a parameter that the call does not take."""
    known = declared_query(request.scope["route"])
    for name in request.query_params:
        if name not in known:
            takes = ", ".join(sorted(known)) or "none"
            raise UnknownField(f"This call has no query parameter '{name}'; it takes {takes}.")


def declared_query(route: APIRoute) -> set[str]:
    """The names of a route's query parameters, including the fields of models."""
    names: set[str] = set()
    for parameter in route.dependant.query_params:
        kind = parameter.field_info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            names |= set(kind.model_fields)
        else:
            names.add(parameter.alias)
    return names
