"""`likeness serve`: the HTTP service."""

import logging
import socket
from functools import partial
from typing import Annotated

import typer

from app.api.main import create_app
from app.api.server import Server, bound
from app.cli.console import clear_errors, err, out, read_settings
from app.cli.database import unmatched_pack
from app.cli.descriptors import DescriptorLimit
from app.services import Services, build_services
from app.settings import Settings
from app.telemetry.logs import log, set_up_logs

# After a power failure, for example, the database server may start later than the service.
DATABASE_WAIT_S = 60.0


def announce(services: Services, port: int) -> None:
    """Print where the docs and the API are, and what serves them."""
    host = services.settings.host
    shown = "localhost" if host in ("127.0.0.1", "0.0.0.0", "::", "::1") else host  # noqa: S104
    base = f"http://{shown}:{port}"
    out.print(f"[bold]Likeness[/] is ready · pack {services.pack.name} {services.pack.version} "
              f"· {services.pipeline.provider} · {services.scheduler.workers} workers",
              highlight=False)  # fmt: skip
    out.print(f"  docs     {base}/docs", highlight=False)
    out.print(f"  API      {base}/v1", highlight=False)
    out.print(f"  gallery  {services.gallery.store.describe()['database']}", highlight=False)
    if host not in ("127.0.0.1", "localhost", "::1"):
        err.print("[yellow]There is no authentication yet: whoever reaches this address can read "
                  "and change the gallery.[/]")  # fmt: skip


def announce_folder(settings: Settings) -> None:
    """Print where everything is kept, which depends on the working folder unless it is set."""
    folder = settings.data_dir.absolute()
    new = "" if folder.exists() else ", which is new"
    out.print(f"Data folder {folder}{new}", markup=False, highlight=False, soft_wrap=True)


def serve(
    host: Annotated[str | None, typer.Option(help="Address; LIKENESS_HOST.")] = None,
    port: Annotated[int | None, typer.Option(help="Port; LIKENESS_PORT.")] = None,
) -> None:
    """Start the HTTP service."""
    settings = read_settings()
    given = {"host": host, "port": port}
    settings = settings.model_copy(update={k: v for k, v in given.items() if v is not None})
    set_up_logs(settings.log_format, settings.log_level)
    if warning := DescriptorLimit.read().raised().warning():
        log(logging.WARNING, warning)
    announce_folder(settings)
    # Before any network is loaded, so that a port in use is reported at once.
    with clear_errors(), bound(settings.host, settings.port) as sockets:
        run(build_services(settings, DATABASE_WAIT_S), settings, sockets)


def run(services: Services, settings: Settings, sockets: list[socket.socket]) -> None:
    """Serve until a signal; requests that are being processed are finished first."""
    if warning := unmatched_pack(services):
        log(logging.WARNING, warning)
    logging.getLogger("uvicorn.error").addHandler(_UvicornErrors())
    server = Server(create_app(services), settings, partial(announce, services))
    server.run(sockets)


class _UvicornErrors(logging.Handler):
    """Forwards uvicorn's own errors to our log."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.ERROR:
            err.print(record.getMessage(), markup=False, highlight=False)
