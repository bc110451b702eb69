"""Does parts of one photo's work at the same time, while other threads of its pool have nothing to
do. Under load each photo stays on one thread.
"""

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Protocol, TypeVar

from app.errors import Overloaded, WorkerDied

T = TypeVar("T")
# No part takes a fraction of it.
PATIENCE_S = 60.0


class HelpingPool(Protocol):
    """A pool of threads whose idle threads help the others."""

    @property
    def idle(self) -> int:
        """Threads without work."""
        ...

    def help_with(self, work: Callable[[], None]) -> None:
        """Do work on an idle thread. Raises Overloaded if there is no place for it."""
        ...


class _Worker(threading.local):
    pool: HelpingPool | None = None


_worker = _Worker()


def belong_to(pool: HelpingPool) -> None:
    """From now on this thread is one of the pool."""
    _worker.pool = pool


def idle_threads() -> int:
    """How many threads of this thread's pool would help now."""
    pool = _worker.pool
    return 0 if pool is None else pool.idle


def cores_are_busy() -> bool:
    """Whether this thread's pool is at work on as many photos as it can do at the same time; False
    on a thread of no such pool."""
    pool = _worker.pool
    return pool is not None and pool.idle == 0


def done_together(parts: Sequence[Callable[[], T]]) -> list[T]:
    """What the parts return, in their order. This thread does them, and idle threads of its pool
    help. Raises the error of a part that failed, after all have ended."""
    pool, helpers = _worker.pool, min(idle_threads(), len(parts) - 1)
    if pool is None or helpers < 1:
        return [part() for part in parts]
    remaining = iter(enumerate(parts))
    done: SimpleQueue[tuple[int, T | None, BaseException | None]] = SimpleQueue()

    def work() -> None:
        for number, part in remaining:  # each part is taken by one thread
            try:
                done.put((number, part(), None))
            except BaseException as error:  # noqa: BLE001 - the caller raises it
                done.put((number, None, error))

    with suppress(Overloaded):
        for _ in range(helpers):
            pool.help_with(work)
    work()
    return _results(done, len(parts))


def _results(
    done: "SimpleQueue[tuple[int, T | None, BaseException | None]]", count: int
) -> list[T]:
    found: list[tuple[int, T | None]] = []
    failed: BaseException | None = None
    part: tuple[int, T | None, BaseException | None] | None = None
    try:
        for _ in range(count):
            part = done.get(timeout=PATIENCE_S)
            failed = failed or part[2]
            found.append(part[:2])
        if failed is not None:
            raise failed
    except Empty:
        raise WorkerDied("A part of the work on this photo did not end in time.") from None
    finally:
        del failed, part  # an error holds this frame
    return [result for _, result in sorted(found, key=lambda one: one[0])]  # type: ignore[misc]
