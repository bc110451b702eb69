"""The HTTP server of one of several processes: its parent accepts the connections."""

import asyncio
import logging
import signal
import socket
from types import FrameType

from fastapi import FastAPI

from app.api.server import Server
from app.api.service_state import own_exposition, readiness_for_other_processes
from app.processes.link import Link
from app.processes.messages import METRICS, READY
from app.settings import Settings
from app.telemetry.logs import log

# The last connections that were handed over may not have sent their first request yet.
READ_ON_S = 0.2
# For how long after a draining the parent's order to end is waited for.
PATIENCE_S = 30.0


class WorkerServer(Server):
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
        log(logging.INFO, "this process is to end", signal=signal.Signals(sig).name)
        self._link.leave()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        last = own_exposition(self._app)
        await super().shutdown(sockets)
        self._link.close(last)

    async def _drain(self) -> None:
        await asyncio.sleep(self._settings.drain_seconds + PATIENCE_S)
        self.should_exit = True

    def _exit(self) -> None:
        self.should_exit = True

    async def _metrics(self) -> str:
        return own_exposition(self._app)
