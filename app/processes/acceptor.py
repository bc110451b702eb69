"""The listening sockets of a service, and the connections that wait for a child."""

import logging
import selectors
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress

from app.disk import SCARCE
from app.telemetry.logs import log

BACKLOG = 2048
ACCEPTED_AT_ONCE = 64
# Where descriptors or memory are scarce, the connection stays in the backlog, and the listener
# readable: accepting pauses.
SCARCE_S = 1.0


class Acceptor:
    """Accepts connections and hands them over, as long as there is somebody to take them."""

    def __init__(
        self,
        selector: selectors.BaseSelector,
        listeners: Sequence[socket.socket],
        hand: Callable[[socket.socket], bool],
    ) -> None:
        """`hand` gives a connection to a child; False if none has room. The selector's data is a
        function that is called with the events."""
        self._selector = selector
        self._listeners = list(listeners)
        self._hand = hand
        self._held: deque[socket.socket] = deque()  # accepted, and no child had room
        self._accepting = False
        self._not_before = 0.0
        self.listening = False

    def listen(self) -> None:
        """Let clients connect."""
        for one in self._listeners:
            one.listen(BACKLOG)
            one.setblocking(False)
        self.listening = True

    def resume(self) -> None:
        """Accept, if that was paused and its reason is over."""
        while self._held and self._hand(self._held[0]):
            self._held.popleft()
        if self._accepting or self._held or time.monotonic() < self._not_before:
            return
        if not self.listening:
            return
        for one in self._listeners:
            self._selector.register(
                one, selectors.EVENT_READ, lambda _, listener=one: self._accept(listener)
            )
        self._accepting = True

    def accept_all(self) -> None:
        """Accept what has connected already."""
        self.resume()
        for listener in self._listeners:
            while self._accepting and not self._accept(listener):
                pass

    def close(self) -> None:
        """Accept nothing more."""
        self._pause()
        for one in [*self._listeners, *self._held]:
            one.close()
        self._listeners.clear()
        self._held.clear()
        self.listening = False

    def _pause(self) -> None:
        for one in self._listeners:
            with suppress(KeyError, ValueError):
                self._selector.unregister(one)
        self._accepting = False

    def _accept(self, listener: socket.socket) -> bool:
        """Accept what has come; False if more may be waiting."""
        for _ in range(ACCEPTED_AT_ONCE):
            try:
                connection, _ = listener.accept()
            except BlockingIOError:
                return True
            except OSError as error:
                log(logging.WARNING, "a connection was not accepted", reason=str(error))
                if error.errno not in SCARCE:  # the client has left
                    continue
                self._not_before = time.monotonic() + SCARCE_S
                self._pause()
                return True
            if connection.family != socket.AF_UNIX:
                with suppress(OSError):
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if not self._hand(connection):
                self._held.append(connection)
                self._pause()
                return True
        return False
