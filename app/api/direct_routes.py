"""Calls the functions of the busiest routes without FastAPI's dependencies, exception groups and
telemetry, which took a sixth of the event loop's time for a photo (docs/benchmarks/serving.md).

The routes are declared with FastAPI as all others, and its document describes them.
"""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass

from fastapi import APIRouter, Request, Response, params
from fastapi.routing import APIRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.context import CallContext, call_context
from app.api.problems import likeness_error
from app.errors import LikenessError


@dataclass(frozen=True, slots=True)
class _Direct:
    """A route whose function needs nothing but a request and its context. A request with one of the
    `headers`, which FastAPI checks and passes on, is not called directly."""

    route: APIRoute
    call: Callable[[Request, CallContext], Awaitable[Response]]
    headers: frozenset[bytes]

    @classmethod
    def of(cls, route: APIRoute) -> "_Direct":
        """Raises TypeError if the function needs more, or if FastAPI makes its answer."""
        found = route.dependant
        contexts = [one for one in found.dependencies if one.call is call_context]
        others = (found.path_params, found.query_params, found.cookie_params, found.body_params)
        optional = all(not one.field_info.is_required() for one in found.header_params)
        if (
            len(contexts) != len(found.dependencies)
            or any(others)
            or not optional
            or found.request_param_name != "request"
            or found.response_param_name is not None
            or route.endpoint.__annotations__.get("return") is not Response
        ):
            raise TypeError(
                f"'{route.name}' cannot be called directly: it may have a request, a context and "
                "optional headers, and makes its response itself"
            )
        names = frozenset(one.alias.lower().encode() for one in found.header_params)
        return cls(route, route.endpoint, names)


class DirectRoutes:
    """Pure ASGI, the innermost layer: calls routes directly; all other requests go to FastAPI.

    Errors of Likeness are answered as by FastAPI's handlers; any other leaves this layer, as it
    leaves FastAPI.
    """

    def __init__(
        self, app: ASGIApp, routers: Sequence[APIRouter], of_all: Sequence[params.Depends]
    ) -> None:
        """`routers`: those whose routes are called directly. `of_all`: the dependencies of all the
        application's routes. Raises TypeError if there are any, which would not run here, and for
        a route that cannot be called directly."""
        if of_all:
            raise TypeError(
                "a dependency of all routes does not run for those that are called directly; see "
                "'Add a check to every route' in docs/how-to-change.md"
            )
        self._app = app
        self._direct = dict(_by_call(routers))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = None
        if scope["type"] == "http":
            found = self._direct.get((scope["method"], scope["path"]))
        if found is None or (
            found.headers and any(name in found.headers for name, _ in scope["headers"])
        ):
            await self._app(scope, receive, send)
            return
        scope["route"] = found.route  # named by metrics and logs
        request = Request(scope, receive)
        try:
            answer = await found.call(request, CallContext(request))
        except LikenessError as error:
            answer = await likeness_error(request, error)
        await answer(scope, receive, send)


def _by_call(routers: Sequence[APIRouter]) -> Iterator[tuple[tuple[str, str], _Direct]]:
    for router in routers:
        for route in router.routes:
            assert isinstance(route, APIRoute), "routers of calls have nothing else"
            direct = _Direct.of(route)
            for method in route.methods or ():
                yield (method, route.path), direct
