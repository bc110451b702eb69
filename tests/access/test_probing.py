"""Keys with many misses are reported."""

import pytest

from app.access.keys import AccessKey, Scope
from app.access.probing import ProbingMonitor
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
