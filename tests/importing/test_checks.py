"""Rows that are checked together get the same outcomes as one after the other."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.gallery.gallery import Gallery
from app.importing import local
from app.importing.local import LocalImport
from app.importing.options import ImportOptions, OnConflict
from app.importing.outcomes import RowOutcome, RowResult
from app.importing.source_rows import Row
from app.recognition.enroll import template_from_embedding
from app.services import Services, build_services
from app.settings import Settings
from tests.writing import delete_person, enroll_person

OPTIONS = ImportOptions(near_duplicate=0.9, on_conflict=OnConflict.SKIP)


@pytest.fixture
def services(tmp_path: Path) -> Iterator[Services]:
    services = build_services(Settings(data_dir=tmp_path / "data"))
    yield services
    services.close()


def run(services: Services, collection: str, rows: list[Row]) -> list[RowOutcome]:
    record = services.gallery.create_collection(collection, {})
    reported: list[RowOutcome] = []
    LocalImport(services, record, OPTIONS).run(iter(rows), reported.append)
    return reported


def people(dimension: int) -> list[Row]:
    """Faces near their person's own, some nearly the same, some of them under another's name."""
    generator = np.random.default_rng(11)
    centres = generator.normal(size=(30, dimension))
    rows = []
    for index in range(240):
        person = int(generator.integers(30))
        spread = 0.15 if index % 5 == 0 else 0.7
        vector = centres[person] + spread * generator.normal(size=dimension)
        name = person if index % 9 else (person + 1) % 30
        rows.append(Row(f"t:{index}", f"p{name}", embedding=vector.astype(np.float32)))
    return rows


@pytest.mark.slow
def test_however_many_are_checked_together(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = people(services.pack.recogniser.dimension)
    results = {}
    monkeypatch.setattr(local, "SECONDS_A_TRANSACTION", 60.0)
    for together in (1, 7, 256):
        monkeypatch.setattr(local, "CHECKED_A_TRANSACTION", together)
        reported = run(services, f"c{together}", rows)
        results[together] = [(one.result, one.reason, one.conflict_with) for one in reported]
    assert results[1] == results[7] == results[256]
    reasons = {reason for _, reason, _ in results[1]}
    assert reasons == {"", "near_duplicate", "conflict"}


def test_one_s_own_near_face_counts_also_where_another_s_is_nearer(services: Services) -> None:
    """Twins: what the person has already is no conflict."""
    dimension = services.pack.recogniser.dimension
    probe = np.zeros(dimension, np.float32)
    probe[0] = 1
    own, other = probe.copy(), probe.copy()
    own[1], other[1] = 0.3, -0.2
    rows = [
        Row("1", "twin a", embedding=own),
        Row("2", "twin b", embedding=other),
        Row("3", "twin a", embedding=probe),
    ]
    reported = run(services, "twins", rows)
    assert [one.reason for one in reported] == ["", "conflict", "near_duplicate"]
    rows[1] = Row("2", "twin b", embedding=other)
    record = services.gallery.create_collection("both", {})
    LocalImport(services, record, ImportOptions()).run(iter(rows[:2]), lambda _: None)
    reported = []
    LocalImport(services, record, OPTIONS).run(iter(rows[2:]), reported.append)
    assert [one.reason for one in reported] == ["near_duplicate"]


def test_one_s_own_face_counts_behind_several_that_are_nearer(services: Services) -> None:
    """A person under three ids, to none of which the face is nearly the same."""
    dimension = services.pack.recogniser.dimension
    rows = []
    for number, name in enumerate(("ada", "ada-2", "ada.old")):
        vector = np.zeros(dimension, np.float32)
        vector[0], vector[1] = 1, 1.2 - 0.1 * number
        rows.append(Row(name, name, embedding=vector))
    probe = np.zeros(dimension, np.float32)
    probe[0] = 1
    record = services.gallery.create_collection("one", {})
    LocalImport(services, record, ImportOptions()).run(iter(rows), lambda _: None)
    reported: list[RowOutcome] = []
    options = ImportOptions(near_duplicate=0.6, on_conflict=OnConflict.OFF)
    LocalImport(services, record, options).run(
        iter([Row("4", "ada", embedding=probe)]), reported.append
    )
    assert [one.reason for one in reported] == ["near_duplicate"]
    assert reported[0].similarity == pytest.approx(1 / np.hypot(1, 1.2), abs=1e-4)
    # Also after another row of the same person, which is not stored yet.
    far = np.zeros(dimension, np.float32)
    far[2] = 1
    reported.clear()
    LocalImport(services, record, options).run(
        iter([Row("5", "ada", embedding=far), Row("6", "ada", embedding=probe)]), reported.append
    )
    assert [one.reason for one in reported] == ["", "near_duplicate"]


def test_a_person_who_is_deleted_meanwhile_ends_no_import(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    dimension = services.pack.recogniser.dimension
    faces = np.eye(4, dimension, dtype=np.float32)
    record = services.gallery.create_collection("deleted", {})
    rows = [Row(name, name, embedding=face) for name, face in zip("abcd", faces, strict=True)]
    LocalImport(services, record, ImportOptions()).run(iter(rows), lambda _: None)
    compare = Gallery.compare

    def comparing(gallery: Gallery, *arguments: Any) -> Any:
        delete_person(gallery, "deleted", "a")
        return compare(gallery, *arguments)

    monkeypatch.setattr(Gallery, "compare", comparing)
    probe = np.array([0.1, 1, 0.9, 0.8] + [0] * (dimension - 4), np.float32)
    reported: list[RowOutcome] = []
    options = ImportOptions(near_duplicate=0.9, on_conflict=OnConflict.OFF)
    LocalImport(services, record, options).run(
        iter([Row("5", "a", embedding=probe)]), reported.append
    )
    assert [one.result for one in reported] == [RowResult.ENROLLED]


def test_a_face_like_somebody_declared_different_is_no_conflict(services: Services) -> None:
    vectors = np.eye(services.pack.recogniser.dimension, dtype=np.float32)
    own, other, probe = vectors[0], vectors[0] + 0.2 * vectors[1], vectors[0] + 0.3 * vectors[1]
    third = vectors[0] + 0.4 * vectors[1]
    rows = [
        Row("1", "ada", embedding=own),
        Row("2", "ada", embedding=probe),
    ]
    found = {}
    for name, people in {
        "undeclared": ["twin"],
        "declared": ["twin"],
        "two": ["twin", "x"],
    }.items():
        record = services.gallery.create_collection(name, {})
        services.gallery.store.persons.create(name, "ada", {})
        for person, vector in zip(people, (other, third), strict=False):
            made = [template_from_embedding(services, vector.tolist())]
            enroll_person(services.gallery, name, person, None, made)
        if name != "undeclared":
            services.gallery.store.pairs.declare(name, "ada", "twin")
        reported: list[RowOutcome] = []
        options = ImportOptions(on_conflict=OnConflict.SKIP)
        LocalImport(services, record, options).run(iter(rows), reported.append)
        found[name] = [one.conflict_with for one in reported]
    # A third person, whom the declared one hides, is a conflict all the same.
    assert found == {"undeclared": ["twin"] * 2, "declared": [None] * 2, "two": ["x"] * 2}


def test_a_declaration_lets_a_refused_row_be_looked_at_again(services: Services) -> None:
    vectors = np.eye(services.pack.recogniser.dimension, dtype=np.float32)
    record = services.gallery.require("default")
    rows = [Row("1", "twin", embedding=vectors[0]), Row("2", "ada", embedding=vectors[0])]
    options, reasons = ImportOptions(on_conflict=OnConflict.SKIP), []
    services.gallery.store.persons.create("default", "ada", {})
    for _ in range(2):
        reported: list[RowOutcome] = []
        LocalImport(services, record, options).run(iter(rows), reported.append)
        reasons.append(reported[1].reason)
        services.gallery.store.pairs.declare("default", "ada", "twin")
    assert reasons == ["conflict", ""]
