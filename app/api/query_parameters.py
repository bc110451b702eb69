"""Checks of query parameters: each is one that the call takes, and is sent once."""

from fastapi import Request
from fastapi.routing import APIRoute
from pydantic import BaseModel

from app.errors import InvalidRequest, UnknownField


async def only_declared_query(request: Request) -> None:
    """Raises UnknownField for a parameter that the call does not take, and InvalidRequest for one
    that was sent more than once. Async, because FastAPI runs other dependencies on a thread."""
    known = declared_query(request.scope["route"])
    for name in request.query_params:
        if name not in known:
            takes = ", ".join(sorted(known)) or "none"
            raise UnknownField(f"This call has no query parameter '{name}'; it takes {takes}.")
    refuse_repeated(request)


def refuse_repeated(request: Request) -> None:
    """Raises InvalidRequest for a query parameter that was sent more than once."""
    seen = set[str]()
    for name, _ in request.query_params.multi_items():
        if name in seen:
            raise InvalidRequest(
                f"The query parameter '{name}' was sent more than once; send it once."
            )
        seen.add(name)


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
