"""Keys with many misses are reported."""

import os
from collections.abc import Iterator

import pytest

from app.access import probing
from app.access.keys import AccessKey, Scope
from app.access.probing import ProbingMonitor
from app.processes.shared_records import SharedRecords, shared_file
from tests.access.conftest import Clock


@pytest.fixture
def reports() -> list[tuple[str, int]]:
    return []


@pytest.fixture
def monitor(clock: Clock, reports: list[tuple[str, int]]) -> ProbingMonitor:
    return ProbingMonitor(10, 60, lambda *report: reports.append(report), lambda: clock.seconds)


def key(clock: Clock, name: str = "entrance") -> AccessKey:
    return AccessKey("a" * 12, name, frozenset(Scope), None, clock.now)


def test_once_a_window_for_as_long_as_it_lasts(
    monitor: ProbingMonitor, clock: Clock, reports: list[tuple[str, int]]
) -> None:
    for _ in range(150):  # a miss a second
        monitor.count(key(clock), 1)
        clock.later(1)
    assert reports == [("entrance", 10), ("entrance", 60), ("entrance", 60)]


def test_names_without_a_miss_for_longest_are_forgotten(
    monitor: ProbingMonitor, clock: Clock, reports: list[tuple[str, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(probing, "MOST_NAMES", 2)
    for name in ("a", "b", "a", "c", "a", "b"):  # "b" is forgotten once
        monitor.count(key(clock, name), 5)
    assert reports == [("a", 10)]
    assert len(monitor._by_name) == 2


def test_misses_that_are_long_ago_do_not_count(
    monitor: ProbingMonitor, clock: Clock, reports: list[tuple[str, int]]
) -> None:
    for _ in range(50):
        monitor.count(key(clock), 1)
        clock.later(7)
    assert reports == []


def test_each_name_for_itself(
    monitor: ProbingMonitor, clock: Clock, reports: list[tuple[str, int]]
) -> None:
    for name in ("entrance", "exit"):
        monitor.count(key(clock, name), 9)
    monitor.count(key(clock, "exit"), 0)
    assert reports == []
    monitor.count(key(clock, "exit"), 1)
    assert reports == [("exit", 10)]


@pytest.fixture
def processes(clock: Clock, reports: list[tuple[str, int]]) -> Iterator[list[ProbingMonitor]]:
    """The monitors of two processes of one service."""
    file = shared_file()
    yield [
        ProbingMonitor(
            10, 60, lambda *report: reports.append(report), lambda: clock.seconds,
            SharedRecords(file, column),
        )
        for column in range(2)
    ]  # fmt: skip
    os.close(file)


def test_the_misses_of_all_processes_count_and_are_reported_once(
    processes: list[ProbingMonitor], clock: Clock, reports: list[tuple[str, int]]
) -> None:
    for number in range(9):
        processes[number % 2].count(key(clock), 1)
    assert reports == []
    for number in range(9, 30):
        processes[number % 2].count(key(clock), 1)
    assert reports == [("entrance", 10)]
    clock.later(60)  # all of them are over by then, or one period of 60 s ago
    processes[0].count(key(clock), 10)
    assert len(reports) == 2


def test_misses_that_are_long_ago_do_not_count_with_several_processes(
    processes: list[ProbingMonitor], clock: Clock, reports: list[tuple[str, int]]
) -> None:
    for number in range(50):
        processes[number % 2].count(key(clock), 1)
        clock.later(7)
    assert reports == []
