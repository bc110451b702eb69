"""The side of a process that asks networks of another process."""

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from app.disk import SCARCE
from app.errors import WorkerDied
from app.inference.batching import ANSWER_TIMEOUT_S
from app.inference.remote.frames import (
    FRAME_BYTES,
    GREETING_BYTES,
    MEMORY,
    NUMBERS,
    OPEN,
    Request,
    RequestStatus,
    reply_of,
)
from app.inference.remote.greeting import Greeting, NetworkFacts
from app.inference.remote.slots import SlotMemory, new_memory
from app.locks import new_lock
from app.types import FloatArray, Image

# A process that runs networks greets at once, unless it is starting.
GREETING_S = 1.0
# After a try that failed others fail at once.
AGAIN_AFTER_S = 0.5


def _starting() -> WorkerDied:
    return WorkerDied("The process that runs the networks is starting again.", {"retry_after": 1})


def _scarce(error: OSError) -> WorkerDied:
    return WorkerDied(
        f"There is no shared memory for a request ({error.strerror}). Let processes have more open "
        "files (ulimit -n) or memory.",
        {"retry_after": 1},
    )


class _Slot:
    """A slot's socket and memory, for one thread at a time."""

    def __init__(self, one: socket.socket, memory: SlotMemory) -> None:
        self._socket = one
        self._memory = memory
        self._number = 0  # of the last request
        self._waits = False  # for a reply

    @property
    def usable(self) -> bool:
        """Whether no reply is to come: one that was given up must not meet the next request."""
        return not self._waits

    @property
    def alive(self) -> bool:
        """Whether the other side has not ended yet."""
        try:
            self._socket.setblocking(False)
            self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False  # its end, or a reply that nobody waits for

    def images(self, network: NetworkFacts, count: int) -> Image:
        return self._memory.images(network, count)

    def ask(self, number: int, network: NetworkFacts, count: int) -> list[FloatArray]:
        """The answers to the images in the slot. Raises WorkerDied, RuntimeError."""
        self._number = (self._number + 1) % NUMBERS
        self._waits = True
        try:
            self._socket.settimeout(ANSWER_TIMEOUT_S)
            self._socket.send(Request(number, count, self._number).encoded())
            message = self._socket.recv(FRAME_BYTES)
        except TimeoutError as error:
            raise WorkerDied(
                "The process that runs the networks did not answer in time."
            ) from error
        except OSError as error:
            raise WorkerDied("The process that runs the networks ended.") from error
        if not message:
            raise WorkerDied("The process that runs the networks ended.")
        reply = reply_of(message)
        if reply.number != self._number:
            raise WorkerDied("The process that runs the networks answered another request.")
        self._waits = False
        if reply.status is RequestStatus.DIED:
            raise WorkerDied(reply.text)
        if reply.status is RequestStatus.FAILED:
            raise RuntimeError(f"{network.name}: {reply.text}")
        return [np.array(answer, np.float32) for answer in self._memory.answers(network, count)]

    def clear(self, network: NetworkFacts, count: int) -> None:
        self._memory.clear(network, count)

    def close(self) -> None:
        self._socket.close()


class NetworkClient:
    """The slots of this process. Safe to use from any thread; each that asks has one meanwhile."""

    def __init__(self, openings: socket.socket) -> None:
        """`openings` is where the other process, whichever it is by then, takes new slots."""
        self._openings = openings
        self._idle: list[_Slot] = []
        self._lock = new_lock("networks.opening")
        # Sent to a process that has not greeted yet: there is one at most.
        self._opening: socket.socket | None = None
        self._failed_at = -AGAIN_AFTER_S
        self._greeting: Greeting | None = None

    @property
    def greeting(self) -> Greeting:
        """What the other process said of its networks first."""
        assert self._greeting is not None, "connect comes first"
        return self._greeting

    def connect(self, seconds: float) -> Greeting:
        """Wait so long for the other process to have its networks. Raises WorkerDied."""
        self._idle.append(self._open(seconds))
        return self.greeting

    def check(self) -> None:
        """Raise WorkerDied if no network can be asked now."""
        with self._slot() as slot:
            del slot

    def close(self) -> None:
        """Give all slots back."""
        while self._idle:
            self._idle.pop().close()
        with self._lock:
            if self._opening is not None:
                self._opening.close()
                self._opening = None

    def ask(self, number: int, count: int, write: Callable[[Image], None]) -> list[FloatArray]:
        """The answers of the network of that number to the images (count, height, width, 3) that
        `write` sets. Nothing of either is left in the shared memory.

        Raises what `write` raises, RuntimeError for what the network raises, and WorkerDied.
        """
        network = self.greeting.networks[number]
        with self._slot() as slot:
            try:
                write(slot.images(network, count))
                return slot.ask(number, network, count)
            finally:
                slot.clear(network, count)

    @contextmanager
    def _slot(self) -> Iterator[_Slot]:
        slot = self._take()
        try:
            yield slot
        finally:
            if slot.usable:
                self._idle.append(slot)
            else:
                slot.close()

    def _take(self) -> _Slot:
        while True:
            try:
                slot = self._idle.pop()
            except IndexError:
                return self._open(GREETING_S)
            if slot.alive:
                return slot
            slot.close()

    def _open(self, seconds: float) -> _Slot:
        if not self._lock.acquire(timeout=seconds):
            raise _starting()
        try:
            if time.monotonic() < self._failed_at + AGAIN_AFTER_S:
                raise _starting()
            try:
                return self._opened(seconds)
            except WorkerDied:
                self._failed_at = time.monotonic()
                raise
        finally:
            self._lock.release()

    def _opened(self, seconds: float) -> _Slot:
        one, self._opening = self._opening or self._sent(), None
        try:
            one.settimeout(seconds)
            message = one.recv(GREETING_BYTES)
            if not message:  # it ended before it had greeted
                raise _starting()
            self._compare(Greeting.model_validate_json(message))
            memory = self._sent_memory(one)
        except TimeoutError as error:
            self._opening = one  # it will be greeted when the other process is there
            raise _starting() from error
        except OSError as error:
            one.close()
            raise _starting() from error
        except BaseException:
            one.close()
            raise
        return _Slot(one, memory)

    def _sent_memory(self, one: socket.socket) -> SlotMemory:
        try:
            file = new_memory(self.greeting)
        except OSError as error:
            raise _scarce(error) from error
        try:
            memory = SlotMemory(file, self.greeting)
            socket.send_fds(one, [MEMORY], [file])
        except OSError as error:
            raise (_scarce(error) if error.errno in SCARCE else _starting()) from error
        finally:
            os.close(file)
        return memory

    def _sent(self) -> socket.socket:
        try:
            one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as error:
            raise _scarce(error) from error
        with other:
            self._openings.settimeout(GREETING_S)
            try:
                socket.send_fds(self._openings, [OPEN], [other.fileno()])
            except OSError as error:
                one.close()
                raise _starting() from error
        return one

    def _compare(self, greeting: Greeting) -> None:
        if self._greeting is None:
            self._greeting = greeting
        elif greeting != self._greeting:
            raise WorkerDied(
                "The process that runs the networks has others than this process was started "
                "with: the model pack has changed. Send SIGHUP to the service, or restart it."
            )


class RemoteNetwork:
    """A network of the other process; `PlacingNetwork`."""

    takes_pixels, dynamic_batch, batches_itself = True, True, True

    def __init__(self, client: NetworkClient, name: str, path: Path) -> None:
        """Raises KeyError if there is none of that name."""
        self._client = client
        numbers = {one.name: number for number, one in enumerate(client.greeting.networks)}
        self._number = numbers[name]
        self._facts = client.greeting.networks[self._number]
        self._most = client.greeting.most(self._facts)
        self.path = path
        self.provider = client.greeting.provider

    @property
    def output_names(self) -> list[str]:
        return list(self._facts.output_names)

    @property
    def fixed_size(self) -> tuple[int, int] | None:
        return self._facts.shape[:2]

    @property
    def cpu_nodes(self) -> tuple[str, ...]:
        return self._facts.cpu_nodes

    @property
    def levels(self) -> tuple[int, ...]:
        """Of a detector that answers candidates."""
        return self._facts.levels

    def run(self, images: Image) -> list[FloatArray]:
        """Outputs for (n, height, width, 3) BGR images, n > 0. Raises as `NetworkClient.ask`, and
        ValueError for images of another shape."""
        if images.shape[1:] != self._facts.shape or images.dtype != np.uint8:
            raise ValueError(
                f"images of {images.shape[1:]} {images.dtype}; {self.path.name} takes "
                f"{self._facts.shape} uint8"
            )
        parts = []
        for start in range(0, len(images), self._most):
            part = images[start : start + self._most]

            def write(places: Image, part: Image = part) -> None:
                places[:] = part

            parts.append(self._client.ask(self._number, len(part), write))
        return parts[0] if len(parts) == 1 else [np.concatenate(h) for h in zip(*parts)]  # noqa: B905

    def run_placed(self, write: Callable[[Image], None]) -> list[FloatArray]:
        """Outputs for one image, which `write` puts into the shared memory: it has to set all
        pixels of (height, width, 3)."""
        return self._client.ask(self._number, 1, lambda places: write(places[0]))
