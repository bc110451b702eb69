"""Requests take turns, callers may leave, threads may die."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from contextvars import ContextVar
from functools import partial
from typing import Any

import pytest

from app.errors import Overloaded, WorkerDied
from app.inference.fair_pool import FairThreadPool, RequestShare
from app.types import CooperativeTask
from tests.waiting import PATIENCE_S


@pytest.fixture
def pool() -> Iterator[FairThreadPool]:
    pool = FairThreadPool("test", threads=1, capacity=100)
    yield pool
    pool.close()


def note(log: list[str], name: str, steps: int = 1) -> CooperativeTask[str]:
    for number in range(steps):
        if number:
            yield
        log.append(name)
    return name


def hold(pool: FairThreadPool) -> tuple[threading.Event, Future[bool]]:
    """Keep the pool's one thread busy until the event is set."""
    begun, release = threading.Event(), threading.Event()

    def wait() -> CooperativeTask[bool]:
        begun.set()
        return release.wait(PATIENCE_S)
        yield

    held = pool.submit(wait(), RequestShare())
    assert begun.wait(PATIENCE_S)
    return release, held


def test_a_small_request_does_not_wait_for_a_big_one(pool: FairThreadPool) -> None:
    log: list[str] = []
    release, _ = hold(pool)
    big, small, other = RequestShare(), RequestShare(), RequestShare()
    jobs = [pool.submit(note(log, f"big{n}"), big) for n in range(6)]
    jobs.append(pool.submit(note(log, "small"), small))
    jobs += [pool.submit(note(log, f"other{n}"), other) for n in range(2)]
    release.set()
    for job in jobs:
        job.result(PATIENCE_S)
    assert log == ["big0", "small", "other0", "big1", "other1", "big2", "big3", "big4", "big5"]


def test_a_crowd_gives_way_between_its_steps(pool: FairThreadPool) -> None:
    log: list[str] = []
    release, _ = hold(pool)
    crowd = pool.submit(note(log, "crowd", steps=3), RequestShare())
    portraits = [pool.submit(note(log, f"portrait{n}"), RequestShare()) for n in range(2)]
    release.set()
    assert crowd.result(PATIENCE_S) == "crowd"
    assert [job.result(PATIENCE_S) for job in portraits] == ["portrait0", "portrait1"]
    assert log == ["crowd", "portrait0", "portrait1", "crowd", "crowd"]


def test_a_request_that_comes_later_is_not_owed_the_past(pool: FairThreadPool) -> None:
    """Its first turn comes after those already waiting for their first, not before all others."""
    log: list[str] = []
    old = RequestShare()
    for n in range(5):
        pool.submit(note(log, f"done{n}"), old).result(PATIENCE_S)
    release, _ = hold(pool)
    first = pool.submit(note(log, "old"), old)
    second = pool.submit(note(log, "new"), RequestShare())
    release.set()
    first.result(PATIENCE_S), second.result(PATIENCE_S)
    assert log[-2:] == ["old", "new"]


def test_a_job_left_between_its_steps_goes_no_further(pool: FairThreadPool) -> None:
    went, left, closed = threading.Event(), threading.Event(), threading.Event()
    taken: list[int] = []

    def steps() -> CooperativeTask[None]:
        try:
            for number in range(2):
                taken.append(number)
                went.set()
                left.wait(PATIENCE_S)
                yield
        finally:
            closed.set()

    job = pool.submit(steps(), RequestShare())
    assert went.wait(PATIENCE_S)
    assert job.cancel()
    left.set()
    assert closed.wait(PATIENCE_S)
    with pytest.raises(CancelledError):
        job.result(PATIENCE_S)
    assert taken == [0]


def test_a_result_for_nobody_is_dropped(pool: FairThreadPool) -> None:
    release, held = hold(pool)
    assert held.cancel()
    release.set()
    assert pool.submit(note([], "next"), RequestShare()).result(PATIENCE_S) == "next"


def test_steps_run_in_the_context_of_their_request(pool: FairThreadPool) -> None:
    """So that lines of the log name the request, whichever thread takes the step."""
    request = ContextVar("request", default="")
    seen: list[str] = []

    def steps() -> CooperativeTask[None]:
        seen.append(request.get())
        yield
        seen.append(request.get())

    token = request.set("first")
    job = pool.submit(steps(), RequestShare())
    request.reset(token)
    job.result(PATIENCE_S)
    assert seen == ["first", "first"]
    assert pool.submit(note([], "other"), RequestShare()).result(PATIENCE_S) == "other"


def test_errors_reach_the_caller_and_the_thread_lives(pool: FairThreadPool) -> None:
    def fail() -> CooperativeTask[None]:
        yield
        raise ZeroDivisionError("here")

    with pytest.raises(ZeroDivisionError, match="here"):
        pool.submit(fail(), RequestShare()).result(PATIENCE_S)
    assert pool.submit(note([], "next"), RequestShare()).result(PATIENCE_S) == "next"


@pytest.mark.parametrize("death", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_a_dead_worker_fails_its_waiter_at_once_and_is_replaced(
    pool: FairThreadPool, death: type[BaseException]
) -> None:
    def die() -> CooperativeTask[None]:
        raise death
        yield

    before = set(pool._threads)
    with pytest.raises(WorkerDied):
        pool.submit(die(), RequestShare()).result(PATIENCE_S)
    assert pool.submit(note([], "next"), RequestShare()).result(PATIENCE_S) == "next"
    assert len(pool._threads) == 1
    assert set(pool._threads) != before


def test_the_queue_is_bounded() -> None:
    pool = FairThreadPool("test", threads=1, capacity=2)
    release, _ = hold(pool)
    jobs = [pool.submit(note([], "waits"), RequestShare()) for _ in range(2)]
    with pytest.raises(Overloaded):
        pool.submit(note([], "too many"), RequestShare())
    assert pool.waiting == 2
    release.set()
    assert [job.result(PATIENCE_S) for job in jobs] == ["waits", "waits"]
    pool.close()
    with pytest.raises(Overloaded):
        pool.submit(note([], "closed"), RequestShare())


def test_a_hanging_step_shows(pool: FairThreadPool) -> None:
    assert pool.longest_step_s() == 0
    release, held = hold(pool)
    time.sleep(0.02)
    assert pool.longest_step_s() >= 0.02
    release.set()
    held.result(PATIENCE_S)
    pool.submit(note([], "next"), RequestShare()).result(PATIENCE_S)


def test_many_threads_lose_nothing() -> None:
    pool = FairThreadPool("test", threads=4, capacity=10_000)

    def count(number: int) -> CooperativeTask[int]:
        yield
        yield
        return number

    flows = [RequestShare() for _ in range(10)]
    jobs: list[Future[Any]] = [pool.submit(count(n), flows[n % 10]) for n in range(1_000)]
    assert [job.result(PATIENCE_S) for job in jobs] == list(range(1_000))
    pool.close()


def test_memory_of_jobs_under_way_is_bounded() -> None:
    """Jobs give way to one another with what they hold, so that more could be under way than there
    are threads; a job that does not fit waits, and none waits for ever."""
    pool = FairThreadPool("test", 3, 100, max_memory=10)
    held, most = 0, 0
    lock = threading.Lock()

    def job(memory: int) -> Iterator[None]:
        nonlocal held, most
        with lock:
            held += memory
            most = max(most, held)
        for _ in range(5):
            yield
        with lock:
            held -= memory

    sizes = [4, 4, 4, 4, 9, 1, 1, 25, 4, 4] * 3
    futures = [pool.submit(job(size), RequestShare(), partial(int, size)) for size in sizes]
    for future in futures:
        future.result(PATIENCE_S)
    assert most == 25  # the one that is larger than all there is runs, alone
    pool.close()


def test_a_cancelled_job_gives_its_memory_back() -> None:
    pool = FairThreadPool("test", 1, 100, max_memory=10)
    may_go_on = threading.Event()

    def job() -> Iterator[None]:
        yield
        may_go_on.wait(PATIENCE_S)
        yield

    first, second = (pool.submit(job(), RequestShare(), lambda: 8) for _ in range(2))
    first.cancel()
    may_go_on.set()
    second.result(PATIENCE_S)
    third = pool.submit(job(), RequestShare(), lambda: 10)
    third.result(PATIENCE_S)
    pool.close()


def test_memory_is_measured_on_a_thread_of_the_pool(pool: FairThreadPool) -> None:
    """Headers of photos take milliseconds to read, and the event loop submits jobs."""
    measured: list[str] = []

    def measure() -> int:
        measured.append(threading.current_thread().name)
        return 1

    job = pool.submit(note([], "job", steps=3), RequestShare(), measure)
    assert job.result(PATIENCE_S) == "job"
    assert measured == ["test_0"]


def test_a_job_that_cannot_be_measured_fails_alone() -> None:
    pool = FairThreadPool("test", 1, 100, max_memory=10)
    with pytest.raises(ZeroDivisionError):
        pool.submit(note([], "job"), RequestShare(), lambda: 1 // 0).result(PATIENCE_S)
    next_one = pool.submit(note([], "next"), RequestShare(), lambda: 10)
    assert next_one.result(PATIENCE_S) == "next"
    pool.close()
