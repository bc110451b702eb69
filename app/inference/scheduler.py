"""Where work runs: named threads for inference and for the database, and a bounded door.

The event loop only waits. A request is admitted or refused at once; what is admitted finishes.
"""

import asyncio
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

from app.errors import Overloaded

P = ParamSpec("P")
T = TypeVar("T")

STORE_THREADS = 4
RETRY_AFTER_S = 1


def usable_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Scheduler:
    """Runs CPU-bound work on threads of its own, one a core; networks use one thread each."""

    def __init__(self, workers: int | None, max_pending: int) -> None:
        self.workers = workers or usable_cores()
        self.pending = 0
        self._max_pending = max_pending
        self._inference = ThreadPoolExecutor(self.workers, thread_name_prefix="inference")
        self._store = ThreadPoolExecutor(STORE_THREADS, thread_name_prefix="store")

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Hold a place for one request; raises Overloaded when all are taken."""
        if self.pending >= self._max_pending:
            raise Overloaded(
                f"{self._max_pending} requests are already waiting; try again in a moment.",
                {"retry_after": RETRY_AFTER_S},
            )
        self.pending += 1
        try:
            yield
        finally:
            self.pending -= 1

    async def infer(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run image and network work on an inference thread."""
        return await self._run(self._inference, lambda: work(*args, **kwargs))

    async def store(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run database and search work on a store thread."""
        return await self._run(self._store, lambda: work(*args, **kwargs))

    async def _run(self, executor: ThreadPoolExecutor, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(executor, work)

    def close(self) -> None:
        """Finish what runs and end the threads."""
        self._inference.shutdown(wait=True, cancel_futures=True)
        self._store.shutdown(wait=True, cancel_futures=True)
