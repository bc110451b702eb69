"""`/livez`, `/readyz`, `/metrics`: what an orchestrator asks."""

from typing import Any

from fastapi import APIRouter, Request, Response

from app.api.answers import services_of
from app.errors import NotReady
from app.gallery.ports import Erasure
from app.telemetry.metrics import CONTENT_TYPE

router = APIRouter(tags=["system"])


@router.get("/livez")
async def livez() -> dict[str, str]:
    """The process answers; says nothing of what it depends on."""
    return {"status": "alive"}


@router.get("/readyz")
async def readyz(request: Request) -> dict[str, Any]:
    """The service can do its work: networks and indexes are loaded and the database answers; 503
    with a reason otherwise."""
    services = services_of(request)
    if not services.upkeep.ready:
        raise NotReady(
            "The index is being read; searches wait for it. The log says how far it has come.",
            {"retry_after": 1},
        )
    if services.scheduler.stalled:
        raise NotReady(
            "A worker has been at one photo for a minute; restart this process.",
            {"retry_after": 1},
        )
    await services.scheduler.read(services.gallery.store.ping)
    return {
        "status": "ready",
        "pack": services.pack.name,
        "embedding_space": services.pack.embedding_space,
        "provider": services.pipeline.provider,
        # Reads go on where the disk is full or read-only, so that alone is no reason to be sent
        # no more requests.
        "writes": services.gallery.store.refusing() or "accepted",
        # Nor these two: searches stay right without them. `/metrics` has since when.
        "upkeep": services.upkeep.failure or "running",
        "erasure": Erasure.PENDING if services.gallery.store.erasure_pending_s() else Erasure.DONE,
    }


@router.get("/metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """Prometheus metrics."""
    services = services_of(request)
    services.metrics.pending.set(services.scheduler.pending)
    services.metrics.waiting.set(services.scheduler.waiting)
    return Response(services.metrics.render(), media_type=CONTENT_TYPE)
