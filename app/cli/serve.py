"""`likeness serve`: the command, up to where it becomes the service or the parent of several
processes. What the service needs is imported after that."""

import gc
import logging
import os
from typing import Annotated

import typer

from app.api.certificate import ServerCertificate
from app.api.listening import bound
from app.cli.console import clear_errors, ignored_settings, out, read_settings
from app.cli.database import data_folder
from app.inference.machine import DescriptorLimit
from app.processes.starting import become_parent, process_count
from app.telemetry.logs import log, set_up_logs


def serve(
    host: Annotated[str | None, typer.Option(help="Address; LIKENESS_HOST.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port; LIKENESS_PORT.")] = None,
) -> None:
    """Start the HTTP service."""
    settings = read_settings()
    options = {"host": host, "port": port}
    given = {name: value for name, value in options.items() if value is not None}
    settings = settings.model_copy(update=given)
    set_up_logs(settings.log_format, settings.log_level)
    for name in ignored_settings(os.environ):
        log(logging.WARNING, "not a setting, and ignored; docs/settings.md lists them", name=name)
    if warning := DescriptorLimit.read().raised().warning():
        log(logging.WARNING, warning)
    out.print(data_folder(settings), markup=False, highlight=False, soft_wrap=True)
    # Before the service is imported and its networks are loaded, so that a port in use or a
    # certificate that has ended is reported at once.
    with clear_errors(), bound(settings.host, settings.port) as sockets:
        ServerCertificate.of(settings)
        if (count := process_count(settings)) > 1:
            if settings.index_device == "cuda":
                log(
                    logging.WARNING,
                    "each process has a copy of the gallery on the GPU, and an equal part of its "
                    "memory for it; a gallery that does not fit is searched on the CPU",
                    processes=count,
                )
            become_parent(settings, count, given, sockets)
        gc.disable()  # until the service listens: `serving.shorten_pauses`
        try:
            from app.cli.serving import run  # noqa: PLC0415 (NumPy, FAISS, ONNX Runtime)

            run(settings, sockets)
        finally:
            gc.enable()
