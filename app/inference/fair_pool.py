"""A thread pool for cooperative tasks: requests are served in rotation.

Every job has a tag, one more than the last of its request and no less than what is being served
(start-time fair queueing, Goyal, Vin and Cheng, SIGCOMM 1996). The smallest goes first, so a call
of 32 photos and a call of one that came a little later share the threads photo by photo.
"""

import heapq
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any, TypeVar

from app.errors import Overloaded, WorkerDied
from app.inference.sharing import belong_to
from app.locks import new_condition
from app.telemetry.logs import log
from app.types import CooperativeTask

T = TypeVar("T")


class RequestShare:
    """The jobs of one request, which share its turns."""

    __slots__ = ("tag",)

    def __init__(self) -> None:
        self.tag = 0


@dataclass(order=True, slots=True)
class _Job:
    tag: int
    number: int
    share: RequestShare = field(compare=False)
    steps: CooperativeTask[Any] = field(compare=False)
    future: Future[Any] = field(compare=False)
    context: Context = field(compare=False)
    measure: Callable[[], int] | None = field(compare=False, default=None)
    memory: int = field(compare=False, default=0)
    begun: bool = field(compare=False, default=False)


class FairThreadPool:
    """A fixed number of threads behind one bounded queue.

    A job keeps its decoded photo until its last step, while others take their turns. So the memory
    of the jobs that have begun is counted: a job that does not fit waits at the head of the queue
    until enough of them have ended, and no other job begins meanwhile, except those that other
    threads are measuring.
    """

    def __init__(self, name: str, threads: int, capacity: int, max_memory: int = 0) -> None:
        """`max_memory` bounds the bytes of jobs under way, 0 for no bound; a larger job is done
        alone."""
        self._name = name
        self._capacity = capacity
        self._max_memory = max_memory
        self._memory = 0
        self._waiting: list[_Job] = []
        self._changed = new_condition("pool.jobs")
        self._numbers = count()
        self._now = 0  # the highest tag whose turn has come
        self._closed = False
        self._busy_since: dict[threading.Thread, float] = {}
        self._threads: set[threading.Thread] = set()
        for _ in range(threads):
            self._start()

    def submit(
        self,
        steps: CooperativeTask[T],
        share: RequestShare,
        measure: Callable[[], int] | None = None,
    ) -> Future[T]:
        """Queue a job whose steps run in the caller's context. One of the threads calls `measure`
        before the first step, for the bytes that the job takes while it is under way. Cancelling
        the future takes the job out before its next step.

        Raises Overloaded when the queue is full.
        """
        job = _Job(0, next(self._numbers), share, steps, Future(), copy_context(), measure)
        with self._changed:
            if self._closed or len(self._waiting) >= self._capacity:
                raise Overloaded("The queue of photos is full.", {"retry_after": 1})
            self._queue(job)
        return job.future

    @property
    def waiting(self) -> int:
        """Jobs that no thread works on."""
        return len(self._waiting)

    @property
    def idle(self) -> int:
        """Threads that neither work nor are about to."""
        return max(0, len(self._threads) - len(self._busy_since) - len(self._waiting))

    def help_with(self, work: Callable[[], None]) -> None:
        """Do work of another job on an idle thread. Raises Overloaded if there is no place."""

        def steps() -> CooperativeTask[None]:
            work()
            yield from ()

        self.submit(steps(), RequestShare())

    def longest_step_s(self) -> float:
        """For how long the oldest step that is under way has been."""
        with self._changed:
            oldest = min(self._busy_since.values(), default=None)
        return 0.0 if oldest is None else time.monotonic() - oldest

    def close(self) -> None:
        """End the threads after their current steps; the remaining jobs are cancelled."""
        with self._changed:
            self._closed = True
            left, self._waiting = self._waiting, []
            threads = list(self._threads)
            self._changed.notify_all()
        for job in left:
            _drop(job)
        for thread in threads:
            thread.join()

    def _queue(self, job: _Job) -> None:
        job.tag = job.share.tag = max(job.share.tag, self._now) + 1
        heapq.heappush(self._waiting, job)
        self._changed.notify()

    def _start(self) -> None:
        number = len(self._threads)
        thread = threading.Thread(target=self._work, name=f"{self._name}_{number}", daemon=True)
        self._threads.add(thread)
        thread.start()

    def _work(self) -> None:
        belong_to(self)
        while (job := self._next()) is not None:
            try:
                self._take_a_step(job)
            except BaseException as error:  # noqa: BLE001 - SystemExit and its like end a thread
                self._replace(job, error)
                return
            finally:
                with self._changed:
                    self._busy_since.pop(threading.current_thread(), None)
            del job  # or its photo would be kept until the next one comes

    def _next(self) -> _Job | None:
        with self._changed:
            while not self._closed:
                if (job := self._take()) is not None:
                    self._now = max(self._now, job.tag)
                    self._busy_since[threading.current_thread()] = time.monotonic()
                    return job
                self._changed.wait()
            return None

    def _take(self) -> _Job | None:
        """The job whose turn it is out of the queue; None where there is none that fits."""
        if not self._waiting:
            return None
        if not self._fits(self._waiting[0]):
            begun = [job for job in self._waiting if job.begun or job.future.cancelled()]
            if not begun:
                return None
            job = min(begun)
            self._waiting.remove(job)
            heapq.heapify(self._waiting)
        else:
            job = heapq.heappop(self._waiting)
        if not job.begun and job.measure is None:
            self._begin(job)
        return job

    def _begin(self, job: _Job) -> None:
        job.begun = True
        self._memory += job.memory

    def _fits(self, job: _Job) -> bool:
        """Whether there is memory for it. True also for a job that is to be measured first, and for
        a cancelled one, which is only taken out of the queue."""
        if job.begun or job.measure is not None or job.future.cancelled():
            return True
        if not self._max_memory or not self._memory:
            return True
        return self._memory + job.memory <= self._max_memory

    def _begin_measured(self, job: _Job, memory: int) -> bool:
        """Whether a job that takes `memory` bytes has begun; if it does not fit, it is back at its
        place in the queue."""
        with self._changed:
            job.memory, job.measure = memory, None
            # Out of a closed queue nobody takes it: it takes its step, and is dropped then.
            begins = self._closed or self._fits(job)
            if begins:
                self._begin(job)
            else:
                heapq.heappush(self._waiting, job)
        return begins

    def _end(self, job: _Job) -> None:
        """A job has ended, with or without an error."""
        with self._changed:
            if job.begun:
                self._memory -= job.memory
            # Those that did not fit; each of hundreds of threads would take Python's lock to look.
            self._changed.notify(len(self._waiting))

    def _take_a_step(self, job: _Job) -> None:
        if job.future.cancelled():
            _drop(job)
            self._end(job)
            return
        try:
            if job.measure is not None and not self._begin_measured(job, job.measure()):
                return
            job.context.run(next, job.steps)
        except StopIteration as end:
            value = end.value
            self._end(job)
            _settle(job, partial(job.future.set_result, value))
        except Exception as error:  # noqa: BLE001 - the request that waits gets it
            self._end(job)
            _settle(job, partial(job.future.set_exception, error))
            # The error holds this frame, which would hold the error through the job: a cycle that
            # keeps the photo until the garbage collector runs.
            del job
        else:
            with self._changed:
                if not self._closed:
                    self._queue(job)
                    return
            _drop(job)
            self._end(job)

    def _replace(self, job: _Job, error: BaseException) -> None:
        log(logging.ERROR, "a worker died and is replaced", pool=self._name, reason=repr(error))
        self._end(job)
        died = WorkerDied("The worker that had this photo died; another has taken its place.")
        _settle(job, lambda: job.future.set_exception(died))
        with self._changed:
            self._threads.discard(threading.current_thread())
            if not self._closed:
                self._start()


def _settle(job: _Job, notify: Callable[[], None]) -> None:
    # A future stays cancellable until its job is over.
    if job.future.set_running_or_notify_cancel():
        notify()


def _drop(job: _Job) -> None:
    job.steps.close()
    job.future.cancel()
    job.future.set_running_or_notify_cancel()
