"""Filters: persons found by the index of metadata are those whose metadata has the members."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select, text

from app.errors import InvalidRequest
from app.gallery.backup_bodies import dump, load
from app.store.records import NewTemplate, PersonTemplate
from app.store.schema import migrate
from app.store.sql import terms
from app.store.sql.tables import metadata_terms
from app.store.store import Store
from tests.gallery.conftest import SPACE, open_engine, open_store, template
from tests.store.test_store import Draw
from tests.writing import store_person


def same(a: Any, b: Any) -> bool:
    """Whether two JSON values are equal: numbers as numbers, and true is none."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def has(metadata: dict[str, Any], wanted: dict[str, Any]) -> bool:
    return all(k in metadata and same(metadata[k], v) for k, v in wanted.items())


def check(store: Store, people: dict[str, dict[str, Any]], *wanted: dict[str, Any]) -> None:
    """Each filter finds whom comparing one by one finds."""
    record = store.collections.get("default")
    for one in wanted:
        found = store.persons.keys(record, one)
        expected = [
            store.persons.get("default", p).key for p, held in people.items() if has(held, one)
        ]
        assert found.tolist() == sorted(expected), one


def count(store: Store) -> int:
    with store.database.reading() as connection:
        query = select(func.count()).select_from(metadata_terms)
        return int(connection.execute(query).scalar_one())


PEOPLE: dict[str, dict[str, Any]] = {
    "text": {"site": "x", "n": 1}, "number": {"site": 5}, "like a number": {"site": "5"},
    "null": {"site": None}, "other": {"site": "y"}, "quoted": {"site": 'x"', 'a"b': "x"},
    "umlaut": {"site": "Z\u00fcrich", "gr\u00f6\u00dfe": "x"}, "nested": {"site": {"x": "x"}},
    "none": {}, "empty": {"site": ""}, "truth": {"site": True}, "text of null": {"site": "null"},
    "one": {"site": 1}, "one point nought": {"site": 1.0}, "nought": {"site": 0},
    "less than nought": {"site": -0.0}, "untruth": {"site": False}, "list": {"site": [1, "a"]},
    "list of truth": {"site": [True, "a"]}, "other list": {"site": ["a", 1]},
    "two": {"site": {"b": 1, "a": 2.0}}, "huge": {"site": 1e300}, "part": {"site": 0.1},
}  # fmt: skip


def test_every_kind_of_value_is_distinguished(store: Store) -> None:
    for person, metadata in PEOPLE.items():
        store.persons.create("default", person, metadata)
    check(
        store, PEOPLE, *PEOPLE.values(), {"site": "x", "n": 2}, {"absent": "x"},
        {"site": {"a": 2, "b": 1.0}}, {"site": [1.0, "a"]}, {"n": 1.0, "site": "x"},
    )  # fmt: skip
    record = store.collections.get("default")
    assert len(store.persons.keys(record, {"site": 1.0})) == 2
    assert len(store.persons.keys(record, {"site": True})) == 1


def test_a_filter_is_bounded(store: Store) -> None:
    record = store.collections.get("default")
    most = {f"m{i}": i for i in range(32)}
    store.persons.create("default", "ada", {**most, "more": 1})
    assert len(store.persons.keys(record, most)) == 1
    with pytest.raises(InvalidRequest, match="32 members; this one has 1,200"):
        store.persons.keys(record, {f"m{i}": i for i in range(1_200)})
    with pytest.raises(InvalidRequest, match="finite"):
        store.persons.keys(record, {"a": float("nan")})


class TestWrites:
    """The index follows whatever writes metadata, in the same transaction."""

    def test_enrolling_and_changing(self, store: Store, directions: Draw) -> None:
        one, two, three, four = directions(4)
        store_person(store, "default", "ada", {"team": "a", "n": 1}, [template(one, "1")])
        store_person(store, "default", "ada", None, [template(two, "2")])
        check(store, {"ada": {"team": "a", "n": 1}}, {"team": "a"}, {"team": "a", "n": 1})
        store_person(store, "default", "ada", {"team": "b", "n": 1}, [template(three, "3")])
        store.persons.create("default", "eve", {"team": "a"})
        store.persons.update("default", "eve", {"team": "c", "x": [1]})
        rows = [
            PersonTemplate("eve", {"team": "d"}, NewTemplate(four, "4")),
            PersonTemplate("bob", {"team": "b"}, NewTemplate(one, "5")),
            PersonTemplate("cid", None, NewTemplate(two, "6")),
        ]
        store.imports.enroll("default", rows, SPACE)
        people = {
            "ada": {"team": "b", "n": 1}, "eve": {"team": "d"}, "bob": {"team": "b"}, "cid": {},
        }  # fmt: skip
        check(store, people, *({"team": team} for team in "abcd"), {"n": 1}, {"x": [1]})
        assert (count(store), store.integrity.wrong_terms()) == (4, 0)

    def test_what_is_rolled_back_leaves_nothing(self, store: Store, directions: Draw) -> None:
        (vector,) = directions(1)
        rows = [
            PersonTemplate("ada", {"team": "a"}, NewTemplate(vector, "1")),
            PersonTemplate("eve\u202e", {"team": "a"}, NewTemplate(vector, "2")),
        ]
        with pytest.raises(InvalidRequest):
            store.imports.enroll("default", rows, SPACE)
        assert count(store) == 0

    def test_it_goes_with_its_person(self, store: Store) -> None:
        store.collections.create("other", SPACE, 16, {})
        for name, person in (("default", "a"), ("default", "b"), ("default", "c"), ("other", "a")):
            store.persons.create(name, person, {"team": "x", "who": person})
        assert len(store.persons.keys(store.collections.get("default"), {"team": "x"})) == 3
        store.persons.delete("default", "a")
        store.corrections.merge_persons("default", "b", "c")
        assert len(store.persons.keys(store.collections.get("default"), {"team": "x"})) == 1
        assert len(store.persons.keys(store.collections.get("other"), {"team": "x"})) == 1
        store.collections.delete("other")
        assert count(store) == 2

    def test_a_restore_and_a_migration_make_it(self, store: Store, engine_url: str) -> None:
        for person, metadata in PEOPLE.items():
            store.persons.create("default", person, metadata)
        engine = open_engine(engine_url)
        bodies = list(dump(engine))
        assert all(body.get("table") != "metadata_terms" for body in bodies)
        load(engine, iter(bodies), replace=True)
        check(store, PEOPLE, *PEOPLE.values())
        assert store.integrity.wrong_terms() == 0

    def test_the_doctor_finds_and_repairs_it(self, store: Store, engine_url: str) -> None:
        for person in ("ada", "eve"):
            store.persons.create("default", person, {"team": "a"})
        with open_engine(engine_url).begin() as connection:
            connection.execute(text("UPDATE persons SET metadata = '{\"team\": \"b\"}' "
                                    "WHERE person_id = 'eve'"))  # fmt: skip
        assert store.integrity.wrong_terms() == 1
        assert store.integrity.wrong_terms(repair=True) == 1
        assert store.integrity.wrong_terms() == 0
        check(store, {"ada": {"team": "a"}, "eve": {"team": "b"}}, {"team": "a"}, {"team": "b"})


def test_a_database_without_the_index_gets_it(empty_url: str) -> None:
    engine = open_engine(empty_url)
    migrate(engine, "0006")
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO collections (name, embedding_space, dimension, revision, metadata,"
                " created_at) VALUES ('default', 'es-test', 16, 0, '{}', '2026-01-01')"
            )
        )
        for person, metadata in {**PEOPLE, "spoilt": {"site": "x", "n": 2**70}}.items():
            connection.execute(
                text(
                    "INSERT INTO persons (collection, person_id, metadata, created_at, updated_at)"
                    " VALUES (1, :p, CAST(:m AS "
                    + ("json" if engine.dialect.name == "postgresql" else "text")
                    + "), '2026-01-01', '2026-01-01')"
                ),
                {"p": person, "m": json.dumps(metadata)},
            )
    migrate(engine)
    store = Store(engine)
    # As it is shown, so it is found.
    check(store, {**PEOPLE, "spoilt": {"site": "x", "n": str(2**70)}}, *PEOPLE.values())
    assert store.integrity.wrong_terms() == 0


def test_many_persons_and_members_that_most_have(
    store: Store, monkeypatch: pytest.MonkeyPatch, directions: Draw
) -> None:
    """Whichever of the members is the rarest, and however far they are counted."""
    monkeypatch.setattr(terms, "COUNTED", (5, 50))
    people = {
        f"p{i}": {"all": True, "half": i % 2, "few": i % 40, "third": i % 3} for i in range(200)
    }
    vectors = iter(directions(200))
    rows = [PersonTemplate(p, m, NewTemplate(next(vectors), p)) for p, m in people.items()]
    store.imports.enroll("default", rows, SPACE)
    check(
        store, people, {"all": True}, {"all": True, "half": 1}, {"half": 0, "few": 7},
        {"half": 1, "few": 7}, {"third": 1, "half": 1, "all": True, "few": 7}, {"all": False},
        {"all": True, "absent": 1},
    )  # fmt: skip


values = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.sampled_from([0.0, 1.0, -0.0, 0.5])
    | st.sampled_from(["", "1", "true", "\u00e9", "e\u0301", '"']),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("ab"), inner),
    max_leaves=4,
)  # fmt: skip
objects = st.dictionaries(st.sampled_from(["a", "b", "\u00fc", '"']), values, max_size=3)


@pytest.fixture(scope="module")
def shared_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    store = open_store(f"sqlite:///{tmp_path_factory.mktemp('terms') / 'likeness.db'}")
    store.collections.create("default", SPACE, 16, {})
    yield store
    store.close()


@pytest.mark.slow
@settings(
    max_examples=50,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(held=st.lists(objects, min_size=1, max_size=4), wanted=objects.filter(bool))
def test_it_agrees_with_comparing_one_by_one(
    shared_store: Store, held: list[dict[str, Any]], wanted: dict[str, Any]
) -> None:
    people = {}
    for i, metadata in enumerate(held):
        store_person(shared_store, "default", f"p{i}", metadata, [])
        people[f"p{i}"] = metadata
    check(shared_store, people, wanted, *(one for one in held if one))
    for person in people:
        shared_store.persons.delete("default", person)
    assert count(shared_store) == 0


def test_nothing_of_it_stays_in_the_file(tmp_path: Path) -> None:
    """SQLite: what is deleted is overwritten."""
    path = tmp_path / "likeness.db"
    store = open_store(f"sqlite:///{path}")
    store.collections.create("default", SPACE, 16, {})
    for person in ("ada", "eve"):
        store.persons.create("default", person, {"badge": person})
    record = store.collections.get("default")
    found = {one: terms.terms_of(record.key, {"badge": one})[0] for one in ("ada", "eve")}
    store.persons.delete("default", "ada")
    data = b"".join(file.read_bytes() for file in tmp_path.glob("likeness.db*"))
    stored = {one: term.to_bytes(8, "big", signed=True) in data for one, term in found.items()}
    assert stored == {"ada": False, "eve": True}


def test_keys_are_integers(store: Store) -> None:
    """Keys come as integers that rise, even if there are none."""
    record = store.collections.get("default")
    found = store.persons.keys(record, {"a": 1})
    assert (found.dtype, found.shape) == (np.int64, (0,))
