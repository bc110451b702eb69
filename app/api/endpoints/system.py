"""`/livez`, `/readyz`, `/metrics`: what an orchestrator asks."""

from typing import Annotated, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from app.access.keys import Scope
from app.api.access import needs
from app.api.context import Context
from app.api.examples import Example, with_example
from app.api.problems import problems
from app.api.transfers import TransfersByKind
from app.errors import (
    Forbidden,
    LikenessError,
    NotReady,
    RateLimited,
    StoreUnavailable,
    Unauthenticated,
)
from app.store.records import Erasure
from app.telemetry.metrics import CONTENT_TYPE

router = APIRouter(tags=["system"])


class Alive(BaseModel):
    model_config = with_example()
    status: Annotated[Literal["alive"], Example("alive")] = "alive"


class Ready(BaseModel):
    model_config = with_example()
    status: Annotated[Literal["ready"], Example("ready")] = "ready"
    pack: Annotated[str, Example("default")]
    embedding_space: Annotated[str, Example("es-038d0789502f026c")]
    provider: Annotated[str, Example("CPUExecutionProvider")]
    nodes_on_cpu: Annotated[
        dict[str, list[str]],
        Field(
            description="On a GPU: the nodes of networks that run on the CPU all the same, by "
            "network. Empty if there are none, and without a GPU."
        ),
        Example({}),
    ]
    writes: Annotated[
        str,
        Field(description="`accepted`, or the error code of the last write if it failed."),
        Example("accepted"),
    ]
    upkeep: Annotated[
        str,
        Field(description="`running`, or the error code if maintenance of the gallery fails."),
        Example("running"),
    ]
    erasure: Annotated[
        Erasure,
        Field(description="Whether all deleted data is erased from the files too."),
        Example("done"),
    ]


# HEAD, which load balancers send, is answered like GET and is not in the OpenAPI document.
@router.head("/livez", include_in_schema=False)
@router.get("/livez")
async def livez() -> Alive:
    """Report that the process is running; nothing that it depends on is checked."""
    return Alive()


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz", responses=problems((NotReady, StoreUnavailable, LikenessError), always=()))
async def readyz(request: Request, context: Context) -> Ready:
    """Report whether the service is ready, and if not, why.

    It is ready when its networks and indexes are loaded and the database answers.
    """
    services = context.services
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
    eraser = context.imports.eraser

    def look() -> bool:
        """Whether deleted data is left to erase. Raises StoreUnavailable."""
        services.gallery.store.database.ping()
        return services.gallery.store.database.eraser.pending_s() > 0 or eraser.is_pending

    pending = await context.read(look)
    return Ready(
        pack=services.pack.name,
        embedding_space=services.pack.embedding_space,
        provider=services.pipeline.provider,
        nodes_on_cpu={k: list(nodes) for k, nodes in services.pipeline.cpu_nodes.items()},
        # If the disk is full or read-only, reads still work, so the service is ready.
        writes=services.gallery.store.database.refusal or "accepted",
        # Searches are correct without the next two. `/metrics` has since when they fail.
        upkeep=services.maintenance.failure or "running",
        erasure=Erasure.PENDING if pending else Erasure.DONE,
    )


class Exposition(Response):
    media_type = CONTENT_TYPE


@router.head("/metrics", include_in_schema=False)
@router.get(
    "/metrics",
    response_class=Exposition,
    responses=problems((Unauthenticated, Forbidden, RateLimited, StoreUnavailable), always=()),
)
@needs(Scope.METRICS)
async def metrics(request: Request, context: Context) -> Exposition:
    """Read all metrics in the text format of Prometheus."""
    services = context.services
    transfers: TransfersByKind = request.app.state.transfers
    receiving = len(transfers.receiving) + len(transfers.deletions)
    services.metrics.pending.set(services.scheduler.pending + receiving)
    for one in transfers.all():
        services.metrics.transfers.labels(one.name).set(len(one))
    services.metrics.set_loop_lag()
    services.metrics.waiting.set(services.scheduler.waiting)
    return Exposition(services.metrics.render())
