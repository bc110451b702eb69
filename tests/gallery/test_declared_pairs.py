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
from app.gallery.backup.blocks import read_blocks, write_blocks
from app.gallery.backup.dump import dump
from app.gallery.backup.load import load
from app.store.records import Erasure
from app.store.sql import pairs
from app.store.sql_store import SqlStore
from tests.gallery.conftest import DIMENSION, SPACE, fresh_postgres, open_store

PEOPLE = ("ada", "bea", "cleo", "dora", "josé")


@pytest.fixture
def store(store: SqlStore) -> SqlStore:
    """With a few people."""
    for person in PEOPLE:
        store.create_person("default", person, {})
    return store


def others(store: SqlStore, person_id: str, name: str = "default") -> list[str]:
    return [pair.other_id for pair in store.different_from(name, person_id, None, 1000).items]


def rows(store: SqlStore) -> int:
    with store._database.reading() as connection:
        return int(connection.execute(text("SELECT count(*) FROM declared_pairs")).scalar_one())


def test_a_pair_has_no_order_and_is_declared_once(store: SqlStore) -> None:
    first = store.declare_different("default", "bea", "ada")
    again = store.declare_different("default", "ada", "bea")
    assert (first.person_id, first.other_id) == ("bea", "ada")
    assert (again.person_id, again.other_id) == ("ada", "bea")
    assert first.created_at == again.created_at
    assert (others(store, "ada"), others(store, "bea")) == (["bea"], ["ada"])
    assert rows(store) == 1


def test_what_cannot_be_declared(store: SqlStore) -> None:
    with pytest.raises(PersonNotFound, match="eve"):
        store.declare_different("default", "ada", "eve")
    with pytest.raises(InvalidRequest, match="different from themselves"):
        store.declare_different("default", "josé", "jose\u0301")
    with pytest.raises(CollectionNotFound):
        store.declare_different("absent", "ada", "bea")
    store.create_collection("staff", SPACE, DIMENSION, {})
    store.create_person("staff", "gail", {})
    with pytest.raises(PersonNotFound, match="gail"):
        store.declare_different("default", "ada", "gail")
    assert rows(store) == 0


def test_the_number_of_pairs_of_a_person_is_bounded(
    store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pairs, "MAX_DECLARED", 2)
    for other in ("bea", "cleo"):
        store.declare_different("default", "ada", other)
    with pytest.raises(InvalidRequest, match="'ada' is declared different from 2 persons"):
        store.declare_different("default", "dora", "ada")
    store.declare_different("default", "ada", "bea")  # it is there already


def test_pairs_are_listed_page_by_page(store: SqlStore) -> None:
    for other in ("dora", "josé", "bea", "cleo"):
        store.declare_different("default", other, "ada")
    page = store.different_from("default", "ada", None, 3)
    assert ([one.other_id for one in page.items], page.more) == (["bea", "cleo", "dora"], True)
    page = store.different_from("default", "ada", "dora", 3)
    assert ([one.other_id for one in page.items], page.more) == (["josé"], False)
    store.declare_different("default", "cleo", "bea")
    found, after = [], None
    while some := store.declared_pairs("default", after, 2):
        found += [{one.person_id, one.other_id} for one in some]
        after = some[-1].keys
    assert sorted(map(sorted, found)) == [
        ["ada", "bea"], ["ada", "cleo"], ["ada", "dora"], ["ada", "josé"], ["bea", "cleo"],
    ]  # fmt: skip


def test_counterparts_of_some_people(store: SqlStore) -> None:
    store.declare_different("default", "ada", "bea")
    store.declare_different("default", "cleo", "ada")
    record = store.collection("default")
    found = store.counterparts(record, ["ada", "bea", "dora", "nobody"])
    assert {one: sorted(theirs) for one, theirs in found.items()} == {
        "ada": ["bea", "cleo"], "bea": ["ada"],
    }  # fmt: skip
    assert store.counterparts(record, []) == {}


def test_a_withdrawn_pair_is_gone(store: SqlStore) -> None:
    store.declare_different("default", "ada", "bea")
    assert store.withdraw_different("default", "bea", "ada") in Erasure
    assert rows(store) == 0
    for other in ("bea", "cleo"):
        with pytest.raises(PairNotFound, match=f"'ada' and '{other}'"):
            store.withdraw_different("default", "ada", other)


def test_a_deleted_person_takes_the_pairs_along(store: SqlStore) -> None:
    store.declare_different("default", "ada", "bea")
    store.declare_different("default", "cleo", "bea")
    store.declare_different("default", "cleo", "dora")
    store.delete_person("default", "bea")
    assert (rows(store), others(store, "ada"), others(store, "cleo")) == (1, [], ["dora"])
    store.create_person("default", "bea", {})  # another one under this id
    assert others(store, "bea") == []
    store.delete_persons("default", ["cleo", "ada"])
    assert rows(store) == 0
    store.declare_different("default", "dora", "bea")
    store.delete_collection("default")
    assert rows(store) == 0


def test_pairs_follow_a_new_id(store: SqlStore) -> None:
    store.declare_different("default", "ada", "bea")
    store.update_person("default", "ada", new_id="ada.l")
    assert (others(store, "bea"), others(store, "ada.l")) == (["ada.l"], ["bea"])


def test_declared_persons_are_not_merged(store: SqlStore) -> None:
    store.declare_different("default", "ada", "bea")
    for source, target in (("ada", "bea"), ("bea", "ada")):
        with pytest.raises(DeclaredDifferent, match="withdraw the declaration"):
            store.merge_persons("default", source, target)
    store.withdraw_different("default", "ada", "bea")
    store.merge_persons("default", "ada", "bea")


def test_pairs_follow_a_merge(store: SqlStore) -> None:
    store.declare_different("default", "ada", "cleo")
    since = store.declare_different("default", "bea", "cleo").created_at
    store.declare_different("default", "dora", "ada")
    store.merge_persons("default", "ada", "bea")
    assert sorted(others(store, "bea")) == ["cleo", "dora"]
    assert others(store, "dora") == ["bea"]
    kept = {one.other_id: one.created_at for one in store.different_from(
        "default", "bea", None, 9).items}  # fmt: skip
    assert kept["cleo"] == since
    assert rows(store) == 2


def test_simultaneous_declarations_make_one_pair(store: SqlStore) -> None:
    with ThreadPoolExecutor(8) as threads:
        ways = [("ada", "bea"), ("bea", "ada")] * 8
        list(threads.map(lambda two: store.declare_different("default", *two), ways))
    assert rows(store) == 1


@pytest.fixture(params=["sqlite", "postgresql"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'restored.db'}"
    else:
        yield from fresh_postgres(request.getfixturevalue("postgres"))


def test_pairs_are_in_backups(store: SqlStore, target: str) -> None:
    since = store.declare_different("default", "ada", "bea").created_at
    data = b"".join(write_blocks(dump(store._database.engine)))
    restored = open_store(target)
    for _ in range(2):  # also over what is there
        load(restored._database.engine, read_blocks(io.BytesIO(data)), replace=True)
    (pair,) = restored.different_from("default", "bea", None, 9).items
    assert (pair.other_id, pair.created_at) == ("ada", since)


def test_erasing_overwrites_a_withdrawn_pair(tmp_path: Path) -> None:
    """What is left in SQLite's file does not tell who was whose twin."""
    path = tmp_path / "likeness.db"
    store = open_store(f"sqlite:///{path}")
    store.create_collection("default", SPACE, DIMENSION, {})
    generator = np.random.default_rng(0)
    for key in generator.permutation(300).tolist():
        store.create_person("default", f"p{key}", {})
    store.declare_different("default", "p7", "p8")
    made = str(store.different_from("default", "p7", None, 1).items[0].created_at)
    stored = made.removesuffix("+00:00").encode()
    assert store.withdraw_different("default", "p7", "p8") is Erasure.DONE
    files = [path, path.with_name(path.name + "-wal")]
    assert not any(stored in one.read_bytes() for one in files if one.exists())
