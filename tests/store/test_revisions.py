"""What maintenance asks of every database once a second: has anything changed, and what."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from app.errors import CollectionNotFound
from app.store.sql_store import SqlStore
from tests.gallery.conftest import DIMENSION, SPACE, template

Draw = Callable[[int], NDArray[np.float32]]


def enroll(store: SqlStore, collection: str, vectors: NDArray[np.float32]) -> None:
    store.enroll(collection, "ada", None, [template(v, str(i)) for i, v in enumerate(vectors)])


def test_the_state_changes_with_every_change_and_only_then(
    store: SqlStore, directions: Draw
) -> None:
    seen = [store.state()]
    for change in (
        lambda: enroll(store, "default", directions(2)),
        lambda: store.create_collection("staff", SPACE, DIMENSION, {}),
        lambda: enroll(store, "staff", directions(1)),
        lambda: store.delete_person("default", "ada"),
        lambda: store.delete_collection("staff"),
        lambda: store.create_collection("staff", SPACE, DIMENSION, {}),
        lambda: store.cut_over("staff", "es-other", DIMENSION),
    ):
        change()
        seen.append(store.state())
    assert len(set(seen)) == len(seen)
    store.create_person("default", "bob", {})
    assert store.state() == seen[-1]


def test_marks_are_those_of_the_records(store: SqlStore, directions: Draw) -> None:
    store.create_collection("staff", SPACE, DIMENSION, {})
    enroll(store, "staff", directions(1))
    for name in ("default", "staff"):
        record = store.collection(name)
        mark = store.marks()[record.key]
        assert (mark.embedding_space, mark.revision, mark.stamp) == (
            SPACE, record.revision, record.stamp,
        )  # fmt: skip
        assert store.collection_by_key(record.key) == record
    with pytest.raises(CollectionNotFound, match="numbered 99"):
        store.collection_by_key(99)


def test_what_was_only_added_to(store: SqlStore, directions: Draw) -> None:
    enroll(store, "default", directions(1))
    one = store.collection("default")
    assert store.only_added_since(one.key, one.revision, one.stamp)
    store.enroll("default", "bob", None, [template(directions(2)[1], "b")])
    assert store.only_added_since(one.key, one.revision, one.stamp)
    assert not store.only_added_since(one.key, one.revision, "of another history")
    assert not store.only_added_since(one.key, 0, "")
    store.delete_person("default", "bob")
    assert not store.only_added_since(one.key, one.revision, one.stamp)


def test_large_collections_newest_first(store: SqlStore, directions: Draw) -> None:
    for name, count in (("few", 2), ("many", 5), ("later", 4)):
        store.create_collection(name, SPACE, DIMENSION, {})
        enroll(store, name, directions(count))
    names = [store.collection_by_key(key).name for key in store.large_collections(3)]
    assert names == ["later", "many"]
    assert list(store.large_collections(1).values()) == [4, 5, 2]
