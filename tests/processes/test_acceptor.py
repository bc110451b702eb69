"""Connections from the listening sockets to those who take them."""

import errno
import selectors
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from app.processes import acceptor
from app.processes.acceptor import Acceptor
from tests.waiting import until


class Listener(socket.socket):
    """Fails for a reason of the system, as often as is left."""

    failures: list[int]
    attempts = 0

    def accept(self) -> tuple[socket.socket, Any]:
        self.attempts += 1
        if self.failures:
            raise OSError(self.failures.pop(), "for a test")
        return super().accept()


class Accepting:
    """An acceptor with one listener, and what it has handed over."""

    def __init__(self, stack: ExitStack) -> None:
        self.listener = stack.enter_context(Listener())
        self.listener.failures = []
        self.listener.bind(("127.0.0.1", 0))
        self.selector = stack.enter_context(selectors.DefaultSelector())
        self.room = 100
        self.handed: list[socket.socket] = []
        self.acceptor = Acceptor(self.selector, [self.listener], self._hand)
        stack.callback(self.acceptor.close)
        self.acceptor.listen()
        self._stack = stack

    def connect(self) -> None:
        address = self.listener.getsockname()
        self._stack.enter_context(socket.create_connection(address))

    def run(self) -> int:
        """One round of the parent's loop; how many connections were handed over so far."""
        self.acceptor.resume()
        for key, events in self.selector.select(0.1):
            key.data(events)
        return len(self.handed)

    def _hand(self, connection: socket.socket) -> bool:
        if len(self.handed) >= self.room:
            return False
        self.handed.append(self._stack.enter_context(connection))
        return True


@pytest.fixture
def accepting() -> Iterator[Accepting]:
    with ExitStack() as stack:
        yield Accepting(stack)


def test_a_connection_without_room_is_held_and_handed_over_later(accepting: Accepting) -> None:
    accepting.room = 1
    for _ in range(3):
        accepting.connect()
    for _ in range(3):
        accepting.run()
    assert len(accepting.handed) == 1
    accepting.room = 3
    accepting.acceptor.accept_all()
    assert len(accepting.handed) == 3


def test_without_descriptors_it_waits(
    accepting: Accepting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The listener stays readable: without a pause the loop would turn as fast as it can."""
    monkeypatch.setattr(acceptor, "SCARCE_S", 1000.0)
    accepting.listener.failures = [errno.EMFILE] * 100
    accepting.connect()
    for _ in range(5):
        accepting.run()
    assert accepting.listener.attempts == 1


def test_after_the_pause_it_accepts(accepting: Accepting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceptor, "SCARCE_S", 0.0)
    accepting.listener.failures = [errno.EMFILE]
    accepting.connect()
    until(lambda: accepting.run() == 1)


def test_a_client_that_has_left_delays_nobody(accepting: Accepting) -> None:
    accepting.listener.failures = [errno.ECONNABORTED]
    accepting.connect()
    until(lambda: accepting.run() == 1)
    assert accepting.listener.attempts > 1
