"""All connections of the server: their number, which one is closed for a new one, and their time
limits.

Uvicorn limits concurrent requests and the time that an idle connection is kept between requests. It
limits neither the number of connections nor the time for a head that does not arrive or an answer
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

# File descriptors for everything else: the database, index files, uploads and reports.
OTHER_DESCRIPTORS = 96
# Connections beyond the others, where only health and metrics are answered.
KEPT_FOR_HEALTH = 8
LEAST_CONNECTIONS = 32
SWEEP_EVERY_S = 0.5
# A connection that has sent no request for this long is closed before idle ones that have.
NEW_GRACE_S = 1.0


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Connections at a time, and limits in seconds: for the head of a request, for a client that
    reads nothing of its answer, and for reading the rest of a refused body."""

    most: int = 1024
    head_s: float = 10.0
    write_s: float = 30.0
    linger_s: float = 5.0

    @classmethod
    def of(cls, settings: Settings) -> "ConnectionLimits":
        """The limits from the settings; fewer connections if file descriptors are scarce."""
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = settings.max_connections
        if descriptors != resource.RLIM_INFINITY:
            most = min(most, max(descriptors - OTHER_DESCRIPTORS, LEAST_CONNECTIONS))
        return cls(most, settings.head_timeout, settings.write_timeout)


class TrackedConnection(Protocol):
    """A connection as the table sees it; `crowded`: only health and metrics are answered."""

    crowded: bool

    def check(self, now: float) -> None:
        """Close the connection if one of its time limits is over."""

    def give_up(self) -> None:
        """Close the connection at once."""


class Connections:
    """The connections of one server."""

    def __init__(self, limits: ConnectionLimits) -> None:
        self.limits = limits
        self.draining = False
        self.given_up = 0
        self._all: set[TrackedConnection] = set()
        # When idle connections became idle: those without a complete first head, and the others.
        self._new: dict[TrackedConnection, float] = {}
        self._kept: dict[TrackedConnection, float] = {}
        # Before their TLS handshake, and in it; the oldest first.
        self._silent: dict[TrackedConnection, None] = {}
        self._in_handshake: dict[TrackedConnection, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._logged_at = 0.0

    def __len__(self) -> int:
        return len(self._all)

    def add(self, connection: TrackedConnection, *, in_handshake: bool = False) -> None:
        """Add a new connection; beyond the limit, close the one that has been idle longest. Half
        of all may be encrypted only later (`in_handshake`); beyond that, one of these is closed:
        the oldest that has not begun its handshake, or else the oldest that has."""
        waiting = len(self._silent) + len(self._in_handshake)
        if in_handshake and waiting >= self.limits.most // 2:
            self._close(next(iter(self._silent or self._in_handshake)))
        if len(self._all) >= self.limits.most - KEPT_FOR_HEALTH:
            self._make_room(connection)
        if len(self._all) >= self.limits.most:
            connection.give_up()
            return
        self._all.add(connection)
        self._new[connection] = time.monotonic()
        if in_handshake:
            self._silent[connection] = None
        if self._timer is None:
            self._sweep_later()

    def remove(self, connection: TrackedConnection) -> None:
        """Take a closed connection out of the table."""
        self._all.discard(connection)
        self._silent.pop(connection, None)
        self._in_handshake.pop(connection, None)
        self.busy(connection)

    def begins_handshake(self, connection: TrackedConnection) -> None:
        """The first message of this connection's TLS handshake has arrived."""
        if connection in self._silent:
            del self._silent[connection]
            self._in_handshake[connection] = None

    def busy(self, connection: TrackedConnection) -> None:
        """A request of this connection is being processed."""
        self._new.pop(connection, None)
        self._kept.pop(connection, None)

    def idle(self, connection: TrackedConnection) -> None:
        """The request is answered; the connection may be closed for another one."""
        if connection in self._all:
            self._kept[connection] = time.monotonic()

    def _make_room(self, arriving: TrackedConnection) -> None:
        victim = self._longest_idle()
        if victim is None:
            arriving.crowded = True
            return
        self._close(victim)

    def _close(self, victim: TrackedConnection) -> None:
        self.remove(victim)
        victim.give_up()
        self.given_up += 1
        if time.monotonic() - self._logged_at > 60:
            self._logged_at = time.monotonic()
            log(logging.WARNING, "idle connections are closed for new ones", most=self.limits.most,
                given_up=self.given_up)  # fmt: skip

    def _longest_idle(self) -> TrackedConnection | None:
        new, kept = next(iter(self._new.items()), None), next(iter(self._kept), None)
        if new is not None and time.monotonic() - new[1] > NEW_GRACE_S:
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
