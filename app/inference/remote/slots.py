"""The memory of one request: images for a network, and behind them its answers.

It is a file without a name (memfd) that only the processes that were given its descriptor can map,
and it cannot be resized, so that no side can take pages away from the other.
"""

import fcntl
import mmap
import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from app.inference.remote.greeting import Greeting, NetworkFacts
from app.types import FloatArray, Image

# Neither side can resize it, nor take this away.
_SEALS = ("F_SEAL_SHRINK", "F_SEAL_GROW", "F_SEAL_SEAL")


def _seals() -> int:
    """As the system numbers them; Linux alone has them."""
    seals = 0
    for name in _SEALS:
        seals |= getattr(fcntl, name)
    return seals


def new_memory(greeting: Greeting) -> int:
    """The descriptor of memory for one slot. Linux alone has it."""
    file = os.memfd_create("likeness-slot", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(file, greeting.image_bytes + greeting.answer_bytes)
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, _seals())
    except BaseException:
        os.close(file)
        raise
    return file


class SlotMemory:
    """The mapped memory of a slot."""

    def __init__(self, file: int, greeting: Greeting) -> None:
        """Map a descriptor, which may be closed then. Raises ValueError for memory of another
        size, or that could be resized: then an access would end this process. Raises OSError."""
        size = greeting.image_bytes + greeting.answer_bytes
        if os.fstat(file).st_size != size:
            raise ValueError(f"a slot of {os.fstat(file).st_size} bytes instead of {size}")
        if fcntl.fcntl(file, fcntl.F_GET_SEALS) & _seals() != _seals():
            raise ValueError("a slot of memory that can be resized")
        self._bytes = np.frombuffer(mmap.mmap(file, size), np.uint8)
        self._answers_at = greeting.image_bytes

    def images(self, network: NetworkFacts, count: int) -> Image:
        """Where the images (count, height, width, 3) of a request are."""
        return self._bytes[: count * network.image_bytes].reshape(count, *network.shape)

    def answers(self, network: NetworkFacts, count: int) -> list[NDArray[np.generic]]:
        """Where the answers to so many images are, an array for each head."""
        start, found = self._answers_at, list[NDArray[np.generic]]()
        for head in network.heads:
            size = count * head.nbytes
            part = self._bytes[start : start + size]
            found.append(part.view(head.dtype).reshape(count, *head.shape))
            start += size
        return found

    def put_answers(self, network: NetworkFacts, count: int, parts: Sequence[Sequence[FloatArray]],
                    ) -> None:  # fmt: skip
        """Write the answers, which come in parts of some images each."""
        places, start = self.answers(network, count), 0
        for part in parts:
            for place, answer in zip(places, part, strict=True):
                place[start : start + len(answer)] = answer
            start += len(part[0])

    def clear(self, network: NetworkFacts, count: int) -> None:
        """Zero what a request has left."""
        self._bytes[: count * network.image_bytes] = 0
        start = self._answers_at
        self._bytes[start : start + count * network.answer_bytes] = 0
