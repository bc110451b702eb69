"""`/livez`, `/readyz`, `/metrics`: what an orchestrator asks."""

from typing import Annotated, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from app.api.places import Places
from app.api.problems import problems
from app.api.responses import jobs_of, services_of
from app.errors import Forbidden, LikenessError, NotReady, StoreUnavailable, Unauthenticated
from app.store.records import Erasure
from app.telemetry.metrics import CONTENT_TYPE

router = APIRouter(tags=["system"])


class Alive(BaseModel):
    model_config = ConfigDict(json_schema_extra={"examples": [{"status": "alive"}]})
    status: Literal["alive"] = "alive"


class Ready(BaseModel):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "status": "ready",
                    "pack": "default",
                    "embedding_space": "es-038d0789502f026c",
                    "provider": "CPUExecutionProvider",
                    "writes": "accepted",
                    "upkeep": "running",
                    "erasure": "done",
                }
            ]
        }
    )
    status: Literal["ready"] = "ready"
    pack: str
    embedding_space: str
    provider: str
    writes: Annotated[
        str, Field(description="`accepted`, or the error code of the last write if it failed.")
    ]
    upkeep: Annotated[
        str, Field(description="`running`, or the error code if maintenance of the gallery fails.")
    ]
    erasure: Annotated[
        Erasure, Field(description="Whether all deleted data is erased from the files too.")
    ]


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
    services = services_of(request)
    if request.app.state.stopping:
        raise NotReady("The service is stopping; send requests to another instance.")
    if not services.maintenance.ready:
        raise NotReady(
            "The index is being loaded; searches wait for it. The log has the progress.",
            {"retry_after": 1},
        )
    if services.scheduler.stalled:
        raise NotReady(
            "A worker has processed one photo for more than a minute; restart this process.",
            {"retry_after": 1},
        )
    eraser = jobs_of(request).eraser

    def look() -> bool:
        """Whether deleted data is left to erase. Raises StoreUnavailable."""
        services.gallery.store.ping()
        return services.gallery.store.erasure_pending_s() > 0 or eraser.is_pending

    pending = await services.scheduler.read(look)
    return Ready(
        pack=services.pack.name,
        embedding_space=services.pack.embedding_space,
        provider=services.pipeline.provider,
        # Reads go on where the disk is full or read-only, so that alone is no reason to be sent
        # no more requests.
        writes=services.gallery.store.refusing() or "accepted",
        # Nor do these two: searches stay correct without them. `/metrics` says for how long.
        upkeep=services.maintenance.failure or "running",
        erasure=Erasure.PENDING if pending else Erasure.DONE,
    )


class Exposition(Response):
    media_type = CONTENT_TYPE


@router.head("/metrics", include_in_schema=False)
@router.get(
    "/metrics",
    response_class=Exposition,
    responses=problems((Unauthenticated, Forbidden, StoreUnavailable), always=()),
)
async def metrics(request: Request) -> Exposition:
    """Read all metrics in the text format of Prometheus."""
    services = services_of(request)
    places: Places = request.app.state.places
    receiving = len(places.receiving) + len(places.deletions)
    services.metrics.pending.set(services.scheduler.pending + receiving)
    for one in places.all():
        services.metrics.transfers.labels(one.name).set(len(one))
    services.metrics.set_loop_lag()
    services.metrics.waiting.set(services.scheduler.waiting)
    return Exposition(services.metrics.render())
