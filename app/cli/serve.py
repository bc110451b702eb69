"""`likeness serve`: the command, up to where it becomes the service or the parent of several
processes, with sockets bound to the address that it listens on. What the service needs is imported
after that."""

import errno
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from app.api.certificate import ServerCertificate
from app.cli.console import data_folder, ignored_settings, out, read_settings
from app.errors import StartupError
from app.inference.machine import DescriptorLimit
from app.processes.starting import become_parent, process_count
from app.telemetry.logs import log, set_up_logs


class AddressError(StartupError):
    code, title = "address_error", "The service cannot listen"


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
        log(logging.WARNING, "few files may be open", reason=warning)
    out.print(data_folder(settings), markup=False, highlight=False, soft_wrap=True)
    # Before the service is imported and its networks are loaded, so that a port in use or a
    # certificate that has ended is reported at once.
    with bound(settings.host, settings.port) as sockets:
        if certificate := ServerCertificate.of(settings):
            certificate.warn_of_readers()
        if (count := process_count(settings)) > 1:
            if settings.index_device == "cuda":
                log(
                    logging.WARNING,
                    "each process has a copy of the gallery on the GPU, and an equal part of its "
                    "memory for it; a gallery that does not fit is searched on the CPU",
                    processes=count,
                )
            become_parent(settings, count, given, sockets)
        from app.cli.serving import run  # noqa: PLC0415 (NumPy, FAISS, ONNX Runtime)

        run(settings, sockets)


@contextmanager
def bound(host: str, port: int) -> Iterator[list[socket.socket]]:
    """Sockets bound to an address, one for each address of a host name, so that a port in use is
    found before anything is loaded. The server listens on them later. Raises AddressError."""
    sockets = _bind(host, port)
    try:
        yield sockets
    finally:
        for one in sockets:
            one.close()


def _bind(host: str, port: int) -> list[socket.socket]:
    try:
        found = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as error:
        raise AddressError(
            f"The address '{host}' cannot be resolved ({error.strerror}); set LIKENESS_HOST or "
            "--host to an address of this machine, such as 127.0.0.1."
        ) from error
    sockets: list[socket.socket] = []
    try:
        for family, _, _, _, address in dict.fromkeys(found):
            sockets.append(_bound(family, address))
    except OSError as error:
        for one in sockets:
            one.close()
        raise _cannot_listen(host, port, error) from error
    return sockets


def _bound(family: int, address: Any) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind(address)
    except OSError:
        made.close()
        raise
    return made


def _cannot_listen(host: str, port: int, error: OSError) -> AddressError:
    where = f"port {port} of {host}"
    if error.errno == errno.EADDRINUSE:
        return AddressError(
            f"Another process listens on {where}; stop it, or choose another port with "
            "LIKENESS_PORT or --port."
        )
    if error.errno == errno.EACCES:
        return AddressError(
            f"This user may not listen on {where}; choose a port above 1023 with LIKENESS_PORT or "
            "--port."
        )
    return AddressError(
        f"The service cannot listen on {where}: {error.strerror}. Set LIKENESS_HOST and "
        "LIKENESS_PORT to an address of this machine."
    )
