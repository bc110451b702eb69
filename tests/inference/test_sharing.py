"""Parts of one photo's work: idle threads of the pool help, and a busy pool changes nothing."""

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from queue import SimpleQueue

import pytest

from app.inference import sharing
from app.inference.fair_pool import FairThreadPool, RequestShare
from app.inference.sharing import done_together, idle_threads
from app.types import CooperativeTask
from tests.inference.test_fair_pool import hold
from tests.waiting import PATIENCE_S


@pytest.fixture
def pool() -> Iterator[FairThreadPool]:
    pool = FairThreadPool("test", threads=2, capacity=100)
    yield pool
    pool.close()


def submitted(pool: FairThreadPool, parts: list[Callable[[], str]]) -> "Future[list[str]]":
    def steps() -> CooperativeTask[list[str]]:
        return done_together(parts)
        yield

    return pool.submit(steps(), RequestShare())


def here() -> str:
    return threading.current_thread().name


def test_an_idle_thread_does_a_part(pool: FairThreadPool) -> None:
    both = threading.Barrier(2)  # passed only by two threads at the same time

    def part() -> str:
        both.wait(PATIENCE_S)
        return here()

    assert len(set(submitted(pool, [part, part]).result(PATIENCE_S))) == 2


def test_results_are_in_the_order_of_the_parts(pool: FairThreadPool) -> None:
    first = threading.Event()

    def slow() -> str:
        assert first.wait(PATIENCE_S)
        return "a"

    def quick() -> str:
        first.set()
        return "b"

    assert submitted(pool, [slow, quick]).result(PATIENCE_S) == ["a", "b"]


def test_a_busy_pool_leaves_all_parts_to_their_photo(pool: FairThreadPool) -> None:
    release, held = hold(pool)
    assert len(set(submitted(pool, [here] * 8).result(PATIENCE_S))) == 1
    assert pool.waiting == 0, "nobody was asked to help"
    release.set()
    assert held.result(PATIENCE_S)


def test_outside_a_pool_the_caller_does_all() -> None:
    assert idle_threads() == 0
    assert done_together([here, here]) == [here()] * 2
    assert done_together([]) == []


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_the_error_of_a_part_is_raised_after_all_have_ended(
    pool: FairThreadPool, failing: int
) -> None:
    ended: list[int] = []

    def part(number: int) -> str:
        ended.append(number)
        if number == failing:
            raise ValueError(number)
        return "done"

    job = submitted(pool, [lambda n=n: part(n) for n in range(3)])  # type: ignore[misc]
    with pytest.raises(ValueError, match=str(failing)):
        job.result(PATIENCE_S)
    assert sorted(ended) == [0, 1, 2]
    assert submitted(pool, [here]).result(PATIENCE_S), "the pool goes on"


def test_many_photos_that_share_lose_nothing(pool: FairThreadPool) -> None:
    jobs = [
        submitted(pool, [lambda text=f"{job}.{part}": text for part in range(4)])  # type: ignore[misc]
        for job in range(80)
    ]
    for number, job in enumerate(jobs):
        assert job.result(PATIENCE_S) == [f"{number}.{part}" for part in range(4)]


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_is_freed_without_the_garbage_collector(failing: int) -> None:
    """Also that of the part that ended last. It holds what the photo was made of."""

    class Failed(Exception):
        pass

    failed = Failed()
    freed = weakref.ref(failed)
    results: SimpleQueue[tuple[int, str | None, BaseException | None]] = SimpleQueue()
    for number in range(2):
        results.put((number, None, failed if number == failing else None))
    del failed
    gc.disable()
    try:
        with pytest.raises(Failed):
            sharing._results(results, 2)
        assert freed() is None
    finally:
        gc.enable()
