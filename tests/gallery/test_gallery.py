"""Truth and index in step: within a process, across processes' views, over restarts."""

import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from app.errors import (
    CollectionNotFound,
    EmbeddingSpaceMismatch,
    InvalidEmbedding,
    PersonNotFound,
)
from app.gallery import candidates as candidates_module
from app.gallery.candidates import SearchQuery
from app.gallery.gallery import Gallery
from app.index.factory import IndexFactory
from app.index.person_scores import PersonScore
from app.store.records import PersonEnrollment
from app.store.store import Store, switch_default_collection
from tests.gallery.conftest import DIMENSION, SPACE, open_engine, open_gallery, template
from tests.writing import delete_collection, delete_person, enroll_person

Draw = Callable[[int], NDArray[np.float32]]


def enroll(gallery: Gallery, person: str, vectors: NDArray[np.float32]) -> list[Any]:
    new = [template(vector, f"{person}-{vector[0]!r}") for vector in vectors]
    return enroll_person(gallery, "default", person, None, new)


def people(gallery: Gallery, probe: NDArray[np.float32], top_k: int = 5) -> list[str]:
    (row,) = gallery.identify("default", probe[np.newaxis], top_k).rows
    return [candidate.face.person_id for candidate in row]


def test_what_was_enrolled_is_found_first(gallery: Gallery, directions: Draw) -> None:
    vectors = directions(20)
    for i, vector in enumerate(vectors):
        enroll(gallery, f"p{i}", vector[np.newaxis])
    for i, vector in enumerate(vectors):
        assert people(gallery, vector, top_k=1) == [f"p{i}"]


def test_answers_equal_brute_force(gallery: Gallery, directions: Draw) -> None:
    vectors = directions(300)
    for i in range(60):
        enroll(gallery, f"p{i}", vectors[i * 5 : i * 5 + 5])
    for probe in directions(20):
        best = (vectors @ probe).reshape(60, 5).max(axis=1)
        expected = [f"p{i}" for i in np.argsort(-best)[:7]]
        (row,) = gallery.identify("default", probe[np.newaxis], 7).rows
        assert [c.face.person_id for c in row] == expected
        assert [c.similarity for c in row] == pytest.approx(np.sort(best)[::-1][:7], abs=1e-5)
        margins = [c.margin for c in row]
        assert margins == pytest.approx(-np.diff(np.sort(best)[::-1][:8]), abs=1e-5)


@pytest.mark.parametrize("score", PersonScore)
def test_a_search_and_a_claim_agree_on_a_person_s_score(
    gallery: Gallery, directions: Draw, score: PersonScore
) -> None:
    """Also after a template is deleted, and as if it had never been there."""
    own = directions(1) + 0.7 * directions(12)
    own /= np.linalg.norm(own, axis=1, keepdims=True)
    stored = enroll(gallery, "several", own)
    enroll(gallery, "others", directions(4))
    gallery.delete_face("default", stored[0].face.face_id)
    enroll(gallery, "never", own[1:])
    for probe in (*own[:3], *directions(3)):
        (row,) = gallery.identify("default", probe[np.newaxis], 3, score=score).rows
        assert {one.face.person_id for one in row} == {"several", "others", "never"}
        similarities = {one.face.person_id: one.similarity for one in row}
        assert similarities["several"] == pytest.approx(similarities["never"], abs=1e-5)
        for one in row:
            claimed = gallery.compare("default", one.face.person_id, probe, score)
            assert claimed is not None
            assert claimed.face.face_id == one.face.face_id
            assert claimed.similarity == pytest.approx(one.similarity, abs=1e-5)
            assert claimed.compared.score is score


def test_a_person_with_many_templates_hides_nobody(gallery: Gallery, directions: Draw) -> None:
    crowd = directions(1)[0] + 0.01 * directions(500)
    crowd /= np.linalg.norm(crowd, axis=1, keepdims=True)
    enroll(gallery, "many", crowd)
    enroll(gallery, "one", -directions(1))
    assert people(gallery, crowd[0]) == ["many", "one"]


def test_the_deleted_take_no_place_from_the_living(
    database: Path, gallery: Gallery, directions: Draw
) -> None:
    other_process = open_gallery(database)
    probe = directions(1)[0]
    for i, near in enumerate(probe + 0.01 * directions(10)):
        enroll(gallery, f"p{i}", near[np.newaxis] / np.linalg.norm(near))
    enroll(gallery, "far", -probe[np.newaxis])
    assert len(people(other_process, probe, top_k=1)) == 1
    for i in range(10):
        delete_person(gallery, "default", f"p{i}")
    assert people(gallery, probe, top_k=1) == ["far"]
    assert people(other_process, probe, top_k=1) == ["far"]


def test_a_restart_keeps_everything(database: Path, directions: Draw) -> None:
    vectors = directions(3)
    before = open_gallery(database)
    enroll(before, "ada", vectors[:2])
    enroll(before, "bob", vectors[2:])
    delete_person(before, "default", "bob")
    before.store.close()
    after = open_gallery(database)
    assert people(after, vectors[2]) == ["ada"]
    faces, stored = after.store.embeddings.of_person("default", "ada")
    assert len(faces) == 2
    assert np.array_equal(stored, vectors[:2])


def test_two_processes_see_each_others_writes_at_once(database: Path, directions: Draw) -> None:
    first, second = open_gallery(database), open_gallery(database)
    vectors = directions(2)
    enroll(first, "ada", vectors[:1])
    assert people(second, vectors[0]) == ["ada"]
    enroll(second, "bob", vectors[1:])
    assert people(first, vectors[1])[0] == "bob"
    delete_person(first, "default", "ada")
    assert people(second, vectors[0]) == ["bob"]


def test_a_collection_remade_by_another_process_starts_empty(
    database: Path, directions: Draw
) -> None:
    first, second = open_gallery(database), open_gallery(database)
    vector = directions(1)
    first.create_collection("staff", {})
    enroll_person(first, "staff", "ada", None, [template(vector[0], "a")])
    second.identify("staff", vector, 1)
    delete_collection(first, "staff")
    first.create_collection("staff", {})
    assert second.identify("staff", vector, 1).rows == [[]]


@pytest.mark.parametrize("changes", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_searches_run_while_people_come_and_go(
    gallery: Gallery, directions: Draw, changes: int
) -> None:
    stays = directions(1)
    enroll(gallery, "stays", stays)
    failures: list[object] = []
    stop = threading.Event()

    def search() -> None:
        while not stop.is_set():
            if people(gallery, stays[0])[:1] != ["stays"]:
                failures.append("lost")

    searchers = [threading.Thread(target=search) for _ in range(3)]
    for thread in searchers:
        thread.start()
    for i, vector in enumerate(directions(changes)):
        enroll(gallery, f"p{i}", vector[np.newaxis])
        delete_person(gallery, "default", f"p{i}")
        if f"p{i}" in people(gallery, vector):
            failures.append(f"p{i} came back")
    stop.set()
    for thread in searchers:
        thread.join()
    assert failures == []


def test_filter_is_exact_over_metadata(gallery: Gallery, directions: Draw) -> None:
    vectors = directions(30)
    for i, vector in enumerate(vectors):
        team = {"team": i % 3, "shift": {"night": i % 2 == 0}}
        enroll_person(gallery, "default", f"p{i}", team, [template(vector, str(i))])
    (row,) = gallery.identify(
        "default", vectors[:1], 30, {"team": 1, "shift": {"night": True}}
    ).rows
    assert {c.face.person_id for c in row} == {
        f"p{i}" for i in range(30) if i % 3 == 1 and i % 2 == 0
    }
    assert gallery.identify("default", vectors[:1], 5, {"absent": None}).rows == [[]]


def test_another_space_is_refused(database: Path, directions: Draw) -> None:
    enroll(open_gallery(database), "ada", directions(1))
    other = open_gallery(database, space="es-other")
    with pytest.raises(EmbeddingSpaceMismatch, match="es-other"):
        other.identify("default", directions(1), 1)
    with pytest.raises(EmbeddingSpaceMismatch):
        enroll(other, "ada", directions(1))


def test_the_refusal_names_the_packs(database: Path, directions: Draw) -> None:
    enroll(open_gallery(database), "ada", directions(1))
    store = Store(open_engine(database))
    packs = {SPACE: "old", "es-other": "new"}
    other = Gallery(store, IndexFactory(1), "es-other", DIMENSION, packs=packs)
    text = r"LIKENESS_PACK=old .*likeness models migrate default --to new\)"
    with pytest.raises(EmbeddingSpaceMismatch, match=text):
        other.require("default")
    with pytest.raises(EmbeddingSpaceMismatch, match=text):
        other.compare("default", "ada", directions(1)[0])


def test_a_default_collection_without_faces_follows_the_pack(
    database: Path, directions: Draw
) -> None:
    first = open_gallery(database)
    enroll(first, "ada", directions(1))
    delete_person(first, "default", "ada")
    other = open_gallery(database, space="es-other")
    with pytest.raises(EmbeddingSpaceMismatch):  # to look at it changes nothing
        other.require("default")
    switch_default_collection(other.store, "es-other", DIMENSION)
    enroll(other, "bob", directions(1))
    with pytest.raises(EmbeddingSpaceMismatch):
        first.require("default")
    switch_default_collection(first.store, SPACE, DIMENSION)  # too late: it has a face
    assert first.store.collections.get("default").embedding_space == "es-other"


def test_unknown_names(gallery: Gallery, directions: Draw) -> None:
    with pytest.raises(CollectionNotFound, match="POST /v1/collections"):
        gallery.identify("nowhere", directions(1), 1)
    with pytest.raises(PersonNotFound):
        gallery.compare("default", "nobody", directions(1)[0])
    gallery.store.persons.create("default", "empty", {})
    assert gallery.compare("default", "empty", directions(1)[0]) is None


def test_embeddings_from_outside_are_checked(gallery: Gallery) -> None:
    assert np.linalg.norm(gallery.check_embedding([3.0] * DIMENSION)) == pytest.approx(1)
    for bad in ([0.0] * DIMENSION, [float("nan")] * DIMENSION, [1.0] * (DIMENSION - 1)):
        with pytest.raises(InvalidEmbedding):
            gallery.check_embedding(bad)


def test_persons_whose_consent_has_ended_do_not_take_the_places_of_others(
    gallery: Gallery, directions: Draw
) -> None:
    """Nor hide that two others are as similar: a margin is missing only at the end of a gallery."""
    gallery.create_collection("staff", {}, {"consent_required": True})
    vectors = directions(40)
    for number, vector in enumerate(vectors):
        valid = {"consent": {"reference": "form 17"}}
        enroll_person(gallery, "staff", f"p{number}", valid, [template(vector, str(number))])
    probe = vectors[0]
    nearest = [f"p{number}" for number in np.argsort(-(vectors @ probe))]
    for person in nearest[:25]:
        ended = {"consent": {"reference": "form 17", "withdrawn": True}}
        gallery.store.persons.update("staff", person, ended)
    (row,) = gallery.identify("staff", probe[np.newaxis], 3).rows
    assert [one.face.person_id for one in row] == nearest[25:28]
    assert row[-1].margin is not None


def test_a_search_at_once_waits_for_nothing(
    database: Path, directions: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is done if the index is open, at the record's revision or beyond it, and not large."""
    with closing(open_gallery(database)) as gallery, closing(open_gallery(database)) as other:
        enroll(gallery, "first", (vectors := directions(8))[:4])
        record, query = gallery.require("default"), SearchQuery(vectors[:2], 3)
        assert other.identify_at_once(record, query) is None, "its index is not open"
        expected = other.identify("default", query.probes, query.top_k)
        assert other.identify_at_once(record, query) == expected
        enroll(gallery, "second", vectors[4:])
        later = other.require("default")
        assert other.identify_at_once(later, query) is None, "it is behind the database"
        found = gallery.identify_at_once(record, query)  # it is beyond the record
        assert found is not None
        assert found.searched.persons == 2
        monkeypatch.setattr(candidates_module, "MOST_AT_ONCE", 15)
        assert gallery.identify_at_once(record, query) is None, "two probes, eight templates"
        assert gallery.identify_at_once(record, SearchQuery(vectors[:1], 3)) is not None


def test_a_search_at_once_does_not_wait_for_an_index_that_is_being_closed(
    gallery: Gallery, directions: Draw
) -> None:
    enroll(gallery, "first", (vectors := directions(2)))
    record, query = gallery.require("default"), SearchQuery(vectors, 3)
    assert gallery.identify_at_once(record, query) is not None
    gallery._replicas._open[record.key].closing = True
    assert gallery.identify_at_once(record, query) is None
    gallery._replicas._open[record.key].closing = False


def test_an_enrollment_does_not_wait_for_an_index_that_is_being_closed(
    gallery: Gallery, directions: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is on disk by then, and other enrollments wait for its thread."""
    monkeypatch.setattr("app.gallery.replicas.CLOSING_S", 0.0)
    enroll(gallery, "first", (vectors := directions(2))[:1])
    record = gallery.require("default")
    gallery._replicas._open[record.key].closing = True
    one = PersonEnrollment("second", None, [template(vectors[1], "second")])
    (stored,), followed = gallery.enroll_together("default", [one])
    assert not isinstance(stored, Exception)
    assert not followed, "the caller has another thread update it"
    gallery._replicas._open[record.key].closing = False
    assert gallery.size("default").persons == 2


@pytest.mark.parametrize("count", [1, 7, 8, 9, 64, 65, 600])
def test_any_number_of_faces_is_named(gallery: Gallery, directions: Draw, count: int) -> None:
    stored = enroll(gallery, "first", directions(count))
    names = {one.face.template_key: one.face.face_id for one in stored}
    found, gone = gallery.store.templates.matchable(gallery.require("default"), [*names, 10**9])
    assert {key: one.face_id for key, one in found.items()} == names
    assert gone == {10**9}
    assert gallery.store.templates.matchable(gallery.require("default"), []) == ({}, set())
