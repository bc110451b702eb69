"""The lane: requests in rotation, jobs that can be left, threads that may die."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from typing import Any

import pytest

from app.errors import Overloaded, WorkerDied
from app.inference.lane import Flow, Lane
from app.types import Steps


@pytest.fixture
def lane() -> Iterator[Lane]:
    lane = Lane("test", threads=1, capacity=100)
    yield lane
    lane.close()


def note(log: list[str], name: str, steps: int = 1) -> Steps[str]:
    for number in range(steps):
        if number:
            yield
        log.append(name)
    return name


def hold(lane: Lane) -> tuple[threading.Event, Future[bool]]:
    """Keep the lane's one thread busy until the event is set."""
    begun, release = threading.Event(), threading.Event()

    def wait() -> Steps[bool]:
        begun.set()
        return release.wait(20)
        yield

    held = lane.submit(wait(), Flow())
    assert begun.wait(20)
    return release, held


def test_a_small_request_does_not_wait_for_a_big_one(lane: Lane) -> None:
    log: list[str] = []
    release, _ = hold(lane)
    big, small, other = Flow(), Flow(), Flow()
    jobs = [lane.submit(note(log, f"big{n}"), big) for n in range(6)]
    jobs.append(lane.submit(note(log, "small"), small))
    jobs += [lane.submit(note(log, f"other{n}"), other) for n in range(2)]
    release.set()
    for job in jobs:
        job.result(20)
    assert log == ["big0", "small", "other0", "big1", "other1", "big2", "big3", "big4", "big5"]


def test_a_crowd_gives_way_between_its_steps(lane: Lane) -> None:
    log: list[str] = []
    release, _ = hold(lane)
    crowd = lane.submit(note(log, "crowd", steps=3), Flow())
    portraits = [lane.submit(note(log, f"portrait{n}"), Flow()) for n in range(2)]
    release.set()
    assert crowd.result(20) == "crowd"
    assert [job.result(20) for job in portraits] == ["portrait0", "portrait1"]
    assert log == ["crowd", "portrait0", "portrait1", "crowd", "crowd"]


def test_a_request_that_comes_later_is_not_owed_the_past(lane: Lane) -> None:
    """Its first turn comes after those already waiting for their first, not before all others."""
    log: list[str] = []
    old = Flow()
    for n in range(5):
        lane.submit(note(log, f"done{n}"), old).result(20)
    release, _ = hold(lane)
    first = lane.submit(note(log, "old"), old)
    second = lane.submit(note(log, "new"), Flow())
    release.set()
    first.result(20), second.result(20)
    assert log[-2:] == ["old", "new"]


def test_a_job_left_between_its_steps_goes_no_further(lane: Lane) -> None:
    went, closed = threading.Event(), threading.Event()
    taken: list[int] = []

    def steps() -> Steps[None]:
        try:
            for number in range(100):
                taken.append(number)
                went.set()
                time.sleep(0.005)
                yield
        finally:
            closed.set()

    job = lane.submit(steps(), Flow())
    assert went.wait(20)
    assert job.cancel()
    assert closed.wait(20)
    with pytest.raises(CancelledError):
        job.result(20)
    assert len(taken) < 100


def test_a_result_for_nobody_is_dropped(lane: Lane) -> None:
    release, held = hold(lane)
    assert held.cancel()
    release.set()
    assert lane.submit(note([], "next"), Flow()).result(20) == "next"


def test_errors_are_told_and_the_thread_lives(lane: Lane) -> None:
    def fail() -> Steps[None]:
        yield
        raise ZeroDivisionError("here")

    with pytest.raises(ZeroDivisionError, match="here"):
        lane.submit(fail(), Flow()).result(20)
    assert lane.submit(note([], "next"), Flow()).result(20) == "next"


@pytest.mark.parametrize("death", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_a_dead_worker_fails_its_waiter_at_once_and_is_replaced(
    lane: Lane, death: type[BaseException]
) -> None:
    def die() -> Steps[None]:
        raise death
        yield

    before = set(lane._threads)
    with pytest.raises(WorkerDied):
        lane.submit(die(), Flow()).result(1)
    assert lane.submit(note([], "next"), Flow()).result(20) == "next"
    assert len(lane._threads) == 1
    assert set(lane._threads) != before


def test_the_queue_is_bounded() -> None:
    lane = Lane("test", threads=1, capacity=2)
    release, _ = hold(lane)
    jobs = [lane.submit(note([], "waits"), Flow()) for _ in range(2)]
    with pytest.raises(Overloaded):
        lane.submit(note([], "too many"), Flow())
    assert lane.waiting == 2
    release.set()
    assert [job.result(20) for job in jobs] == ["waits", "waits"]
    lane.close()
    with pytest.raises(Overloaded):
        lane.submit(note([], "closed"), Flow())


def test_a_hanging_step_shows(lane: Lane) -> None:
    assert lane.longest_step_s() == 0
    release, held = hold(lane)
    time.sleep(0.02)
    assert lane.longest_step_s() >= 0.02
    release.set()
    held.result(20)
    lane.submit(note([], "next"), Flow()).result(20)


def test_many_threads_lose_nothing() -> None:
    lane = Lane("test", threads=4, capacity=10_000)

    def count(number: int) -> Steps[int]:
        yield
        yield
        return number

    flows = [Flow() for _ in range(10)]
    jobs: list[Future[Any]] = [lane.submit(count(n), flows[n % 10]) for n in range(1_000)]
    assert [job.result(20) for job in jobs] == list(range(1_000))
    lane.close()


def test_memory_of_jobs_under_way_is_bounded() -> None:
    """Jobs give way to one another with what they hold, so that more could be under way than there
    are threads; a job that does not fit waits, and none waits for ever."""
    lane = Lane("test", 3, 100, max_memory=10)
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
    futures = [lane.submit(job(size), Flow(), size) for size in sizes]
    for future in futures:
        future.result(timeout=20)
    assert most == 25  # the one that is larger than all there is runs, alone
    lane.close()


def test_a_cancelled_job_gives_its_memory_back() -> None:
    lane = Lane("test", 1, 100, max_memory=10)
    may_go_on = threading.Event()

    def job() -> Iterator[None]:
        yield
        may_go_on.wait(20)
        yield

    first, second = lane.submit(job(), Flow(), 8), lane.submit(job(), Flow(), 8)
    first.cancel()
    may_go_on.set()
    second.result(timeout=20)
    third = lane.submit(job(), Flow(), 10)
    third.result(timeout=20)
    lane.close()
