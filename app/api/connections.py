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
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
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
# A client may take this long to answer the server's part of a TLS handshake before its connection
# is closed for a new one. Where all places are used it is closed earlier.
ANSWER_S = 1.0


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


class HandshakeStage(Enum):
    """Of a connection that is not encrypted yet."""

    SILENT = auto()
    """Nothing complete has been received."""
    WAITING = auto()
    """The client's first message has arrived; its handshake waits for its turn."""
    BEGUN = auto()
    """The server's first message has been sent, or is about to be."""


class Connections:
    """The connections of one server."""

    def __init__(
        self, limits: ConnectionLimits, observe_problem: Callable[[str], object] = lambda _: None
    ) -> None:
        """`observe_problem` is called with the code of each error that a connection itself
        answers."""
        self.limits = limits
        self.observe_problem = observe_problem
        self.draining = False
        self.given_up = 0
        self._all: set[TrackedConnection] = set()
        # When idle connections became idle: those without a complete first head, and the others.
        self._new: dict[TrackedConnection, float] = {}
        self._kept: dict[TrackedConnection, float] = {}
        # Not read yet: their first bytes may have arrived. They are not closed for others.
        self._unread: dict[TrackedConnection, None] = {}
        # When those in a TLS handshake reached their stage, the first that did so first. Only the
        # times of BEGUN are used.
        self._handshakes: dict[HandshakeStage, dict[TrackedConnection, float]] = {
            stage: {} for stage in HandshakeStage
        }
        self._timer: asyncio.TimerHandle | None = None
        self._logged_at = 0.0

    def __len__(self) -> int:
        return len(self._all)

    def add(self, connection: TrackedConnection, *, in_handshake: bool = False) -> None:
        """Add a new connection; if only KEPT_FOR_HEALTH places are left, close an idle one
        (`_longest_idle`). If the new one begins with a TLS handshake (`in_handshake`), and half of
        all places are taken by handshakes, close a silent or slow handshake; if only
        KEPT_FOR_HEALTH places are left, any handshake."""
        is_full = len(self._all) >= self.limits.most - KEPT_FOR_HEALTH
        if in_handshake and sum(map(len, self._handshakes.values())) >= self.limits.most // 2:
            victim = self._handshake_to_close(at_once=is_full)
            if victim is not None:
                self._close(victim)
        if len(self._all) >= self.limits.most - KEPT_FOR_HEALTH:  # although one may be closed now
            self._make_room(connection)
        if len(self._all) >= self.limits.most:
            connection.give_up()
            return
        self._all.add(connection)
        self._new[connection] = time.monotonic()
        self._unread[connection] = None
        self._after_reading(lambda: self._unread.pop(connection, None))
        if in_handshake:
            self._handshakes[HandshakeStage.SILENT][connection] = time.monotonic()
        if self._timer is None:
            self._sweep_later()

    def remove(self, connection: TrackedConnection) -> None:
        """Take a closed connection out of the table."""
        self._all.discard(connection)
        self._unread.pop(connection, None)
        for stage in self._handshakes.values():
            stage.pop(connection, None)
        self.busy(connection)

    def reached(self, stage: HandshakeStage, connection: TrackedConnection) -> None:
        """The TLS handshake of this connection has come to this stage."""
        if connection in self._all:
            for others in self._handshakes.values():
                others.pop(connection, None)
            self._handshakes[stage][connection] = time.monotonic()

    def is_crowded(self, connection: TrackedConnection) -> bool:
        """Whether only health and metrics are answered on this connection: it has one of the places
        that are kept for them, and they are still needed."""
        if len(self._all) <= self.limits.most - KEPT_FOR_HEALTH:
            connection.crowded = False
        return connection.crowded

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
            log(logging.WARNING, "connections are closed for new ones", most=self.limits.most,
                given_up=self.given_up)  # fmt: skip

    def _handshake_to_close(self, *, at_once: bool) -> TrackedConnection | None:
        """The oldest that has sent nothing complete, else the oldest that the server has waited for
        longer than ANSWER_S. If one must be closed `at_once`: else the oldest that the server waits
        for, else the newest of those that wait for the server, because the others are nearer to
        their turn, else the newest of those that were not read yet."""
        silent, waiting, begun = self._handshakes.values()
        for one in silent:
            if one not in self._unread:
                return one
        if begun:
            oldest, since = next(iter(begun.items()))
            return oldest if at_once or time.monotonic() - since > ANSWER_S else None
        return next(reversed(waiting or silent)) if at_once else None

    def _longest_idle(self) -> TrackedConnection | None:
        new = next((item for item in self._new.items() if item[0] not in self._unread), None)
        kept = next(iter(self._kept), None)
        if new is not None and time.monotonic() - new[1] > NEW_GRACE_S:
            return new[0]
        return kept or (new[0] if new is not None else None)

    def _after_reading(self, then: Callable[[], object]) -> None:
        """Call a function once the event loop has looked for the first bytes of a connection that
        was made in this round: it begins to read in the next."""
        loop = asyncio.get_running_loop()
        loop.call_soon(loop.call_soon, then)

    def _sweep_later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(SWEEP_EVERY_S, self._sweep)

    def _sweep(self) -> None:
        self._timer = None
        now = time.monotonic()
        for connection in list(self._all):
            connection.check(now)
        if self._all:
            self._sweep_later()
