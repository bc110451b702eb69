"""How many SQL statements the main calls need: each is a round trip to a database server.

Counted by SQLite itself, with the BEGIN of each transaction, without COMMIT and ROLLBACK."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from numpy.typing import NDArray
from sqlalchemy import Engine, event

from app.gallery.gallery import Gallery
from app.store.records import IdempotencyRequest
from tests.gallery.conftest import template
from tests.writing import enroll_person


@pytest.fixture(autouse=True)
def every_connection_from_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only statements of connections that are taken from the pool are counted."""
    monkeypatch.setattr("app.store.database.MAX_IDLE_CONNECTIONS", 0)


@contextmanager
def statements(engine: Engine) -> Iterator[list[str]]:
    """Those that are executed on an engine within the context."""
    found: list[str] = []

    def note(statement: str) -> None:
        # Statements that SQLite makes of another one, for a foreign key, begin with "--".
        if not statement.startswith(("--", "COMMIT", "ROLLBACK", "RELEASE")):
            found.append(statement)

    def watch(driver: sqlite3.Connection, *_: object) -> None:
        driver.set_trace_callback(note)

    def stop(driver: sqlite3.Connection, *_: object) -> None:
        driver.set_trace_callback(None)

    event.listen(engine, "checkout", watch)
    event.listen(engine, "checkin", stop)
    try:
        yield found
    finally:
        event.remove(engine, "checkout", watch)
        event.remove(engine, "checkin", stop)


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("enroll", 10),
        ("enroll once", 13),
        ("identify", 2),
        ("filtered", 4),
        ("claim", 3),
        ("verify", 4),
    ],
)
def test_a_call_needs_so_many(
    gallery: Gallery,
    directions: Callable[[int], NDArray[np.float32]],
    name: str,
    number: int,
) -> None:
    """A higher number slows every call down: change it only for a reason."""
    first, second = directions(2)
    enroll_person(gallery, "default", "ada", {"site": 1}, [template(first, "1")])
    gallery.identify("default", first[np.newaxis], 1)
    once = IdempotencyRequest("key", "digest", lambda _: {})
    new = [template(second, "2")]
    calls: dict[str, Callable[[], object]] = {
        "enroll": lambda: enroll_person(gallery, "default", "bob", None, new),
        "enroll once": lambda: enroll_person(
            gallery, "default", "ada", None, new, idempotency=once
        ),
        "identify": lambda: gallery.identify("default", second[np.newaxis], 1),
        "filtered": lambda: gallery.identify("default", second[np.newaxis], 1, {"site": 1}),
        "claim": lambda: gallery.store.persons.with_collection("default", "ada"),
        "verify": lambda: gallery.compare("default", "ada", second),
    }
    with statements(gallery.store.database.engine) as executed:
        calls[name]()
    assert len(executed) == number, "\n".join(executed)
