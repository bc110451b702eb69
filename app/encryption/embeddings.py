"""Embeddings and persons' keys as the database holds them: encrypted, each bound to its row."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from app.encryption.ring import DataKey, KeyRing, WrappedKey
from app.types import FloatArray

STORED_DTYPE = np.dtype("<f4")

_PERSON_ROW = struct.Struct(">qq")


@dataclass(frozen=True, slots=True)
class EncryptedTemplate:
    """One encrypted embedding and what it takes to decrypt it."""

    collection: int  # row keys
    person: int
    person_key: WrappedKey
    face_id: str
    ciphertext: bytes


class EmbeddingCipher:
    """Encrypts and decrypts what one database holds. Thread-safe.

    A person's key can be decrypted only in the row (database, collection, person) it was made for,
    an embedding only under its person's key and its own face id: no row can be put in the place of
    another.
    """

    def __init__(self, ring: KeyRing, database_id: str) -> None:
        self.ring = ring
        self._prefix = b"likeness person key v1\0" + database_id.encode() + b"\0"

    def new_person_key(self, collection: int, person: int) -> tuple[DataKey, WrappedKey]:
        """A new key for a person, and how it is stored."""
        key = DataKey.new()
        return key, self.ring.wrap(key, self._person_context(collection, person))

    def decrypt_person_key(self, collection: int, person: int, wrapped: WrappedKey) -> DataKey:
        """A person's key. Raises EncryptionKeyMissing or DamagedData."""
        return self.ring.unwrap(wrapped, self._person_context(collection, person))

    def rewrap_person_key(self, collection: int, person: int, wrapped: WrappedKey) -> WrappedKey:
        """The same key under the active key: how keys are rotated, the embeddings untouched.

        Raises EncryptionKeyMissing or DamagedData.
        """
        return self.ring.rewrap(wrapped, self._person_context(collection, person))

    def encrypt_embedding(self, key: DataKey, face_id: str, embedding: FloatArray) -> bytes:
        """A (d,) embedding as d * 4 + 29 bytes."""
        return key.encrypt(embedding.astype(STORED_DTYPE).tobytes(), face_context(face_id))

    def decrypt_embeddings(self, rows: Sequence[EncryptedTemplate], dimension: int) -> FloatArray:
        """The (n, d) embeddings of many rows, in their order; fastest where those of a person
        follow one another. Raises EncryptionKeyMissing or DamagedData.
        """
        vectors = np.empty((len(rows), dimension), dtype=STORED_DTYPE)
        size = dimension * STORED_DTYPE.itemsize
        target = vectors.reshape(-1).view(np.uint8).data
        person, key = None, None
        for start, row in enumerate(rows):
            if key is None or person != (row.collection, row.person, row.person_key):
                person = (row.collection, row.person, row.person_key)
                key = self.decrypt_person_key(*person)
            here = target[start * size : (start + 1) * size]
            key.decrypt_into(row.ciphertext, face_context(row.face_id), here)
        return vectors.astype(np.float32, copy=False)

    def _person_context(self, collection: int, person: int) -> bytes:
        return self._prefix + _PERSON_ROW.pack(collection, person)


def face_context(face_id: str) -> bytes:
    """The context that an encrypted embedding is bound to."""
    return b"likeness template v1\0" + face_id.encode()
