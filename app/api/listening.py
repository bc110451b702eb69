"""Sockets bound to the address that the service listens on."""

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from app.errors import AddressError


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
