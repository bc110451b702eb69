"""Rows of earlier versions that would not be stored today break nothing, are found and changed."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from app.errors import PersonExists, PersonNotFound
from app.gallery.backup_bodies import dump, load
from app.gallery.backup_stream import as_file, read_blocks, write_blocks
from app.importing.gallery_export import export
from app.store.metadata import problem_of
from app.store.records import InvalidRow
from app.store.schema import migrate
from app.store.store import Store
from tests.gallery.conftest import DIMENSION, SPACE, open_engine, open_store, template
from tests.store.test_store import Draw
from tests.writing import store_person

STORED = {
    "deep": '{"keep": 1, "a": ' + '{"a": ' * 900 + "1" + "}" * 901,
    "deeper": '{"a": ' * 5_000 + "1" + "}" * 5_000,
    "large": json.dumps({"small": 1, "blob": "x" * 4_000_000}),
    "nul": '{"note": "a\\u0000b"}',
    "surrogate": '{"note": "\\ud83d"}',
}
NOT_IN_POSTGRESQL = {"nan": '{"n": NaN, "m": -Infinity, "keep": 1}'}
SHOWN = {
    "deeper": {},
    "large": {"small": 1},
    "nul": {"note": "a\ufffdb"},
    "surrogate": {"note": "\ufffd"},
    "nan": {"n": None, "m": None, "keep": 1},
}
COMPOSED, DECOMPOSED = "jos\u00e9", "jose\u0301"


def run(engine: Engine, statement: str, **values: object) -> None:
    """Where PostgreSQL wants to know that a text is JSON, `:content` says so."""
    if engine.dialect.name == "postgresql":
        statement = statement.replace(":content", "CAST(:content AS json)")
    with engine.begin() as connection:
        connection.execute(text(statement), values)


@pytest.fixture
def engine(engine_url: str) -> Engine:
    return open_engine(engine_url)


@pytest.fixture
def stored(engine: Engine, store: Store, directions: Draw) -> dict[str, str]:
    """Persons and faces as earlier versions wrote them, and one that is well; the JSON by person,
    who is named by what is wrong."""
    rows = STORED | (NOT_IN_POSTGRESQL if engine.dialect.name == "sqlite" else {})
    for name, vector in zip([*rows, "well"], directions(len(rows) + 1), strict=True):
        store_person(store, "default", name, {"n": 1}, [template(vector, name)])
    for name, content in rows.items():
        run(engine, "UPDATE persons SET metadata = :content WHERE person_id = :name",
            content=content, name=name)  # fmt: skip
        run(engine, "UPDATE templates SET quality = :content WHERE content_digest = :name",
            content=content, name=name)  # fmt: skip
    run(engine, "UPDATE collections SET metadata = :content", content=STORED["surrogate"])
    return rows


def check_shown(store: Store, names: Any) -> None:
    people = {one.person_id: one for one in store.persons.page("default", None, 100).items}
    assert people.keys() == {*names, "well"}
    for name in names:
        metadata = people[name].metadata
        json.dumps(metadata, allow_nan=False, ensure_ascii=False).encode()
        if name == "deep":
            assert metadata["keep"] == 1
        else:
            assert metadata == SHOWN[name]
    assert people["well"].metadata == {"n": 1}


def test_lists_show_what_can_be_shown_and_say_so(store: Store, stored: dict[str, str]) -> None:
    check_shown(store, stored)
    for person in store.persons.page("default", None, 100).items:
        problem = problem_of(person.metadata)
        assert bool(problem) == (person.person_id != "well")
    for face in store.templates.page("default", None, None, 100).items:
        assert bool(problem_of(face.quality)) == (face.person_id != "well")
    (collection,) = store.collections.page(None, 10).items
    assert collection.metadata == SHOWN["surrogate"]
    assert "U+D83D" in (problem_of(collection.metadata) or "")
    assert store.integrity.wrong_terms(repair=True) == len(
        stored
    )  # they were changed behind its back
    (found,) = store.persons.keys(collection, {"n": 1})
    assert found == store.persons.get("default", "well").key


def test_an_export_is_written(store: Store, stored: dict[str, str], tmp_path: Path) -> None:
    for kind in ("jsonl", "zip", "parquet"):
        file = tmp_path / f"gallery.{kind}"
        assert (
            export(store, store.collections.get("default"), file, lambda _: None) == len(stored) + 1
        )
    lines = (tmp_path / "gallery.jsonl").read_bytes().splitlines()
    rows = {row["person_id"]: row["metadata"] for row in map(json.loads, lines)}
    assert rows["large"] == SHOWN["large"]


def test_a_backup_holds_it_and_a_restore_makes_it_storable(
    store: Store, engine: Engine, stored: dict[str, str], tmp_path: Path
) -> None:
    backup = b"".join(write_blocks(dump(engine)))
    assert STORED["surrogate"].encode() in backup
    other = f"sqlite:///{tmp_path / 'other.db'}"
    restored = open_store(other)
    held = load(open_engine(other), read_blocks(as_file([backup])), replace=False)
    assert held.changed == 2 * len(stored) + 1
    check_shown(restored, stored)
    assert not list(restored.integrity.invalid_rows())
    again = b"".join(write_blocks(dump(open_engine(other))))
    held = load(engine, read_blocks(as_file([again])), replace=True)
    assert held.changed == 0
    check_shown(store, stored)


def test_a_backup_of_an_earlier_version_is_restored(
    store: Store, engine: Engine, directions: Draw
) -> None:
    """It holds values, not JSON text, and ids as they came."""
    for name, vector in zip("abc", directions(3), strict=True):
        store_person(store, "default", name, {}, [template(vector, name)])
    bodies = list(dump(engine))
    people = next(b["rows"] for b in bodies if b.get("table") == "persons")
    people[0]["metadata"] = {"n": float("nan"), "deep": [[[]]]}
    people[0]["person_id"], people[1]["person_id"] = DECOMPOSED, COMPOSED
    people[2]["person_id"] = "zoe\u0308"
    held = load(engine, iter(bodies), replace=True)
    assert (held.changed, held.clashes) == (1, 1)
    assert store.persons.get("default", DECOMPOSED).metadata == {"n": None, "deep": [[[]]]}
    assert store.persons.get("default", "zoe\u0308").person_id == "zo\u00eb"


def test_the_doctor_finds_and_changes_it(
    store: Store, stored: dict[str, str], engine: Engine
) -> None:
    invalid = list(store.integrity.invalid_rows())
    assert {(one.kind, one.name) for one in invalid} == {
        ("collection", "default"),
        *(("person", name) for name in stored),
        *(("face", face.face_id) for face in store.templates.page("default", None, None, 100).items
          if face.person_id != "well"),
    }  # fmt: skip
    kept: list[InvalidRow] = []
    changed_since = next(one for one in invalid if one.name == "nul")
    store.persons.update("default", "nul", {"note": "new"})
    assert not store.integrity.store_corrected(changed_since, kept.append)
    store.collections.create("gone", SPACE, DIMENSION, {})
    store.collections.delete("gone")
    assert not store.integrity.store_corrected(replace(invalid[-1], collection="gone"), kept.append)
    store.persons.delete("default", "deeper")
    assert [store.integrity.store_corrected(one, kept.append) for one in invalid].count(True) == (
        len(invalid) - 3  # the person "nul", "deeper" and her face
    )
    assert {one.original for one in kept if one.name == "large"} == {stored["large"]}
    assert not list(store.integrity.invalid_rows())
    assert store.persons.get("default", "nul").metadata == {"note": "new"}
    with engine.connect() as connection:
        query = "SELECT CAST(metadata AS text) FROM persons WHERE person_id = 'large'"
        assert json.loads(connection.execute(text(query)).scalar_one()) == SHOWN["large"]


def insert_person(engine: Engine, person_id: str) -> None:
    run(
        engine,
        "INSERT INTO persons (collection, person_id, metadata, created_at, updated_at) VALUES"
        " (1, :person_id, :content, '2026-01-01', '2026-01-01')",
        person_id=person_id, content="{}",
    )  # fmt: skip


def test_a_migration_composes_ids_and_merges_no_persons(empty_url: str, directions: Draw) -> None:
    engine = open_engine(empty_url)
    migrate(engine, "0005")
    run(
        engine,
        "INSERT INTO collections (name, embedding_space, dimension, revision, metadata, created_at)"
        " VALUES ('default', 'es-test', 16, 0, :content, '2026-01-01')",
        content="{}",
    )
    twice = ("q\u0323\u0307", "q\u0307\u0323")  # one form only: U+0071 U+0323 U+0307
    for person_id in ("ada", "zoe\u0308", DECOMPOSED, COMPOSED, twice[1], twice[0], "\u212b"):
        insert_person(engine, person_id)
    migrate(engine)
    store = Store(engine)
    people = {one.person_id for one in store.persons.page("default", None, 100).items}
    assert people == {"ada", "zo\u00eb", COMPOSED, DECOMPOSED, *twice, "\u00c5"}
    clashes = {(one.person_id, one.other_id) for one in store.integrity.clashing_ids()}
    assert clashes == {(DECOMPOSED, COMPOSED), (twice[1], twice[0])}
    # Each is reached by what it had, and every other form means the one in Form C.
    one, other = store.persons.get("default", COMPOSED), store.persons.get("default", DECOMPOSED)
    assert one.key != other.key
    assert store.persons.get("default", "\u212b").person_id == "\u00c5"
    (vector,) = directions(1)
    faces = store_person(store, "default", DECOMPOSED, {"n": 2}, [template(vector, "1")])
    assert faces[0].face.person_id == DECOMPOSED
    assert store.persons.get("default", COMPOSED).templates == 0
    with pytest.raises(PersonExists):
        store.persons.create("default", DECOMPOSED, {})
    merged = store.corrections.merge_persons("default", DECOMPOSED, COMPOSED)
    assert (merged.person_id, merged.templates) == (COMPOSED, 1)
    assert store.persons.get("default", DECOMPOSED).person_id == COMPOSED
    assert store.persons.update("default", twice[1], new_id="q2").person_id == "q2"
    assert store.integrity.clashing_ids() == []
    store.persons.delete("default", DECOMPOSED)
    with pytest.raises(PersonNotFound):
        store.persons.get("default", COMPOSED)


@pytest.mark.slow
def test_a_page_of_large_metadata_ends_early(
    engine: Engine, store: Store, directions: Draw
) -> None:
    """A thousand of them together would be gigabytes; nobody is left out."""
    names = [f"p{number}" for number in range(9)]
    for name, vector in zip(names, directions(len(names)), strict=True):
        store_person(store, "default", name, None, [template(vector, name)])
    run(engine, "UPDATE persons SET metadata = :content", content=STORED["large"])
    run(engine, "UPDATE templates SET quality = :content", content=STORED["large"])
    pages, after = [store.persons.page("default", None, 1_000)], ""
    while pages[-1].more:
        after = pages[-1].items[-1].person_id
        pages.append(store.persons.page("default", after, 1_000))
    assert [one.person_id for page in pages for one in page.items] == names
    assert [len(page.items) for page in pages] == [2, 2, 2, 2, 1]
    assert len(store.templates.page("default", None, None, 1_000).items) == 2
    assert len(list(store.integrity.invalid_rows())) == 2 * len(names)
