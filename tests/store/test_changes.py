"""What maintenance asks of every database once a second: has anything changed, and what."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from app.errors import CollectionNotFound
from app.store.store import Store
from tests.gallery.conftest import DIMENSION, SPACE, template
from tests.writing import store_person

Draw = Callable[[int], NDArray[np.float32]]


def enroll(store: Store, collection: str, vectors: NDArray[np.float32]) -> None:
    store_person(
        store, collection, "ada", None, [template(v, str(i)) for i, v in enumerate(vectors)]
    )


def test_the_state_changes_with_every_change_and_only_then(store: Store, directions: Draw) -> None:
    seen = [store.collections.state()]
    for change in (
        lambda: enroll(store, "default", directions(2)),
        lambda: store.collections.create("staff", SPACE, DIMENSION, {}),
        lambda: enroll(store, "staff", directions(1)),
        lambda: store.persons.delete("default", "ada"),
        lambda: store.collections.delete("staff"),
        lambda: store.collections.create("staff", SPACE, DIMENSION, {}),
        lambda: store.alternate_embeddings.cut_over(
            "staff", "es-other", DIMENSION, same_quality=True
        ),
    ):
        change()
        seen.append(store.collections.state())
    assert len(set(seen)) == len(seen)
    store.persons.create("default", "bob", {})
    assert store.collections.state() == seen[-1]


def test_marks_are_those_of_the_records(store: Store, directions: Draw) -> None:
    store.collections.create("staff", SPACE, DIMENSION, {})
    enroll(store, "staff", directions(1))
    for name in ("default", "staff"):
        record = store.collections.get(name)
        mark = store.collections.marks()[record.key]
        assert (mark.embedding_space, mark.revision, mark.stamp) == (
            SPACE, record.revision, record.stamp,
        )  # fmt: skip
        assert store.collections.by_key(record.key) == record
    with pytest.raises(CollectionNotFound, match="numbered 99"):
        store.collections.by_key(99)


def test_what_was_only_added_to(store: Store, directions: Draw) -> None:
    enroll(store, "default", directions(1))
    one = store.collections.get("default")
    assert store.changes.only_added_since(one.key, one.revision, one.stamp)
    store_person(store, "default", "bob", None, [template(directions(2)[1], "b")])
    assert store.changes.only_added_since(one.key, one.revision, one.stamp)
    assert not store.changes.only_added_since(one.key, one.revision, "of another history")
    assert not store.changes.only_added_since(one.key, 0, "")
    store.persons.delete("default", "bob")
    assert not store.changes.only_added_since(one.key, one.revision, one.stamp)


def test_large_collections_newest_first(store: Store, directions: Draw) -> None:
    for name, count in (("few", 2), ("many", 5), ("later", 4)):
        store.collections.create(name, SPACE, DIMENSION, {})
        enroll(store, name, directions(count))
    names = [store.collections.by_key(key).name for key in store.collections.large(3)]
    assert names == ["later", "many"]
    assert list(store.collections.large(1).values()) == [4, 5, 2]
