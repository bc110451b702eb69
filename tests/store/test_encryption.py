"""Embeddings at rest under a key: the same answers, nothing readable, keys that can be changed."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sqlalchemy import text

from app.encryption.keys import new_key_line, parse_keys
from app.encryption.ring import KeyRing
from app.errors import DamagedData, EncryptionKeyError, EncryptionKeyMissing
from app.gallery.gallery import Gallery
from app.index.factory import IndexFactory
from app.store.records import NewTemplate
from app.store.store import Store
from tests.gallery.conftest import DIMENSION, KEEPS_CROPS, SPACE, open_store, template
from tests.writing import delete_person, enroll_person, store_person

Draw = Callable[[int], NDArray[np.float32]]
LINES = {name: new_key_line(name) for name in ("first", "second", "other")}


def ring(*names: str) -> KeyRing:
    return KeyRing(parse_keys("\n".join(LINES[name] for name in names).encode(), "test"))


def opened(url: str, *names: str) -> Store:
    store = open_store(url, ring=ring(*names) if names else None)
    store.encryption.check_keys()
    return store


def gallery_of(store: Store) -> Gallery:
    return Gallery(store, IndexFactory(2), SPACE, DIMENSION)


def stored_bytes(store: Store) -> list[bytes]:
    with store.database.reading() as connection:
        return list(connection.execute(text("SELECT embedding FROM templates")).scalars())


def test_the_same_answers_and_nothing_readable(engine_url: str, directions: Draw) -> None:
    store = opened(engine_url, "first")
    gallery = gallery_of(store)
    vectors = directions(40)
    for i, vector in enumerate(vectors):
        enroll_person(gallery, "default", f"p{i % 8}", None, [template(vector, str(i))])
    for blob in stored_bytes(store):
        assert len(blob) == 4 * DIMENSION + 29
        assert not any(vector.tobytes()[:16] in blob for vector in vectors)
    for fresh in (gallery, gallery_of(opened(engine_url, "first"))):
        for i, row in enumerate(fresh.identify("default", vectors, 1).rows):
            assert (row[0].face.person_id, row[0].similarity) == (
                f"p{i % 8}", pytest.approx(1, abs=1e-5),
            )  # fmt: skip
    faces, held = store.embeddings.of_person("default", "p3")
    assert np.array_equal(held, vectors[3::8])
    assert len(faces) == 5
    comparison = gallery.compare("default", "p3", vectors[3])
    assert comparison is not None
    assert comparison.similarity == pytest.approx(1)


def test_content_is_known_again_but_not_by_its_digest(engine_url: str, directions: Draw) -> None:
    store = opened(engine_url, "first")
    gallery = gallery_of(store)
    new = [template(directions(1)[0], "a" * 64)]
    assert not enroll_person(gallery, "default", "ada", None, new)[0].duplicate
    assert enroll_person(gallery, "default", "ada", None, new)[0].duplicate
    asked = [("ada", "a" * 64), ("ada", "b" * 64), ("nobody", "a" * 64)]
    assert store.imports.known_contents("default", asked) == {("ada", "a" * 64)}
    with store.database.reading() as connection:
        (mark,) = connection.execute(text("SELECT content_digest FROM templates")).scalars()
    assert mark != "a" * 64


def test_a_database_is_brought_under_a_key_while_it_is_used(
    engine_url: str, directions: Draw
) -> None:
    plain = gallery_of(opened(engine_url))
    vectors = directions(6)
    for i, vector in enumerate(vectors[:4]):
        enroll_person(plain, "default", f"p{i % 2}", None, [template(vector, f"{i}" * 64)])
    store = opened(engine_url, "first")
    gallery = gallery_of(store)
    enroll_person(gallery, "default", "p0", None, [template(vectors[4], "4" * 64)])
    assert (store.encryption.state().plain, store.encryption.state().encrypted) == (4, 1)
    again = enroll_person(gallery, "default", "p0", None, [template(vectors[0], "0" * 64)])
    assert again[0].duplicate  # also of what was stored before there was a key
    store.encryption.reencrypt("default")
    state = store.encryption.state()
    assert (state.plain, state.encrypted, dict(state.persons_by_key)) == (0, 5, {"first": 2})
    assert enroll_person(gallery, "default", "p0", None, [template(vectors[0], "0" * 64)])[
        0
    ].duplicate
    for fresh in (gallery, gallery_of(opened(engine_url, "first"))):
        rows = fresh.identify("default", vectors[:5], 1).rows
        assert [row[0].face.person_id for row in rows] == ["p0", "p1", "p0", "p1", "p0"]
        assert fresh.check_index("default").clean


def test_no_plain_byte_stays_after_encrypting(database: Path, directions: Draw) -> None:
    url = f"sqlite:///{database}"
    vectors = directions(30)
    store = opened(url)
    gallery = gallery_of(store)
    enroll_person(
        gallery, "default", "ada", None, [template(v, str(i)) for i, v in enumerate(vectors)]
    )
    store.close()
    encrypted = opened(url, "first")
    encrypted.encryption.reencrypt("default")
    left = b"".join(file.read_bytes() for file in sorted(database.parent.iterdir()))
    assert not any(vector.tobytes() in left for vector in vectors)


def test_keys_are_rotated(engine_url: str, directions: Draw) -> None:
    vectors = directions(3)
    first = gallery_of(opened(engine_url, "first"))
    enroll_person(first, "default", "ada", None, [template(vectors[0], "0")])
    store = opened(engine_url, "second", "first")
    gallery = gallery_of(store)
    enroll_person(gallery, "default", "bob", None, [template(vectors[1], "1")])
    before = stored_bytes(store)
    store.encryption.reencrypt("default")
    assert dict(store.encryption.state().persons_by_key) == {"second": 2}
    assert stored_bytes(store) == before  # only the wrapped keys change
    alone = gallery_of(opened(engine_url, "second"))
    assert alone.identify("default", vectors[:1], 1).rows[0][0].face.person_id == "ada"
    # A process that still has the former key alone cannot read what it finds now.
    with pytest.raises(EncryptionKeyMissing):
        first.store.embeddings.of_person("default", "bob")


def test_a_start_with_the_wrong_keys_is_refused(engine_url: str, directions: Draw) -> None:
    enroll_person(
        gallery_of(opened(engine_url, "first")),
        "default",
        "ada",
        None,
        [template(directions(1)[0], "0")],
    )
    with pytest.raises(EncryptionKeyError, match="first"):
        opened(engine_url)
    with pytest.raises(EncryptionKeyError, match="first"):
        opened(engine_url, "other")
    renamed = KeyRing(parse_keys(LINES["other"].replace("other:", "first:").encode(), "test"))
    with pytest.raises(EncryptionKeyError, match="differs from the key with this id"):
        open_store(engine_url, ring=renamed).encryption.check_keys()
    with pytest.raises(EncryptionKeyMissing):
        open_store(engine_url).embeddings.of_person("default", "ada")


def test_deleting_a_person_deletes_the_key(engine_url: str, directions: Draw) -> None:
    store = opened(engine_url, "first")
    gallery = gallery_of(store)
    enroll_person(gallery, "default", "ada", None, [template(directions(1)[0], "0")])
    (kept,) = stored_bytes(store)  # as a backup of the file system would
    delete_person(gallery, "default", "ada")
    enroll_person(gallery, "default", "ada", None, [template(directions(2)[1], "0")])
    with store.database.writing() as connection:
        connection.execute(text("UPDATE templates SET embedding = :kept"), {"kept": kept})
    with pytest.raises(DamagedData):
        store.embeddings.of_person("default", "ada")


def test_rows_that_were_swapped_are_refused(engine_url: str, directions: Draw) -> None:
    store = opened(engine_url, "first")
    gallery = gallery_of(store)
    for i, vector in enumerate(directions(2)):
        enroll_person(gallery, "default", f"p{i}", None, [template(vector, str(i))])
    one, other = stored_bytes(store)
    with store.database.writing() as connection:
        swap = (
            "UPDATE templates SET embedding = CASE WHEN embedding = :one THEN :other ELSE :one END"
        )
        connection.execute(text(swap), {"one": one, "other": other})
    with pytest.raises(DamagedData):
        gallery_of(opened(engine_url, "first")).size("default")


SECRET = "photo of {}"


def with_companions(vector: NDArray[np.float32], person: str) -> NewTemplate:
    return NewTemplate(vector, SECRET.format(person), {}, b"\x89PNG " + person.encode())


def plain_left(store: Store) -> list[object]:
    """What rows hold in the clear: digests of photos, and rows that are not encrypted."""
    left: list[object] = []
    with store.database.reading() as connection:
        for query in (
            "SELECT content_digest FROM templates WHERE content_digest LIKE 'photo of%'",
            "SELECT 'embedding' FROM templates WHERE NOT sealed",
            "SELECT 'crop' FROM crops WHERE NOT sealed",
            "SELECT 'alternate embedding' FROM spares WHERE NOT sealed",
        ):
            left += connection.execute(text(query)).scalars()
    return left


def before_a_key(url: str, directions: Draw, *people: str) -> Store:
    """A store of people who were enrolled without a key; with a key now."""
    plain = opened(url)
    plain.collections.create("default", SPACE, DIMENSION, {}, KEEPS_CROPS)
    for person, vector in zip(people, directions(len(people)), strict=True):
        store_person(plain, "default", person, None, [with_companions(vector, person)])
    return opened(url, "first")


@pytest.mark.parametrize("change", ["move", "merge"])
def test_a_plain_face_that_gets_another_person_is_encrypted_completely(
    engine_url: str, directions: Draw, change: str
) -> None:
    store = before_a_key(engine_url, directions, "ada")
    faces, _ = store.embeddings.of_person("default", "ada")
    if change == "move":
        store.corrections.move_face("default", faces[0].face_id, "bob")
    else:
        store.persons.create("default", "bob", {})
        store.corrections.merge_persons("default", "ada", "bob")
    assert plain_left(store) == []
    again = with_companions(store.embeddings.of_person("default", "bob")[1][0], "ada")
    assert store_person(store, "default", "bob", None, [again])[0].duplicate


def test_a_plain_face_is_not_moved_to_a_person_who_has_its_photo(
    engine_url: str, directions: Draw
) -> None:
    store = before_a_key(engine_url, directions, "ada")
    faces, vectors = store.embeddings.of_person("default", "ada")
    store_person(store, "default", "bob", None, [with_companions(vectors[0], "ada")])
    store.corrections.move_face("default", faces[0].face_id, "bob")
    assert len(store.embeddings.of_person("default", "bob")[0]) == 1


def migrate_to_other(store: Store, vector: NDArray[np.float32]) -> None:
    kept = store.alternate_embeddings.crops_to_reembed("default", "es-other", 0, 10)
    store.alternate_embeddings.put(
        "default", "es-other", {one.template_key: vector for one in kept}
    )
    store.alternate_embeddings.cut_over("default", "es-other", DIMENSION, same_quality=True)


def test_a_migration_to_another_space_leaves_nothing_plain(
    engine_url: str, directions: Draw
) -> None:
    store = before_a_key(engine_url, directions, "ada", "bob")
    former = store.embeddings.of_person("default", "ada")[1]
    (other,) = directions(1)
    migrate_to_other(store, other)
    assert plain_left(store) == []
    again = with_companions(other, "ada")
    assert store_person(store, "default", "ada", None, [again], space="es-other")[0].duplicate
    store.alternate_embeddings.cut_over("default", SPACE, DIMENSION, same_quality=True)
    assert np.array_equal(store.embeddings.of_person("default", "ada")[1], former)


def test_encrypted_embeddings_of_an_earlier_version_beside_plain_ones(
    engine_url: str, directions: Draw
) -> None:
    """It stored the embedding in the other space encrypted, and left the rest of the face."""
    store = before_a_key(engine_url, directions, "ada")
    face, digest, embedding, crop = stored_face(store)
    kept = store.alternate_embeddings.crops_to_reembed("default", "es-other", 0, 10)
    store.alternate_embeddings.put("default", "es-other", {kept[0].template_key: directions(1)[0]})
    restore_plain(store, "templates", digest, embedding, crop)
    store.alternate_embeddings.cut_over("default", "es-other", DIMENSION, same_quality=True)
    assert plain_left(store) == []
    assert face == stored_face(store)[0]


def test_what_a_migration_of_an_earlier_version_left_is_counted_and_encrypted(
    engine_url: str, directions: Draw
) -> None:
    store = before_a_key(engine_url, directions, "ada")
    _, digest, embedding, crop = stored_face(store)
    (other,) = directions(1)
    migrate_to_other(store, other)
    restore_plain(store, "spares", digest, embedding, crop)
    state = store.encryption.state()
    assert (state.plain, state.plain_crops, state.plain_alternates) == (0, 1, 1)
    assert store.encryption.reencrypt("default").persons == 1
    assert plain_left(store) == []
    state = store.encryption.state()
    assert (state.plain, state.plain_crops, state.plain_alternates) == (0, 0, 0)
    assert (state.encrypted, state.encrypted_alternates) == (1, 1)
    again = with_companions(other, "ada")
    assert store_person(store, "default", "ada", None, [again], space="es-other")[0].duplicate


def stored_face(store: Store) -> tuple[str, str, bytes, bytes]:
    with store.database.reading() as connection:
        query = (
            "SELECT face_id, content_digest, embedding, crop FROM templates JOIN crops "
            "ON template = id"
        )
        face, digest, embedding, crop = connection.execute(text(query)).one()
        return face, digest, bytes(embedding), bytes(crop)


def restore_plain(store: Store, table: str, digest: str, embedding: bytes, crop: bytes) -> None:
    """Put the former plain values back: the embedding into `table`."""
    with store.database.writing() as connection:
        for change in (
            "UPDATE templates SET content_digest = :digest",
            f"UPDATE {table} SET embedding = :embedding, sealed = FALSE",
            "UPDATE crops SET crop = :crop, sealed = FALSE",
        ):
            values = {"digest": digest, "embedding": embedding, "crop": crop}
            used = {name: value for name, value in values.items() if f":{name}" in change}
            connection.execute(text(change), used)


def test_a_damaged_key_does_not_keep_others_from_being_rotated(
    engine_url: str, directions: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.store.sql.encryption.PERSONS_AT_ONCE", 2)
    store = opened(engine_url, "first")
    gallery = gallery_of(store)
    for i, vector in enumerate(directions(5)):
        enroll_person(gallery, "default", f"p{i}", None, [template(vector, str(i))])
    damaged = "UPDATE persons SET data_key = :bytes WHERE person_id IN ('p0', 'p1', 'p3')"
    with store.database.writing() as connection:
        connection.execute(text(damaged), {"bytes": b"\1" * 61})
    rotated = opened(engine_url, "second", "first")
    done = rotated.encryption.reencrypt("default")
    assert (done.persons, done.failed) == (2, ["p0", "p1", "p3"])
    assert dict(rotated.encryption.state().persons_by_key) == {"first": 3, "second": 2}
