"""Routes that read JSON bodies with `parse_json`, off the event loop if they are large, and refuse
query parameters that they do not take."""

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel

from app.api.bodies import body_of
from app.api.json_bodies import SMALL, parse_json
from app.errors import InvalidRequest, UnknownField


class JsonRequest(Request):
    """A request whose `json` applies the limits of `parse_json`. Raises InvalidRequest."""

    async def json(self) -> Any:
        body = await body_of(self)
        try:
            if len(body) <= SMALL:
                return parse_json(body)
            parsing: Executor = self.app.state.parsing
            return await asyncio.get_running_loop().run_in_executor(parsing, parse_json, body)
        except ValueError as error:
            raise InvalidRequest(f"The body cannot be read. {error}") from error


class JsonRoute(APIRoute):
    """Calls its handler with a `JsonRequest`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def bounded(request: Request) -> Response:
            return await handle(JsonRequest(request.scope, request.receive))

        return bounded


async def only_declared_query(request: Request) -> None:
    """Raises UnknownField for a parameter that the call does not take. Async, because FastAPI runs
    other dependencies on a thread."""
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
