"""Writes of one process to SQLite: in turn, several in one transaction, each undone alone."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import event

from app.disk import FairLock
from app.errors import LikenessError, PersonExists, StoreFull, StoreUnavailable
from app.store.actor import actor
from app.store.audit_verification import verify_audit
from app.store.backends import sqlite_writes
from app.store.backends.sqlite import WRITES
from app.store.records import Erasure, NewTemplate
from app.store.store import Store
from tests.gallery.conftest import DIMENSION, KEEPS_CROPS, SPACE, open_engine, open_gallery
from tests.index.conftest import unit
from tests.writing import store_person

PEOPLE = ["ada", "bob", "cyd", "dan", "eve"]


@pytest.fixture
def store(database: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Whose writes may join a transaction for as long as a slow machine needs."""
    monkeypatch.setattr(sqlite_writes, "JOIN_S", 60.0)
    return open_gallery(database).store


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(40) as threads:
        yield threads


def waiting(store: Store) -> int:
    queue = store.database.engine.get_execution_options()[WRITES]
    return len(queue._waiting)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@contextmanager
def commits(store: Store) -> Iterator[list[object]]:
    """Filled with one element for each commit."""
    counted: list[object] = []

    def count(connection: object) -> None:
        counted.append(connection)

    event.listen(store.database.engine, "commit", count)
    yield counted
    event.remove(store.database.engine, "commit", count)


@contextmanager
def others_wait(store: Store, count: int) -> Iterator[None]:
    """A write of a person, `first`, that ends when so many others wait."""
    with store.database.writing() as connection:
        yield
        connection.exec_driver_sql("UPDATE access_state SET revision = revision + 1")
        until(lambda: waiting(store) == count)


def create(store: Store, person: str) -> None:
    store.persons.create("default", person, {})


def create_all(
    store: Store, pool: ThreadPoolExecutor, people: list[str]
) -> dict[str, Future[None]]:
    """Begun one after another, so that they wait in this order."""
    begun = {}
    for number, person in enumerate(people):
        begun[f"{number} {person}"] = pool.submit(create, store, person)
        until(lambda number=number: waiting(store) == number + 1)  # type: ignore[misc]
    return begun


def stored(store: Store) -> list[str]:
    return [one.person_id for one in store.persons.page("default", None, 99).items]


def test_writes_that_wait_share_a_transaction(store: Store, pool: ThreadPoolExecutor) -> None:
    with commits(store) as counted:
        with others_wait(store, len(PEOPLE)):
            begun = create_all(store, pool, PEOPLE)
        for one in begun.values():
            one.result(60)
    assert len(counted) == 1
    assert stored(store) == PEOPLE


def test_a_transaction_takes_a_limited_number(store: Store, pool: ThreadPoolExecutor) -> None:
    people = [f"p{number:02}" for number in range(sqlite_writes.MOST_WRITES + 3)]
    with commits(store) as counted:
        with others_wait(store, len(people)):
            begun = create_all(store, pool, people)
        for one in begun.values():
            one.result(60)
    assert len(counted) == 2
    assert stored(store) == people


def test_a_write_that_fails_is_undone_alone(store: Store, pool: ThreadPoolExecutor) -> None:
    """The second `bob` fails by the first, which was not on disk yet."""
    with others_wait(store, 4):
        begun = create_all(store, pool, ["ada", "bob", "bob", "eve"])
    with pytest.raises(PersonExists):
        begun.pop("2 bob").result(60)
    for one in begun.values():
        one.result(60)
    assert stored(store) == ["ada", "bob", "eve"]
    assert verify_audit(store.audit.everything()).problem is None
    created = [one for one in store.audit.latest(99) if one.members["action"] == "person.created"]
    assert len(created) == 3


def test_what_a_failing_write_had_done_is_undone_alone(
    store: Store, pool: ThreadPoolExecutor
) -> None:
    with others_wait(store, 3):
        begun = [*create_all(store, pool, ["ada"]).values()]
        failing = pool.submit(interrupt, store, ValueError())
        until(lambda: waiting(store) == 2)
        begun.append(pool.submit(create, store, "bob"))
    with pytest.raises(ValueError):  # noqa: PT011 - the one above
        failing.result(60)
    for one in begun:
        one.result(60)
    assert stored(store) == ["ada", "bob"]
    with store.database.reading() as connection:
        assert connection.exec_driver_sql("SELECT revision FROM access_state").scalar_one() != 99


def test_no_refusal_by_what_was_not_kept(store: Store, pool: ThreadPoolExecutor) -> None:
    """The first `bob` is lost with the transaction: the second is not refused as existing."""

    def lose() -> None:
        with store.database.writing() as connection:
            connection.exec_driver_sql("ROLLBACK")  # as SQLite does when the disk is full
            connection.exec_driver_sql("RELEASE nothing")

    with pytest.raises(StoreUnavailable), others_wait(store, 3):
        begun = [*create_all(store, pool, ["bob", "bob"]).values(), pool.submit(lose)]
    for one in begun:
        with pytest.raises(StoreUnavailable):
            one.result(60)
    assert stored(store) == []
    create(store, "bob")
    assert stored(store) == ["bob"]


def test_all_are_refused_if_the_transaction_is_lost(store: Store, pool: ThreadPoolExecutor) -> None:
    """SQLite undoes all of it where memory is short, which Python reports by an error of its
    own."""

    def lose() -> None:
        with store.database.writing() as connection:
            connection.exec_driver_sql("ROLLBACK")
            raise MemoryError

    with pytest.raises(StoreUnavailable), others_wait(store, 2):
        begun = [*create_all(store, pool, ["bob"]).values(), pool.submit(lose)]
    for one in begun:
        with pytest.raises(StoreUnavailable):
            one.result(60)
    assert stored(store) == []


def test_a_full_disk_keeps_what_it_acknowledges(database: Path, store: Store) -> None:
    vector = unit(np.ones((1, DIMENSION)))[0]
    store.collections.update("default", None, KEEPS_CROPS)
    big = NewTemplate(vector, "big", crop=b"x" * 400_000)
    with store.database.engine.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages + 20}")
    acknowledged: list[str] = []

    def write(person: str) -> None:
        try:
            if person == "big":
                store_person(store, "default", person, None, [big], space=SPACE)
            else:
                create(store, person)
            acknowledged.append(person)
        except StoreFull:
            pass

    people = [*PEOPLE[:3], "big", *PEOPLE[3:]]
    with ThreadPoolExecutor(8) as pool:
        begun = []
        with suppress(StoreFull), others_wait(store, len(people)):
            for number, person in enumerate(people):
                begun.append(pool.submit(write, person))
                until(lambda number=number: waiting(store) == number + 1)  # type: ignore[misc]
        for one in begun:
            one.result(60)
        write("small")
    assert "big" not in acknowledged
    assert "small" in acknowledged
    assert sorted(acknowledged) == stored(Store(open_engine(database)))


def test_each_entry_names_its_own_caller(store: Store, pool: ThreadPoolExecutor) -> None:
    def write(person: str) -> None:
        token = actor.set(f"key:{person}")
        try:
            create(store, person)
        finally:
            actor.reset(token)

    with others_wait(store, len(PEOPLE)):
        begun = [pool.submit(write, person) for person in PEOPLE]
    for one in begun:
        one.result(60)
    assert verify_audit(store.audit.everything()).problem is None
    for entry in store.audit.latest(len(PEOPLE)):
        person = store.persons.get("default", entry.members["actor"].removeprefix("key:"))
        assert entry.members["person"] == person.key


def test_waiting_ends(
    database: Path, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.store.backends.sqlite.BUSY_TIMEOUT_S", 0.2)
    store = open_gallery(database).store
    with store.database.writing():
        late = pool.submit(create, store, "ada")
        with pytest.raises(StoreUnavailable, match=r"Nothing was changed\. Another process held"):
            late.result(60)
    create(store, "bob")
    assert stored(store) == ["bob"]


def test_an_erasure_has_its_turn_among_writes(store: Store, pool: ThreadPoolExecutor) -> None:
    """It needs the lock of writers, and takes no part in their transactions."""
    for person in PEOPLE:
        create(store, person)
    with others_wait(store, 3):
        first = pool.submit(create, store, "fay")
        until(lambda: waiting(store) == 1)
        erasing = pool.submit(store.database.eraser.erase)
        until(lambda: waiting(store) == 2)
        last = pool.submit(create, store, "gus")
    assert erasing.result(60) is Erasure.DONE
    first.result(60)
    last.result(60)
    assert stored(store) == [*PEOPLE, "fay", "gus"]


def test_a_suspended_process_delays_only_for_a_while(
    database: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_writes, "FAIR_S", 0.05)
    other = FairLock(database)
    assert other.acquire(1)
    create(store, "ada")  # SQLite's own lock is free
    other.release()
    create(store, "bob")
    assert stored(store) == ["ada", "bob"]


def test_an_error_of_the_caller_frees_the_turn(store: Store) -> None:
    class Interrupted(BaseException):
        pass

    for error in (Interrupted(), ValueError(), PersonExists("again")):
        with pytest.raises(type(error)):
            interrupt(store, error)
    create(store, "ada")
    with store.database.reading() as connection:
        assert connection.exec_driver_sql("SELECT revision FROM access_state").scalar_one() != 99


def interrupt(store: Store, error: BaseException) -> None:
    with store.database.writing() as connection:
        connection.exec_driver_sql("UPDATE access_state SET revision = 99")
        raise error


def test_many_threads_and_two_stores(database: Path) -> None:
    """Nothing is lost or refused, whatever shares a transaction with what."""
    stores = [open_gallery(database).store for _ in range(2)]
    failures: list[LikenessError] = []

    def write(number: int) -> None:
        store = stores[number % 2]
        for turn in range(5):
            try:
                create(store, f"p{number:02}-{turn}")
                assert store.persons.get("default", f"p{number:02}-{turn}")
            except LikenessError as error:
                failures.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(12)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(120)
    assert failures == []
    assert len(stored(stores[0])) == 60
    assert verify_audit(stores[0].audit.everything()).problem is None
