"""What a parent and its child say to each other, over two pairs of Unix sockets.

The *channel* carries single bytes: connections with their descriptors, and in the same order what
the child must do; back comes one byte for each connection that was closed. The *control* socket
carries JSON values, one per line: questions and answers. Signals come to the parent over a pair of
sockets, too, so that it waits for all of them alike.
"""

import json
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

CONNECTION: Final = b"c"  # with a descriptor
CLOSED: Final = b"-"
# The service stops: `/readyz` says so, and connections end with their next answer.
STOP: Final = b"s"
# Another process takes this one's place: connections end with their next answer.
REPLACED: Final = b"r"
END: Final = b"e"  # no further connection comes
AT_ONCE: Final = b"x"
LEAVE: Final = b"l"  # from the child, which was asked by a signal to end

METRICS: Final = "metrics"
READY: Final = "ready"

# What the child that runs the networks is.
NETWORKS: Final = "networks"

PIECE = 64 * 1024
# Of what the other side has not read: it hangs.
MOST_UNSENT = 32 * 1024 * 1024

HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)


class ControlLost(Exception):
    """The other side is gone, or reads nothing any more."""


class Lines:
    """JSON values over a socket, neither end of which ever waits."""

    def __init__(self, control: socket.socket) -> None:
        control.setblocking(False)
        self.socket = control
        self._received = bytearray()
        self._unsent = bytearray()

    @property
    def unsent(self) -> bool:
        """Whether something waits for the socket to become writable."""
        return bool(self._unsent)

    def receive(self) -> list[Any]:
        """The values that have arrived completely. Raises ControlLost."""
        while True:
            try:
                piece = self.socket.recv(PIECE)
            except BlockingIOError:
                break
            except OSError as error:
                raise ControlLost from error
            if not piece:
                raise ControlLost
            self._received += piece
            if len(piece) < PIECE:
                break
        *whole, rest = self._received.split(b"\n")
        self._received = bytearray(rest)
        return [json.loads(line) for line in whole]

    def send(self, value: Any) -> None:
        """Send a value, or as much of it as the socket takes now. Raises ControlLost."""
        self._unsent += json.dumps(value).encode() + b"\n"
        if len(self._unsent) > MOST_UNSENT:
            raise ControlLost
        self.flush()

    def flush(self) -> None:
        """Send what waits. Raises ControlLost."""
        while self._unsent:
            try:
                sent = self.socket.send(self._unsent[:PIECE])
            except BlockingIOError:
                return
            except OSError as error:
                raise ControlLost from error
            del self._unsent[:sent]


@contextmanager
def signal_numbers() -> Iterator[socket.socket]:
    """Within the context, a socket from which the numbers of signals can be read, a byte each."""
    reading, writing = socket.socketpair()
    reading.setblocking(False)
    writing.setblocking(False)
    signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    before = {one: signal.signal(one, lambda *_: None) for one in HANDLED}
    try:
        yield reading
    finally:
        signal.set_wakeup_fd(-1)
        for one, handler in before.items():
            signal.signal(one, handler)
        for end in (reading, writing):
            end.close()
