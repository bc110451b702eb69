"""Where work runs: photos on the lane, searches and the database on threads of their own, all
behind one bounded door.

The event loop only waits. A request is admitted or refused at once; cancelling whoever waits takes
its work out of the queues.
"""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import ParamSpec, TypeVar

from app.errors import Overloaded
from app.inference.cores import usable_cores
from app.inference.lane import Flow, Lane
from app.types import Steps

P = ParamSpec("P")
T = TypeVar("T")

# They wait for the disk, not for a core.
STORE_THREADS = 4
# Requests that wait for an index to be built hold one each; the database's are not among them.
MIN_SEARCH_THREADS = 4
RETRY_AFTER_S = 1
# No step of a photo takes a fraction of it; a worker that does hangs.
STALLED_AFTER_S = 60.0
MIB = 1024 * 1024

_flow: ContextVar[Flow | None] = ContextVar("flow", default=None)


class Scheduler:
    """Runs the steps of photos on `workers` threads, searches and database work on others."""

    def __init__(
        self,
        workers: int | None,
        max_pending: int,
        max_pending_bytes: int = 512 * MIB,
        queue_capacity: int = 4096,
    ) -> None:
        self.workers = workers or usable_cores()
        self.pending = 0
        self._pending_bytes = 0
        self._max_pending = max_pending
        self._max_pending_bytes = max_pending_bytes
        self._photos = Lane("inference", self.workers, queue_capacity)
        self._search = ThreadPoolExecutor(
            max(MIN_SEARCH_THREADS, self.workers), thread_name_prefix="search"
        )
        self._store = ThreadPoolExecutor(STORE_THREADS, thread_name_prefix="store")

    @contextmanager
    def admit(self, size: int = 0) -> Iterator[None]:
        """Hold a place for one request with a body of `size` bytes; raises Overloaded when there
        is none. Work queued inside takes turns with that of other requests."""
        if self.pending >= self._max_pending:
            raise _overloaded(f"{self._max_pending} requests are already waiting")
        if self.pending and self._pending_bytes + size > self._max_pending_bytes:
            raise _overloaded(f"{self._pending_bytes // MIB} MiB of photos are already waiting")
        self.pending += 1
        self._pending_bytes += size
        token = _flow.set(Flow())
        try:
            yield
        finally:
            _flow.reset(token)
            self.pending -= 1
            self._pending_bytes -= size

    @property
    def waiting(self) -> int:
        """Photos that no worker has taken up."""
        return self._photos.waiting

    @property
    def stalled(self) -> bool:
        """Whether a worker hangs."""
        return self._photos.longest_step_s() > STALLED_AFTER_S

    async def infer(self, steps: Steps[T]) -> T:
        """Take the steps of one photo on inference threads."""
        return await asyncio.wrap_future(self._photos.submit(steps, _flow.get() or Flow()))

    async def search(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run work that needs an index on a search thread."""
        return await self._run(self._search, lambda: work(*args, **kwargs))

    async def store(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run database work on a store thread."""
        return await self._run(self._store, lambda: work(*args, **kwargs))

    async def _run(self, executor: ThreadPoolExecutor, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(executor, work)

    def close(self) -> None:
        """Finish what runs and end the threads."""
        self._photos.close()
        self._search.shutdown(wait=True, cancel_futures=True)
        self._store.shutdown(wait=True, cancel_futures=True)


def _overloaded(what: str) -> Overloaded:
    return Overloaded(f"{what}; try again in a moment.", {"retry_after": RETRY_AFTER_S})
