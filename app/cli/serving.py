"""The service that `likeness serve` runs, in one process or in each of several."""

import logging
import signal
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from pydantic import BaseModel

from app.access.keys import NewKey, Scope
from app.cli import garbage
from app.cli.console import clear_errors, err, read_settings
from app.cli.unmatched import unmatched_collections, warning
from app.disk import write_whole
from app.errors import AccessKeyError
from app.inference.remote.client import NetworkClient
from app.processes.link import Link
from app.processes.shared_records import SharedRecords
from app.processes.starting import announce
from app.services import Services, build_services, load_networks
from app.settings import Settings, is_loopback
from app.store.store import switch_default_collection
from app.telemetry.logs import log, set_up_logs

# After a power failure, for example, the database server may start later than the service.
DATABASE_WAIT_S = 60.0
# Seconds after which a thread that computes in Python gives way to another. The event loop may wait
# as long before each socket that it serves: with Python's 5 ms and forty sockets 167 ms per round
# beside two such threads, with 1 ms 30, with this 5; docs/benchmarks/hostile-clients.md.
SWITCH_INTERVAL_S = 0.0002


def announcement(services: Services, port: int, processes: int = 1) -> str:
    """Where the docs and the API are, and what serves them."""
    host = services.settings.host
    shown = "localhost" if host in ("127.0.0.1", "0.0.0.0", "::", "::1") else host  # noqa: S104
    base = f"http{'s' * (services.settings.tls_cert is not None)}://{shown}:{port}"
    workers = f"{services.scheduler.workers} workers"
    return "\n".join(
        (
            f"Likeness is ready · pack {services.pack.name} {services.pack.version} · "
            f"{services.pipeline.provider} · "
            + (workers if processes == 1 else f"{processes} processes, each with {workers}"),
            f"  docs     {base}/docs",
            f"  API      {base}/v1",
            f"  gallery  {services.gallery.store.database.url}",
            f"  access   {access_state(services)}",
        )
    )


def access_state(services: Services) -> str:
    """Who may call this service, in one line."""
    if issuer := services.settings.oidc_issuer:
        return f"every call needs an access key (likeness keys list) or a token of {issuer}"
    if services.access.enabled:
        if not services.access.counts().usable:
            return (
                "every call needs an access key, and none is usable: likeness keys create makes one"
            )
        return "every call needs an access key (likeness keys list)"
    if is_loopback(services.settings.host):
        return "no access keys: every program of this machine may call everything"
    return (
        "no access keys (LIKENESS_INSECURE): everybody who reaches this address may read and "
        "change the gallery"
    )


def require_access_keys(services: Services) -> None:
    """Create the first key where the settings say so. Raises AccessKeyError if others could reach
    the service and there is no key."""
    settings = services.settings
    needed = not (is_loopback(settings.host) or settings.insecure or settings.oidc_issuer)
    if not needed or services.access.enabled:
        return
    if settings.first_key_file is None:
        raise AccessKeyError(
            f"Other machines can reach the address {settings.host}, and there is no access key. "
            "Create one (likeness keys create --name admin --scope all), or set "
            "LIKENESS_INSECURE=1 if something in front of the service authenticates its "
            "callers."
        )
    file = settings.first_key_file.absolute()
    try:
        made = services.access_keys.create_first(
            NewKey("first", [*Scope]), lambda _, token: write_whole(file, [f"{token}\n".encode()])
        )
    except OSError as error:
        raise AccessKeyError(
            f"The first access key cannot be written to {file} ({error.strerror}), so it was not "
            "created. Set LIKENESS_FIRST_KEY_FILE to a file that can be written."
        ) from error
    services.access.refresh()
    if made is not None:  # otherwise another process has created one meanwhile
        log(logging.WARNING, "a first access key was created, which allows everything; read it, "
            "keep it elsewhere, and delete the file", file=str(file),
            with_compose=f"docker compose exec likeness cat {file}")  # fmt: skip


def run(settings: Settings, sockets: list[socket.socket]) -> None:
    """Serve until a signal; requests that are being processed are finished first. Several
    processes reload at SIGHUP; a single one ends at it as at SIGTERM, so that no request is lost.
    """
    services = begin(settings)
    from app.api.main import create_app  # noqa: PLC0415 (see `begin`)
    from app.api.server import Server  # noqa: PLC0415

    server = Server(
        create_app(services), settings, lambda port: announce(announcement(services, port))
    )
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # nohup ignores it
        signal.signal(signal.SIGHUP, server.handle_exit)
    shorten_pauses()
    server.run(sockets)


def serve_for_parent(
    link: Link,
    records: SharedRecords,
    given: dict[str, Any],
    count: int,
    port: int,
    *,
    remote: NetworkClient | None,
) -> None:
    """Serve as one of `count` processes. `given` are settings of this process; the others come from
    the environment. `remote` is the process that runs the networks, if there is one."""
    settings = read_settings().model_copy(update=given)
    set_up_logs(settings.log_format, settings.log_level, with_process=True)
    with clear_errors():
        services = begin(settings, records, remote)
        from app.api.main import create_app  # noqa: PLC0415 (see `begin`)
        from app.api.server import ChildServer  # noqa: PLC0415

        server = ChildServer(
            create_app(services), settings, link, announcement(services, port, count)
        )
    shorten_pauses()
    server.run()


def begin(
    settings: Settings,
    records: SharedRecords | None = None,
    remote: NetworkClient | None = None,
) -> Services:
    """Build the services and check what only a service needs. Networks are loaded on a thread while
    this one imports the API: two parts of a start that use different locks.

    Raises subclasses of StartupError.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="start") as pool:
        networks = pool.submit(load_networks, settings, remote)
        with _models_built_when_used():
            import fastapi  # noqa: F401, PLC0415
        import app.api.main  # noqa: F401, PLC0415

        services = build_services(settings, DATABASE_WAIT_S, records, networks.result)
    prepare(services)
    return services


@contextmanager
def _models_built_when_used() -> Iterator[None]:
    """Models of pydantic that are defined meanwhile are built when they are first used: FastAPI has
    forty for the OpenAPI document, which take 35 ms of CPU time."""
    BaseModel.model_config["defer_build"] = True
    try:
        yield
    finally:
        del BaseModel.model_config["defer_build"]


def prepare(services: Services) -> None:
    """Check and change what only a service needs. Raises subclasses of StartupError."""
    pack = services.pack
    switch_default_collection(
        services.gallery.store, pack.embedding_space, pack.recogniser.dimension
    )
    if reason := warning(services, unmatched_collections(services)):
        log(logging.WARNING, "collections have faces of another embedding space", reason=reason)
    services.access_keys.check_pepper()
    require_access_keys(services)
    logging.getLogger("uvicorn.error").addHandler(_UvicornErrors())


def shorten_pauses() -> None:
    """Keep other threads from stopping the event loop for long: those that compute in Python, and
    the garbage collector."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    garbage.begin_serving()


class _UvicornErrors(logging.Handler):
    """Forwards uvicorn's own errors to our log."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.ERROR:
            err.print(record.getMessage(), markup=False, highlight=False)
