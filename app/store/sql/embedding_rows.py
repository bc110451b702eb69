"""How embeddings are stored in their rows: encrypted under each person's key, or plain."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sqlalchemy import Connection, Select, bindparam, select, update

from app.encryption.embeddings import EmbeddingCipher, EncryptedTemplate, KeyBinding
from app.encryption.ring import DataKey, WrappedKey
from app.errors import DamagedData, EncryptionKeyMissing, PersonNotFound
from app.store.records import CollectionRecord
from app.store.sql.statements import Statement
from app.store.sql.tables import alternate_embeddings, persons, templates
from app.types import FloatArray

_DATA_KEY = Statement(
    select(persons.c.id, persons.c.data_key, persons.c.key_id).where(
        persons.c.id == bindparam("person")
    )
)
_SET_DATA_KEY = Statement(
    update(persons)
    .where(persons.c.id == bindparam("person"))
    .values(data_key=bindparam("wrapped"), key_id=bindparam("by"))
)
STORED_DTYPE = np.dtype("<f4")
NO_KEY = (
    "The embeddings are encrypted and no key was given. Start the service with the key that they "
    "were encrypted with."
)
DAMAGED = "It was damaged, or changed outside the service: restore it from a backup."


class EmbeddingRowCodec:
    """Writes encrypted rows where there is a cipher, plain ones otherwise; reads both, so that a
    database may be converted while it is in use."""

    def __init__(self, cipher: EmbeddingCipher | None) -> None:
        self.cipher = cipher

    # --- read --------------------------------------------------------------------------------

    def with_embedding(self, query: Select[Any]) -> Select[Any]:
        """A query over templates with the columns that `vectors` needs."""
        query = query.add_columns(templates.c.embedding, templates.c.sealed)
        return query if self.cipher is None else self._with_owner(query)

    def with_alternate(self, query: Select[Any]) -> Select[Any]:
        """The same for the alternate embeddings of templates."""
        query = query.add_columns(alternate_embeddings.c.embedding, alternate_embeddings.c.sealed)
        query = query.join(alternate_embeddings, alternate_embeddings.c.template == templates.c.id)
        return query if self.cipher is None else self._with_owner(query)

    def _with_owner(self, query: Select[Any]) -> Select[Any]:
        # Aliased: the query may have joined the person already.
        owner = persons.alias("owner")
        return query.add_columns(
            templates.c.face_id.label("encrypted_face"), templates.c.person.label("owner_key"),
            owner.c.data_key, owner.c.key_id,
        ).join(owner, owner.c.id == templates.c.person)  # fmt: skip

    def opened_crop(self, key: DataKey | None, face_id: str, stored: bytes) -> bytes:
        """The PNG that `stored_crop` made, encrypted under `key`. Raises EncryptionKeyMissing or
        DamagedData."""
        if key is None:
            raise EncryptionKeyMissing(NO_KEY)
        return key.decrypt(stored, crop_context(face_id))

    def vectors(self, collection: CollectionRecord, rows: Sequence[Any]) -> FloatArray:
        """The embeddings (n, d) of rows of such a query.

        Raises EncryptionKeyMissing or DamagedData.
        """
        encrypted = np.array([row.sealed for row in rows], np.bool_)
        made = np.empty((len(rows), collection.dimension), np.float32)
        plain = [rows[i].embedding for i in np.flatnonzero(~encrypted).tolist()]
        made[~encrypted] = _plain_vectors(plain, collection)
        if encrypted.any():
            if self.cipher is None:
                raise EncryptionKeyMissing(NO_KEY)
            made[encrypted] = self.cipher.decrypt_embeddings(
                [_encrypted(collection, rows[i]) for i in np.flatnonzero(encrypted).tolist()],
                collection.dimension,
            )
        return made

    def known_data_key(
        self, connection: Connection, collection: CollectionRecord, person: int
    ) -> DataKey | None:
        """The person's data key, if there is one. Raises EncryptionKeyMissing or DamagedData, and
        PersonNotFound if the person was deleted before the transaction began."""
        if self.cipher is None:
            return None
        row = _DATA_KEY.first(connection, {"person": person})
        if row is None:
            raise PersonNotFound("The person was deleted meanwhile.")
        return self.opened_key(collection, row)

    def opened_key(self, collection: CollectionRecord, row: Any) -> DataKey | None:
        """The key in a row of a person, with its columns `id`, `data_key` and `key_id`, if there is
        one. Raises EncryptionKeyMissing or DamagedData."""
        if self.cipher is None or row.data_key is None:
            return None
        wrapped = WrappedKey(row.key_id, row.data_key)
        return self.cipher.decrypt_data_key(key_binding(collection, row.id), wrapped)

    # --- write -------------------------------------------------------------------------------

    def data_key(
        self, connection: Connection, collection: CollectionRecord, person: int
    ) -> DataKey | None:
        """The person's data key, made and stored if there is none yet; None without encryption."""
        known = self.known_data_key(connection, collection, person)
        if self.cipher is None or known is not None:
            return known
        key, wrapped = self.cipher.new_data_key(key_binding(collection, person))
        new = {"person": person, "wrapped": wrapped.ciphertext, "by": wrapped.key_id}
        _SET_DATA_KEY.run(connection, new)
        return key

    def stored(self, key: DataKey | None, face_id: str, embedding: FloatArray) -> bytes:
        """An embedding as its row holds it."""
        if key is None or self.cipher is None:
            return embedding.astype(STORED_DTYPE).tobytes()
        return self.cipher.encrypt_embedding(key, face_id, embedding)

    def stored_crop(self, key: DataKey | None, face_id: str, crop: bytes) -> bytes:
        """A crop as its row holds it."""
        return crop if key is None else key.encrypt(crop, crop_context(face_id))

    def moved(self, keys: tuple[DataKey | None, DataKey | None], context: bytes, row: Any) -> bytes:
        """`content` of a row with its column `sealed`, from the first key to the second. Raises
        EncryptionKeyMissing or DamagedData."""
        plain = bytes(row.content)
        if row.sealed:
            if keys[0] is None:
                raise EncryptionKeyMissing(NO_KEY)
            plain = keys[0].decrypt(plain, context)
        return plain if keys[1] is None else keys[1].encrypt(plain, context)

    def encrypted_bytes(self, key: DataKey, face_id: str, plain: bytes) -> bytes:
        """A plain row's bytes, encrypted. Raises DamagedData."""
        return self.stored(key, face_id, plain_vector(plain))

    def mark(self, key: DataKey | None, content_digest: str) -> str:
        """What a row holds of the content's digest: with a key, nothing that could be matched
        with a photo by somebody who has the database alone."""
        return content_digest if key is None else key.mark(content_digest)

    def marks(self, key: DataKey | None, content_digest: str) -> tuple[str, ...]:
        """All that rows may hold of it: those from before encryption hold the digest itself."""
        return (content_digest,) if key is None else (key.mark(content_digest), content_digest)


def crop_context(face_id: str) -> bytes:
    """What an encrypted crop is bound to."""
    return b"likeness crop v1\0" + face_id.encode()


def key_binding(collection: CollectionRecord, person: int) -> KeyBinding:
    """What a person's data key is bound to. The database is the one that the collection was read
    from: a restore replaces its id while services run."""
    return KeyBinding(collection.database, collection.key, person)


def _encrypted(collection: CollectionRecord, row: Any) -> EncryptedTemplate:
    if row.data_key is None or row.key_id is None:
        raise DamagedData(
            "The data key of a person with encrypted embeddings in the collection "
            f"'{collection.name}' is missing. {DAMAGED}"
        )
    wrapped = WrappedKey(row.key_id, row.data_key)
    binding = key_binding(collection, row.owner_key)
    return EncryptedTemplate(binding, wrapped, row.encrypted_face, row.embedding)


def plain_vector(blob: bytes) -> FloatArray:
    """The embedding (d,) of a plain row. Raises DamagedData."""
    if not blob or len(blob) % STORED_DTYPE.itemsize:
        raise DamagedData(f"A stored embedding has {len(blob)} bytes. {DAMAGED}")
    return np.frombuffer(blob, STORED_DTYPE)


def _plain_vectors(blobs: Sequence[bytes], collection: CollectionRecord) -> FloatArray:
    size = collection.dimension * STORED_DTYPE.itemsize
    # Each of them: lengths that differ but add up would give some of one's numbers to another.
    if wrong := set(map(len, blobs)) - {size}:
        raise DamagedData(
            f"A stored embedding in the collection '{collection.name}' has {min(wrong)} bytes "
            f"instead of {size}. {DAMAGED}"
        )
    flat = np.frombuffer(b"".join(blobs), dtype=STORED_DTYPE)
    return flat.astype(np.float32).reshape(len(blobs), collection.dimension)
