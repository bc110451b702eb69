"""Embeddings and data keys as the database holds them: encrypted, each bound to its row."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from app.encryption.ring import DataKey, KeyRing, WrappedKey
from app.types import FloatArray

STORED_DTYPE = np.dtype("<f4")

_NUMBERS = struct.Struct(">qq")


@dataclass(frozen=True, slots=True)
class KeyBinding:
    """What a person's data key is bound to: the id of the database, and the keys of the collection
    and the person there."""

    database: str
    collection: int
    person: int

    @property
    def context(self) -> bytes:
        """What the key is authenticated with."""
        numbers = _NUMBERS.pack(self.collection, self.person)
        return b"likeness person key v1\0" + self.database.encode() + b"\0" + numbers


@dataclass(frozen=True, slots=True)
class EncryptedTemplate:
    """One encrypted embedding and what it takes to decrypt it."""

    binding: KeyBinding
    data_key: WrappedKey
    face_id: str
    ciphertext: bytes


class EmbeddingCipher:
    """Encrypts and decrypts what databases hold. Thread-safe.

    A data key can be decrypted only for the person (database, collection, person) it was made for,
    an embedding only under its person's data key and its own face id: no row can be put in the
    place of another.
    """

    def __init__(self, ring: KeyRing) -> None:
        self.ring = ring

    def new_data_key(self, binding: KeyBinding) -> tuple[DataKey, WrappedKey]:
        """A new data key for a person, and how it is stored."""
        key = DataKey.new()
        return key, self.ring.wrap(key, binding.context)

    def decrypt_data_key(self, binding: KeyBinding, wrapped: WrappedKey) -> DataKey:
        """A person's data key. Raises EncryptionKeyMissing or DamagedData."""
        return self.ring.unwrap(wrapped, binding.context)

    def rewrap_data_key(self, binding: KeyBinding, wrapped: WrappedKey) -> WrappedKey:
        """The same key under the active key: how keys are rotated, the embeddings untouched.

        Raises EncryptionKeyMissing or DamagedData.
        """
        return self.ring.rewrap(wrapped, binding.context)

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
            if key is None or person != (row.binding, row.data_key):
                person = (row.binding, row.data_key)
                key = self.decrypt_data_key(*person)
            here = target[start * size : (start + 1) * size]
            key.decrypt_into(row.ciphertext, face_context(row.face_id), here)
        return vectors.astype(np.float32, copy=False)


def face_context(face_id: str) -> bytes:
    """The context that an encrypted embedding is bound to."""
    return b"likeness template v1\0" + face_id.encode()
