"""Faces from one person to another: in the database, in the index, under the right key."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from sqlalchemy import event

from app.encryption.keys import new_key_line, parse_keys
from app.encryption.ring import KeyRing
from app.errors import FaceNotFound, InvalidRequest, OtherFaceEnrolled, PersonNotFound
from app.gallery.gallery import Gallery
from app.index.factory import IndexFactory
from app.index.person_scores import effective_templates
from app.store.records import NewTemplate, PersonTemplate
from app.store.sql.corrections import FACES_AT_ONCE
from tests.gallery.conftest import DIMENSION, KEEPS_CROPS, SPACE, open_store
from tests.writing import enroll_person

Draw = Callable[[int], np.ndarray]


@pytest.fixture(params=["plain", "encrypted"])
def place(request: pytest.FixtureRequest, engine_url: str) -> Iterator[Gallery]:
    ring = None
    if request.param == "encrypted":
        ring = KeyRing(parse_keys(new_key_line("key-1").encode(), "test"))
    store = open_store(engine_url, ring=ring)
    gallery = Gallery(store, IndexFactory(2), SPACE, DIMENSION)
    store.collections.update("default", None, KEEPS_CROPS)
    yield gallery
    gallery.close()


def enroll(gallery: Gallery, person: str, *vectors: Any) -> list[str]:
    made = [
        NewTemplate(vector, f"{person}-{index}", {}, b"\x89PNG crop")
        for index, vector in enumerate(vectors)
    ]
    return [one.face.face_id for one in enroll_person(gallery, "default", person, None, made)]


def nearest(gallery: Gallery, probe: np.ndarray) -> tuple[str, str]:
    ((best, *_),) = gallery.identify("default", probe[None], 1).rows
    assert best.similarity == pytest.approx(1, abs=1e-5)
    return best.face.person_id, best.face.face_id


def test_a_face_is_another_s(place: Gallery, directions: Draw) -> None:
    a, b, c = directions(3)
    face, _ = enroll(place, "ada", a, b)
    enroll(place, "bob", c)
    assert nearest(place, a) == ("ada", face)
    assert place.move_face("default", face, "bob").person_id == "bob"
    assert nearest(place, a) == ("bob", face)
    assert nearest(place, b)[0] == "ada"
    faces, vectors = place.store.embeddings.of_person("default", "bob")
    assert np.allclose(vectors[[one.face_id for one in faces].index(face)], a, atol=1e-6)
    assert len(place.store.alternate_embeddings.crops_to_reembed("default", "es-other", 0, 10)) == 3
    assert place.check_index("default").clean
    # To somebody new, and to whom it is of already.
    assert place.move_face("default", face, "cy").person_id == "cy"
    assert place.move_face("default", face, "cy").person_id == "cy"
    assert nearest(place, a) == ("cy", face)


def test_two_ids_become_one(place: Gallery, directions: Draw) -> None:
    a, b, c = directions(3)
    enroll(place, "j.smith", a, b)
    enroll(place, "john.smith", c)
    merged = place.merge_persons("default", "j.smith", "john.smith")
    assert (merged.person_id, merged.templates) == ("john.smith", 3)
    assert {nearest(place, one)[0] for one in (a, b, c)} == {"john.smith"}
    with pytest.raises(PersonNotFound):
        place.store.persons.get("default", "j.smith")
    assert place.check_index("default").clean
    assert place.size("default").persons == 1


@pytest.mark.slow
def test_many_faces_are_moved_by_few_statements(place: Gallery, directions: Draw) -> None:
    store, count = place.store, FACES_AT_ONCE + 20
    vectors = directions(count)
    rows = [
        PersonTemplate("ada", None, NewTemplate(vector, f"{i}", crop=b"\x89PNG crop"))
        for i, vector in enumerate(vectors)
    ]
    faces = store.imports.enroll("default", rows, SPACE)
    kept = store.alternate_embeddings.crops_to_reembed("default", "es-other", 0, count)
    others = {one.template_key: vectors[i] for i, one in enumerate(kept)}
    store.alternate_embeddings.put("default", "es-other", others)
    enroll(place, "bob", vectors[0])
    executed: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_rest: object) -> None:
        executed.append(statement)

    event.listen(store.database.engine, "before_cursor_execute", note)
    merged = place.merge_persons("default", "ada", "bob")
    event.remove(store.database.engine, "before_cursor_execute", note)
    assert merged.templates == count + 1
    assert len(executed) < 60
    stored, found = store.embeddings.of_person("default", "bob")
    order = {face.face_id: row for face, row in zip(stored, found, strict=True)}
    for face_id, vector in zip(faces, vectors, strict=True):
        assert face_id is not None
        assert np.allclose(order[face_id], vector, atol=1e-6)
    kept = store.alternate_embeddings.crops_to_reembed("default", "es-third", 0, 2 * count)
    assert [one.crop for one in kept] == [b"\x89PNG crop"] * (count + 1)
    bob, keys = store.persons.get("default", "bob"), [one.template_key for one in kept]
    beside = store.alternate_embeddings.of_person(
        store.collections.get("default"), bob.key, keys[1:]
    )
    assert len(beside) == count
    assert place.check_index("default").clean


def test_the_same_photo_is_not_kept_twice(place: Gallery, directions: Draw) -> None:
    (a,) = directions(1)
    template = NewTemplate(a, "one photo")
    for person in ("ada", "bob"):
        enroll_person(place, "default", person, None, [template])
    merged = place.merge_persons("default", "ada", "bob")
    # Under encryption a photo's mark is its person's own: the two cannot be recognised as one.
    assert merged.templates == (1 if place.store.encryption.state().encrypted == 0 else 2)


def test_a_merge_takes_over_the_day_of_activity_where_it_counts(place: Gallery) -> None:
    store = place.store
    place.create_collection("aging", {}, {"retention_days": 30})
    for collection in ("default", "aging"):
        for person in ("ada", "bob"):
            store.persons.create(collection, person, {})
        store.corrections.merge_persons(collection, "ada", "bob")
    bob = store.persons.get("aging", "bob")
    midnight = bob.created_at.replace(hour=0, minute=0, second=0, microsecond=0)
    assert bob.active_at == midnight
    assert store.persons.get("default", "bob").active_at is None


def test_a_move_to_who_has_the_photo_answers_with_their_face(
    place: Gallery, directions: Draw
) -> None:
    (a,) = directions(1)
    ids = {}
    for person in ("ada", "bob"):
        (stored,) = enroll_person(place, "default", person, None, [NewTemplate(a, "one photo")])
        ids[person] = stored.face.face_id
    encrypted = place.store.encryption.state().encrypted
    answer = place.move_face("default", ids["ada"], "bob")
    assert answer == place.store.templates.get("default", answer.face_id)
    assert (answer.person_id, answer.face_id) == ("bob", ids["ada" if encrypted else "bob"])
    actions = [one.members["action"] for one in place.store.audit.page(0, 100)[0]]
    assert actions.count("face.deleted") == (0 if encrypted else 1)
    assert actions.count("face.moved") == (2 if encrypted else 0)


def test_what_cannot_be_moved(place: Gallery, directions: Draw) -> None:
    (a,) = directions(1)
    enroll(place, "ada", a)
    with pytest.raises(FaceNotFound):
        place.move_face("default", "absent", "bob")
    with pytest.raises(PersonNotFound):
        place.merge_persons("default", "ada", "absent")
    with pytest.raises(InvalidRequest, match="themselves"):
        place.merge_persons("default", "ada", "ada")
    assert nearest(place, a)[0] == "ada"


def test_different_faces_of_one_photo_are_not_taken_for_one(
    place: Gallery, directions: Draw
) -> None:
    """To delete the one that is moved would keep the wrong one."""
    a, b = directions(2)
    enroll_person(place, "default", "ada", None, [NewTemplate(a, "group photo")])
    enroll_person(place, "default", "bob", None, [NewTemplate(b, "group photo")])
    (face,), _ = place.store.embeddings.of_person("default", "bob")
    if place.store.database.codec.cipher is not None:  # that it is one photo cannot be seen
        place.merge_persons("default", "bob", "ada")
        assert len(place.store.embeddings.of_person("default", "ada")[0]) == 2
        return
    with pytest.raises(OtherFaceEnrolled, match="different faces of one photo"):
        place.move_face("default", face.face_id, "ada")
    with pytest.raises(OtherFaceEnrolled):
        place.merge_persons("default", "bob", "ada")
    assert (nearest(place, a)[0], nearest(place, b)[0]) == ("ada", "bob")


def test_people_count_by_the_templates_that_they_have_now(place: Gallery, directions: Draw) -> None:
    photos = directions(6)
    copies = np.repeat(photos[:1], 40, axis=0)
    first = enroll(place, "ada", *photos[:3])
    nearly = [copy + 1e-4 * np.eye(1, DIMENSION, i % 16)[0] for i, copy in enumerate(copies)]
    enroll(place, "ada", *photos[:3], *nearly[3:])
    enroll(place, "bob", *photos[3:5])
    enroll(place, "cy", photos[5])
    place.delete_face("default", first[1])
    place.move_face("default", first[2], "cy")
    place.merge_persons("default", "bob", "cy")
    size = place.size("default")
    expected = sorted(
        effective_templates(place.store.embeddings.of_person("default", person)[1])
        for person in ("ada", "cy")
    )
    assert [n for n, _ in size.spread] == pytest.approx(expected, rel=0.011)
    assert expected[0] < 1.2
    assert place.check_index("default").clean
    # From the database alone it is the same.
    place.rebuild("default")
    assert place.size("default") == size
    assert place.check_index("default").clean
