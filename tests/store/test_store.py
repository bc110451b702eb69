"""What a store promises, over every database it can have."""

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sqlalchemy import inspect
from sqlalchemy.exc import IntegrityError

from app.errors import CollectionExists, CollectionNotFound, PersonExists
from app.store.records import CollectionRecord, NewTemplate, PersonTemplate
from app.store.sql.embeddings import MOST_SAMPLED
from app.store.sql.tables import metadata
from app.store.store import Store
from tests.gallery.conftest import DIMENSION, SPACE, open_engine, open_gallery, open_store, template
from tests.writing import store_person

Draw = Callable[[int], NDArray[np.float32]]
ROOT = Path(__file__).parents[2]


def enroll(store: Store, person: str, vectors: NDArray[np.float32]) -> list[int]:
    """The keys of the new templates."""
    new = [template(vector, f"{person}-{i}") for i, vector in enumerate(vectors)]
    return [one.face.template_key for one in store_person(store, "default", person, None, new)]


def test_migrations_make_the_tables_the_code_knows(empty_url: str) -> None:
    engine = open_engine(empty_url)
    open_store(empty_url)
    found = inspect(engine)
    for table in metadata.sorted_tables:
        columns = {column["name"]: column["nullable"] for column in found.get_columns(table.name)}
        assert columns == {column.name: column.nullable for column in table.columns}
        types = {column["name"]: column["type"] for column in found.get_columns(table.name)}
        for column in table.columns:
            wanted = column.type._unwrapped_dialect_impl(engine.dialect)
            assert type(types[column.name])._type_affinity is type(wanted)._type_affinity
            assert getattr(types[column.name], "length", None) == getattr(wanted, "length", None)
            assert getattr(types[column.name], "collation", None) == (
                getattr(wanted, "collation", None)
            )
        unique = {tuple(u["column_names"]) for u in found.get_unique_constraints(table.name)}
        wanted_unique = {
            tuple(column.name for column in one.columns)
            for one in table.constraints
            if type(one).__name__ == "UniqueConstraint"
        }
        assert unique == wanted_unique
        indexed = {
            tuple(i["column_names"])
            for i in found.get_indexes(table.name)
            if "duplicates_constraint" not in i
        }
        assert indexed == {tuple(c.name for c in index.columns) for index in table.indexes}
        targets = {key["referred_table"] for key in found.get_foreign_keys(table.name)}
        assert targets == {key.column.table.name for key in table.foreign_keys}


def test_the_clock_is_the_callers(engine_url: str, store: Store) -> None:
    moment = datetime(2001, 2, 3, 4, 5, 6, 789, tzinfo=UTC)
    store = open_store(engine_url, clock=lambda: moment)
    assert store.persons.create("default", "ada", {}).created_at == moment
    (stored,) = store_person(
        store, "default", "ada", None, [template(np.eye(16, dtype=np.float32)[0], "")]
    )
    assert stored.face == store.templates.get("default", stored.face.face_id)


def test_what_was_written_is_read(store: Store, directions: Draw) -> None:
    nested = {"a": [1, 2.5, None, True], "ü": {"line": "\n", "emoji": "\N{GRINNING FACE}"}}
    made = store.collections.create("staff", SPACE, DIMENSION, nested, {"target_fpir": 0.1})
    assert made == store.collections.get("staff")
    assert (made.metadata, made.policy) == (nested, {"target_fpir": 0.1})
    vectors = directions(3)
    stored = store_person(store, "staff", "ada", nested, [template(v, str(v[0])) for v in vectors])
    person = store.persons.get("staff", "ada")
    assert (person.metadata, person.templates) == (nested, 3)
    faces, found = store.embeddings.of_person("staff", "ada")
    assert {face.face_id for face in faces} == {one.face.face_id for one in stored}
    order = {face.face_id: row for face, row in zip(faces, found, strict=True)}
    for one, vector in zip(stored, vectors, strict=True):
        assert np.array_equal(order[one.face.face_id], vector)
    assert store.templates.by_key([one.face.template_key for one in stored]) == {
        one.face.template_key: one.face for one in stored
    }
    assert store.collections.count(made).templates == 3
    assert store.collections.delete("staff").templates == 3
    with pytest.raises(CollectionNotFound):
        store.collections.get("staff")


def test_pages_of_some_collections(store: Store) -> None:
    made = {name: store.collections.create(name, SPACE, DIMENSION, {}) for name in "abcd"}
    some = {"d", "a", "c", "absent"}
    first = store.collections.page(None, 2, some)
    assert (first.items, first.more) == ([made["a"], made["c"]], True)
    rest = store.collections.page("c", 2, some)
    assert (rest.items, rest.more) == ([made["d"]], False)
    assert store.collections.page(None, 2, frozenset()).items == []


def test_a_prefix_that_cannot_be_stored(store: Store) -> None:
    assert store.persons.page("default", None, 10, prefix="\0").items == []
    with pytest.raises(CollectionNotFound):
        store.persons.page("absent", None, 10, prefix="\0")


def test_enrolment_is_all_or_nothing(store: Store, directions: Draw) -> None:
    good, bad = (template(vector, "a") for vector in directions(2))
    object.__setattr__(bad, "content_digest", None)  # the database refuses NULL
    before = store.collections.get("default")
    with pytest.raises(IntegrityError):
        store_person(store, "default", "ada", {}, [good, bad])
    assert store.persons.page("default", None, 10).items == []
    assert store.collections.get("default") == before


def test_the_same_content_is_stored_once(store: Store, directions: Draw) -> None:
    vectors = directions(3)
    same = [template(vectors[0], "a"), template(vectors[1], "b"), template(vectors[0], "a")]
    first = store_person(store, "default", "ada", None, same)
    assert [one.duplicate for one in first] == [False, False, True]
    assert first[0].face == first[2].face
    revision = store.collections.get("default").revision
    again = store_person(store, "default", "ada", None, same[:2])
    assert [(one.duplicate, one.face) for one in again] == [(True, one.face) for one in first[:2]]
    assert store.collections.get("default").revision == revision
    assert not store_person(store, "default", "bob", None, same[:1])[0].duplicate


@pytest.mark.slow
def test_more_keys_than_a_statement_takes(store: Store, directions: Draw) -> None:
    (key,) = enroll(store, "ada", directions(1))
    assert list(store.templates.by_key([*range(10**6, 10**6 + 50_000), key])) == [key]


def test_names_exist_once(store: Store) -> None:
    with pytest.raises(CollectionExists):
        store.collections.create("default", SPACE, DIMENSION, {})
    store.persons.create("default", "ada", {})
    with pytest.raises(PersonExists):
        store.persons.create("default", "ada", {})


def test_a_page_ends_where_its_json_is_long(store: Store, directions: Draw) -> None:
    """Sixteen rows of 16 KiB are 256 KiB."""
    long = {"text": "x" * 16_000}
    names = [f"p{number:02}" for number in range(20)]
    for name, vector in zip(names, directions(len(names)), strict=True):
        store_person(store, "default", name, long, [replace(template(vector, name), quality=long)])
        store.collections.create(name, SPACE, DIMENSION, long)
    for first, rest in (
        (
            store.persons.page("default", None, 1_000),
            lambda last: store.persons.page("default", last, 1_000),
        ),
        (store.templates.page("default", None, None, 1_000), None),
        (store.collections.page(None, 1_000), None),
    ):
        assert (len(first.items) in (16, 17), first.more) == (True, True)
        if rest is not None:
            following = rest(first.items[-1].person_id)
            assert [one.person_id for one in [*first.items, *following.items]] == names
            assert not following.more


def test_pages_are_in_the_order_of_bytes(store: Store) -> None:
    names = ["Z", "a", "a b", "a-b", "ab", "ä", "\N{GRINNING FACE}"]
    for name in reversed(names):
        store.persons.create("default", name, {})
    seen: list[str] = []
    more, after = True, None
    while more:
        page = store.persons.page("default", after, 2)
        seen += [person.person_id for person in page.items]
        more, after = page.more, seen[-1]
    assert seen == names


class TestFollowing:
    """What a derived index lives on."""

    def test_a_database_has_one_id(self, engine_url: str, store: Store, tmp_path: Path) -> None:
        assert store.database.identity() == open_store(engine_url).database.identity()
        assert len(store.database.identity()) == 36
        other = open_store(f"sqlite:///{tmp_path / 'other.db'}")
        assert other.database.identity() != store.database.identity()

    def test_each_revision_has_its_mark(self, store: Store, directions: Draw) -> None:
        vectors = directions(3)
        states: list[CollectionRecord] = [store.collections.get("default")]
        enroll(store, "ada", vectors[:2])
        states.append(store.collections.get("default"))
        enroll(store, "bob", vectors[2:])
        states.append(store.collections.get("default"))
        store.persons.delete("default", "ada")
        states.append(store.collections.get("default"))
        assert [state.revision for state in states] == [0, 1, 2, 3]
        assert states[0].stamp == ""
        assert len({state.stamp for state in states}) == 4
        for state in states:
            assert store.changes.stamp_at(states[-1], state.revision) == state.stamp
        assert store.changes.stamp_at(states[-1], 4) is None
        assert store.changes.since(states[-1], 1).stamp == states[-1].stamp

    def test_changes_list_what_was_added_and_removed(self, store: Store, directions: Draw) -> None:
        vectors = directions(4)
        first = enroll(store, "ada", vectors[:2])
        record = store.collections.get("default")
        passing = enroll(store, "bob", vectors[2:3])
        store.persons.delete("default", "bob")
        stays = enroll(store, "eve", vectors[3:])
        store.persons.delete("default", "ada")
        news = store.changes.since(record, record.revision)
        assert news.added.keys.tolist() == stays
        assert np.array_equal(news.added.vectors, vectors[3:])
        assert sorted(news.removed.tolist()) == sorted(first + passing)
        assert news.revision == record.revision + 4

    def test_everything_page_by_page(self, store: Store, directions: Draw) -> None:
        for person in range(5):
            enroll(store, f"p{person}", directions(3))
        record = store.collections.get("default")
        pages = []
        key = 0
        while len(page := store.changes.templates_after(record, key, 4).keys):
            pages.append(page.tolist())
            key = int(page[-1])
        assert [len(page) for page in pages] == [4, 4, 4, 3]
        assert (
            list(chain.from_iterable(pages)) == store.changes.since(record, 0).added.keys.tolist()
        )
        store.collections.delete("default")
        with pytest.raises(CollectionNotFound):
            store.changes.templates_after(record, 0, 4)

    def test_some_by_key(self, store: Store, directions: Draw) -> None:
        vectors = directions(4)
        keys = enroll(store, "ada", vectors)
        store.collections.create("other", SPACE, DIMENSION, {})
        new = [template(vectors[0], "x")]
        (elsewhere,) = store_person(store, "other", "ada", None, new)
        record = store.collections.get("default")
        asked = [keys[3], keys[1], elsewhere.face.template_key, keys[3] + 1000]
        found = store.embeddings.by_key(record, asked)
        assert found.keys.tolist() == [keys[1], keys[3]]
        assert np.array_equal(found.vectors, vectors[[1, 3]])
        assert store.embeddings.by_key(record, []).keys.tolist() == []


def test_a_killed_process_loses_nothing_acknowledged(engine_url: str) -> None:
    code = (
        "import os, sys; import numpy as np\n"
        "from tests.gallery.conftest import open_gallery, template\n"
        "from tests.writing import enroll_person\n"
        "gallery = open_gallery(sys.argv[1])\n"
        "vector = np.eye(16, dtype=np.float32)[3]\n"
        "enroll_person(gallery, 'default', 'ada', None, [template(vector, 'a')])\n"
        "os.kill(os.getpid(), 9)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, engine_url], cwd=ROOT, check=False)
    assert killed.returncode == -9
    row = open_gallery(engine_url).identify("default", np.eye(16, dtype=np.float32)[3:4], 1).rows[0]
    assert row[0].face.person_id == "ada"


@pytest.mark.slow
def test_many_processes_open_a_new_database_at_once(empty_url: str) -> None:
    code = (
        "import sys\nfrom tests.gallery.conftest import open_gallery\nopen_gallery(sys.argv[1])\n"
    )
    starts = [subprocess.Popen([sys.executable, "-c", code, empty_url], cwd=ROOT) for _ in range(4)]
    assert [start.wait(60) for start in starts] == [0, 0, 0, 0]
    record = open_gallery(empty_url).store.collections.get("default")
    assert (record.embedding_space, record.dimension) == (SPACE, DIMENSION)


@pytest.mark.parametrize("count", [1, 19, 20, 21, 22, 39, 40, 41, 403])
def test_templates_of_a_sample_are_evenly_spaced(
    store: Store, directions: Draw, count: int
) -> None:
    keys = enroll(store, "ada", directions(count))
    enroll(store, "bob", directions(3))
    found = store.embeddings.sample(
        store.collections.get("default"), 1000, np.random.default_rng(0)
    ).keys.tolist()
    places = [keys.index(key) for key in found if key in keys]
    assert len(places) == min(count, MOST_SAMPLED)
    assert (places[0], places[-1]) == (0, count - 1)
    steps = np.diff(places)
    assert count == 1 or steps.max() - steps.min() <= 1


def test_crops_that_the_policy_no_longer_keeps_are_not_stored(
    store: Store, directions: Draw
) -> None:
    """It may be changed after a photo was analysed, or while an import runs."""
    one, other = (
        NewTemplate(vector, f"{i}", crop=b"png") for i, vector in enumerate(directions(2))
    )
    store.collections.update("default", None, {})
    store_person(store, "default", "ada", None, [one])
    store.imports.enroll("default", [PersonTemplate("bob", None, other)], SPACE)
    assert [face.crop for face in store.embeddings.exported("default", 0, 9)] == [None, None]


def test_reads_of_one_state(store: Store) -> None:
    """An export reads for minutes. Other threads read and write as ever."""
    store.collections.create("staff", SPACE, 4, {})
    store.persons.create("staff", "ada", {})

    def ids() -> list[str]:
        return [one.person_id for one in store.persons.page("staff", None, 9).items]

    with ThreadPoolExecutor(1) as another, store.database.one_state():
        assert ids() == ["ada"]
        another.submit(store.persons.create, "staff", "grace", {}).result()
        another.submit(store.collections.create, "new", SPACE, 4, {}).result()
        assert another.submit(ids).result() == ["ada", "grace"]
        assert ids() == ["ada"]
        with pytest.raises(CollectionNotFound):
            store.collections.get("new")
    assert ids() == ["ada", "grace"]
    assert store.collections.get("new").name == "new"
