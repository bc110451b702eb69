"""The thread that looks after a gallery: what fails is reported for as long as it does."""

import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest

from app.errors import StoreUnavailable
from app.gallery.gallery import Gallery
from app.gallery.maintenance import LOG_AGAIN_S, MaintenanceThread

ERROR = StoreUnavailable("The database server cannot be reached.")


class Rounds:
    """A gallery's maintenance as a thread does it, one round at a time, with a clock of its own."""

    def __init__(self, gallery: Any, *before_indexes: Callable[[], None]) -> None:
        self.now = 100.0
        self.maintenance = MaintenanceThread(
            gallery, clock=lambda: self.now, before_indexes=before_indexes
        )
        self.maintenance._stop = _OneRound()

    def one(self) -> None:
        self.maintenance._run()


class _OneRound(threading.Event):
    def __init__(self) -> None:
        super().__init__()
        self._asked = 0

    def is_set(self) -> bool:
        self._asked += 1
        return self._asked % 2 == 0

    def wait(self, timeout: float | None = None) -> bool:
        return True


def fail() -> None:
    raise ERROR


def test_a_failure_is_reported_for_as_long_as_it_lasts(
    gallery: Gallery, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "likeness")
    rounds = Rounds(gallery)
    rounds.one()
    assert rounds.maintenance.ready
    assert (rounds.maintenance.failure, rounds.maintenance.failing_s()) == (None, 0.0)
    failing = [True]
    rounds.maintenance.add_task(lambda: fail() if failing[0] else None)
    for _ in range(5):
        rounds.one()
        assert rounds.maintenance.failure == "store_unavailable"
        rounds.now += 10
    assert rounds.maintenance.failing_s() == 50
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    rounds.now += LOG_AGAIN_S
    rounds.one()
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
    failing[0] = False
    rounds.one()
    assert (rounds.maintenance.failure, rounds.maintenance.failing_s()) == (None, 0.0)
    assert caplog.records[-1].levelname == "INFO"


def test_a_task_that_fails_holds_up_no_other(gallery: Gallery) -> None:
    rounds = Rounds(gallery)
    done: list[int] = []
    rounds.maintenance.add_task(fail)
    rounds.maintenance.add_task(lambda: done.append(1))
    rounds.one()
    rounds.one()
    assert done == [1, 1]


def test_an_error_that_nobody_foresaw_is_named_by_its_kind(gallery: Gallery) -> None:
    rounds = Rounds(gallery)
    rounds.maintenance.add_task(lambda: {}["absent"])  # type: ignore[misc]
    rounds.one()
    assert rounds.maintenance.failure == "KeyError"


def test_what_must_not_wait_for_an_index_is_done_before(gallery: Gallery) -> None:
    ready = list[bool]()
    rounds = Rounds(gallery, lambda: ready.append(rounds.maintenance.ready))
    rounds.one()
    assert ready == [False]
