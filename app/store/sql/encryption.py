"""Encryption of stored rows: its state, rotation of keys, and the check at a start."""

from sqlalchemy import Connection, func, insert, or_, select, update

from app.encryption.embeddings import EmbeddingCipher
from app.encryption.ring import DataKey, KeyRing, WrappedKey
from app.errors import EncryptionKeyError
from app.store.database import Database
from app.store.records import CollectionRecord, EncryptionState
from app.store.sql.audit_log import note
from app.store.sql.lookups import lock_collection
from app.store.sql.tables import alternate_embeddings, crops, encryption_keys, persons, templates

PERSONS_AT_ONCE = 200


class EncryptionStore:
    """Which rows are encrypted by which keys; encrypts again after a change of keys."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def state(self) -> EncryptionState:
        """What is encrypted, and by which keys."""
        with self._database.reading() as connection:
            kinds = select(templates.c.sealed, func.count()).group_by(templates.c.sealed)
            count = {bool(encrypted): n for encrypted, n in connection.execute(kinds)}
            keys = select(persons.c.key_id, func.count()).group_by(persons.c.key_id)
            used = connection.execute(keys.where(persons.c.key_id.is_not(None)))
            by_key = {str(key_id): int(n) for key_id, n in used}
            return EncryptionState(count.get(False, 0), count.get(True, 0), by_key)

    def check_keys(self) -> None:
        """Check before a start that the keys open what is stored; record the active one.

        Raises EncryptionKeyError.
        """
        used = self.state().persons_by_key
        if self._database.ring is None:
            if used:
                raise EncryptionKeyError(
                    f"The database is encrypted by {', '.join(sorted(used))}, and no key was "
                    "given. Set LIKENESS_ENCRYPTION_KEY, LIKENESS_ENCRYPTION_KEY_FILE or "
                    "LIKENESS_ENCRYPTION_KEY_COMMAND."
                )
            return
        self._database.ring.require(used)
        with self._database.writing() as connection:
            query = select(encryption_keys.c.key_id, encryption_keys.c.fingerprint)
            known = {str(key_id): str(mark) for key_id, mark in connection.execute(query)}
            for key_id, fingerprint in self._database.ring.fingerprints.items():
                if known.get(key_id, fingerprint) != fingerprint:
                    raise EncryptionKeyError(
                        f"The key {key_id} differs from the key with this id that the database "
                        "was encrypted with. Give that key."
                    )
            active = self._database.ring.active_id
            if active not in known:
                row = {"key_id": active, "fingerprint": self._database.ring.fingerprints[active]}
                now = self._database.clock()
                connection.execute(insert(encryption_keys).values(**row, created_at=now))
                note(connection, "encryption.key_added", key_id=active)

    def reencrypt(self, name: str) -> int:
        """Bring some persons of a collection under the active key, and encrypt what is plain of
        theirs; the number of persons, 0 when there is nothing left to do.

        Each call is a short transaction, so a service can run meanwhile.
        """
        cipher = self._database.codec.cipher
        if cipher is None:
            raise EncryptionKeyError(
                "No encryption key was given. Set LIKENESS_ENCRYPTION_KEY, "
                "LIKENESS_ENCRYPTION_KEY_FILE or "
                "LIKENESS_ENCRYPTION_KEY_COMMAND."
            )
        with self._database.writing() as connection:
            collection = lock_collection(connection, name)
            some = _to_reencrypt(connection, collection, cipher.ring)
            for person in some:
                key = self._rewrap(connection, collection, person, cipher)
                self._encrypt(connection, person, key)
            if some:
                note(connection, "encryption.keys_changed", name, persons=len(some))
        self._database.eraser.erase()
        return len(some)

    def _rewrap(
        self, connection: Connection, collection: CollectionRecord, person: int,
        cipher: EmbeddingCipher,
    ) -> DataKey:  # fmt: skip
        key = self._database.codec.person_key(connection, collection, person)
        assert key is not None, "there is a cipher"
        query = select(persons.c.data_key, persons.c.key_id).where(persons.c.id == person)
        row = connection.execute(query).one()
        wrapped = WrappedKey(row.key_id, row.data_key)
        again = cipher.rewrap_person_key(collection.key, person, wrapped)
        if again != wrapped:
            connection.execute(
                update(persons)
                .where(persons.c.id == person)
                .values(data_key=again.ciphertext, key_id=again.key_id)
            )
        return key

    def _encrypt(self, connection: Connection, person: int, key: DataKey) -> None:
        columns = (
            templates.c.id, templates.c.face_id, templates.c.embedding, templates.c.content_digest
        )  # fmt: skip
        plain = (templates.c.person == person) & templates.c.sealed.is_(False)
        for row in connection.execute(select(*columns).where(plain)).all():
            connection.execute(
                update(templates)
                .where(templates.c.id == row.id)
                .values(
                    embedding=self._database.codec.encrypted_bytes(key, row.face_id, row.embedding),
                    content_digest=self._database.codec.mark(key, row.content_digest),
                    sealed=True,
                )
            )
            self._encrypt_related(connection, row.id, row.face_id, key)

    def _encrypt_related(
        self, connection: Connection, template: int, face_id: str, key: DataKey
    ) -> None:
        """Encrypt a template's crop and its embeddings in other spaces."""
        plain = (crops.c.template == template) & crops.c.sealed.is_(False)
        for row in connection.execute(select(crops.c.crop).where(plain)).all():
            encrypted = self._database.codec.stored_crop(key, face_id, row.crop)
            connection.execute(update(crops).where(plain).values(crop=encrypted, sealed=True))
        plain = (alternate_embeddings.c.template == template) & alternate_embeddings.c.sealed.is_(
            False
        )
        columns = (alternate_embeddings.c.embedding_space, alternate_embeddings.c.embedding)
        for row in connection.execute(select(*columns).where(plain)).all():
            encrypted = self._database.codec.encrypted_bytes(key, face_id, row.embedding)
            one = plain & (alternate_embeddings.c.embedding_space == row.embedding_space)
            connection.execute(
                update(alternate_embeddings).where(one).values(embedding=encrypted, sealed=True)
            )


def _to_reencrypt(connection: Connection, collection: CollectionRecord, ring: KeyRing) -> list[int]:
    """Persons whose key is another than the active one, or who have a plain template."""
    has_plain = (
        select(templates.c.id)
        .where(templates.c.person == persons.c.id, templates.c.sealed.is_(False))
        .exists()
    )
    query = select(persons.c.id).where(
        persons.c.collection == collection.key,
        or_(persons.c.key_id.is_not(None) & (persons.c.key_id != ring.active_id), has_plain),
    )
    return list(connection.execute(query.limit(PERSONS_AT_ONCE)).scalars())
