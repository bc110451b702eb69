"""`/livez`, `/readyz`, `/metrics`: what an orchestrator asks, answered for this process and all
others of the service."""

import asyncio
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Request, Response
from pydantic import BaseModel, Field
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as AsgiScope

from app.access.keys import Scope
from app.api.access import needs
from app.api.middleware import LIVE
from app.api.problems import problems
from app.api.responses import Example, with_example
from app.api.routers import Router
from app.api.transfers import TransfersByKind
from app.errors import (
    Forbidden,
    LikenessError,
    NotReady,
    RateLimited,
    StoreUnavailable,
    Unauthenticated,
    WorkerDied,
)
from app.processes.link import Link
from app.processes.messages import METRICS, READY
from app.services import Services
from app.store.records import Erasure
from app.telemetry.metrics import CONTENT_TYPE

ACCEPTED, RUNNING = "accepted", "running"
# For how long the database is waited for, and a thread that reads it: less than the parent's
# `WAIT_S`, so that the answer of a process says what was waited for.
READ_S = 1.5


class Ready(BaseModel):
    model_config = with_example()
    status: Annotated[Literal["ready"], Example("ready")] = "ready"
    pack: Annotated[str, Example("default")]
    embedding_space: Annotated[str, Example("es-d95369e552dd4d70")]
    provider: Annotated[str, Example("CPUExecutionProvider")]
    nodes_on_cpu: Annotated[
        dict[str, list[str]],
        Field(
            description=(
                "On a GPU: the nodes that the CPU runs nevertheless, by network. Empty if "
                "there are none, and without a GPU."
            )
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
        Field(
            description=(
                "`running`, or the error code if maintenance of the gallery fails, or if no import "
                "can be run (of an unexpected error, the name of its type)."
            )
        ),
        Example("running"),
    ]
    erasure: Annotated[
        Erasure,
        Field(
            description="Whether all deleted data is erased from the service's files too. Those of "
            "PostgreSQL are erased by its VACUUM, which is not reported here."
        ),
        Example("done"),
    ]


async def readiness(app: FastAPI) -> Ready:
    """Whether the service is ready: this process, and those that serve with it. Raises NotReady and
    StoreUnavailable."""
    own = await own_readiness(app)
    link: Link | None = app.state.link
    if link is None:
        return own
    try:
        found = await link.ask(READY)
    except TimeoutError as error:
        raise _not_ready("The service's other processes did not answer.") from error
    if found["starting"]:
        raise _not_ready("The service's other processes are starting.")
    if found["missing"]:
        raise _not_ready(f"{found['missing']} of the service's processes did not answer.")
    for answer in found["answers"]:
        if "problem" in answer:
            cause = answer["cause"]
            raise _not_ready(answer["problem"]) from (RuntimeError(cause) if cause else None)
        own = _together(own, Ready(**answer))
    return own


async def own_readiness(app: FastAPI) -> Ready:
    """Whether this process is ready. Raises StoreUnavailable, and NotReady, whose cause is what
    failed; it has none while the service starts or stops."""
    services: Services = app.state.services
    if app.state.stopping:
        raise NotReady("The service is stopping; send requests to another instance.")
    if not services.maintenance.ready:
        raise _not_ready(
            "The indexes of large collections are being loaded. The log has the progress."
        )
    if services.scheduler.stalled:
        raise _not_ready(
            "A worker has processed one photo for more than a minute; restart this process."
        ) from TimeoutError("a photo takes more than a minute")
    eraser, database = app.state.imports.eraser, services.gallery.store.database

    def check_and_look() -> bool:
        """Check the networks and the database; whether deleted data is left to erase. Raises
        WorkerDied and StoreUnavailable."""
        services.pipeline.check_networks()
        database.ping()
        return services.gallery.erasure_pending_s() > 0 or bool(eraser.is_pending)

    try:
        async with asyncio.timeout(READ_S):
            pending = await services.scheduler.read(check_and_look)
    except WorkerDied as error:
        raise _not_ready(error.detail) from error
    except TimeoutError as error:
        raise StoreUnavailable(
            f"The database was not read within {READ_S:g} s: it does not answer, or all threads "
            "that read it are busy. Try again in a moment.",
            {"retry_after": 1},
        ) from error
    return Ready(
        pack=services.pack.name,
        embedding_space=services.pack.embedding_space,
        provider=services.pipeline.provider,
        nodes_on_cpu={k: list(nodes) for k, nodes in services.pipeline.cpu_nodes.items()},
        # If the disk is full or read-only, reads still work, so the service is ready.
        writes=database.refusal or ACCEPTED,
        # Searches are correct without the next two. `/metrics` has since when they fail.
        upkeep=services.maintenance.failure or RUNNING,
        erasure=Erasure.PENDING if pending else Erasure.DONE,
    )


async def readiness_for_other_processes(app: FastAPI) -> dict[str, Any]:
    """This process's answer to another one."""
    try:
        return (await own_readiness(app)).model_dump(mode="json")
    except LikenessError as error:
        failed = not isinstance(error, NotReady) or error.__cause__ is not None
        return {"problem": error.detail, "cause": repr(error.__cause__ or error) if failed else ""}


def _together(one: Ready, other: Ready) -> Ready:
    """Two answers as one: of each member the value that reports a problem, if one does."""
    return one.model_copy(
        update={
            "writes": other.writes if one.writes == ACCEPTED else one.writes,
            "upkeep": other.upkeep if one.upkeep == RUNNING else one.upkeep,
            "erasure": max(one.erasure, other.erasure, key=lambda it: it is Erasure.PENDING),
        }
    )


def _not_ready(detail: str) -> NotReady:
    return NotReady(detail, {"retry_after": 1})


async def exposition(app: FastAPI) -> str:
    """The metrics of the service; of this process alone if its parent does not answer."""
    link: Link | None = app.state.link
    if link is not None:
        try:
            found: str = await link.ask(METRICS)
        except TimeoutError:
            pass
        else:
            return found
    return own_exposition(app)


def own_exposition(app: FastAPI) -> str:
    """The metrics of this process."""
    services: Services = app.state.services
    transfers: TransfersByKind = app.state.transfers
    receiving = len(transfers.receiving) + len(transfers.deletions)
    services.metrics.pending.set(services.scheduler.pending + receiving)
    for one in transfers.all():
        services.metrics.transfers.labels(one.name).set(len(one))
    services.metrics.set_loop_lag()
    services.metrics.waiting.set(services.scheduler.waiting)
    return services.metrics.render().decode()


router = Router(tags=["system"])


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
