"""A child's side: connections that the parent hands over, and questions to all processes."""

import asyncio
import itertools
import logging
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from app.processes.messages import (
    AT_ONCE,
    CLOSED,
    CONNECTION,
    END,
    LEAVE,
    REPLACED,
    STOP,
    ControlLost,
    Lines,
)
from app.telemetry.logs import log

HANDED_AT_ONCE = 16
# Longer than the parent waits for the other processes.
ANSWER_S = 5.0
PR_SET_PDEATHSIG = 1

OrderHandler = Callable[[], Awaitable[Any]]


class Served(Protocol):
    """The server of a child, as its parent directs it."""

    def new_protocol(self) -> asyncio.Protocol:
        """The protocol of a connection that was accepted."""

    def drain(self, *, stopping: bool) -> None:
        """End connections with their next answer; if the service stops, `/readyz` says so."""

    def end(self) -> None:
        """No further connection comes: finish what is under way."""

    def end_at_once(self) -> None:
        """End without finishing requests."""


class HandedSocket(socket.socket):
    """A connection's socket, whose end is reported once. Event loops end it by `close`, or by
    `detach` where they close the descriptor themselves (uvloop)."""

    closed: Callable[[], None] | None = None

    def close(self) -> None:
        super().close()
        self._report()

    def detach(self) -> int:
        descriptor = super().detach()
        self._report()
        return descriptor

    def _report(self) -> None:
        report, self.closed = self.closed, None
        if report is not None:
            report()


class Link:
    """The connection of a child with its parent. For the event loop alone."""

    def __init__(self, channel: socket.socket, control: socket.socket) -> None:
        channel.setblocking(False)
        self._channel = channel
        self._lines = Lines(control)
        self._closed = 0  # connections whose end is not reported yet
        self._numbers = itertools.count()
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._answers: Mapping[str, OrderHandler] = {}
        self._tasks = set[asyncio.Task[None]]()
        self._server: Served
        self._loop: asyncio.AbstractEventLoop

    def open(self, server: Served, answers: Mapping[str, OrderHandler], announcement: str) -> None:
        """Serve from now on. `answers` are to the parent's questions, by kind."""
        self._server, self._answers = server, answers
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._channel.fileno(), self._on_channel)
        self._loop.add_reader(self._lines.socket.fileno(), self._on_control)
        self._say({"up": announcement})

    def close(self, exposition: str) -> None:
        """Leave the last metrics to the parent."""
        self._loop.remove_reader(self._channel.fileno())
        self._loop.remove_reader(self._lines.socket.fileno())
        self._loop.remove_writer(self._lines.socket.fileno())
        self._lines.socket.settimeout(ANSWER_S)
        try:
            self._lines.send({"last": exposition})
        except (ControlLost, TimeoutError):
            log(logging.WARNING, "the last metrics were not delivered")

    def leave(self) -> None:
        """Ask the parent to replace this process."""
        self._send(LEAVE)

    async def ask(self, kind: str) -> Any:
        """What the parent makes of the answers of all processes. Raises TimeoutError."""
        number = next(self._numbers)
        self._asked[number] = self._loop.create_future()
        try:
            self._say({"ask": kind, "number": number})
            async with asyncio.timeout(ANSWER_S):
                return await self._asked[number]
        finally:
            del self._asked[number]

    # --- the channel -------------------------------------------------------------------------

    def _on_channel(self) -> None:
        for _ in range(HANDED_AT_ONCE):
            try:
                message, files, _, _ = socket.recv_fds(self._channel, 1, 1, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                break
            except OSError:
                message, files = b"", []
            if not message:
                self._lose_parent()
                return
            self._on_message(message, files)
        self._send(b"")

    def _on_message(self, message: bytes, files: list[int]) -> None:
        if message == CONNECTION:
            self._begin(files)
        elif message in (STOP, REPLACED):
            self._server.drain(stopping=message == STOP)
        elif message == END:
            self._server.end()
        elif message == AT_ONCE:
            self._server.end_at_once()

    def _begin(self, files: list[int]) -> None:
        if not files:  # no descriptor was free for it
            log(logging.WARNING, "a connection was lost: too many files are open")
            self._count_closed()
            return
        try:
            connection = HandedSocket(fileno=files[0])
        except OSError:  # it is closed already
            os.close(files[0])
            self._count_closed()
            return
        connection.closed = self._count_closed
        task = self._loop.create_task(self._connect(connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, connection: HandedSocket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._server.new_protocol, connection)
        except OSError:
            connection.close()

    def _count_closed(self) -> None:
        self._closed += 1
        self._send(b"")

    def _send(self, message: bytes) -> None:
        try:
            if message:
                self._channel.send(message)
            if self._closed:
                self._closed -= self._channel.send(CLOSED * self._closed)
        except OSError:
            pass  # no room: with the next connection; or the parent is gone, which is detected

    def _lose_parent(self) -> None:
        log(logging.ERROR, "the parent process is gone")
        self._loop.remove_reader(self._channel.fileno())
        self._server.end_at_once()

    # --- the control socket ------------------------------------------------------------------

    def _on_control(self) -> None:
        try:
            values = self._lines.receive()
        except ControlLost:
            self._loop.remove_reader(self._lines.socket.fileno())
            return
        for value in values:
            if "want" in value:
                task = self._loop.create_task(self._answer(value["want"], value["number"]))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            elif (asked := self._asked.get(value["number"])) is not None and not asked.done():
                asked.set_result(value["result"])

    async def _answer(self, kind: str, number: int) -> None:
        self._say({"answer": kind, "number": number, "value": await self._answers[kind]()})

    def _say(self, value: Any) -> None:
        try:
            self._lines.send(value)
        except ControlLost:
            return
        if self._lines.unsent:
            self._loop.add_writer(self._lines.socket.fileno(), self._flush)

    def _flush(self) -> None:
        try:
            self._lines.flush()
        except ControlLost:
            pass
        else:
            if self._lines.unsent:
                return
        self._loop.remove_writer(self._lines.socket.fileno())


def end_with(parent: int) -> None:
    """Let the system kill this process when its parent ends (Linux); elsewhere the end of the
    sockets is detected."""
    if not sys.platform.startswith("linux"):
        return
    import ctypes  # noqa: PLC0415 (of children alone)

    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before
        os.kill(os.getpid(), signal.SIGKILL)
