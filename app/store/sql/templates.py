"""Templates in SQL: enrollment, and the faces that clients see of them."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Select, bindparam, delete, insert

from app.encryption.ring import DataKey
from app.store.database import Database
from app.store.identifiers import new_person_id
from app.store.metadata import check_metadata
from app.store.records import (
    CollectionRecord,
    DeletionCounts,
    FaceRecord,
    IdempotencyRequest,
    NewTemplate,
    Page,
    StoredTemplate,
)
from app.store.sql.audit_log import note
from app.store.sql.changes import ADD, REMOVE, log_change
from app.store.sql.consents import needs_consent, require_consent, without_consent
from app.store.sql.embedding_rows import EmbeddingRowCodec
from app.store.sql.idempotency import keep_answer, refuse_done
from app.store.sql.lookups import (
    MAX_KEYS,
    aware,
    face_query,
    face_record,
    fetch_page,
    find_person,
    get_collection,
    get_face,
    get_person,
    lock_collection,
    to_page,
)
from app.store.sql.persons import insert_person, set_metadata
from app.store.sql.retention import note_activity
from app.store.sql.statements import Statement
from app.store.sql.tables import crops, templates
from app.types import JsonObject

# Made once: it is part of every search.
_INSERT = Statement(insert(templates).returning(templates.c.id))
_BY_KEY = face_query().where(templates.c.id.in_(bindparam("keys", expanding=True)))


class TemplateStore:
    """Stores, reads and deletes templates."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def enroll(
        self,
        name: str,
        person_id: str,
        metadata: JsonObject | None,
        new_templates: Sequence[NewTemplate],
        *,
        idempotency: IdempotencyRequest | None = None,
        space: str | None = None,
    ) -> list[StoredTemplate]:
        """Store templates of a person, who is created if need be; all of them or none.

        They are of the embedding space `space`: EmbeddingSpaceMismatch is raised, and nothing
        stored, if the collection is of another one by now.

        Metadata replaces what the person had, unless it is None. With `idempotency` the answer is
        kept in the same transaction; EnrolledBefore is raised, and nothing stored, where it was
        kept already, IdempotencyKeyReused where the key belongs to another request. Raises
        ConsentMissing if the collection needs a consent that the person does not have.
        """
        now = self._database.clock()
        with self._database.writing() as connection:
            collection = lock_collection(connection, name)
            if space is not None:
                collection.require_space(space)
            if idempotency is not None:
                refuse_done(connection, collection, idempotency, now)
            person = find_person(connection, collection, person_id)
            if person is None:
                key = insert_person(connection, collection, person_id, metadata or {}, now)
            else:
                key = person.key
                if metadata is not None:
                    set_metadata(connection, collection, key, metadata, now)
            if needs_consent(collection):
                until = get_person(connection, collection, person_id).consent_until
                require_consent(collection, person_id, until, now)
            data_key = self._database.codec.person_key(connection, collection, key)
            known_as = new_person_id(person_id) if person is None else person.person_id
            put = _Put(self._database.codec, data_key, collection.key, (key, known_as), now)
            stored = put.all(connection, new_templates, is_new=person is None)
            added = [one.face.template_key for one in stored if not one.duplicate]
            log_change(connection, collection, ADD, added, now)
            note_activity(connection, collection, [key], now)
            note(connection, "person.enrolled", name, key, templates=len(added),
                 duplicates=len(stored) - len(added), metadata=metadata is not None)  # fmt: skip
            if idempotency is not None:
                keep_answer(connection, (collection.key, key), idempotency, stored, now)
            return stored

    def get(self, name: str, face_id: str) -> FaceRecord:
        """One stored face by id."""
        with self._database.reading() as connection:
            return get_face(connection, get_collection(connection, name), face_id)

    def page(
        self, name: str, person_id: str | None, after: str | None, limit: int
    ) -> Page[FaceRecord]:
        """Stored faces by id, of the whole collection or of one person."""
        with self._database.reading() as connection:
            collection = get_collection(connection, name)
            query = face_query().where(templates.c.collection == collection.key)
            if person_id is not None:
                person = get_person(connection, collection, person_id)
                query = query.where(templates.c.person == person.key)
            if after is not None:
                query = query.where(templates.c.face_id > after)
            query = query.order_by(templates.c.face_id)
            return to_page(fetch_page(connection, query, limit, "quality"), face_record)

    def delete(self, name: str, face_id: str) -> DeletionCounts:
        """Delete one template; its person stays."""
        with self._database.writing() as connection:
            collection = lock_collection(connection, name)
            face = get_face(connection, collection, face_id)
            log_change(connection, collection, REMOVE, [face.template_key], self._database.clock())
            connection.execute(delete(templates).where(templates.c.id == face.template_key))
            person = get_person(connection, collection, face.person_id)
            note(connection, "face.deleted", name, person.key, face_id=face.face_id)
        return DeletionCounts(persons=0, templates=1, erased=self._database.eraser.erase())

    def by_key(self, keys: Sequence[int]) -> Mapping[int, FaceRecord]:
        """The faces of template keys; those deleted since are missing."""
        return self._by_key(keys, _BY_KEY)

    def matchable(
        self, collection: CollectionRecord, keys: Sequence[int]
    ) -> Mapping[int, FaceRecord]:
        """The same, without those of persons whose consent has ended if the collection needs
        one."""
        if not needs_consent(collection):
            return self.by_key(keys)
        return self._by_key(keys, _BY_KEY.where(~without_consent(self._database.clock())))

    def _by_key(self, keys: Sequence[int], query: Select[Any]) -> Mapping[int, FaceRecord]:
        found: dict[int, FaceRecord] = {}
        # Each statement by itself: of some faces, it does not matter what others were before.
        with self._database.glancing() as connection:
            for start in range(0, len(keys), MAX_KEYS):
                rows = connection.execute(query, {"keys": keys[start : start + MAX_KEYS]})
                for key, face_id, quality, created_at, person_id in rows:
                    found[key] = FaceRecord(key, face_id, person_id, quality, aware(created_at))
        return found


@dataclass(frozen=True, slots=True)
class _Put:
    """Stores templates of one person, (key, person_id)."""

    codec: EmbeddingRowCodec
    data_key: DataKey | None
    collection: int
    person: tuple[int, str]
    now: datetime

    def all(
        self, connection: Connection, new_templates: Sequence[NewTemplate], *, is_new: bool
    ) -> list[StoredTemplate]:
        """The outcome for each; one whose content the person has already is not stored. `is_new`:
        the person has none yet."""
        digests = {new.content_digest for new in new_templates}
        known = {} if is_new else self._known(connection, digests)
        fresh: dict[str, NewTemplate] = {}
        for new in new_templates:
            if new.content_digest not in known:
                fresh.setdefault(new.content_digest, new)
        made = self._insert(connection, fresh)
        stored = []
        for new in new_templates:
            digest = new.content_digest
            duplicate = digest in known
            if not duplicate:
                known[digest] = made[digest]
            stored.append(StoredTemplate(known[digest], duplicate))
        return stored

    def _known(self, connection: Connection, digests: set[str]) -> dict[str, FaceRecord]:
        """Faces by the digest of their content."""
        digest_of = {
            mark: digest for digest in digests for mark in self.codec.marks(self.data_key, digest)
        }
        query = face_query().add_columns(templates.c.content_digest)
        mine = (templates.c.person == self.person[0]) & templates.c.content_digest.in_(digest_of)
        rows = connection.execute(query.where(mine))
        return {digest_of[row.content_digest]: face_record(row) for row in rows}

    def _insert(
        self, connection: Connection, fresh: Mapping[str, NewTemplate]
    ) -> dict[str, FaceRecord]:
        if not fresh:
            return {}
        ids = {digest: str(uuid.uuid4()) for digest in fresh}
        rows = [
            {
                "face_id": ids[digest],
                "collection": self.collection,
                "person": self.person[0],
                "embedding": self.codec.stored(self.data_key, ids[digest], new.embedding),
                "sealed": self.data_key is not None,
                "content_digest": self.codec.mark(self.data_key, digest),
                "quality": dict(check_metadata(dict(new.quality), "quality")),
                "created_at": self.now,
            }
            for digest, new in fresh.items()
        ]
        keys = {row["face_id"]: _INSERT.rows(connection, row)[0].id for row in rows}
        kept = [
            {
                "template": keys[ids[digest]],
                "crop": self.codec.stored_crop(self.data_key, ids[digest], new.crop),
                "sealed": self.data_key is not None,
            }
            for digest, new in fresh.items()
            if new.crop is not None
        ]
        if kept:
            connection.execute(insert(crops), kept)
        return {
            digest: FaceRecord(
                keys[ids[digest]], ids[digest], self.person[1], new.quality, self.now
            )
            for digest, new in fresh.items()
        }
