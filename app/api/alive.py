"""Answers `/livez` before everything that takes time: routing, keys, admission, turns."""

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.endpoints import system
from app.api.middleware import LIVE

METHODS = ("GET", "HEAD")
ROUTE = next(one for one in system.router.routes if getattr(one, "path", None) == LIVE)
BODY = system.Alive().model_dump_json().encode()


class AnswerAlive:
    """Pure ASGI: an answer takes half of the CPU time of a route's. Other methods get 405 from the
    route, which describes the call in the OpenAPI document too."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != LIVE or scope["method"] not in METHODS:
            await self._app(scope, receive, send)
            return
        scope["route"] = ROUTE  # named by metrics and logs
        await Response(BODY, media_type="application/json")(scope, receive, send)
