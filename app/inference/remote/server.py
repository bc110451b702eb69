"""The side of the process that runs the networks. Its event loop reads requests, a thread for each
network puts their images into batches, and the network's own threads write the answers."""

import asyncio
import logging
import os
import socket
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue

from app.errors import WorkerDied
from app.inference.remote.frames import (
    FRAME_BYTES,
    MEMORY,
    OPEN,
    Reply,
    Request,
    RequestStatus,
    request_of,
)
from app.inference.remote.greeting import Greeting, NetworkFacts
from app.inference.remote.served import ServedNetwork
from app.inference.remote.slots import SlotMemory
from app.telemetry.logs import log
from app.types import FloatArray

Heads = list[FloatArray]


@dataclass(eq=False, slots=True)
class _Slot:
    """A client's slot. `busy` is written by one thread at a time: the event loop sets it, and the
    thread that replies unsets it before it sends."""

    socket: socket.socket
    memory: SlotMemory | None = None
    number: int = 0  # of the last request
    busy: bool = False
    gone: bool = False

    def reply(self, status: RequestStatus, text: str) -> None:
        reply = Reply(status, self.number, text).encoded()
        self.busy = False
        with suppress(OSError):  # the client has ended
            self.socket.send(reply)


class NetworkServer:
    """Answers the slots of all clients. For one event loop."""

    def __init__(
        self,
        greeting: Greeting,
        served: Sequence[ServedNetwork],
        openings: socket.socket,
        most_slots: int,
    ) -> None:
        """`openings` is where clients send the sockets of their slots. A slot has one request, so
        every queue here is bounded by `most_slots`."""
        self._greeting = greeting.model_dump_json().encode()
        self._facts = greeting
        self._served = served
        self._openings = openings
        self._most_slots = most_slots
        self._slots: set[_Slot] = set()
        self._queues: list[SimpleQueue[tuple[_Slot, int] | None]] = [SimpleQueue() for _ in served]
        self._threads: list[threading.Thread] = []
        self._loop: asyncio.AbstractEventLoop

    def open(self) -> None:
        """Serve from now on."""
        self._loop = asyncio.get_running_loop()
        self._openings.setblocking(False)
        self._loop.add_reader(self._openings.fileno(), self._on_opening)
        for one, queue in zip(self._served, self._queues, strict=True):
            work = partial(self._feed, one, queue)
            thread = threading.Thread(target=work, name="network-feed", daemon=True)
            thread.start()
            self._threads.append(thread)

    def close(self) -> None:
        """Take no more requests; clients see that their sockets have ended."""
        self._loop.remove_reader(self._openings.fileno())
        for slot in list(self._slots):
            self._lose(slot)
        for queue in self._queues:
            queue.put(None)
        for thread in self._threads:
            thread.join()

    # --- slots, on the event loop ---------------------------------------------------------------

    def _on_opening(self) -> None:
        try:
            message, files, _, _ = socket.recv_fds(
                self._openings, len(OPEN), 1, socket.MSG_CMSG_CLOEXEC
            )
        except OSError:
            return
        if message != OPEN or not files:
            log(logging.WARNING, "a slot was not opened: too many files are open (ulimit -n)")
            for file in files:
                os.close(file)
            return
        try:
            slot = _Slot(socket.socket(fileno=files[0]))
        except OSError as error:  # no socket, or one whose other end has gone
            log(logging.WARNING, "a slot was not opened", error)
            os.close(files[0])
            return
        slot.socket.setblocking(False)
        if len(self._slots) >= self._most_slots:
            log(logging.WARNING, "a slot was not opened", slots=len(self._slots))
            slot.socket.close()
            return
        self._slots.add(slot)
        self._loop.add_reader(slot.socket.fileno(), self._on_message, slot)
        with suppress(OSError):
            slot.socket.send(self._greeting)

    def _on_message(self, slot: _Slot) -> None:
        try:
            message, files, _, _ = socket.recv_fds(
                slot.socket, FRAME_BYTES, 1, socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return
        except OSError:
            message, files = b"", []
        try:
            if not message:
                self._lose(slot)
            elif message == MEMORY and slot.memory is None:
                if not files:
                    raise OSError("no file arrived: too many are open (ulimit -n)")
                slot.memory = SlotMemory(files[0], self._facts)
            else:
                self._take(slot, request_of(message))
        except (ValueError, OSError) as error:
            log(logging.ERROR, "a slot is closed: what it sent cannot be served", error)
            self._lose(slot)
        finally:
            for file in files:
                os.close(file)

    def _take(self, slot: _Slot, request: Request) -> None:
        """Raises ValueError."""
        if slot.memory is None or slot.busy or request.network >= len(self._served):
            raise ValueError(f"a request out of order: {request}")
        facts = self._served[request.network].facts
        if not 0 < request.count <= self._facts.most(facts):
            raise ValueError(f"{request.count} images for {facts.name}")
        slot.number, slot.busy = request.number, True
        self._queues[request.network].put((slot, request.count))

    def _lose(self, slot: _Slot) -> None:
        """A slot whose client has ended, or does what no client does. The memory is given back when
        no thread uses it any more."""
        if not slot.gone:
            self._loop.remove_reader(slot.socket.fileno())
        slot.gone = True
        if not slot.busy:
            self._forget(slot)

    def _forget(self, slot: _Slot) -> None:
        self._slots.discard(slot)
        slot.memory = None
        slot.socket.close()

    # --- requests, on the threads of networks ---------------------------------------------------

    def _feed(self, served: ServedNetwork, queue: "SimpleQueue[tuple[_Slot, int] | None]") -> None:
        while (taken := queue.get()) is not None:
            slot, count = taken
            memory = slot.memory
            if memory is None or slot.gone:
                self._end(slot, RequestStatus.DIED, "")
                continue
            try:
                parts = served.network.submit(memory.images(served.facts, count))
            except Exception as error:  # noqa: BLE001 - the client gets it
                self._end(slot, *_failure(error))
                continue
            _Answering(memory, served.facts, count, parts).then(partial(self._end, slot))

    def _end(self, slot: _Slot, status: RequestStatus, text: str) -> None:
        slot.reply(status, text)
        if slot.gone:  # the later of this thread and the event loop sees what the other has set
            try:
                self._loop.call_soon_threadsafe(self._forget, slot)
            except RuntimeError:  # the loop has ended, so nothing else touches the slot
                self._forget(slot)


class _Answering:
    """A request whose images are in batches."""

    def __init__(self, memory: SlotMemory, facts: NetworkFacts, count: int,
                 parts: Sequence[Future[Heads]]) -> None:  # fmt: skip
        self._memory = memory
        self._facts = facts
        self._count = count
        self._parts = parts
        self._others = [None] * (len(parts) - 1)  # parts that end before the last one

    def then(self, reply: Callable[[RequestStatus, str], None]) -> None:
        """Call `reply` once, on the thread of the last part, with how it ended."""

        def on_part(_: Future[Heads]) -> None:
            try:
                self._others.pop()  # one step of the interpreter, whichever threads come here
            except IndexError:
                reply(*self._result())

        for part in self._parts:
            part.add_done_callback(on_part)

    def _result(self) -> tuple[RequestStatus, str]:
        try:
            answers = [part.result() for part in self._parts]
            self._memory.put_answers(self._facts, self._count, answers)
        except Exception as error:  # noqa: BLE001 - the client gets it
            return _failure(error)
        return RequestStatus.DONE, ""


def _failure(error: Exception) -> tuple[RequestStatus, str]:
    if isinstance(error, WorkerDied):
        return RequestStatus.DIED, error.detail
    return RequestStatus.FAILED, f"{type(error).__name__}: {error}"
