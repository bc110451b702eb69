"""The images of several callers that will be run together, and the sizes that they are run at."""

from collections.abc import Iterator, Sequence
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


@dataclass(frozen=True, slots=True)
class BatchRun:
    """`size` images of a buffer, from `first` on; the answers to `count` of them are wanted, after
    the first `skipped` ones."""

    first: int
    size: int
    skipped: int
    count: int


def runs_of(start: int, count: int, sizes: Sequence[int], capacity: int) -> Iterator[BatchRun]:
    """How `count` images from `start` on, in a buffer of `capacity`, are run at these sizes."""
    while count > 0:
        size = size_for(count, sizes)
        first = min(start, capacity - size)  # the buffer ends: begin earlier
        done = min(size - (start - first), count)
        yield BatchRun(first, size, start - first, done)
        start, count = start + done, count - done


def size_for(count: int, sizes: Sequence[int]) -> int:
    """The smallest of the sizes, in rising order, that so many images fill by half or more, or else
    the largest that they fill. So at most half of a batch is padding."""
    fitting = [size for size in sizes if size >= count]
    if fitting and count * 2 >= fitting[0]:
        return fitting[0]
    return max((size for size in sizes if size <= count), default=sizes[0])
