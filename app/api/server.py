"""The HTTP server: uvicorn with our limits and a graceful stop."""

import asyncio
import errno
import functools
import logging
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, cast

import uvicorn
from fastapi import FastAPI
from uvicorn.server import ServerState

from app.api.certificate import ServerCertificate
from app.api.connection import Connection
from app.api.connections import ConnectionLimits, Connections
from app.api.handshake import Handshake
from app.api.turns import Turns
from app.errors import AddressError
from app.settings import Settings
from app.telemetry.logs import log

BACKLOG = 2048


class Server(uvicorn.Server):
    """Serves an application of `create_app`. `ready` is called with the port once it listens.

    After the first SIGTERM or SIGINT `/readyz` answers 503, so that load balancers notice, and
    requests are served for `drain_seconds` more; then those at work are finished. A second signal
    ends the server at once.
    """

    def __init__(
        self, app: FastAPI, settings: Settings, ready: Callable[[int], None] | None = None
    ) -> None:
        self.connections = Connections(ConnectionLimits.of(settings))
        app.state.connections = self.connections
        self.certificate = ServerCertificate.of(settings)
        super().__init__(
            uvicorn.Config(
                app,
                host=settings.host,
                port=settings.port,
                http=cast("type[asyncio.Protocol]", self._protocol()),
                ws="none",
                log_config=None,
                access_log=False,
                proxy_headers=False,  # app.api.proxies reads them
                server_header=False,
                backlog=BACKLOG,
                timeout_keep_alive=cast("int", settings.keep_alive),
                # An admitted request has this long to be answered.
                timeout_graceful_shutdown=cast("int", settings.request_timeout),
            )
        )
        self._app = app
        self._settings = settings
        self._ready = ready
        self._signals = 0
        self._draining: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None

    def _protocol(self) -> Callable[..., asyncio.Protocol]:
        """Makes the protocol of a TCP connection, which a parent process may have accepted."""
        http = functools.partial(Connection, table=self.connections)
        if self.certificate is None:
            return http
        turns, certificate = Turns(), self.certificate

        def encrypted(*, server_state: ServerState, **others: Any) -> Handshake:
            running: set[Any] = server_state.connections
            later = functools.partial(http, server_state=server_state, **others)
            return Handshake(certificate, self.connections, turns, running, later)

        return encrypted

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.certificate is not None:
            self._watching = asyncio.create_task(self.certificate.watch())
        if self.started and self._ready is not None:
            listening = sockets or [one for server in self.servers for one in server.sockets]
            self._ready(listening[0].getsockname()[1])

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Drain at the first signal, end at once at the second. Unlike in uvicorn the signal is not
        raised again at the end, so that the exit status is 0."""
        self._signals += 1
        if self._signals == 1:
            log(logging.INFO, "stopping", signal=signal.Signals(sig).name,
                drain_seconds=self._settings.drain_seconds)  # fmt: skip
            self.connections.draining = True
            self._app.state.stopping = True
        else:
            self.should_exit = self.force_exit = True

    async def on_tick(self, counter: int) -> bool:
        if self.connections.draining and self._draining is None:
            self._draining = asyncio.create_task(self._drain())
        return await super().on_tick(counter)

    async def _drain(self) -> None:
        await asyncio.sleep(self._settings.drain_seconds)
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._watching is not None:
            self._watching.cancel()
        self._app.state.transfers.end_long_ones()
        if self.force_exit:
            # What is cut off was asked to be; uvicorn would log a traceback.
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        await super().shutdown(sockets)
        log(logging.INFO, "stopped", unfinished=len(self.server_state.tasks))


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
