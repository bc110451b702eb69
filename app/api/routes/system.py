"""`/livez`, `/readyz`, `/metrics`: what an orchestrator asks."""

from typing import Any

from fastapi import APIRouter, Request, Response

from app.api.answers import services_of
from app.telemetry.metrics import CONTENT_TYPE

router = APIRouter(tags=["system"])


@router.get("/livez")
async def livez() -> dict[str, str]:
    """The process answers; says nothing of what it depends on."""
    return {"status": "alive"}


@router.get("/readyz")
async def readyz(request: Request) -> dict[str, Any]:
    """The service can do its work: networks are loaded and the database answers, else 503."""
    services = services_of(request)
    await services.scheduler.store(services.gallery.store.ping)
    return {
        "status": "ready",
        "pack": services.pack.name,
        "embedding_space": services.pack.embedding_space,
        "provider": services.pipeline.provider,
    }


@router.get("/metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """Prometheus metrics."""
    services = services_of(request)
    services.metrics.pending.set(services.scheduler.pending)
    return Response(services.metrics.render(), media_type=CONTENT_TYPE)
