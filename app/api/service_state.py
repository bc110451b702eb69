"""The answers of `/readyz` and `/metrics`, for this process and all others of the service."""

from typing import Annotated, Any, Literal

from fastapi import FastAPI
from pydantic import BaseModel, Field

from app.api.responses import Example, with_example
from app.api.transfers import TransfersByKind
from app.errors import LikenessError, NotReady, WorkerDied
from app.processes.link import Link
from app.processes.messages import METRICS, READY
from app.services import Services
from app.store.records import Erasure

ACCEPTED, RUNNING = "accepted", "running"


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
        Field(description="`running`, or the error code if maintenance of the gallery fails."),
        Example("running"),
    ]
    erasure: Annotated[
        Erasure,
        Field(description="Whether all deleted data is erased from the files too."),
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
            raise _not_ready(answer["problem"])
        own = _together(own, Ready(**answer))
    return own


async def own_readiness(app: FastAPI) -> Ready:
    """Whether this process is ready. Raises NotReady and StoreUnavailable."""
    services: Services = app.state.services
    if app.state.stopping:
        raise NotReady("The service is stopping; send requests to another instance.")
    if not services.maintenance.ready:
        raise _not_ready(
            "The index is being loaded; searches wait for it. The log has the progress."
        )
    if services.scheduler.stalled:
        raise _not_ready(
            "A worker has processed one photo for more than a minute; restart this process."
        )
    try:
        await services.scheduler.read(services.pipeline.check_networks)
    except WorkerDied as error:
        raise _not_ready(error.detail) from error
    eraser, database = app.state.imports.eraser, services.gallery.store.database

    def look() -> bool:
        """Whether deleted data is left to erase. Raises StoreUnavailable."""
        database.ping()
        return database.eraser.pending_s() > 0 or bool(eraser.is_pending)

    pending = await services.scheduler.read(look)
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
        return {"problem": error.detail}


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
