"""Refused calls on their way to the audit log: bounded, whatever comes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.access.refused import (
    MOST,
    MOST_OF_ONE,
    WINDOW_S,
    CallLog,
    CallOutcome,
    RefusedCall,
    RefusedCalls,
)
from app.errors import StoreUnavailable
from app.store.backends import create_engine
from app.store.database import Database
from app.store.schema import migrate
from app.store.sql.audit_log import AuditStore
from tests.access.conftest import Clock


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    engine = create_engine(f"sqlite:///{tmp_path / 'likeness.db'}")
    migrate(engine)
    yield Database(engine)
    engine.dispose()


@pytest.fixture
def refused(database: Database, clock: Clock) -> RefusedCalls:
    return RefusedCalls(CallLog(database), lambda: clock.seconds)


def call(route: object, actor: str = "key:a") -> RefusedCall:
    return RefusedCall(actor, CallOutcome.DENIED, f"GET /{route}", "forbidden")


def entries(database: Database) -> list[Any]:
    return [one.members for one in AuditStore(database).latest(10_000)]


def times(database: Database) -> int:
    return sum(one["details"]["times"] for one in entries(database))


def test_the_first_at_once_and_the_others_after_an_hour(
    refused: RefusedCalls, database: Database, clock: Clock
) -> None:
    for number in range(1000):
        refused.note(call("x"), (f"request {number}", "192.0.2.1"))
        refused.round()
        clock.later(1)
    (entry,) = entries(database)
    assert [entry["request_id"], entry["client"]] == ["request 0", "192.0.2.1"]
    assert entry["details"]["times"] == 1
    clock.later(WINDOW_S)
    refused.round()
    refused.round()
    assert [one["details"]["times"] for one in entries(database)] == [1, 999]
    refused.note(call("x"), ("request 1000", None))  # of the next hour
    refused.round()
    assert entries(database)[-1]["request_id"] == "request 1000"


def test_a_flood_is_bounded_and_counted(
    refused: RefusedCalls, database: Database, clock: Clock
) -> None:
    """Each caller tries many calls, and there are many callers."""
    for hour in range(2):
        for actor in range(100):
            for route in range(100):
                refused.note(call(route, f"token:{actor}"), (None, None))
        refused.round()
        clock.later(WINDOW_S)
        refused.flush()
        assert times(database) == 10_000 * (hour + 1)
        assert len(entries(database)) <= 2 * (MOST + len(CallOutcome)) * (hour + 1)
    of_one = {one["details"]["call"] for one in entries(database) if one["actor"] == "token:0"}
    assert len(of_one) == MOST_OF_ONE + 1
    assert entries(database)[-1]["actor"] == "several"


def test_calls_that_come_while_the_others_are_written_are_counted(
    refused: RefusedCalls, database: Database, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a kind that is new: its first call waits to be written, the others are counted."""
    for _ in range(2):
        refused.note(call("x"), (None, None))
    refused.round()
    clock.later(WINDOW_S)
    write = refused._write_more

    def meanwhile(kinds: list[RefusedCall]) -> None:
        write(kinds)
        for _ in range(5):
            refused.note(call("new"), (None, None))

    with monkeypatch.context() as patch:
        patch.setattr(refused, "_write_more", meanwhile)
        refused.flush()
    refused.round()
    refused.flush()
    assert times(database) == 7


def test_what_cannot_be_written_is_written_later(
    refused: RefusedCalls, database: Database, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        refused.note(call("x"), (None, None))
    with monkeypatch.context() as patch:
        patch.setattr(database, "require_in_place", fail)
        for write in (refused.round, refused.flush):
            with pytest.raises(StoreUnavailable):
                write()
    refused.round()
    with monkeypatch.context() as patch:
        patch.setattr(database, "require_in_place", fail)
        with pytest.raises(StoreUnavailable):
            refused.flush()
    clock.later(WINDOW_S)
    refused.round()
    assert [one["details"]["times"] for one in entries(database)] == [1, 2]


def fail(*_: object) -> None:
    raise StoreUnavailable("away")
