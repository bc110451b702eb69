"""Embeddings and the keys of persons, each bound to its row."""

from collections.abc import Iterator

import numpy as np
import pytest

from app.encryption.embeddings import EmbeddingCipher, EncryptedTemplate, KeyBinding
from app.encryption.ring import OVERHEAD
from app.errors import DamagedData
from tests.encryption.keys import ring

BINDING = KeyBinding("database-1", 1, 2)
OTHER = KeyBinding("database-1", 1, 3)


def test_an_embedding_comes_back_bit_by_bit(cipher: EmbeddingCipher) -> None:
    embedding = np.random.default_rng(1).normal(size=512).astype(np.float32)
    data_key, wrapped = cipher.new_data_key(BINDING)
    encrypted = cipher.encrypt_embedding(data_key, "face", embedding)
    assert len(encrypted) == 512 * 4 + OVERHEAD
    (opened,) = cipher.decrypt_embeddings(
        [EncryptedTemplate(BINDING, wrapped, "face", encrypted)], 512
    )
    assert opened.dtype == np.float32
    assert np.array_equal(opened, embedding)


@pytest.mark.parametrize(
    ("database", "collection", "person"),
    [("database-2", 1, 2), ("database-1", 3, 2), ("database-1", 1, 3), ("database-1", 2, 1)],
)
def test_a_persons_key_opens_in_its_own_row_only(
    cipher: EmbeddingCipher, database: str, collection: int, person: int
) -> None:
    _, wrapped = cipher.new_data_key(BINDING)
    with pytest.raises(DamagedData):
        cipher.decrypt_data_key(KeyBinding(database, collection, person), wrapped)


def test_embeddings_cannot_be_swapped(cipher: EmbeddingCipher) -> None:
    key, ours = cipher.new_data_key(BINDING)
    _, theirs = cipher.new_data_key(OTHER)
    encrypted = cipher.encrypt_embedding(key, "face", np.ones(4, np.float32))
    for row, dimension in (
        (EncryptedTemplate(BINDING, ours, "other", encrypted), 4),
        (EncryptedTemplate(OTHER, theirs, "face", encrypted), 4),
        (EncryptedTemplate(BINDING, ours, "face", encrypted), 3),
    ):
        with pytest.raises(DamagedData):
            cipher.decrypt_embeddings([row], dimension)


def test_a_wrapped_key_is_no_embedding(cipher: EmbeddingCipher) -> None:
    _, wrapped = cipher.new_data_key(BINDING)
    with pytest.raises(DamagedData):
        cipher.decrypt_embeddings(
            [EncryptedTemplate(BINDING, wrapped, "face", wrapped.ciphertext)], 8
        )


def _rows(cipher: EmbeddingCipher, vectors: np.ndarray) -> Iterator[EncryptedTemplate]:
    """Two templates per person, the persons of two collections, taking turns."""
    bindings = [KeyBinding("database-1", person % 2, person) for person in range(len(vectors))]
    keys = [cipher.new_data_key(binding) for binding in bindings]
    for number, vector in enumerate(vectors):
        person = number // 2
        data_key, wrapped = keys[person]
        face_id = f"face-{number}"
        encrypted = cipher.encrypt_embedding(data_key, face_id, vector)
        yield EncryptedTemplate(bindings[person], wrapped, face_id, encrypted)


@pytest.mark.parametrize("count", [0, 1, 9])
def test_many_open_as_one_by_one(cipher: EmbeddingCipher, count: int) -> None:
    vectors = np.random.default_rng(2).normal(size=(count, 16)).astype(np.float32)
    rows = list(_rows(cipher, vectors))
    opened = cipher.decrypt_embeddings(rows, 16)
    assert opened.dtype == np.float32
    assert opened.flags.c_contiguous
    assert opened.flags.writeable
    assert np.array_equal(opened, vectors)
    assert np.array_equal(cipher.decrypt_embeddings(rows[::-1], 16), vectors[::-1])


def test_one_damaged_row_of_many_is_an_error(cipher: EmbeddingCipher) -> None:
    rows = list(_rows(cipher, np.ones((6, 16), np.float32)))
    swapped = [*rows[:4], rows[5], rows[4]]
    assert cipher.decrypt_embeddings(swapped, 16).shape == (6, 16)
    stolen = EncryptedTemplate(rows[0].binding, rows[0].data_key, "face-0", rows[5].ciphertext)
    for changed in ([*rows, stolen], [stolen]):
        with pytest.raises(DamagedData):
            cipher.decrypt_embeddings(changed, 16)
    with pytest.raises(DamagedData):
        cipher.decrypt_embeddings(rows, 17)


def test_rotation_leaves_embeddings_as_they_are(cipher: EmbeddingCipher) -> None:
    embedding = np.ones(16, np.float32)
    data_key, wrapped = cipher.new_data_key(BINDING)
    encrypted = cipher.encrypt_embedding(data_key, "face", embedding)
    rotated = EmbeddingCipher(ring("b", "a")).rewrap_data_key(BINDING, wrapped)
    after = EmbeddingCipher(ring("b"))
    opened = after.decrypt_embeddings([EncryptedTemplate(BINDING, rotated, "face", encrypted)], 16)
    assert np.array_equal(opened[0], embedding)
