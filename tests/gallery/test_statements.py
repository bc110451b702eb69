"""How many SQL statements the main calls need: each is a round trip to a database server.

Counted on SQLite, with the BEGIN of each transaction."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from numpy.typing import NDArray
from sqlalchemy import Engine, event

from app.gallery.gallery import Gallery
from app.store.records import IdempotencyRequest
from tests.gallery.conftest import template


@contextmanager
def statements(engine: Engine) -> Iterator[list[str]]:
    """Those that are executed on an engine within the context."""
    found: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        found.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    try:
        yield found
    finally:
        event.remove(engine, "before_cursor_execute", note)


@pytest.mark.parametrize(
    ("name", "number"),
    [("enroll", 23), ("enroll once", 24), ("identify", 4), ("filtered", 6), ("verify", 8)],
)
def test_a_call_needs_so_many(
    gallery: Gallery,
    directions: Callable[[int], NDArray[np.float32]],
    name: str,
    number: int,
) -> None:
    """A higher number slows every call down: change it only for a reason."""
    first, second = directions(2)
    gallery.enroll("default", "ada", {"site": 1}, [template(first, "1")])
    gallery.identify("default", first[np.newaxis], 1)
    once = IdempotencyRequest("key", "digest", lambda _: {})
    new = [template(second, "2")]
    calls: dict[str, Callable[[], object]] = {
        "enroll": lambda: gallery.enroll("default", "bob", None, new),
        "enroll once": lambda: gallery.enroll("default", "ada", None, new, idempotency=once),
        "identify": lambda: gallery.identify("default", second[np.newaxis], 1),
        "filtered": lambda: gallery.identify("default", second[np.newaxis], 1, {"site": 1}),
        "verify": lambda: gallery.compare("default", "ada", second),
    }
    with statements(gallery.store.database.engine) as executed:
        calls[name]()
    assert len(executed) == number, "\n".join(executed)
