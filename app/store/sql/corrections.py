"""Moves templates from one person to another: corrects a mislabel, or one person with two ids."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Table, delete, insert, select, update

from app.encryption.embeddings import face_context
from app.encryption.ring import DataKey
from app.errors import InvalidRequest, OtherFaceEnrolled
from app.store.database import Database
from app.store.records import CollectionRecord, FaceRecord, PersonRecord
from app.store.sql.audit_log import note
from app.store.sql.changes import ADD, REMOVE, log_change
from app.store.sql.consents import remember_withdrawn, require_consent
from app.store.sql.embedding_rows import crop_context, plain_vector
from app.store.sql.lookups import (
    face_query,
    find_person,
    get_face,
    get_person,
    lock_collection,
)
from app.store.sql.pairs import move_pairs, refuse_declared
from app.store.sql.persons import insert_person
from app.store.sql.retention import take_over_activity
from app.store.sql.tables import alternate_embeddings, crops, idempotency, persons, templates
from app.store.sql.templates import SAME_FACE
from app.types import FloatArray

FACES_AT_ONCE = 500  # that are in memory, with their crops


class Corrections:
    """Moves templates and merges persons; each call is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def move_face(self, name: str, face_id: str, person_id: str) -> FaceRecord:
        """Move a template to another person, who is created if necessary; it keeps its face id.

        Where the person has that very photo already, the template is deleted instead, and the
        answer is the one that they have; if its embedding is encrypted that cannot be seen, and the
        person has it twice. Raises ConsentMissing if the collection needs consents and either has
        none that is valid, and OtherFaceEnrolled if the person has another face of the photo.
        """
        now = self._database.clock()
        with self._database.writing() as connection:
            collection = lock_collection(connection, name)
            face = get_face(connection, collection, face_id)
            target = find_person(connection, collection, person_id)
            if target is None:
                key = insert_person(connection, collection, person_id, {}, now)
                note(connection, "person.created", name, key)
            target = get_person(connection, collection, person_id)
            require_consent(collection, target.person_id, target.consent_until, now)
            if face.person_id == target.person_id:
                return face
            source = get_person(connection, collection, face.person_id)
            require_consent(collection, source.person_id, source.consent_until, now)
            people = source.key, target.key
            duplicates = self._move(connection, collection, [face.template_key], people)
            if duplicates:
                note(connection, "face.deleted", name, source.key, face_id=face.face_id)
            else:
                details = {"face_id": face.face_id, "from": source.key, "to": target.key}
                for person in people:
                    note(connection, "face.moved", name, person, **details)
            answer = get_face(connection, collection, duplicates.get(face.face_id, face.face_id))
        self._database.eraser.erase()
        return answer

    def merge_persons(self, name: str, source: str, target: str) -> PersonRecord:
        """Move every template and every declared pair of one person to another, and delete the
        first. The other's metadata stays as it is. Raises DeclaredDifferent; InvalidRequest if
        the other would have too many declared pairs; OtherFaceEnrolled if they have different faces
        of one photo; or ConsentMissing if the collection needs
        consents and either has none that is valid: a withdrawal would be lost with the first
        person."""
        with self._database.writing() as connection:
            collection = lock_collection(connection, name)
            old = get_person(connection, collection, source)
            new = get_person(connection, collection, target)
            if old.key == new.key:
                raise InvalidRequest("A person cannot be merged with themselves; name two.")
            refuse_declared(connection, old, new)
            now = self._database.clock()
            for one in (old, new):
                require_consent(collection, one.person_id, one.consent_until, now)
            query = select(templates.c.id).where(templates.c.person == old.key)
            keys = list(connection.execute(query).scalars())
            duplicates = self._move(connection, collection, keys, (old.key, new.key))
            move_pairs(connection, old, new)
            take_over_activity(connection, collection, old.key, new.key)
            # So that an enrollment that is sent again does not bring the merged person back.
            mine = idempotency.c.person == old.key
            connection.execute(update(idempotency).where(mine).values(person=new.key))
            remember_withdrawn(connection, collection, {old.key: None})
            connection.execute(delete(persons).where(persons.c.id == old.key))
            counts = {"templates": len(keys) - len(duplicates), "duplicates": len(duplicates)}
            note(connection, "person.merged", name, old.key, into=new.key, **counts)
            note(connection, "person.merged", name, new.key, absorbed=old.key)
            merged = get_person(connection, collection, new.person_id)
        self._database.eraser.erase()
        return merged

    def _move(
        self,
        connection: Connection,
        collection: CollectionRecord,
        keys: Sequence[int],
        people: tuple[int, int],
    ) -> dict[str, str]:
        """New rows under the same face ids: an index knows a template's person by its key. Returns
        the face ids of those that were deleted because the new person has the same photo, each with
        the id of that face."""
        codec = self._database.codec
        old, new = (codec.data_key(connection, collection, one) for one in people)
        new_keys, duplicates = list[int](), dict[str, str]()
        for start in range(0, len(keys), FACES_AT_ONCE):
            some = keys[start : start + FACES_AT_ONCE]
            stored, dropped = self._move_some(connection, collection, some, people[1], (old, new))
            new_keys += stored
            duplicates |= dropped
        log_change(connection, collection, REMOVE, list(keys), self._database.clock())
        log_change(connection, collection, ADD, sorted(new_keys), self._database.clock())
        return duplicates

    def _move_some(
        self,
        connection: Connection,
        collection: CollectionRecord,
        keys: Sequence[int],
        person: int,
        data_keys: tuple[DataKey | None, DataKey | None],
    ) -> tuple[list[int], dict[str, str]]:
        """Move some of the templates to a person. Returns the keys of the new rows, and what
        `_move` returns."""
        codec, new = self._database.codec, data_keys[1]
        query = select(templates, templates.c.embedding.label("content"))
        rows = connection.execute(query.where(templates.c.id.in_(keys))).all()
        face_ids = {row.id: row.face_id for row in rows}
        companions = self._companions(connection, face_ids, data_keys)
        connection.execute(delete(templates).where(templates.c.id.in_(keys)))
        existing = self._existing(connection, person, rows, new)
        new_rows, duplicates = [], dict[str, str]()
        given = dict[str, FloatArray]()  # of the duplicates
        for row in rows:
            digest = row.content_digest
            marks = (digest,) if row.sealed else codec.marks(new, digest)
            if known := next((existing[mark] for mark in marks if mark in existing), None):
                duplicates[row.face_id] = known
                plain = codec.moved((data_keys[0], None), face_context(row.face_id), row)
                given[row.face_id] = plain_vector(plain)
                continue
            stored = digest if row.sealed else codec.mark(new, digest)
            existing[stored] = row.face_id
            new_rows.append(
                {
                    "face_id": row.face_id,
                    "collection": row.collection,
                    "person": person,
                    "embedding": codec.moved(data_keys, face_context(row.face_id), row),
                    "sealed": new is not None,
                    "content_digest": stored,
                    "quality": row.quality,
                    "created_at": row.created_at,
                }
            )
        self._require_same_faces(connection, collection, given, duplicates)
        return _insert(connection, new_rows, companions), duplicates

    def _require_same_faces(
        self,
        connection: Connection,
        collection: CollectionRecord,
        given: Mapping[str, FloatArray],
        duplicates: Mapping[str, str],
    ) -> None:
        """Raise OtherFaceEnrolled if the faces of one photo, given with their embeddings (d,) and
        the stored ones that they would be dropped for, are different."""
        codec = self._database.codec
        query = codec.with_embedding(face_query())
        mine = templates.c.face_id.in_(set(duplicates.values()))
        rows = connection.execute(query.where(mine)).all() if duplicates else []
        vectors = codec.vectors(collection, rows)
        stored = {row.face_id: vector for row, vector in zip(rows, vectors, strict=True)}
        for face_id, known in duplicates.items():
            if known in stored and float(given[face_id] @ stored[known]) < SAME_FACE:
                raise OtherFaceEnrolled(
                    f"The face {face_id}, and the face {known} of the other person, are different "
                    "faces of one photo. Delete the one that is wrong first.",
                    {"face_id": known},
                )

    def _existing(
        self, connection: Connection, person: int, rows: Sequence[Any], key: DataKey | None
    ) -> dict[str, str]:
        """What a person has already of the contents of others' rows: face ids by the digest as it
        is stored."""
        codec = self._database.codec
        marks = {row.content_digest for row in rows}.union(
            *(codec.marks(key, row.content_digest) for row in rows if not row.sealed)
        )
        query = select(templates.c.content_digest, templates.c.face_id).where(
            templates.c.person == person, templates.c.content_digest.in_(marks)
        )
        return {row.content_digest: row.face_id for row in connection.execute(query)}

    def _companions(
        self,
        connection: Connection,
        face_ids: Mapping[int, str],
        keys: tuple[DataKey | None, DataKey | None],
    ) -> list[tuple[Table, str, dict[str, Any]]]:
        """The crops and alternate embeddings of templates, as rows for templates of another person
        that have the same face ids."""
        found: list[tuple[Table, str, dict[str, Any]]] = []
        encrypted = keys[1] is not None
        query: Any = select(crops.c.template, crops.c.crop.label("content"), crops.c.sealed)
        for row in connection.execute(query.where(crops.c.template.in_(face_ids))):
            face_id = face_ids[row.template]
            content = self._database.codec.moved(keys, crop_context(face_id), row)
            found.append((crops, face_id, {"crop": content, "sealed": encrypted}))
        query = select(
            alternate_embeddings.c.template,
            alternate_embeddings.c.embedding.label("content"),
            alternate_embeddings.c.sealed,
            alternate_embeddings.c.embedding_space,
        )
        for row in connection.execute(query.where(alternate_embeddings.c.template.in_(face_ids))):
            face_id = face_ids[row.template]
            content = self._database.codec.moved(keys, face_context(face_id), row)
            kept = {"embedding": content, "embedding_space": row.embedding_space}
            found.append((alternate_embeddings, face_id, {**kept, "sealed": encrypted}))
        return found


def _insert(
    connection: Connection,
    rows: Sequence[Mapping[str, Any]],
    companions: Sequence[tuple[Table, str, Mapping[str, Any]]],
) -> list[int]:
    """Store templates, and those of their companions whose face ids they have. Returns the
    templates' keys."""
    if not rows:
        return []
    returned = insert(templates).returning(templates.c.face_id, templates.c.id)
    keys = {row.face_id: int(row.id) for row in connection.execute(returned, rows)}
    for table in (crops, alternate_embeddings):
        kept = [
            {"template": keys[face_id], **values}
            for one, face_id, values in companions
            if one is table and face_id in keys
        ]
        if kept:
            connection.execute(insert(table), kept)
    return list(keys.values())
