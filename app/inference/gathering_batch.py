"""The images of several callers that will be run together."""

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from app.inference.device_memory import HostBuffer
from app.types import FloatArray

Heads = list[FloatArray]


@dataclass(eq=False, slots=True)
class Share:
    """The places of one caller in a batch."""

    start: int
    count: int
    answer: Future[Heads] = field(default_factory=Future)


class Batch:
    """A buffer and the callers whose images are, or will be, in it."""

    def __init__(self, capacity: int, shape: Sequence[int], *, page_locked: bool) -> None:
        self.buffer = HostBuffer((capacity, *shape), page_locked=page_locked)
        self.shares: list[Share] = []
        self.writing = 0  # callers that have a place and have not filled it yet
        self.refused = False  # because one of these takes too long; the last one gives it back

    @property
    def taken(self) -> int:
        return sum(share.count for share in self.shares)

    def clear(self) -> None:
        self.shares, self.refused = [], False
