"""Several enrollments in one transaction: each fails alone, and is noted for its own caller."""

import gc
import weakref
from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sqlalchemy import Connection, event
from sqlalchemy.exc import OperationalError

from app.errors import (
    CollectionNotFound,
    EmbeddingSpaceMismatch,
    EnrolledBefore,
    InvalidRequest,
    LikenessError,
    StoreFull,
    StoreUnavailable,
)
from app.store.actor import actor
from app.store.audit_verification import verify_audit
from app.store.records import (
    EnrolledTogether,
    IdempotencyRequest,
    NewTemplate,
    PersonEnrollment,
    StoredTemplate,
)
from app.store.store import Store
from tests.gallery.conftest import KEEPS_CROPS, SPACE, open_gallery, open_store, template

Draw = Callable[[int], NDArray[np.float32]]


@pytest.fixture
def new(directions: Draw) -> list[NewTemplate]:
    return [template(vector, f"{number}") for number, vector in enumerate(directions(6))]


def enrolled(store: Store, *enrollments: PersonEnrollment) -> EnrolledTogether:
    return store.templates.enroll_together("default", enrollments, SPACE)


def is_stored(outcome: object) -> bool:
    return isinstance(outcome, list)


def persons(store: Store) -> list[str]:
    return [one.person_id for one in store.persons.page("default", None, 99).items]


def by(who: str, one: str, *templates: NewTemplate) -> PersonEnrollment:
    context = copy_context()
    context.run(actor.set, who)
    return PersonEnrollment(one, None, list(templates), context=context)


def test_they_are_stored_at_one_revision(store: Store, new: list[NewTemplate]) -> None:
    commits: list[object] = []
    event.listen(store.database.engine, "commit", commits.append)
    done = enrolled(
        store,
        PersonEnrollment("ada", {"n": 1}, new[:2]),
        PersonEnrollment("bob", None, new[2:3]),
        PersonEnrollment("ada", None, [new[3], new[0]]),
    )
    assert len(commits) == 1
    assert [[one.duplicate for one in outcome] for outcome in done.outcomes] == [  # type: ignore[union-attr]
        [False, False],
        [False],
        [False, True],
    ]
    record = store.collections.get("default")
    assert (done.before.revision, done.after) == (record.revision - 1, record)
    changes = store.changes.since(record, done.before.revision)
    assert changes.added.keys.tolist() == done.added.keys.tolist()
    assert changes.added.person_keys.tolist() == done.added.person_keys.tolist()
    assert np.array_equal(changes.added.vectors, done.added.vectors)


def test_one_that_fails_is_undone_alone(store: Store, new: list[NewTemplate]) -> None:
    """The third fails in its second template, when its person is there already."""
    bad = NewTemplate(new[1].embedding, "bad", {"sharpness": float("nan")})
    done = enrolled(
        store,
        PersonEnrollment("ada", None, new[:1]),
        PersonEnrollment("bob", {"n": 2**60}, new[1:2]),
        PersonEnrollment("cyd", None, [new[2], bad]),
        PersonEnrollment("dan", None, new[3:4]),
    )
    assert [is_stored(outcome) for outcome in done.outcomes] == [True, False, False, True]
    assert all(isinstance(one, InvalidRequest) for one in done.outcomes[1:3])
    assert persons(store) == ["ada", "dan"]
    assert len(done.added.keys) == 2
    entries = [one.members for one in store.audit.page(0, 99)[0]]
    assert [one["action"] for one in entries].count("person.enrolled") == 2
    verify_audit(store.audit.everything())


def test_what_the_database_refuses_fails_alone(store: Store, new: list[NewTemplate]) -> None:
    """Where a check of ours has missed it: the database's error ends the part, not the rest."""
    bad = NewTemplate(new[1].embedding, "1")
    object.__setattr__(bad, "content_digest", None)  # NOT NULL
    done = enrolled(
        store,
        PersonEnrollment("ada", None, new[:1]),
        PersonEnrollment("bob", None, [bad]),
        PersonEnrollment("cyd", None, new[2:3]),
    )
    assert [is_stored(outcome) for outcome in done.outcomes] == [True, False, True]
    assert persons(store) == ["ada", "cyd"]


def test_where_all_fail_nothing_is_changed(store: Store, new: list[NewTemplate]) -> None:
    done = enrolled(store, *(PersonEnrollment("\ud800", None, [one]) for one in new[:2]))
    assert [type(one) for one in done.outcomes] == [InvalidRequest] * 2
    assert done.before == done.after == store.collections.get("default")
    assert persons(store) == []


def test_a_wrong_collection_fails_all(store: Store, new: list[NewTemplate]) -> None:
    one = PersonEnrollment("ada", None, new[:1])
    with pytest.raises(CollectionNotFound):
        store.templates.enroll_together("none", [one, one])
    with pytest.raises(EmbeddingSpaceMismatch):
        store.templates.enroll_together("default", [one, one], "es-other")


def test_each_entry_of_the_audit_log_names_its_own_caller(
    store: Store, new: list[NewTemplate]
) -> None:
    enrolled(store, by("key:a", "ada", new[0]), by("key:b", "bob", new[1]))
    entries = [one.members for one in store.audit.page(0, 99)[0]]
    actors = [one["actor"] for one in entries if one["action"] == "person.enrolled"]
    assert actors == ["key:a", "key:b"]


def test_one_key_is_done_once(store: Store, new: list[NewTemplate]) -> None:
    def answer(stored: object) -> dict[str, object]:
        assert isinstance(stored, list)
        return {"face_ids": [one.face.face_id for one in stored if isinstance(one, StoredTemplate)]}

    key = IdempotencyRequest("key", "digest", answer)
    one = [PersonEnrollment("ada", None, new[:1], key) for _ in range(2)]
    done = enrolled(store, *one, PersonEnrollment("bob", None, new[1:2]))
    assert [is_stored(outcome) for outcome in done.outcomes] == [True, False, True]
    assert isinstance(done.outcomes[1], EnrolledBefore)
    assert persons(store) == ["ada", "bob"]


def test_a_full_disk_acknowledges_none_that_is_not_stored(
    database: Path, new: list[NewTemplate]
) -> None:
    store = open_gallery(database).store
    store.collections.update("default", None, KEEPS_CROPS)
    big = NewTemplate(new[0].embedding, "big", crop=b"x" * 400_000)
    with store.database.engine.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages + 20}")
    people = [PersonEnrollment(f"p{n}", None, [one]) for n, one in enumerate((*new[1:3], big))]
    acknowledged: list[str] = []
    try:
        done = enrolled(store, *people, PersonEnrollment("last", None, new[3:4]))
        for one, outcome in zip((*people, None), done.outcomes, strict=True):
            if is_stored(outcome):
                acknowledged.append("last" if one is None else one.person_id)
    except StoreFull:
        pass
    assert "p2" not in acknowledged
    assert persons(open_store(f"sqlite:///{database}")) == sorted(acknowledged)
    assert enrolled(store, PersonEnrollment("small", None, new[4:5])).added.keys.tolist()


def test_a_lost_transaction_fails_all(database: Path) -> None:
    """As when a disk fails: SQLite rolls back everything, not only the part that failed."""
    store = open_gallery(database).store

    def lose(connection: Connection) -> None:
        connection.exec_driver_sql("ROLLBACK")
        raise MemoryError

    def write() -> None:
        with store.database.writing() as connection:
            connection.exec_driver_sql("UPDATE collections SET metadata = '{}', revision = 7")
            store.database.attempt(connection, partial(lose, connection))

    with pytest.raises(StoreUnavailable):
        write()
    assert store.collections.get("default").revision == 0
    store.persons.create("default", "ada", {})


def test_what_failed_is_freed_without_the_garbage_collector(
    store: Store, new: list[NewTemplate]
) -> None:
    """The error's traceback holds frames, in which the templates are."""
    gc.disable()
    try:
        vector = new[0].embedding.copy()
        freed = weakref.ref(vector)
        bad = PersonEnrollment("bob", {"n": 2**60}, [template(vector, "bad")])
        del vector
        assert enrolled(store, bad, PersonEnrollment("ada", None, new[:1])).added.keys.size == 1
        del bad
        assert freed() is None
    finally:
        gc.enable()


def test_readiness_shows_that_a_part_was_refused(store: Store) -> None:
    """The rest of the transaction was committed."""

    def refused() -> None:
        raise StoreFull("The disk is full.")

    database = store.database
    with database.writing() as connection:
        assert isinstance(database.attempt(connection, refused), StoreFull)
    assert database.refusal == StoreFull.code
    with database.writing():
        pass
    assert database.refusal is None


def test_an_error_of_the_database_is_freed_without_the_garbage_collector(store: Store) -> None:
    class Work:
        def __call__(self) -> None:
            raise OperationalError("SELECT 1", {}, Exception("database or disk is full"))

    def refused() -> "weakref.ref[Work]":
        work = Work()
        with store.database.writing() as connection:
            assert isinstance(store.database.attempt(connection, work), LikenessError)
        return weakref.ref(work)

    gc.collect()
    gc.disable()
    try:
        assert refused()() is None
    finally:
        gc.enable()
