"""The change log is kept short, and a process that is behind its end notices."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sqlalchemy import delete, func, select

from app.errors import RevisionPruned
from app.gallery.maintenance import Pruning
from app.store.sql import changes as change_log
from app.store.sql.tables import changes
from app.store.store import Store
from tests.gallery.conftest import DIMENSION, SPACE, open_gallery, open_store, template
from tests.writing import delete_person, enroll_person, store_person

Draw = Callable[[int], NDArray[np.float32]]
DAY = timedelta(days=1)
MANY = 1_000_000


class Clock:
    """A wall clock that tests move."""

    def __init__(self) -> None:
        self.now = datetime(2030, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(engine_url: str, clock: Clock) -> Store:
    store = open_store(engine_url, clock=clock)
    store.collections.create("default", SPACE, DIMENSION, {})
    return store


def enroll(store: Store, vectors: NDArray[np.float32], collection: str = "default") -> None:
    """A revision each."""
    for vector in vectors:
        one = template(vector, vector.tobytes().hex()[:64])
        store_person(store, collection, "ada", None, [one])


def revisions(store: Store, collection: str = "default") -> list[int]:
    """Those that the log of a collection has."""
    query = select(changes.c.revision).where(
        changes.c.collection == store.collections.get(collection).key
    )
    with store.database.reading() as connection:
        return sorted(set(connection.execute(query).scalars()))


def test_what_is_old_goes_and_the_newest_stays(
    store: Store, clock: Clock, directions: Draw
) -> None:
    enroll(store, directions(3))
    clock.now += DAY / 2
    enroll(store, directions(3))
    clock.now += DAY / 2 + timedelta(seconds=1)
    assert store.changes.prune(0, DAY, MANY) is None
    assert revisions(store) == [4, 5, 6]
    clock.now += 100 * DAY
    store.changes.prune(0, DAY, MANY)
    assert revisions(store) == [6], "by it everybody knows that nothing has changed"


def test_a_collection_without_a_log_does_not_end_the_sweep(
    store: Store, directions: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one whose rows are being removed."""
    monkeypatch.setattr(change_log, "COLLECTIONS_AT_ONCE", 2)
    for name in ("second", "third"):
        store.collections.create(name, SPACE, DIMENSION, {})
    for name in ("default", "second", "third"):
        enroll(store, directions(3), name)
    with store.database.writing() as connection:
        key = store.collections.get("default").key
        connection.execute(delete(changes).where(changes.c.collection == key))
    place: int | None = 0
    while place is not None:
        place = store.changes.prune(place, DAY, 1)
    assert revisions(store, "third") == [3]


def test_of_many_young_ones_the_oldest_go(store: Store, directions: Draw) -> None:
    enroll(store, directions(6))
    store.changes.prune(0, DAY, 2)
    assert revisions(store) == [5, 6]


def test_a_revision_whose_changes_are_deleted_is_refused(
    store: Store, clock: Clock, directions: Draw
) -> None:
    record = store.collections.get("default")
    assert store.changes.stamp_at(record, 0) == ""
    enroll(store, directions(4))
    stamps = [store.changes.stamp_at(record, revision) for revision in range(5)]
    assert None not in stamps
    clock.now += DAY
    enroll(store, directions(1))
    store.changes.prune(0, DAY / 2, MANY)
    for revision in range(5):
        assert store.changes.stamp_at(record, revision) is None
        with pytest.raises(RevisionPruned, match=f"back to revision {revision}"):
            store.changes.since(record, revision)
    assert len(store.changes.since(record, 5).added.keys) == 0


def test_each_call_does_a_bounded_piece(
    store: Store, clock: Clock, directions: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.store.sql.changes.ROWS_AT_ONCE", 4)
    monkeypatch.setattr("app.store.sql.changes.COLLECTIONS_AT_ONCE", 2)
    for name in ("second", "third"):
        store.collections.create(name, SPACE, DIMENSION, {})
    for name in ("default", "second", "third"):
        enroll(store, directions(9), name)
    # One revision with more entries than a piece has room for.
    store.persons.delete("second", "ada")
    clock.now += DAY * 2
    enroll(store, directions(1), "second")

    def left() -> int:
        with store.database.reading() as connection:
            return int(connection.execute(select(func.count()).select_from(changes)).scalar_one())

    place: int | None = 0
    pieces = []
    while place is not None:
        before = left()
        place = store.changes.prune(place, DAY, MANY)
        pieces.append(before - left())
    assert max(pieces) <= 9  # a revision goes whole
    assert sum(piece > 0 for piece in pieces) > 5
    assert [revisions(store, name) for name in ("default", "second", "third")] == [[9], [11], [9]]


def test_a_sweep_comes_now_and_then(store: Store, clock: Clock, directions: Draw) -> None:
    seconds = [0.0]
    pruning = Pruning(
        store.changes, store.idempotency, kept=DAY, every_s=600, clock=lambda: seconds[0]
    )
    pruning.round()
    enroll(store, directions(2))
    clock.now += 2 * DAY
    seconds[0] = 599
    pruning.round()
    assert revisions(store) == [1, 2]
    seconds[0] = 600
    pruning.round()
    assert revisions(store) == [2]


def test_an_index_that_is_behind_the_end_is_built_from_the_database(
    engine_url: str, directions: Draw
) -> None:
    """Also one that stands at the very beginning, which has no entry in the log."""
    vectors = directions(6)
    writer = open_gallery(engine_url)
    behind, empty = open_gallery(engine_url), open_gallery(engine_url)
    assert empty.size("default").templates == 0
    for number, vector in enumerate(vectors[:3]):
        enroll_person(writer, "default", f"p{number}", {}, [template(vector, str(number))])
    assert behind.size("default").templates == 3
    delete_person(writer, "default", "p0")
    for number, vector in enumerate(vectors[3:], 3):
        enroll_person(writer, "default", f"p{number}", {}, [template(vector, str(number))])
    writer.store.changes.prune(0, timedelta(0), MANY)
    for gallery in (behind, empty):
        rows = gallery.identify("default", vectors, 1).rows
        found = [row[0].face.person_id for row in rows]
        assert (found[0] != "p0", found[1:]) == (True, ["p1", "p2", "p3", "p4", "p5"])
        assert gallery.check_index("default").clean


def test_pruned_in_the_very_moment_of_following(
    database: Path, directions: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the replica saw that the log has its revision, and before it read what came since."""
    vectors = directions(4)
    writer, reader = open_gallery(database), open_gallery(database)
    enroll_person(writer, "default", "p0", {}, [template(vectors[0], "0")])
    assert reader.size("default").templates == 1
    delete_person(writer, "default", "p0")
    for number, vector in enumerate(vectors[1:], 1):
        enroll_person(writer, "default", f"p{number}", {}, [template(vector, str(number))])
    real = reader.store.changes.since

    def after_pruning(*arguments: Any) -> Any:
        writer.store.changes.prune(0, timedelta(0), MANY)
        return real(*arguments)

    monkeypatch.setattr(reader.store.changes, "since", after_pruning)
    assert reader.size("default").templates == 3
    assert reader.check_index("default").clean
