"""`/livez`, `/readyz`, `/metrics`: what an orchestrator asks."""

from typing import Annotated, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from app.access.keys import Scope
from app.api.access import needs
from app.api.examples import Example, with_example
from app.api.problems import problems
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
