"""Writes that are done together: of each key, one thread at a time does all that wait.

So many writes take one transaction and few changes between threads, each of which costs more than
some of the statements: Python's lock is handed over, and the thread that waits for it is woken.
"""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

from app.locks import new_lock

A = TypeVar("A")
R = TypeVar("R")

# Done at once: the sum of the sizes of the writes, unless a single one is larger.
MOST_AT_ONCE = 32
# If at least so many writes of a key are being prepared, a thread waits so long for some of them:
# one transaction costs more than the statements of an enrollment.
MANY = 4
GATHER_S = 0.01
# If the last transaction and the queue had at least MANY writes, their callers may soon send new
# ones. These are waited for until none has come for PAUSE_S, but not longer than RETURN_S; not if
# any write is being prepared: beside photos this wait cost a tenth of their rate.
PAUSE_S = 0.01
RETURN_S = 0.05
# After so long a thread lets the executor's other work come first, if more writes of its key wait.
TURN_S = 0.1


@dataclass(slots=True, eq=False)
class _Write:
    argument: Any
    size: int
    future: Future[Any] = field(default_factory=Future)


@dataclass(slots=True, eq=False)
class _Queue:
    """The writes of a key that wait. `wanted` is the number of writes in the last transaction and
    in the queue at its end; `enough` is set when so many wait."""

    writes: deque[_Write] = field(default_factory=deque)
    wanted: int = 0
    enough: threading.Event = field(default_factory=threading.Event)

    def append(self, write: _Write) -> None:
        self.writes.append(write)
        if len(self.writes) >= self.wanted:
            self.enough.set()


class WriteBatches:
    """Does writes on an executor's threads: those of a key in the order in which they come."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._lock = new_lock("batches.waiting")
        self._waiting: dict[Hashable, _Queue] = {}
        self._expected: Counter[Hashable] = Counter()

    def expect(self, key: Hashable) -> Callable[[], None]:
        """Announce that a write of the key is being prepared. What this returns is to be called
        when it is about to be submitted, or is not going to be."""
        with self._lock:
            self._expected[key] += 1

        def come() -> None:
            with self._lock:
                self._expected[key] -= 1
                if not self._expected[key]:
                    del self._expected[key]

        return come

    def submit(
        self,
        key: Hashable,
        work: Callable[[Sequence[A]], Sequence[R | Exception]],
        argument: A,
        size: int = 1,
    ) -> Future[R]:
        """Have `work` do this write, together with others of the key that wait. It is called with
        the arguments of several writes, of any of which the `work` is used, and returns of each
        what it results in; if it raises, all fail. Cancelling the future takes a write out of the
        queue that has not begun."""
        write = _Write(argument, size)
        with self._lock:
            waiting = self._waiting.get(key)
            if waiting is not None:  # by a thread that will do this one too
                waiting.append(write)
                return write.future
            self._waiting[key] = _Queue(deque([write]))
        self._begin(key, work)
        return write.future

    def _begin(self, key: Hashable, work: Callable[[Sequence[Any]], Sequence[Any]]) -> None:
        try:
            thread = self._executor.submit(self._do_all, key, work)
        except RuntimeError:  # the executor is shut down
            self._cancel_all(key)
            raise
        thread.add_done_callback(lambda done: self._cancel_all(key) if done.cancelled() else None)

    def _do_all(self, key: Hashable, work: Callable[[Sequence[Any]], Sequence[Any]]) -> None:
        queue = self._waiting[key]
        end = time.monotonic() + TURN_S
        while time.monotonic() < end:
            if self._expected[key] >= MANY:
                time.sleep(GATHER_S)
            elif not self._expected[key]:
                self._gather(queue)
            if not (writes := self._next(key)):
                return
            _do(writes, work, queue)
        self._begin(key, work)

    def _gather(self, queue: _Queue) -> None:
        """Wait for `queue.wanted` writes, as long as new ones come."""
        with self._lock:
            count = len(queue.writes)
            if queue.wanted < MANY or count >= queue.wanted:
                return
            queue.enough.clear()
        end = time.monotonic() + RETURN_S
        before = -1
        while before < count and time.monotonic() < end:
            if queue.enough.wait(PAUSE_S):
                return
            before, count = count, len(queue.writes)

    def _next(self, key: Hashable) -> list[_Write]:
        """Writes to be done together; none if no more wait, and then the thread has to end."""
        with self._lock:
            waiting = self._waiting[key].writes
            taken: list[_Write] = []
            size = 0
            while waiting and (not taken or size + waiting[0].size <= MOST_AT_ONCE):
                write = waiting.popleft()
                if write.future.set_running_or_notify_cancel():
                    taken.append(write)
                    size += write.size
            if not taken:
                del self._waiting[key]
            return taken

    def _cancel_all(self, key: Hashable) -> None:
        with self._lock:
            queue = self._waiting.pop(key, _Queue())
        for write in queue.writes:
            write.future.cancel()
            write.future.set_running_or_notify_cancel()


def _do(
    writes: Sequence[_Write], work: Callable[[Sequence[Any]], Sequence[Any]], queue: _Queue
) -> None:
    outcomes: Sequence[Any]
    try:
        outcomes = work([write.argument for write in writes])
        if len(outcomes) != len(writes):
            raise RuntimeError(f"{len(writes)} writes had {len(outcomes)} outcomes")
    except BaseException as error:  # noqa: BLE001 (each of the writes raises it)
        outcomes = [error] * len(writes)
    queue.wanted = min(len(writes) + len(queue.writes), MOST_AT_ONCE)
    for write, outcome in zip(writes, outcomes, strict=True):
        if isinstance(outcome, BaseException):
            write.future.set_exception(outcome)
        else:
            write.future.set_result(outcome)
    del writes, write, outcomes, outcome  # an error holds this frame, and must not be held by it
