"""Embeddings, and the keys of encrypted ones, that were changed outside the service."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from sqlalchemy import text

from app.encryption.keys import new_key_line, parse_keys
from app.encryption.ring import KeyRing
from app.errors import DamagedData
from app.store.store import Store
from tests.gallery.conftest import DIMENSION, SPACE, open_store, template
from tests.writing import store_person

Draw = Callable[[int], NDArray[np.float32]]
SIZE = 4 * DIMENSION


def cut(store: Store, lengths: dict[int, int]) -> None:
    """Give templates, by their key, embeddings of other lengths."""
    with store.database.writing() as connection:
        for key, length in lengths.items():
            change = text("UPDATE templates SET embedding = :bytes WHERE id = :key")
            connection.execute(change, {"bytes": b"\0" * length, "key": key})


@pytest.mark.parametrize(
    "lengths",
    [{1: 5}, {1: 0}, {1: SIZE - 4}, {1: SIZE - 8, 2: SIZE + 8}],
    ids=["no numbers", "empty", "too short", "lengths that add up"],
)
def test_a_damaged_embedding_is_reported(
    store: Store, directions: Draw, lengths: dict[int, int]
) -> None:
    new = [template(vector, str(i)) for i, vector in enumerate(directions(2))]
    store_person(store, "default", "ada", None, new)
    cut(store, lengths)
    with pytest.raises(DamagedData, match="collection 'default' has"):
        store.embeddings.of_person("default", "ada")


def test_it_is_reported_when_it_is_to_be_encrypted(engine_url: str, directions: Draw) -> None:
    store = open_store(engine_url)
    store.collections.create("default", SPACE, DIMENSION, {})
    store_person(store, "default", "ada", None, [template(directions(1)[0], "0")])
    cut(store, {1: 5})
    ring = KeyRing(parse_keys(new_key_line("first").encode(), "test"))
    done = open_store(engine_url, ring=ring).encryption.reencrypt("default")
    assert (done.persons, done.failed) == (0, ["ada"])


@pytest.mark.parametrize("lost", ["data_key = NULL", "data_key = NULL, key_id = NULL"])
def test_a_data_key_that_is_missing_is_reported(
    engine_url: str, directions: Draw, lost: str
) -> None:
    ring = KeyRing(parse_keys(new_key_line("first").encode(), "test"))
    store = open_store(engine_url, ring=ring)
    record = store.collections.create("default", SPACE, DIMENSION, {})
    store_person(store, "default", "ada", None, [template(directions(1)[0], "0")])
    with store.database.writing() as connection:
        connection.execute(text(f"UPDATE persons SET {lost}"))
    for read in (
        lambda: store.embeddings.of_person("default", "ada"),
        lambda: store.changes.since(record, 0),
        lambda: store.embeddings.exported("default", 0, 10),
    ):
        with pytest.raises(DamagedData, match="'default' is missing"):
            read()
