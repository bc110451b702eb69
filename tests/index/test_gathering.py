"""Searches of several callers at once share scans, and each answer is that of a search alone."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pytest

from app.index.certified import gathering
from app.index.certified.gathering import Gathering
from app.index.certified.index import CertifiedIndex
from app.index.certified.rows import IndexShape
from app.index.certified.search import ProbeSearch
from app.index.person_scores import PersonScore
from app.index.port import Hit
from tests.index.conftest import brute_force, same_answer, settle, templates, unit
from tests.waiting import PATIENCE_S

CALLERS = 6


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def gathered(one: Gathering[int]) -> int:
    return sum(len(group.items) for group in one._waiting)


class Worked:
    """Records what is worked on together; the first work takes until it is let go."""

    def __init__(self) -> None:
        self.together: list[list[int]] = []
        self.go_on = threading.Event()

    def __call__(self, items: Sequence[int]) -> None:
        self.together.append(list(items))
        if items[0] == 0:
            assert self.go_on.wait(PATIENCE_S)
        if 13 in items:
            raise ValueError(13)


@pytest.fixture
def worked() -> Worked:
    return Worked()


def begun(
    one: Gathering[int], worked: Worked, pool: ThreadPoolExecutor, items: Sequence[int]
) -> list[Future[None]]:
    """Callers with an item each, in this order; the first one works, the others are gathered."""
    calls = []
    for number, item in enumerate(items):
        calls.append(pool.submit(one.run, "key" if item < 100 else "other", [item], worked))
        until(lambda number=number: len(worked.together) + gathered(one) == number + 1)  # type: ignore[misc]
    return calls


def test_who_comes_meanwhile_is_worked_for_together(worked: Worked) -> None:
    one = Gathering[int](1, 3)
    with ThreadPoolExecutor(CALLERS) as pool:
        calls = begun(one, worked, pool, [0, 1, 2, 100, 3, 4])
        worked.go_on.set()
        for call in calls:
            call.result(PATIENCE_S)
    assert worked.together == [[0], [1, 2, 3], [100], [4]]
    one.run("key", [5], worked)
    assert worked.together[-1] == [5]


def test_a_failure_is_only_its_callers(worked: Worked) -> None:
    one = Gathering[int](1, 8)
    with ThreadPoolExecutor(CALLERS) as pool:
        calls = begun(one, worked, pool, [0, 1, 13, 2])
        worked.go_on.set()
        with pytest.raises(ValueError, match="13"):
            calls.pop(2).result(PATIENCE_S)
        for call in calls:
            call.result(PATIENCE_S)
    assert sorted(worked.together[2:]) == [[1], [2], [13]]


def test_nobody_waits_for_long(worked: Worked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering, "PATIENCE_S", 0.05)
    one = Gathering[int](1, 8)
    with ThreadPoolExecutor(CALLERS) as pool:
        calls = begun(one, worked, pool, [0])
        pool.submit(one.run, "key", [1], worked).result(PATIENCE_S)
        worked.go_on.set()
        calls[0].result(PATIENCE_S)
    assert worked.together == [[0], [1]]
    assert (one._running, len(one._waiting)) == (0, 0)


@pytest.mark.parametrize("score", list(PersonScore))
def test_shared_scans_answer_like_brute_force(
    new_index: Callable[..., CertifiedIndex], monkeypatch: pytest.MonkeyPatch, score: PersonScore
) -> None:
    """One caller holds up the scans until the others have gathered; all of them are answered as
    by a comparison with every template, also those that need more persons than the first scan
    finds."""
    random = np.random.default_rng(5)
    index = new_index(32, IndexShape(encode_at=4_096, merge_at=4))
    drawn = random.standard_normal((4_300, 32))
    held = templates(unit(drawn), random.integers(1, 900, 4_300))
    index.add(held)
    settle(index)
    strangers = random.standard_normal((CALLERS, 32))
    near = held.vectors[:CALLERS] + 0.1 * strangers
    probes = unit(np.concatenate([near, strangers]))
    shared: list[int] = []
    real = ProbeSearch.cover_together

    def cover(shard: object, searches: Sequence[ProbeSearch]) -> None:
        until(lambda: bool(shared) or gathered(waiting) > 1)
        shared.append(len(searches))
        real(shard, searches)  # type: ignore[arg-type]

    monkeypatch.setattr(ProbeSearch, "cover_together", staticmethod(cover))
    waiting = index._scanner._gathering  # type: ignore[attr-defined]

    def search(number: int) -> list[Hit]:
        (hits,) = index.search_persons(
            probes[number][np.newaxis], 1 + 60 * (number % 4), score=score
        )
        return hits

    with ThreadPoolExecutor(len(probes)) as pool:
        answers = list(pool.map(search, range(len(probes))))
    for number, hits in enumerate(answers):
        same_answer(hits, brute_force(held, probes[number], 1 + 60 * (number % 4), score=score))
    assert max(shared) > 1


def test_a_caller_with_many_searches_takes_turns(
    new_index: Callable[..., CertifiedIndex], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A single search that comes meanwhile is answered before the last of hundred."""
    random = np.random.default_rng(6)
    index = new_index(32, IndexShape(encode_at=1_024, merge_at=4))
    index.add(templates(unit(random.standard_normal((1_100, 32)))))
    settle(index)
    many, single = unit(random.standard_normal((100, 32))), unit(random.standard_normal((1, 32)))
    order: list[int] = []
    real = ProbeSearch.cover_together

    def cover(shard: object, searches: Sequence[ProbeSearch]) -> None:
        until(lambda: bool(order) or gathered(waiting) == 1)
        order.append(len(searches))
        real(shard, searches)  # type: ignore[arg-type]

    monkeypatch.setattr(ProbeSearch, "cover_together", staticmethod(cover))
    waiting = index._scanner._gathering  # type: ignore[attr-defined]
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(index.search_persons, many, 3)
        until(lambda: waiting._running == 1)
        pool.submit(index.search_persons, single, 3).result(PATIENCE_S)
        first.result(PATIENCE_S)
    assert sum(order) == 101
    assert order.index(1) == 1
