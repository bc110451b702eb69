"""Persons who were declared to be different: kept with them, on every engine."""

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import text

from app.errors import (
    CollectionNotFound,
    DeclaredDifferent,
    InvalidRequest,
    PairNotFound,
    PersonNotFound,
)
from app.gallery.backup_bodies import dump, load
from app.gallery.backup_stream import read_blocks, write_blocks
from app.store.records import Erasure
from app.store.sql import pairs
from app.store.store import Store
from tests.gallery.conftest import DIMENSION, SPACE, fresh_postgres, open_store

PEOPLE = ("ada", "bea", "cleo", "dora", "josé")


@pytest.fixture
def store(store: Store) -> Store:
    """With a few people."""
    for person in PEOPLE:
        store.persons.create("default", person, {})
    return store


def others(store: Store, person_id: str, name: str = "default") -> list[str]:
    return [pair.other_id for pair in store.pairs.of_person(name, person_id, None, 1000).items]


def rows(store: Store) -> int:
    with store.database.reading() as connection:
        return int(connection.execute(text("SELECT count(*) FROM declared_pairs")).scalar_one())


def test_a_pair_has_no_order_and_is_declared_once(store: Store) -> None:
    first = store.pairs.declare("default", "bea", "ada")
    again = store.pairs.declare("default", "ada", "bea")
    assert (first.person_id, first.other_id) == ("bea", "ada")
    assert (again.person_id, again.other_id) == ("ada", "bea")
    assert first.created_at == again.created_at
    assert (others(store, "ada"), others(store, "bea")) == (["bea"], ["ada"])
    assert rows(store) == 1


def test_what_cannot_be_declared(store: Store) -> None:
    with pytest.raises(PersonNotFound, match="eve"):
        store.pairs.declare("default", "ada", "eve")
    with pytest.raises(InvalidRequest, match="different from themselves"):
        store.pairs.declare("default", "josé", "jose\u0301")
    with pytest.raises(CollectionNotFound):
        store.pairs.declare("absent", "ada", "bea")
    store.collections.create("staff", SPACE, DIMENSION, {})
    store.persons.create("staff", "gail", {})
    with pytest.raises(PersonNotFound, match="gail"):
        store.pairs.declare("default", "ada", "gail")
    assert rows(store) == 0


def test_the_number_of_pairs_of_a_person_is_bounded(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pairs, "MAX_DECLARED", 2)
    for other in ("bea", "cleo"):
        store.pairs.declare("default", "ada", other)
    with pytest.raises(InvalidRequest, match="'ada' is declared different from 2 persons"):
        store.pairs.declare("default", "dora", "ada")
    store.pairs.declare("default", "ada", "bea")  # it is there already


def test_pairs_are_listed_page_by_page(store: Store) -> None:
    for other in ("dora", "josé", "bea", "cleo"):
        store.pairs.declare("default", other, "ada")
    page = store.pairs.of_person("default", "ada", None, 3)
    assert ([one.other_id for one in page.items], page.more) == (["bea", "cleo", "dora"], True)
    page = store.pairs.of_person("default", "ada", "dora", 3)
    assert ([one.other_id for one in page.items], page.more) == (["josé"], False)
    store.pairs.declare("default", "cleo", "bea")
    found, after = [], None
    while some := store.pairs.page("default", after, 2):
        found += [{one.person_id, one.other_id} for one in some]
        after = some[-1].keys
    assert sorted(map(sorted, found)) == [
        ["ada", "bea"], ["ada", "cleo"], ["ada", "dora"], ["ada", "josé"], ["bea", "cleo"],
    ]  # fmt: skip


def test_counterparts_of_some_people(store: Store) -> None:
    store.pairs.declare("default", "ada", "bea")
    store.pairs.declare("default", "cleo", "ada")
    record = store.collections.get("default")
    found = store.pairs.counterparts(record, ["ada", "bea", "dora", "nobody"])
    assert {one: sorted(theirs) for one, theirs in found.items()} == {
        "ada": ["bea", "cleo"], "bea": ["ada"],
    }  # fmt: skip
    assert store.pairs.counterparts(record, []) == {}


def test_a_withdrawn_pair_is_gone(store: Store) -> None:
    store.pairs.declare("default", "ada", "bea")
    assert store.pairs.withdraw("default", "bea", "ada") in Erasure
    assert rows(store) == 0
    for other in ("bea", "cleo"):
        with pytest.raises(PairNotFound, match=f"'ada' and '{other}'"):
            store.pairs.withdraw("default", "ada", other)


def test_the_pairs_of_a_deleted_person_are_deleted(store: Store) -> None:
    store.pairs.declare("default", "ada", "bea")
    store.pairs.declare("default", "cleo", "bea")
    store.pairs.declare("default", "cleo", "dora")
    store.persons.delete("default", "bea")
    assert (rows(store), others(store, "ada"), others(store, "cleo")) == (1, [], ["dora"])
    store.persons.create("default", "bea", {})  # another one under this id
    assert others(store, "bea") == []
    store.persons.delete_many("default", ["cleo", "ada"])
    assert rows(store) == 0
    store.pairs.declare("default", "dora", "bea")
    store.collections.delete("default")
    assert rows(store) == 0


def test_pairs_follow_a_new_id(store: Store) -> None:
    store.pairs.declare("default", "ada", "bea")
    store.persons.update("default", "ada", new_id="ada.l")
    assert (others(store, "bea"), others(store, "ada.l")) == (["ada.l"], ["bea"])


def test_declared_persons_are_not_merged(store: Store) -> None:
    store.pairs.declare("default", "ada", "bea")
    for source, target in (("ada", "bea"), ("bea", "ada")):
        with pytest.raises(DeclaredDifferent, match="withdraw the declaration"):
            store.corrections.merge_persons("default", source, target)
    store.pairs.withdraw("default", "ada", "bea")
    store.corrections.merge_persons("default", "ada", "bea")


def test_pairs_follow_a_merge(store: Store) -> None:
    store.pairs.declare("default", "ada", "cleo")
    since = store.pairs.declare("default", "bea", "cleo").created_at
    store.pairs.declare("default", "dora", "ada")
    store.corrections.merge_persons("default", "ada", "bea")
    assert sorted(others(store, "bea")) == ["cleo", "dora"]
    assert others(store, "dora") == ["bea"]
    kept = {one.other_id: one.created_at for one in store.pairs.of_person(
        "default", "bea", None, 9).items}  # fmt: skip
    assert kept["cleo"] == since
    assert rows(store) == 2


def test_a_merge_makes_no_more_pairs_than_a_person_may_have(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pairs, "MAX_DECLARED", 2)
    for one, other in (("ada", "cleo"), ("ada", "dora"), ("bea", "cleo"), ("bea", "josé")):
        store.pairs.declare("default", one, other)
    with pytest.raises(InvalidRequest, match="'bea' would be declared different from 3 persons"):
        store.corrections.merge_persons("default", "ada", "bea")
    assert others(store, "ada") == ["cleo", "dora"]
    store.pairs.withdraw("default", "bea", "josé")
    store.corrections.merge_persons("default", "ada", "bea")
    assert sorted(others(store, "bea")) == ["cleo", "dora"]


def test_simultaneous_declarations_make_one_pair(store: Store) -> None:
    with ThreadPoolExecutor(8) as threads:
        ways = [("ada", "bea"), ("bea", "ada")] * 8
        list(threads.map(lambda two: store.pairs.declare("default", *two), ways))
    assert rows(store) == 1


@pytest.fixture(params=["sqlite", "postgresql"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'restored.db'}"
    else:
        yield from fresh_postgres(request.getfixturevalue("postgres"))


def test_pairs_are_in_backups(store: Store, target: str) -> None:
    since = store.pairs.declare("default", "ada", "bea").created_at
    data = b"".join(write_blocks(dump(store.database.engine)))
    restored = open_store(target)
    for _ in range(2):  # also over what is there
        load(restored.database.engine, read_blocks(io.BytesIO(data)), replace=True)
    (pair,) = restored.pairs.of_person("default", "bea", None, 9).items
    assert (pair.other_id, pair.created_at) == ("ada", since)


def test_erasing_overwrites_a_withdrawn_pair(tmp_path: Path) -> None:
    """What is left in SQLite's file does not tell who was whose twin."""
    path = tmp_path / "likeness.db"
    store = open_store(f"sqlite:///{path}")
    store.collections.create("default", SPACE, DIMENSION, {})
    generator = np.random.default_rng(0)
    for key in generator.permutation(300).tolist():
        store.persons.create("default", f"p{key}", {})
    store.pairs.declare("default", "p7", "p8")
    made = str(store.pairs.of_person("default", "p7", None, 1).items[0].created_at)
    stored = made.removesuffix("+00:00").encode()
    assert store.pairs.withdraw("default", "p7", "p8") is Erasure.DONE
    files = [path, path.with_name(path.name + "-wal")]
    assert not any(stored in one.read_bytes() for one in files if one.exists())
