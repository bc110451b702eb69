"""Encryption of stored rows: its state, rotation of keys, and the check at a start."""

from collections.abc import Mapping

from sqlalchemy import ColumnElement, Connection, exists, func, insert, or_, select, update

from app.encryption.embeddings import EmbeddingCipher
from app.encryption.ring import DataKey, KeyRing, WrappedKey
from app.errors import DamagedData, EncryptionKeyError, EncryptionKeyMissing
from app.store.database import Database
from app.store.records import CollectionRecord, EncryptionState, Reencrypted
from app.store.sql.audit_log import note
from app.store.sql.embedding_rows import EmbeddingRowCodec, key_binding
from app.store.sql.lookups import count_rows, is_live, lock_collection
from app.store.sql.tables import (
    alternate_embeddings,
    crops,
    database,
    encryption_keys,
    persons,
    templates,
)

PERSONS_AT_ONCE = 200


class EncryptionStore:
    """Which rows are encrypted by which keys; encrypts again after a change of keys."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def state(self) -> EncryptionState:
        """What is encrypted, and by which keys."""
        with self._database.reading() as connection:
            (plain, encrypted), (plain_crops, _), (plain_alternates, encrypted_alternates) = (
                tuple(
                    count_rows(connection, table, table.c.sealed.is_(sealed) & is_live(table))
                    for sealed in (False, True)
                )
                for table in (templates, crops, alternate_embeddings)
            )
            return EncryptionState(
                plain, encrypted, _persons_by_key(connection),
                plain_crops, plain_alternates, encrypted_alternates,
            )  # fmt: skip

    def require_keys(self) -> None:
        """Check that the keys open what is stored; changes nothing. Raises EncryptionKeyError."""
        with self._database.reading() as connection:
            used = _persons_by_key(connection)
            known = _known_fingerprints(connection)
        if self._database.ring is not None:
            self._database.ring.require(used)
            _refuse_other_keys(self._database.ring, known)
        elif used:
            raise EncryptionKeyError(
                f"The database is encrypted by {', '.join(sorted(used))}, and no key was "
                "given. Set LIKENESS_ENCRYPTION_KEY, LIKENESS_ENCRYPTION_KEY_FILE or "
                "LIKENESS_ENCRYPTION_KEY_COMMAND."
            )

    def check_keys(self) -> None:
        """Check before a start that the keys open what is stored; record the active one.

        Raises EncryptionKeyError.
        """
        self.require_keys()
        ring = self._database.ring
        if ring is None:
            return
        with self._database.writing() as connection:
            # One process after the other, each checking again what the others have recorded since:
            # several may start with a new key.
            connection.execute(select(database.c.id).with_for_update())
            known = _known_fingerprints(connection)
            _refuse_other_keys(ring, known)
            if ring.active_id not in known:
                row = {"key_id": ring.active_id, "fingerprint": ring.fingerprints[ring.active_id]}
                now = self._database.clock()
                connection.execute(insert(encryption_keys).values(**row, created_at=now))
                note(connection, "encryption.key_added", key_id=ring.active_id)

    def reencrypt(self, name: str) -> Reencrypted:
        """Bring the persons of a collection under the active key, and encrypt what is plain of
        theirs. A person whose key or rows cannot be read is left as they are, and named.

        In short transactions, so a service can run meanwhile. Raises EncryptionKeyError without a
        key.
        """
        cipher = self._database.codec.cipher
        if cipher is None:
            raise EncryptionKeyError(
                "No encryption key was given. Set LIKENESS_ENCRYPTION_KEY, "
                "LIKENESS_ENCRYPTION_KEY_FILE or "
                "LIKENESS_ENCRYPTION_KEY_COMMAND."
            )
        done, failed, last = 0, list[str](), 0
        while True:
            with self._database.writing() as connection:
                collection = lock_collection(connection, name)
                some = _to_reencrypt(connection, collection, cipher.ring, last)
                bad = [
                    person_id
                    for key, person_id in some
                    if not self._reencrypt_one(connection, collection, key, cipher)
                ]
                if len(some) > len(bad):
                    note(connection, "encryption.keys_changed", name, persons=len(some) - len(bad))
            if not some:
                return Reencrypted(done, failed)
            self._database.eraser.erase()
            done, failed, last = done + len(some) - len(bad), failed + bad, some[-1][0]

    def _reencrypt_one(
        self, connection: Connection, collection: CollectionRecord, person: int,
        cipher: EmbeddingCipher,
    ) -> bool:  # fmt: skip
        def work() -> None:
            key = self._rewrap(connection, collection, person, cipher)
            encrypt_plain(connection, self._database.codec, key, templates.c.person == person)

        error = self._database.attempt(connection, work)
        if error is not None and not isinstance(error, DamagedData | EncryptionKeyMissing):
            raise error
        return error is None

    def _rewrap(
        self, connection: Connection, collection: CollectionRecord, person: int,
        cipher: EmbeddingCipher,
    ) -> DataKey:  # fmt: skip
        key = self._database.codec.data_key(connection, collection, person)
        assert key is not None, "there is a cipher"
        query = select(persons.c.data_key, persons.c.key_id).where(persons.c.id == person)
        row = connection.execute(query).one()
        wrapped = WrappedKey(row.key_id, row.data_key)
        again = cipher.rewrap_data_key(key_binding(collection, person), wrapped)
        if again != wrapped:
            connection.execute(
                update(persons)
                .where(persons.c.id == person)
                .values(data_key=again.ciphertext, key_id=again.key_id)
            )
        return key


def _persons_by_key(connection: Connection) -> dict[str, int]:
    keys = select(persons.c.key_id, func.count()).group_by(persons.c.key_id)
    keys = keys.where(is_live(persons))
    used = connection.execute(keys.where(persons.c.key_id.is_not(None)))
    return {str(key_id): int(n) for key_id, n in used}


def _known_fingerprints(connection: Connection) -> dict[str, str]:
    query = select(encryption_keys.c.key_id, encryption_keys.c.fingerprint)
    return {str(key_id): str(mark) for key_id, mark in connection.execute(query)}


def _refuse_other_keys(ring: KeyRing, known: Mapping[str, str]) -> None:
    """Raises EncryptionKeyError if a key of the ring has the id of another one that is known."""
    for key_id, fingerprint in ring.fingerprints.items():
        if known.get(key_id, fingerprint) != fingerprint:
            raise EncryptionKeyError(
                f"The key {key_id} differs from the key with this id that the database "
                "was encrypted with. Give that key."
            )


def encrypt_plain(
    connection: Connection, codec: EmbeddingRowCodec, key: DataKey, which: ColumnElement[bool]
) -> int:
    """Encrypt everything that is plain of some templates of one person, under that person's key;
    the number of templates. The caller erases the former bytes (`Eraser.erase`).

    Raises DamagedData.
    """
    columns = (
        templates.c.id, templates.c.face_id, templates.c.embedding, templates.c.sealed,
        templates.c.content_digest,
    )  # fmt: skip
    rows = connection.execute(select(*columns).where(which, _is_plain())).all()
    for row in rows:
        # Also of an encrypted embedding, where something beside it is plain: it took the place of
        # a plain one when the collection was migrated to another space.
        values = {"content_digest": codec.mark(key, row.content_digest), "sealed": True}
        if not row.sealed:
            values["embedding"] = codec.encrypted_bytes(key, row.face_id, row.embedding)
        connection.execute(update(templates).where(templates.c.id == row.id).values(values))
        _encrypt_related(connection, codec, key, row.id, row.face_id)
    return len(rows)


def _encrypt_related(
    connection: Connection, codec: EmbeddingRowCodec, key: DataKey, template: int, face_id: str
) -> None:
    """Encrypt a template's crop and its embeddings in other spaces."""
    plain = (crops.c.template == template) & crops.c.sealed.is_(False)
    for row in connection.execute(select(crops.c.crop).where(plain)).all():
        encrypted = codec.stored_crop(key, face_id, row.crop)
        connection.execute(update(crops).where(plain).values(crop=encrypted, sealed=True))
    plain = (alternate_embeddings.c.template == template) & alternate_embeddings.c.sealed.is_(False)
    columns = (alternate_embeddings.c.embedding_space, alternate_embeddings.c.embedding)
    for row in connection.execute(select(*columns).where(plain)).all():
        encrypted = codec.encrypted_bytes(key, face_id, row.embedding)
        one = plain & (alternate_embeddings.c.embedding_space == row.embedding_space)
        connection.execute(
            update(alternate_embeddings).where(one).values(embedding=encrypted, sealed=True)
        )


def _is_plain() -> ColumnElement[bool]:
    """Whether a template's embedding, crop or an embedding in another space is plain."""
    return or_(
        templates.c.sealed.is_(False),
        *(
            exists().where(table.c.template == templates.c.id, table.c.sealed.is_(False))
            for table in (crops, alternate_embeddings)
        ),
    )


def _to_reencrypt(
    connection: Connection, collection: CollectionRecord, ring: KeyRing, after: int
) -> list[tuple[int, str]]:
    """Persons, key and id, whose data key is under another key than the active one, or of whom
    something is plain: by rising key, some of those above `after`."""
    has_plain = exists().where(templates.c.person == persons.c.id, _is_plain())
    query = select(persons.c.id, persons.c.person_id).where(
        persons.c.collection == collection.key,
        persons.c.id > after,
        or_(persons.c.key_id.is_not(None) & (persons.c.key_id != ring.active_id), has_plain),
    )
    rows = connection.execute(query.order_by(persons.c.id).limit(PERSONS_AT_ONCE))
    return [(row.id, row.person_id) for row in rows]
