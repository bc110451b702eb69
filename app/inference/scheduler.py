"""Decides on which threads work runs: photos on the fair pool, all other work on one pool of
threads for each kind. With a database in this process, the reads and the short search of a call
with one photo stay on the photo's thread (ADR 40). The event loop only waits. A request is admitted
or refused at once; if a request is cancelled, its work is removed from the queues. The pools are
separate so that one kind of work that has to wait (writes for the database's lock, searches for an
index that is being built) holds no thread of another kind. How networks use threads depends on the
provider that they run on (`POLICIES`).
"""

import asyncio
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from typing import Any, Generic, ParamSpec, TypeVar

from app.errors import Overloaded
from app.inference.cpu_engine import OPENVINO_BF16, OPENVINO_FP32
from app.inference.cuda import CPU_PROVIDER, CUDA_PROVIDER, TENSORRT_PROVIDER
from app.inference.fair_pool import FairThreadPool, RequestShare
from app.inference.machine import usable_cores
from app.inference.write_batches import WriteBatches
from app.types import CooperativeTask

P = ParamSpec("P")
A = TypeVar("A")
T = TypeVar("T")

# Reading the database: waits for the disk, and for no lock.
READ_THREADS = 4
# Writing to it: each may wait 15 s for other writers; those that wait share a transaction.
WRITE_THREADS = 16
# Deletions, so that they wait for the database's lock alone, not for the writes before them.
DELETE_THREADS = 4
# Searches, and bringing an index up to date: each may wait for an index that is being built.
MIN_SEARCH_THREADS = 4
# Hygiene and calibration: one at a time computes, and a second thread refuses the others at once.
EXAMINATION_THREADS = 2
# What reports of imports have about a person: they may have gigabytes.
REPORT_THREADS = 2
RETRY_AFTER_S = 1
# No step of a photo takes a fraction of it; a worker that does hangs.
STALLED_AFTER_S = 60.0
MIB = 1024 * 1024

_share: ContextVar[RequestShare | None] = ContextVar("share", default=None)


@dataclass(frozen=True, slots=True)
class SchedulePolicy:
    """`photos_a_core` photos are under way for each core, a thread each.

    Where `batch_sizes` are given, `owners` threads run each network with the images of all photos
    that have come, in sessions of these sizes; where there are none, the photo's own thread runs
    the network. `whole_canvas`: photos of every shape go into the same batch. After every
    `faces_a_turn` embedded faces of a photo, other photos have their turn.
    """

    photos_a_core: int
    batch_sizes: tuple[int, ...]
    owners: int
    whole_canvas: bool
    faces_a_turn: int


# A batch brings a CPU nothing, and a square canvas costs it the padding.
CPU_POLICY = SchedulePolicy(
    photos_a_core=1, batch_sizes=(), owners=0, whole_canvas=False, faces_a_turn=4
)
# Two owners, so that one copies while the other computes. Of photos so many that both find work.
CUDA_POLICY = SchedulePolicy(
    photos_a_core=4, batch_sizes=(1, 8, 32), owners=2, whole_canvas=True, faces_a_turn=32
)
POLICIES: Mapping[str, SchedulePolicy] = {
    CPU_PROVIDER: CPU_POLICY,
    OPENVINO_FP32: CPU_POLICY,
    OPENVINO_BF16: CPU_POLICY,
    CUDA_PROVIDER: CUDA_POLICY,
    TENSORRT_PROVIDER: CUDA_POLICY,
}


class Scheduler:
    """Runs the steps of photos on `workers` threads, and other work on pools named for it."""

    def __init__(
        self,
        workers: int | None,
        max_pending: int,
        max_pending_bytes: int = 512 * MIB,
        queue_capacity: int = 4096,
        max_memory: int = 1024 * MIB,
    ) -> None:
        self.workers = workers or usable_cores()
        self.pending = 0
        self.pending_bytes = 0
        self._max_pending = max_pending
        self._max_pending_bytes = max_pending_bytes
        self._photos = FairThreadPool("inference", self.workers, queue_capacity, max_memory)
        self._search = ThreadPoolExecutor(
            max(MIN_SEARCH_THREADS, self.workers), thread_name_prefix="search"
        )
        self._read = ThreadPoolExecutor(READ_THREADS, thread_name_prefix="database-read")
        self._write = ThreadPoolExecutor(WRITE_THREADS, thread_name_prefix="database-write")
        self._batches = WriteBatches(self._write)
        self._delete = ThreadPoolExecutor(DELETE_THREADS, thread_name_prefix="deletion")
        self._examine = ThreadPoolExecutor(EXAMINATION_THREADS, thread_name_prefix="examination")
        self._reports = ThreadPoolExecutor(REPORT_THREADS, thread_name_prefix="report-read")
        # Writes that wait may not take every place: reads and searches need some of them.
        self._most_writes = max(1, max_pending // 2)
        self._writes = threading.BoundedSemaphore(self._most_writes)

    @contextmanager
    def admit(self, size: int = 0) -> Iterator[None]:
        """Hold a place for one request with a body of `size` bytes; raises Overloaded when there
        is none. Work queued inside takes turns with that of other requests."""
        self.check(size)
        self.pending += 1
        self.pending_bytes += size
        token = _share.set(RequestShare())
        try:
            yield
        finally:
            _share.reset(token)
            self.pending -= 1
            self.pending_bytes -= size

    def check(self, size: int = 0) -> None:
        """Raise Overloaded where a request with a body of `size` bytes would not be admitted."""
        if self.pending >= self._max_pending:
            raise _overloaded(f"{self._max_pending} requests are already waiting")
        if self.pending and self.pending_bytes + size > self._max_pending_bytes:
            raise _overloaded(f"{self.pending_bytes // MIB} MiB of photos are already waiting")

    @property
    def waiting(self) -> int:
        """Photos that no worker has taken up."""
        return self._photos.waiting

    @property
    def stalled(self) -> bool:
        """Whether a worker hangs."""
        return self._photos.longest_step_s() > STALLED_AFTER_S

    async def infer(self, steps: CooperativeTask[T], measure: Callable[[], int] | None = None) -> T:
        """Take the steps of one photo on inference threads, where `measure` is called before the
        first step for the bytes that the photo takes meanwhile."""
        share = _share.get() or RequestShare()
        return await _result_of(self._photos.submit(steps, share, measure))

    async def search(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run work that needs an index on a search thread: searches, and following a write."""
        return await self._run(self._search, lambda: work(*args, **kwargs))

    async def read(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run work that reads the database, and neither writes to it nor needs an index."""
        return await self._run(self._read, lambda: work(*args, **kwargs))

    async def write(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run work that writes to the database.

        Raises Overloaded where half of the places are held by writes already.
        """
        context = copy_context()
        future = self._submitted(
            lambda: self._write.submit(lambda: context.run(work, *args, **kwargs))
        )
        return await _result_of(future)

    async def write_together(
        self,
        key: Hashable,
        work: Callable[[Sequence[A]], Sequence[T | Exception]],
        argument: A,
        size: int = 1,
    ) -> T:
        """As `write`, together with other writes of the key: see `WriteBatches.submit`. The work
        does not have the callers' contexts. Raises Overloaded."""
        return await _result_of(
            self._submitted(lambda: self._batches.submit(key, work, argument, size))
        )

    async def infer_and_write(
        self,
        steps: CooperativeTask[A],
        key: Hashable,
        work: Callable[[Sequence[A]], Sequence[T | Exception]],
        measure: Callable[[], int] | None = None,
    ) -> T:
        """Take the steps of one photo as `infer`, then write what they result in as
        `write_together`; the event loop is not woken in between. Raises Overloaded."""
        return await _result_of(self._chained(steps, key, work, measure))

    def _chained(
        self,
        steps: CooperativeTask[A],
        key: Hashable,
        work: Callable[[Sequence[A]], Sequence[T | Exception]],
        measure: Callable[[], int] | None,
    ) -> "_Chain[A, T]":
        photo = self._photos.submit(steps, _share.get() or RequestShare(), measure)
        come = self._batches.expect(key)
        photo.add_done_callback(lambda _: come())
        return _Chain(
            photo,
            lambda argument: self._submitted(lambda: self._batches.submit(key, work, argument)),
        )

    def _submitted(self, submit: Callable[[], Future[T]]) -> Future[T]:
        """Submit a write, which has one of the places for writes until it is done."""
        if not self._writes.acquire(blocking=False):
            raise _overloaded(f"{self._most_writes} writes are waiting for the database")
        try:
            future = submit()
        except BaseException:
            self._writes.release()
            raise
        future.add_done_callback(lambda _: self._writes.release())  # even if it is cancelled
        return future

    async def delete(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run work that deletes, which no other work keeps waiting."""
        return await self._run(self._delete, lambda: work(*args, **kwargs))

    async def examine(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run work that looks through a whole collection, for seconds or minutes."""
        return await self._run(self._examine, lambda: work(*args, **kwargs))

    async def read_reports(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run work that reads reports of imports, which may take minutes."""
        return await self._run(self._reports, lambda: work(*args, **kwargs))

    async def _run(self, executor: ThreadPoolExecutor, work: Callable[[], T]) -> T:
        # With the caller's context: log lines and the audit log name the request and its key.
        return await _result_of(executor.submit(copy_context().run, work))

    def close(self) -> None:
        """Finish what runs and end the threads."""
        self._photos.close()
        pools = (
            self._search, self._examine, self._reports, self._read, self._write, self._delete
        )  # fmt: skip
        for pool in pools:
            pool.shutdown(wait=True, cancel_futures=True)


class _Chain(Generic[A, T]):
    """Work whose result other work is submitted with, on the thread that ends the first."""

    def __init__(self, first: Future[A], submit: Callable[[A], Future[T]]) -> None:
        self._first = first
        self._submit = submit
        self._last: Future[T] | None = None
        self._cancelled = False

    def add_done_callback(self, notify: Callable[[Any], None]) -> None:
        """Call `notify` when nothing more is going to be done."""

        def go_on(first: Future[A]) -> None:
            if self._cancelled or first.cancelled() or first.exception() is not None:
                notify(first)
                return
            # No variable of this frame holds the work: an error holds the frame.
            try:
                self._last = self._submit(first.result())
            except Exception as error:  # noqa: BLE001 (raised where the result is awaited)
                self._last = Future()
                self._last.set_exception(error)
            self._last.add_done_callback(notify)
            self._cancel_last_if_cancelled()

        self._first.add_done_callback(go_on)

    def cancel(self) -> None:
        """Cancel what has not begun."""
        self._cancelled = True
        self._first.cancel()
        self._cancel_last_if_cancelled()

    def _cancel_last_if_cancelled(self) -> None:
        if self._cancelled and self._last is not None:
            self._last.cancel()

    def cancelled(self) -> bool:
        return self._first.cancelled() or (self._last is not None and self._last.cancelled())

    def result(self) -> T:
        """The result of the last work, or the error of either; to be called once."""
        try:
            if self._last is None:
                self._first.result()  # raises
            assert self._last is not None, "the first work has succeeded"
            return self._last.result()
        finally:
            del self._first, self._last  # an error holds this frame


async def _result_of(future: "Future[T] | _Chain[Any, T]") -> T:
    """The result of work on another thread, which is cancelled with the caller. As
    `asyncio.wrap_future`, which copies the result and asks for the state of both futures under
    locks."""
    loop = asyncio.get_running_loop()
    done = loop.create_future()

    def wake() -> None:
        if not done.done():
            done.set_result(None)

    def from_thread(_: Any) -> None:
        with suppress(RuntimeError):  # the loop has ended, and nobody waits
            loop.call_soon_threadsafe(wake)

    future.add_done_callback(from_thread)
    try:
        await done
    except asyncio.CancelledError:
        future.cancel()
        raise
    if future.cancelled():  # the pool was closed
        raise asyncio.CancelledError
    try:
        return future.result()
    finally:
        # An error holds this frame, which would hold the error: a cycle, and in it the photo.
        del future


def _overloaded(what: str) -> Overloaded:
    return Overloaded(f"{what}; try again in a moment.", {"retry_after": RETRY_AFTER_S})
