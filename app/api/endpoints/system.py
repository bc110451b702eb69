"""`/livez`, `/readyz`, `/metrics`: what an orchestrator asks."""

from typing import Annotated, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as AsgiScope

from app.access.keys import Scope
from app.api.access import needs
from app.api.middleware import LIVE
from app.api.problems import problems
from app.api.responses import Example, with_example
from app.api.service_state import Ready, exposition, readiness
from app.errors import (
    Forbidden,
    LikenessError,
    NotReady,
    RateLimited,
    StoreUnavailable,
    Unauthenticated,
)
from app.telemetry.metrics import CONTENT_TYPE

router = APIRouter(tags=["system"])


class Alive(BaseModel):
    model_config = with_example()
    status: Annotated[Literal["alive"], Example("alive")] = "alive"


# HEAD, which load balancers send, is answered like GET and is not in the OpenAPI document.
@router.head("/livez", include_in_schema=False)
@router.get("/livez")
async def livez() -> Alive:
    """Report that the process is running; nothing that it depends on is checked."""
    return Alive()


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz", responses=problems((NotReady, StoreUnavailable, LikenessError), always=()))
async def readyz(request: Request) -> Ready:
    """Report whether the service is ready, and if not, why.

    It is ready when its networks and indexes are loaded and the database answers.
    """
    return await readiness(request.app)


class Exposition(Response):
    media_type = CONTENT_TYPE


@router.head("/metrics", include_in_schema=False)
@router.get(
    "/metrics",
    response_class=Exposition,
    responses=problems((Unauthenticated, Forbidden, RateLimited, StoreUnavailable), always=()),
)
@needs(Scope.METRICS)
async def metrics(request: Request) -> Exposition:
    """Read all metrics in the text format of Prometheus."""
    return Exposition(await exposition(request.app))


_METHODS = ("GET", "HEAD")
_ROUTE = next(one for one in router.routes if getattr(one, "path", None) == LIVE)
_BODY = Alive().model_dump_json().encode()


class AnswerAlive:
    """Pure ASGI: answers `/livez` before everything that takes time (routing, keys, admission,
    turns), in half of the CPU time of a route. Other methods get 405 from the route, which
    describes the call in the OpenAPI document too."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != LIVE or scope["method"] not in _METHODS:
            await self._app(scope, receive, send)
            return
        scope["route"] = _ROUTE  # named by metrics and logs
        await Response(_BODY, media_type="application/json")(scope, receive, send)
