"""The application: routes, errors, request context, over services built by the caller."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import RedirectResponse
from fastapi_offline import FastAPIOffline
from starlette.concurrency import run_in_threadpool

from app import __version__
from app.access.limiter import Limiter
from app.access.oidc_rules import OidcRules
from app.access.probing import ProbingMonitor
from app.api.access import AccessControl
from app.api.admission import Admission
from app.api.direct_routes import DirectRoutes
from app.api.endpoints import (
    access_keys,
    audit,
    calibration,
    collections,
    detection,
    enrollment,
    faces,
    hygiene,
    imports,
    pairs,
    person_record,
    persons,
    recognition,
    system,
)
from app.api.endpoints.system import AnswerAlive, own_exposition
from app.api.middleware import RequestContext
from app.api.openapi import complete_document, serve_from_memory
from app.api.problems import install_error_handlers
from app.api.proxies import Proxies
from app.api.responses import ModelInfo
from app.api.transfers import TransfersByKind
from app.api.turns import SendInPieces
from app.clock import seconds
from app.errors import LikenessError
from app.gallery.retention import RetentionTask
from app.importing.jobs import ImportJobs
from app.services import Services
from app.settings import Settings
from app.telemetry.logs import log
from app.telemetry.metrics import LoopLag
from app.telemetry.tasks import start_task

if TYPE_CHECKING:
    from app.access.oidc import OidcTokens

# Bodies that are parsed at a time: each holds Python's lock for most of that time.
PARSING_THREADS = 2
OF_PHOTOS = (detection.router, enrollment.router, recognition.router)
OF_THE_GALLERY = (
    collections.router, persons.router, person_record.router, faces.router, calibration.router,
    hygiene.router, imports.router, pairs.router, access_keys.router, audit.router,
)  # fmt: skip
ROUTERS = (*OF_PHOTOS, *OF_THE_GALLERY, system.router)
# FastAPI would look for a configured OpenTelemetry in each request, and send to it what it finds.
NO_TELEMETRY: Any = dict.fromkeys(
    ("tracing", "metrics", "logs", "operation_spans", "auto_configure"), False
)
DESCRIPTION = """
Photos in, identities out. Send JPEG, PNG, WebP, HEIC or AVIF as multipart (`image`), as base64 in
JSON, or as a raw `image/*` body. Every answer carries `request_id`, `model` and `timings_ms`; every
error is a problem document (RFC 9457) with a stable `code` and a `detail` that says what to do.
Once an access key has been created, calls need one, in the header `Authorization: Bearer lk_…`.
"""


def create_app(services: Services) -> FastAPI:
    """The ASGI application. It closes `services` when it shuts down.

    The interactive docs are served from the package itself: no browser needs a network.
    """
    limiter = Limiter(services.usage, services.scheduler.write, seconds, records=services.records)
    lag = LoopLag(services.metrics)
    app = FastAPIOffline(
        title="Likeness",
        version=__version__,
        summary="Self-hosted face recognition",
        description=DESCRIPTION,
        lifespan=lambda app: _running(app, limiter, lag),
        telemetry=NO_TELEMETRY,
    )
    serve_from_memory(app)
    _set_state(app, services)
    _add_maintenance(services, app.state.imports)
    _add_routes(app)
    _add_middleware(app, services, limiter)
    return app


def _set_state(app: FastAPI, services: Services) -> None:
    pack = services.pack
    app.state.services = services
    app.state.model = ModelInfo(
        pack=pack.name, version=pack.version, embedding_space=pack.embedding_space
    )
    app.state.imports = ImportJobs(services)
    app.state.transfers = TransfersByKind.of(services.settings, services.scheduler)
    app.state.parsing = ThreadPoolExecutor(PARSING_THREADS, thread_name_prefix="parsing")
    app.state.stopping = False
    app.state.last_metrics = None  # the metrics after the last call has ended
    app.state.link = None  # where several processes serve: `app.processes.link.Link`


@asynccontextmanager
async def _running(app: FastAPI, limiter: Limiter, lag: LoopLag) -> AsyncIterator[None]:
    """What runs while the application does; at its end everything is stopped and closed."""
    state, services = app.state, app.state.services
    services.maintenance.start()
    services.access.start()
    state.imports.start()
    # Anyio imports the larger part of itself at its first use, in 35 ms on the event loop.
    await run_in_threadpool(_nothing)
    watching = start_task(lag.watch(), "lag of the event loop")
    yield
    watching.cancel()
    await asyncio.to_thread(state.imports.stop)
    state.last_metrics = own_exposition(app)  # no call can add to them any more
    state.parsing.shutdown(cancel_futures=True)
    await asyncio.to_thread(limiter.release)
    services.close()


def _nothing() -> None:
    """Run on a thread."""


def _add_maintenance(services: Services, imports: ImportJobs) -> None:
    services.maintenance.add_task(imports.eraser.round)
    services.maintenance.add_task(imports.check)
    retention = RetentionTask(services.gallery, services.matches.store, _noted_by(imports))
    services.maintenance.add_task(retention.round)


def _add_routes(app: FastAPI) -> None:
    for router in ROUTERS:  # not by `include_router`, see app/api/routers.py
        app.router.routes.extend(router.routes)
    complete_document(app)
    app.add_api_route("/", _to_docs, include_in_schema=False)
    install_error_handlers(app)


def _add_middleware(app: FastAPI, services: Services, limiter: Limiter) -> None:
    """The layers around the routes, the innermost first."""
    settings = services.settings
    app.add_middleware(DirectRoutes, routers=OF_PHOTOS, of_all=app.router.dependencies)
    app.add_middleware(Admission, services=services, transfers=app.state.transfers)
    app.add_middleware(
        AccessControl,
        registry=services.access,
        limiter=limiter,
        probing=_probing_monitor(services),
        refused=services.refused,
        oidc=_oidc_tokens(settings),
        metrics=services.metrics,
        routers=ROUTERS,
        origins=settings.cors_origins,
    )
    app.add_middleware(AnswerAlive)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["*"],
        )
    app.add_middleware(
        RequestContext,
        metrics=services.metrics,
        root_path=settings.root_path,
        proxies=Proxies(settings.trusted_proxies),
        access_log=settings.access_log,
    )
    app.add_middleware(SendInPieces)


def _probing_monitor(services: Services) -> ProbingMonitor:
    settings = services.settings
    recording = set[asyncio.Task[None]]()  # a task that nothing refers to may be collected

    def report(name: str, misses: int) -> None:
        services.metrics.observe_probing(name)
        log(logging.WARNING, "an access key may be used to find out who is enrolled", key=name,
            misses=misses, seconds=settings.probing_seconds)  # fmt: skip
        task = asyncio.create_task(_record_probing(services, name, misses))
        recording.add(task)
        task.add_done_callback(recording.discard)

    return ProbingMonitor(
        settings.probing_misses, settings.probing_seconds, report, seconds, services.records
    )


async def _record_probing(services: Services, name: str, misses: int) -> None:
    """Write it to the audit log, as the key that is used."""
    record = partial(
        services.gallery.store.audit.record,
        "key.probing", name=name, misses=misses, seconds=services.settings.probing_seconds,
    )  # fmt: skip
    try:
        await services.scheduler.write(record)
    except LikenessError as error:
        log(logging.WARNING, "probing was not written to the audit log", code=error.code)


def _oidc_tokens(settings: Settings) -> "OidcTokens | None":
    """What verifies tokens, if the settings name an issuer. Only then its libraries (an HTTP client
    and PyJWT) are imported: they take 0.1 s of a start."""
    rules = OidcRules.of(settings)
    if rules is None:
        return None
    from app.access.oidc import OidcTokens  # noqa: PLC0415

    return OidcTokens(rules, seconds)


def _noted_by(imports: ImportJobs) -> Callable[[str, Sequence[str]], object]:
    return lambda collection, person_ids: imports.eraser.note(collection, *person_ids)


async def _to_docs(request: Request) -> RedirectResponse:
    return RedirectResponse(f"{request.scope['root_path']}/docs")
