"""The HTTP server: uvicorn with our limits and a graceful stop; and that of one of several
processes, whose parent accepts the connections."""

import asyncio
import functools
import logging
import signal
import socket
from collections.abc import Callable
from contextvars import Context
from types import FrameType
from typing import Any, cast

import uvicorn
from fastapi import FastAPI
from uvicorn.server import ServerState

from app.api.certificate import ServerCertificate
from app.api.connection import Connection
from app.api.connections import ConnectionLimits, Connections
from app.api.endpoints.system import own_exposition, readiness_for_other_processes
from app.api.handshake import Handshake
from app.api.turns import Turns
from app.processes.link import Link
from app.processes.messages import METRICS, READY
from app.settings import Settings
from app.telemetry.logs import log
from app.telemetry.tasks import start_task

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
        self.connections = Connections(
            ConnectionLimits.of(settings), app.state.services.metrics.observe_problem
        )
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
            self._watching = start_task(self.certificate.watch(), "TLS certificate")
        if self.started and self._ready is not None:
            listening = sockets or [one for server in self.servers for one in server.sockets]
            self._ready(listening[0].getsockname()[1])

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Drain at the first signal, end at once at the second. Unlike in uvicorn the signal is not
        raised again at the end, so that the exit status is 0."""
        self._signals += 1
        if self._signals == 1:
            Context().run(  # not as part of the request that the signal interrupts
                lambda: log(logging.INFO, "stopping", signal=signal.Signals(sig).name,
                            drain_seconds=self._settings.drain_seconds)
            )  # fmt: skip
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
        stopping = self._app.state.stopping or self.force_exit
        self._app.state.transfers.end_long_ones(stopping=stopping)
        if self.force_exit:
            # What is cut off was asked to be; uvicorn would log a traceback.
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        await super().shutdown(sockets)
        log(logging.INFO, "stopped", unfinished=len(self.server_state.tasks))


# The last connections that were handed over may not have sent their first request yet.
READ_ON_S = 0.2
# For how long after a draining the parent's order to end is waited for.
PATIENCE_S = 30.0


class ChildServer(Server):
    """`app.processes.link.Served` over an application of `create_app`. When it drains and ends is
    decided by the parent; SIGTERM asks the parent for it."""

    def __init__(self, app: FastAPI, settings: Settings, link: Link, announcement: str) -> None:
        super().__init__(app, settings)
        self._link = link
        self._announcement = announcement
        app.state.link = link

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets or [])
        self._link.open(
            self,
            {METRICS: self._metrics, READY: lambda: readiness_for_other_processes(self._app)},
            self._announcement,
        )

    def new_protocol(self) -> asyncio.Protocol:
        """As uvicorn's listeners make it."""
        return self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
            _loop=asyncio.get_running_loop(),
        )

    def drain(self, *, stopping: bool) -> None:
        """End connections with their next answer."""
        self.connections.draining = True
        self._app.state.stopping |= stopping

    def end(self) -> None:
        """Finish what is under way."""
        asyncio.get_running_loop().call_later(READ_ON_S, self._exit)

    def end_at_once(self) -> None:
        """End without finishing requests."""
        self.should_exit = self.force_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Ask the parent to be replaced; at the second signal end at once."""
        self._signals += 1
        if self._signals > 1:
            self.end_at_once()
            return
        name = signal.Signals(sig).name
        Context().run(lambda: log(logging.INFO, "this process is to end", signal=name))
        self._link.leave()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        # A forced end skips the shutdown of the application: then the metrics are read here.
        self._link.close(self._app.state.last_metrics or own_exposition(self._app))

    async def _drain(self) -> None:
        await asyncio.sleep(self._settings.drain_seconds + PATIENCE_S)
        self.should_exit = True

    def _exit(self) -> None:
        self.should_exit = True

    async def _metrics(self) -> str:
        return own_exposition(self._app)
