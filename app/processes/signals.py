"""Signals as bytes that a selector can wait for."""

import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager

HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)


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
