"""Enrollments done once: the answer is kept with the rows it speaks of, for a day."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from numpy.typing import NDArray
from sqlalchemy import text

from app.errors import CollectionNotFound, EnrolledBefore, IdempotencyKeyReused
from app.gallery.maintenance import Pruning
from app.store.records import IdempotencyRequest, StoredTemplate
from app.store.store import Store
from app.types import JsonObject
from tests.gallery.conftest import DIMENSION, SPACE, open_store, template
from tests.writing import store_person

Draw = Callable[[int], NDArray[np.float32]]
START = datetime(2026, 1, 1, tzinfo=UTC)


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = START

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


def idempotency(key: str = "k", digest: str = "d") -> IdempotencyRequest:
    def answer(stored: Sequence[StoredTemplate]) -> JsonObject:
        return {"faces": [one.face.face_id for one in stored]}

    return IdempotencyRequest(key, digest, answer)


def kept(store: Store) -> int:
    with store.database.reading() as connection:
        return int(connection.execute(text("SELECT count(*) FROM idempotency")).scalar_one())


def test_the_answer_is_kept_and_nothing_is_stored_again(store: Store, directions: Draw) -> None:
    first, second = (template(vector, str(vector[0])) for vector in directions(2))
    assert store.idempotency.answered("default", idempotency()) is None
    (stored,) = store_person(store, "default", "ada", None, [first], idempotency=idempotency())
    answer = {"faces": [stored.face.face_id]}
    before = store.collections.get("default")
    with pytest.raises(EnrolledBefore):
        store_person(
            store, "default", "ada", {"changed": True}, [second], idempotency=idempotency()
        )
    assert store.idempotency.answered("default", idempotency()) == answer
    assert store.collections.get("default") == before
    assert (store.persons.get("default", "ada").metadata, kept(store)) == ({}, 1)


def test_a_key_belongs_to_one_request(store: Store, directions: Draw) -> None:
    new = [template(directions(1)[0], "a")]
    store_person(store, "default", "ada", None, new, idempotency=idempotency())
    with pytest.raises(IdempotencyKeyReused, match="another request"):
        store.idempotency.answered("default", idempotency(digest="other"))
    with pytest.raises(IdempotencyKeyReused):
        store_person(store, "default", "bob", None, new, idempotency=idempotency(digest="other"))
    store.collections.create("staff", SPACE, DIMENSION, {})
    store_person(
        store, "staff", "ada", None, new, idempotency=idempotency(digest="other")
    )  # keys are a collection's


def test_an_enrolment_that_failed_keeps_no_answer(store: Store, directions: Draw) -> None:
    def broken(stored: Sequence[StoredTemplate]) -> JsonObject:
        raise RuntimeError("a fault before the commit")

    new = [template(directions(1)[0], "a")]
    with pytest.raises(RuntimeError):
        store_person(
            store, "default", "ada", None, new, idempotency=IdempotencyRequest("k", "d", broken)
        )
    assert (store.idempotency.answered("default", idempotency()), kept(store)) == (None, 0)
    assert not store_person(store, "default", "ada", None, new, idempotency=idempotency())[
        0
    ].duplicate


def test_answers_are_kept_for_a_day(store: Store, clock: Clock, directions: Draw) -> None:
    vectors = directions(3)
    store_person(
        store, "default", "ada", None, [template(vectors[0], "a")], idempotency=idempotency("old")
    )
    clock.now = START + timedelta(hours=23, minutes=59)
    assert store.idempotency.answered("default", idempotency("old")) is not None
    clock.now = START + timedelta(hours=24)
    assert store.idempotency.answered("default", idempotency("old")) is None
    store_person(
        store, "default", "ada", None, [template(vectors[1], "b")], idempotency=idempotency("new")
    )
    assert kept(store) == 1  # the expired one went with this write
    store_person(
        store,
        "default",
        "bob",
        None,
        [template(vectors[2], "c")],
        idempotency=idempotency("old", "other"),
    )


def test_expired_answers_go_without_another_enrollment(
    store: Store, clock: Clock, directions: Draw
) -> None:
    new = [template(directions(1)[0], "a")]
    store_person(store, "default", "ada", None, new, idempotency=idempotency("old"))
    clock.now = START + timedelta(hours=12)
    store_person(store, "default", "ada", None, new, idempotency=idempotency("new"))
    store.idempotency.prune()
    assert kept(store) == 2
    clock.now = START + timedelta(hours=24)
    pruning = Pruning(store.changes, store.idempotency)
    for _ in range(2):  # the change log first
        pruning.round()
    assert kept(store) == 1
    assert store.idempotency.answered("default", idempotency("new")) is not None


def test_deletions_delete_the_answers(store: Store, directions: Draw) -> None:
    first, second = (template(vector, str(vector[0])) for vector in directions(2))
    (stored,) = store_person(store, "default", "ada", None, [first], idempotency=idempotency("a"))
    store_person(store, "default", "bob", None, [second], idempotency=idempotency("b"))
    store.templates.delete("default", stored.face.face_id)
    assert store.idempotency.answered("default", idempotency("a")) == {
        "faces": [stored.face.face_id]
    }
    store.persons.delete("default", "ada")
    assert store.idempotency.answered("default", idempotency("a")) is None
    assert store.idempotency.answered("default", idempotency("b")) is not None
    store.collections.delete("default")
    assert kept(store) == 0
    with pytest.raises(CollectionNotFound):
        store.idempotency.answered("default", idempotency("b"))


def test_a_retry_does_not_bring_a_merged_person_back(store: Store, directions: Draw) -> None:
    """Its face is the other person's since, and would be enrolled under both ids."""
    first, second = (template(vector, str(vector[0])) for vector in directions(2))
    store_person(store, "default", "ada", None, [first], idempotency=idempotency())
    store_person(store, "default", "bob", None, [second])
    store.corrections.merge_persons("default", "ada", "bob")
    with pytest.raises(EnrolledBefore):
        store_person(store, "default", "ada", None, [first], idempotency=idempotency())
    assert store.idempotency.answered("default", idempotency()) is not None
    store.persons.delete("default", "bob")
    assert kept(store) == 0
