"""All connections of the server: how many there may be, which of them can be given up, and the
times that each must keep.

Uvicorn has a limit of requests at work, and a time for connections that are kept between two
requests; it has no limit of connections, and no time for a head that does not come or an answer
that is not read (docs/adr/0015-http-limits.md).
"""

import asyncio
import logging
import resource
import time
from dataclasses import dataclass
from typing import Protocol

from app.settings import Settings
from app.telemetry.logs import log

# Of the process's file descriptors: the database's, index files, uploads and reports.
OTHER_DESCRIPTORS = 96
# Connections beyond the others, where only health and metrics are answered.
KEPT_FOR_HEALTH = 8
LEAST_CONNECTIONS = 32
SWEEP_EVERY_S = 0.5
# A connection that has sent no request in this time is given up before those that have.
PATIENCE_S = 1.0


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Connections at a time, and seconds: for the head of a request, for an answer of which nothing
    is read, and for the rest of a body that nobody wants."""

    most: int = 1024
    head_s: float = 10.0
    write_s: float = 30.0
    linger_s: float = 5.0

    @classmethod
    def of(cls, settings: Settings) -> "ConnectionLimits":
        """Those of the settings, as far as the process's file descriptors allow."""
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = settings.max_connections
        if descriptors != resource.RLIM_INFINITY:
            most = min(most, max(descriptors - OTHER_DESCRIPTORS, LEAST_CONNECTIONS))
        return cls(most, settings.head_timeout, settings.write_timeout)


class Held(Protocol):
    """What the table needs of a connection."""

    crowded: bool

    def check(self, now: float) -> None:
        """End it if a time is over."""

    def give_up(self) -> None:
        """End it at once."""


class Connections:
    """The connections of one server."""

    def __init__(self, limits: ConnectionLimits) -> None:
        self.limits = limits
        self.draining = False
        self.given_up = 0
        self._all: set[Held] = set()
        # Since when these have no request at work: before their first whole head, and after one.
        self._new: dict[Held, float] = {}
        self._kept: dict[Held, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._told_at = 0.0

    def __len__(self) -> int:
        return len(self._all)

    def add(self, connection: Held) -> None:
        """Take a new connection; the one that has been idle for longest makes room for it."""
        if len(self._all) >= self.limits.most - KEPT_FOR_HEALTH:
            self._make_room(connection)
        if len(self._all) >= self.limits.most:
            connection.give_up()
            return
        self._all.add(connection)
        self._new[connection] = time.monotonic()
        if self._timer is None:
            self._sweep_later()

    def remove(self, connection: Held) -> None:
        """It is closed."""
        self._all.discard(connection)
        self.busy(connection)

    def busy(self, connection: Held) -> None:
        """A request of it is at work."""
        self._new.pop(connection, None)
        self._kept.pop(connection, None)

    def idle(self, connection: Held) -> None:
        """Its request is answered; it may be given up."""
        if connection in self._all:
            self._kept[connection] = time.monotonic()

    def _make_room(self, arriving: Held) -> None:
        victim = self._longest_idle()
        if victim is None:
            arriving.crowded = True
            return
        self.remove(victim)
        victim.give_up()
        self.given_up += 1
        if time.monotonic() - self._told_at > 60:
            self._told_at = time.monotonic()
            log(logging.WARNING, "connections are given up for new ones", most=self.limits.most,
                given_up=self.given_up)  # fmt: skip

    def _longest_idle(self) -> Held | None:
        new, kept = next(iter(self._new.items()), None), next(iter(self._kept), None)
        if new is not None and time.monotonic() - new[1] > PATIENCE_S:
            return new[0]
        return kept or (new[0] if new is not None else None)

    def _sweep_later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(SWEEP_EVERY_S, self._sweep)

    def _sweep(self) -> None:
        self._timer = None
        now = time.monotonic()
        for connection in list(self._all):
            connection.check(now)
        if self._all:
            self._sweep_later()
