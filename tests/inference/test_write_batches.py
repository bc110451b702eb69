"""Writes that wait are done together, in their order, each with an outcome of its own."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from app.inference import write_batches
from app.inference.write_batches import WriteBatches
from tests.waiting import PATIENCE_S, until


class Writer:
    """Does writes by doubling numbers; the first one is done when the test releases it."""

    def __init__(self) -> None:
        self.done: list[list[int]] = []
        self.begun, self.release = threading.Event(), threading.Event()

    def double(self, numbers: Sequence[int]) -> list[int | Exception]:
        self.done.append(list(numbers))
        self.begun.set()
        assert self.release.wait(PATIENCE_S)
        return [ValueError(n) if n < 0 else 2 * n for n in numbers]


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as threads:
        yield threads


@pytest.fixture
def batches(pool: ThreadPoolExecutor) -> WriteBatches:
    return WriteBatches(pool)


@pytest.fixture
def writer() -> Iterator[Writer]:
    made = Writer()
    yield made
    made.release.set()


@pytest.fixture
def submit(batches: WriteBatches, writer: Writer) -> Callable[..., "Future[int]"]:
    def submitted(number: int, size: int = 1) -> "Future[int]":
        return batches.submit("key", writer.double, number, size)

    return submitted


def test_those_that_wait_are_done_together_in_their_order(
    writer: Writer, submit: Callable[..., "Future[int]"]
) -> None:
    first = submit(1)
    assert writer.begun.wait(PATIENCE_S)
    others = [submit(number) for number in (5, 3, 4)]
    writer.release.set()
    assert [one.result(PATIENCE_S) for one in (first, *others)] == [2, 10, 6, 8]
    assert writer.done == [[1], [5, 3, 4]]
    assert submit(7).result(PATIENCE_S) == 14, "the next one gets a thread again"


def test_one_that_fails_fails_alone(writer: Writer, submit: Callable[..., "Future[int]"]) -> None:
    first = submit(1)
    assert writer.begun.wait(PATIENCE_S)
    good, bad, another = submit(2), submit(-3), submit(4)
    writer.release.set()
    assert [one.result(PATIENCE_S) for one in (first, good, another)] == [2, 4, 8]
    with pytest.raises(ValueError, match="-3"):
        bad.result(PATIENCE_S)
    assert writer.done == [[1], [2, -3, 4]]


@pytest.mark.parametrize("error", [ZeroDivisionError, SystemExit])
def test_where_the_work_fails_all_fail_and_later_ones_are_done(
    batches: WriteBatches, error: type[BaseException]
) -> None:
    calls = []

    def work(numbers: Sequence[int]) -> Sequence[int]:
        calls.append(numbers)
        if len(calls) == 1:
            raise error
        return numbers

    with pytest.raises(error):
        batches.submit("key", work, 1).result(PATIENCE_S)
    assert batches.submit("key", work, 2).result(PATIENCE_S) == 2


def test_an_outcome_too_few_is_an_error(batches: WriteBatches) -> None:
    with pytest.raises(RuntimeError, match="1 writes had 0 outcomes"):
        batches.submit("key", lambda _: [], 1).result(PATIENCE_S)


def test_a_large_write_is_done_with_fewer_others(
    writer: Writer, submit: Callable[..., "Future[int]"]
) -> None:
    first = submit(1)
    assert writer.begun.wait(PATIENCE_S)
    most = write_batches.MOST_AT_ONCE
    others = [submit(2, most - 1), submit(3), submit(4), submit(5, 10 * most), submit(6)]
    writer.release.set()
    for one in (first, *others):
        one.result(PATIENCE_S)
    assert writer.done == [[1], [2, 3], [4], [5], [6]]


def test_one_that_was_cancelled_before_is_not_done(
    writer: Writer, submit: Callable[..., "Future[int]"]
) -> None:
    first = submit(1)
    assert writer.begun.wait(PATIENCE_S)
    cancelled, other = submit(2), submit(3)
    assert cancelled.cancel()
    assert not first.cancel(), "it has begun"
    writer.release.set()
    assert (first.result(PATIENCE_S), other.result(PATIENCE_S)) == (2, 6)
    assert writer.done == [[1], [3]]


def test_a_key_does_not_wait_for_another(batches: WriteBatches, writer: Writer) -> None:
    first = batches.submit("held", writer.double, 1)
    assert writer.begun.wait(PATIENCE_S)
    assert batches.submit("free", list, 2).result(PATIENCE_S) == 2
    writer.release.set()
    assert first.result(PATIENCE_S) == 2


def test_at_the_end_those_without_a_thread_are_cancelled(writer: Writer) -> None:
    """As the executor's own work; what has a thread is finished, with what waits for it."""
    pool = ThreadPoolExecutor(1)
    batches = WriteBatches(pool)
    begun = batches.submit("a", writer.double, 1)
    assert writer.begun.wait(PATIENCE_S)
    follows = batches.submit("a", writer.double, 2)
    never = [batches.submit("b", writer.double, number) for number in (3, 4)]
    pool.shutdown(wait=False, cancel_futures=True)
    writer.release.set()
    assert (begun.result(PATIENCE_S), follows.result(PATIENCE_S)) == (2, 4)
    for one in never:
        with pytest.raises(CancelledError):
            one.result(PATIENCE_S)
    with pytest.raises(RuntimeError):
        batches.submit("c", writer.double, 5)
    pool.shutdown()


def test_where_many_are_being_prepared_some_are_waited_for(
    batches: WriteBatches, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time is not measured: the thread waits until the test lets it."""
    waits, let = threading.Event(), threading.Event()

    def sleep(_: float) -> None:
        waits.set()
        assert let.wait(PATIENCE_S)

    its_time = SimpleNamespace(sleep=sleep, monotonic=time.monotonic)
    monkeypatch.setattr(write_batches, "time", its_time)  # of that module alone
    writer.release.set()
    coming = [batches.expect("key") for _ in range(write_batches.MANY + 1)]
    assert batches.submit("other", writer.double, 0).result(PATIENCE_S) == 0, "it does not wait"
    first = batches.submit("key", writer.double, 1)
    assert waits.wait(PATIENCE_S)
    second = batches.submit("key", writer.double, 2)
    for come in coming:
        come()
    let.set()
    assert [first.result(PATIENCE_S), second.result(PATIENCE_S)] == [2, 4]
    assert writer.done == [[0], [1, 2]]
    waits.clear()
    assert batches.submit("key", writer.double, 3).result(PATIENCE_S) == 6
    assert not waits.is_set(), "no more are being prepared"
    assert not batches._expected


def test_callers_that_may_come_again_are_waited_for(
    batches: WriteBatches,
    writer: Writer,
    submit: Callable[..., "Future[int]"],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(write_batches, "RETURN_S", PATIENCE_S)
    monkeypatch.setattr(write_batches, "PAUSE_S", PATIENCE_S)
    first = submit(1)
    assert writer.begun.wait(PATIENCE_S)
    others = [submit(number) for number in (2, 3, 4)]
    writer.release.set()
    assert first.result(PATIENCE_S) == 2
    again = submit(5)
    assert [one.result(PATIENCE_S) for one in (*others, again)] == [4, 6, 8, 10]
    assert writer.done == [[1], [2, 3, 4, 5]]
    monkeypatch.setattr(write_batches, "PAUSE_S", 0.001)
    last = [submit(number) for number in (6, 7, 8, 9)]
    assert [one.result(PATIENCE_S) for one in last] == [12, 14, 16, 18]
    until(lambda: not batches._waiting)  # they do not come again, and the thread ends


def test_callers_are_not_waited_for_while_writes_are_being_prepared(
    batches: WriteBatches,
    writer: Writer,
    submit: Callable[..., "Future[int]"],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waited: list[object] = []
    monkeypatch.setattr(WriteBatches, "_gather", lambda _, queue: waited.append(queue))
    come = batches.expect("key")
    first = submit(1)
    assert writer.begun.wait(PATIENCE_S)
    others = [submit(number) for number in (2, 3, 4)]
    writer.release.set()
    assert [one.result(PATIENCE_S) for one in (first, *others)] == [2, 4, 6, 8]
    until(lambda: not batches._waiting)
    assert not waited
    come()


def test_a_key_whose_writes_never_end_keeps_no_other_waiting() -> None:
    """With as many such keys as threads: each lets other work come first after a while."""
    over = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        batches = WriteBatches(pool)

        def endless(writes: Sequence[int]) -> Sequence[int]:
            if not over.wait(0.001):
                batches.submit("busy", endless, 0)
            return writes

        batches.submit("busy", endless, 0)
        try:
            assert batches.submit("other", list[int], 7).result(PATIENCE_S) == 7
            pool.submit(over.set).result(PATIENCE_S)
        finally:
            over.set()
