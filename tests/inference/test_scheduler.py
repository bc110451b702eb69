"""The scheduler: work leaves the event loop's thread, and the number of requests is bounded."""

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

import pytest

from app.errors import Overloaded
from app.inference.machine import usable_cores
from app.inference.scheduler import Scheduler, _Chain
from app.types import CooperativeTask
from tests.waiting import PATIENCE_S, until

T = TypeVar("T")
POOLS = ("read", "write", "delete", "search", "examine", "read_reports")


def one_step(work: Callable[..., T], *args: Any) -> CooperativeTask[T]:
    """Plain work as steps."""
    return work(*args)
    yield  # what makes it a generator


@pytest.fixture
def scheduler() -> Iterator[Scheduler]:
    scheduler = Scheduler(workers=2, max_pending=3)
    yield scheduler
    scheduler.close()


@pytest.fixture
def without_garbage_collector() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


def test_work_runs_on_named_threads(scheduler: Scheduler) -> None:
    async def where() -> list[str]:
        infer = await scheduler.infer(one_step(lambda: threading.current_thread().name))
        pools = (getattr(scheduler, name) for name in POOLS)
        names = [await pool(lambda: threading.current_thread().name) for pool in pools]
        return [threading.current_thread().name, infer, *names]

    loop, *names = asyncio.run(where())
    kinds = [name.rpartition("_")[0] for name in names]
    assert kinds == [
        "inference", "database-read", "database-write", "deletion", "search", "examination",
        "report-read",
    ]  # fmt: skip
    assert loop not in names


def test_the_event_loop_stays_free(scheduler: Scheduler) -> None:
    async def ticks_meanwhile() -> int:
        release = threading.Event()
        work = asyncio.ensure_future(scheduler.infer(one_step(release.wait, PATIENCE_S)))
        ticks = 0
        for _ in range(5):
            await asyncio.sleep(0)
            ticks += 1
        release.set()
        assert await work
        return ticks

    assert asyncio.run(ticks_meanwhile()) == 5


def test_arguments_and_answers_pass_through(scheduler: Scheduler) -> None:
    def work(a: int, *, b: int) -> tuple[int, int]:
        return a, b

    assert asyncio.run(scheduler.search(work, 1, b=2)) == (1, 2)
    assert asyncio.run(scheduler.read(work, 3, b=4)) == (3, 4)
    assert asyncio.run(scheduler.write(work, 5, b=6)) == (5, 6)


@pytest.mark.parametrize("pool", ["infer", "search", "read", "write", "examine"])
def test_errors_reach_the_waiter(scheduler: Scheduler, pool: str) -> None:
    def fail() -> None:
        raise ZeroDivisionError("in the thread")

    work = one_step(fail) if pool == "infer" else fail
    with pytest.raises(ZeroDivisionError, match="in the thread"):
        asyncio.run(getattr(scheduler, pool)(work))


class Pixels:
    """Memory of a photo, as far as this test goes."""


@pytest.mark.parametrize("fails", [False, True])
def test_a_photo_is_freed_without_the_garbage_collector(
    scheduler: Scheduler, without_garbage_collector: None, fails: bool
) -> None:
    """Also one that fails: the error's traceback holds frames, in which the photo is."""
    freed = threading.Event()

    def analyse() -> CooperativeTask[str]:
        photo = Pixels()
        weakref.finalize(photo, freed.set)
        yield
        if fails:
            raise ValueError(type(photo).__name__)
        return "done"

    async def ask() -> None:
        with suppress(ValueError):
            await scheduler.infer(analyse())

    asyncio.run(ask())
    assert freed.wait(PATIENCE_S)


@pytest.mark.parametrize("fails", ["", "photo", "write", "batch", "place"])
def test_what_is_written_is_freed_without_the_garbage_collector(
    without_garbage_collector: None, fails: str
) -> None:
    scheduler = Scheduler(workers=1, max_pending=2)
    freed = threading.Event()

    def analyse() -> CooperativeTask[Pixels]:
        photo = Pixels()
        weakref.finalize(photo, freed.set)
        yield
        if fails == "photo":
            raise ValueError(type(photo).__name__)
        if fails == "place":
            scheduler._writes.acquire()
        return photo

    def fail(photo: Pixels) -> Exception:
        try:
            raise ValueError(type(photo).__name__)
        except ValueError as error:
            return error

    def write(photos: Sequence[Pixels]) -> Sequence[str | Exception]:
        if fails == "batch":
            raise ValueError(len(photos))
        return [fail(photo) if fails == "write" else "done" for photo in photos]

    async def ask() -> None:
        with suppress(ValueError, Overloaded):
            assert await scheduler.infer_and_write(analyse(), "key", write) == "done"
            assert not fails

    asyncio.run(ask())
    assert freed.wait(PATIENCE_S)
    scheduler.close()


def test_no_more_inference_at_once_than_workers(scheduler: Scheduler) -> None:
    lock, running, most = threading.Lock(), 0, 0
    both_at_work = threading.Barrier(2)

    def work() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        both_at_work.wait(PATIENCE_S)
        with lock:
            running -= 1

    async def many() -> None:
        await asyncio.gather(*(scheduler.infer(one_step(work)) for _ in range(10)))

    asyncio.run(many())
    assert most == 2


def test_the_database_does_not_wait_for_inference(scheduler: Scheduler) -> None:
    async def read_while_busy() -> str:
        release = threading.Event()
        busy = [
            asyncio.ensure_future(scheduler.infer(one_step(release.wait, PATIENCE_S)))
            for _ in range(4)
        ]
        answer = await asyncio.wait_for(scheduler.read(lambda: "read"), timeout=PATIENCE_S / 2)
        release.set()
        await asyncio.gather(*busy)
        return answer

    assert asyncio.run(read_while_busy()) == "read"


def test_no_request_is_admitted_beyond_the_limit(scheduler: Scheduler) -> None:
    with scheduler.admit(), scheduler.admit(), scheduler.admit():
        assert scheduler.pending == 3
        with pytest.raises(Overloaded, match="3 requests") as caught, scheduler.admit():
            pytest.fail("a fourth was let in")
        assert caught.value.extra["retry_after"] >= 1
        assert scheduler.pending == 3
    assert scheduler.pending == 0


def test_bytes_are_limited_too() -> None:
    scheduler = Scheduler(workers=1, max_pending=8, max_pending_bytes=100)
    refused = pytest.raises(Overloaded, match="MiB of photos")
    with scheduler.admit(150), refused, scheduler.admit(1):  # one alone always gets in
        pytest.fail("more bytes were let in")
    with scheduler.admit(60), scheduler.admit(40):
        assert scheduler.pending == 2
    scheduler.close()


def test_cancelled_work_is_never_begun(scheduler: Scheduler) -> None:
    begun: list[int] = []

    async def leave_the_queue() -> None:
        release = threading.Event()
        busy = [
            asyncio.ensure_future(scheduler.infer(one_step(release.wait, PATIENCE_S))) for _ in "ab"
        ]
        left = [asyncio.ensure_future(scheduler.infer(one_step(begun.append, n))) for n in range(5)]
        await asyncio.sleep(0.02)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        release.set()
        await asyncio.gather(*busy)
        await scheduler.infer(one_step(len, ""))  # everything before it has been taken up

    asyncio.run(leave_the_queue())
    assert begun == []
    assert scheduler.waiting == 0


@pytest.mark.parametrize("held", ["search", "write", "delete", "examine", "read_reports"])
def test_what_waits_in_one_pool_holds_up_no_other(held: str) -> None:
    scheduler = Scheduler(workers=2, max_pending=24)

    async def others_meanwhile() -> list[str]:
        release = threading.Event()
        pool = getattr(scheduler, held)
        waiting = [asyncio.ensure_future(pool(release.wait, PATIENCE_S)) for _ in range(12)]
        await asyncio.sleep(0)
        others = [name for name in POOLS if name != held]
        work = (getattr(scheduler, name)(lambda: "done") for name in others)
        answers = await asyncio.wait_for(asyncio.gather(*work), timeout=PATIENCE_S / 2)
        release.set()
        await asyncio.gather(*waiting)
        return answers

    assert asyncio.run(others_meanwhile()) == ["done"] * (len(POOLS) - 1)
    scheduler.close()


def test_writes_take_half_of_the_places_at_most() -> None:
    scheduler = Scheduler(workers=1, max_pending=6)

    async def one_too_many() -> list[object]:
        release = threading.Event()
        waiting = [
            asyncio.ensure_future(scheduler.write(release.wait, PATIENCE_S)) for _ in range(3)
        ]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="3 writes are waiting for the database"):
            await scheduler.write(lambda: None)
        for task in waiting:
            task.cancel()  # what has begun goes on, and keeps its place until it has ended
        await asyncio.gather(*waiting, return_exceptions=True)
        release.set()
        scheduler.close()
        return waiting

    assert all(task.cancelled() for task in asyncio.run(one_too_many()))  # type: ignore[attr-defined]


def test_photos_are_written_together() -> None:
    """Each when it is analysed; a photo or a write that fails, fails alone."""
    scheduler = Scheduler(workers=2, max_pending=16)
    written: list[int] = []

    def write(numbers: Sequence[int]) -> list[int | Exception]:
        written.extend(numbers)
        return [ValueError(n) if n == 2 else 10 * n for n in numbers]

    def analysed(number: int) -> int:
        if number == 3:
            raise ZeroDivisionError
        return number

    async def several() -> list[object]:
        photos = (scheduler.infer_and_write(one_step(analysed, n), "key", write) for n in range(5))
        return await asyncio.gather(*photos, return_exceptions=True)

    found = asyncio.run(several())
    assert [one if isinstance(one, int) else type(one) for one in found] == [
        0, 10, ValueError, ZeroDivisionError, 40,
    ]  # fmt: skip
    assert sorted(written) == [0, 1, 2, 4]
    assert not scheduler._batches._expected
    scheduler.close()


def test_a_photo_whose_write_has_no_place_is_refused() -> None:
    scheduler = Scheduler(workers=1, max_pending=2)
    release = threading.Event()

    async def one_too_many() -> None:
        waiting = asyncio.ensure_future(scheduler.write(release.wait, PATIENCE_S))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="1 writes are waiting for the database"):
            await scheduler.infer_and_write(one_step(lambda: 1), "key", list)
        release.set()
        await waiting
        assert await scheduler.infer_and_write(one_step(lambda: 1), "key", list) == 1

    asyncio.run(one_too_many())
    scheduler.close()


def test_a_request_that_is_cancelled_is_not_written() -> None:
    """Neither while its photo is analysed nor while it waits for other writes."""
    scheduler = Scheduler(workers=2, max_pending=16)
    written: list[int] = []
    begun, release = threading.Event(), threading.Event()

    def write(numbers: Sequence[int]) -> Sequence[int]:
        written.extend(numbers)
        begun.set()
        assert release.wait(PATIENCE_S)
        return numbers

    def waits() -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not scheduler._batches._waiting["k"]:
            assert time.monotonic() < deadline
            time.sleep(0.001)

    async def cancelled() -> None:
        loop = asyncio.get_running_loop()
        first = asyncio.ensure_future(scheduler.infer_and_write(one_step(lambda: 1), "k", write))
        await loop.run_in_executor(None, begun.wait, PATIENCE_S)
        second = asyncio.ensure_future(scheduler.infer_and_write(one_step(lambda: 2), "k", write))
        await asyncio.sleep(0)
        await loop.run_in_executor(None, waits)
        held = threading.Event()
        third = asyncio.ensure_future(
            scheduler.infer_and_write(one_step(held.wait, PATIENCE_S), "k", write)
        )
        await asyncio.sleep(0)
        for one in (second, third):
            one.cancel()
        found = await asyncio.gather(second, third, return_exceptions=True)
        assert [type(one) for one in found] == [asyncio.CancelledError] * 2
        held.set()
        release.set()
        assert await first == 1

    asyncio.run(cancelled())
    scheduler.close()
    assert written == [1]


def test_a_write_that_has_ended_leaves_its_place(scheduler: Scheduler) -> None:
    async def many() -> list[int]:
        return [await scheduler.write(lambda n=n: n) for n in range(9)]  # type: ignore[misc]

    assert asyncio.run(many()) == list(range(9))


def test_a_place_is_freed_by_an_exception(scheduler: Scheduler) -> None:
    for _ in range(10):
        with pytest.raises(ZeroDivisionError), scheduler.admit():
            raise ZeroDivisionError
    assert scheduler.pending == 0
    with scheduler.admit():
        assert scheduler.pending == 1


def test_a_place_is_freed_by_a_cancelled_request(scheduler: Scheduler) -> None:
    async def cancelled() -> int:
        release = threading.Event()

        async def request() -> None:
            with scheduler.admit():
                await scheduler.infer(one_step(release.wait, PATIENCE_S))

        task = asyncio.ensure_future(request())
        await asyncio.sleep(0.01)
        held = scheduler.pending
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        release.set()
        return held

    assert asyncio.run(cancelled()) == 1
    assert scheduler.pending == 0


def test_one_worker_a_core_by_default() -> None:
    scheduler = Scheduler(workers=None, max_pending=1)
    assert scheduler.workers == usable_cores() >= 1
    scheduler.close()


def test_closing_waits_for_what_runs_and_drops_what_waits() -> None:
    scheduler = Scheduler(workers=1, max_pending=1)
    started, release, done = threading.Event(), threading.Event(), []

    def work(number: int) -> None:
        started.set()
        release.wait(PATIENCE_S)
        done.append(number)

    async def close_meanwhile() -> list[object]:
        jobs = [asyncio.ensure_future(scheduler.infer(one_step(work, n))) for n in range(3)]
        await asyncio.to_thread(started.wait, PATIENCE_S)
        closing = asyncio.ensure_future(asyncio.to_thread(scheduler.close))
        await asyncio.to_thread(until, lambda: scheduler._photos._closed)
        release.set()
        await closing
        return await asyncio.gather(*jobs, return_exceptions=True)

    first, *others = asyncio.run(close_meanwhile())
    assert first is None
    assert done == [0]
    assert all(isinstance(other, asyncio.CancelledError) for other in others)


def test_a_chain_that_is_cancelled_while_it_submits_cancels_the_last_work() -> None:
    first, last = Future[int](), Future[int]()

    def submit(_: int) -> "Future[int]":
        chain.cancel()  # the first work has ended, and the last is not known yet
        return last

    chain = _Chain(first, submit)
    chain.add_done_callback(lambda _: None)
    first.set_result(1)
    assert last.cancelled()


def test_a_chain_that_was_cancelled_submits_nothing() -> None:
    first, submitted = Future[int](), list[int]()
    assert first.set_running_or_notify_cancel(), "too late to cancel the first work itself"
    chain = _Chain[int, int](first, lambda one: submitted.append(one) or Future())  # type: ignore[func-returns-value]
    chain.add_done_callback(lambda _: None)
    chain.cancel()
    first.set_result(1)
    assert submitted == []
