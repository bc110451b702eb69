"""Routes that read JSON bodies with `parse_json`, off the event loop if they are large."""

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from app.api.bodies import body_of
from app.api.json_bodies import SMALL, parse_json
from app.errors import InvalidRequest


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
