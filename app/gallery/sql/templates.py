"""Templates in SQL: enrolment, and the faces that clients see of them."""

import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime

from sqlalchemy import Connection, delete, insert, select

from app.gallery.ports import (
    CollectionRecord,
    FaceRecord,
    NewTemplate,
    OnceRequest,
    Page,
    Receipt,
    StoredTemplate,
)
from app.gallery.sql.changes import ADD, REMOVE, log_change
from app.gallery.sql.once import keep_answer, refuse_done
from app.gallery.sql.part import Part
from app.gallery.sql.persons import insert_person, set_metadata
from app.gallery.sql.rows import (
    MAX_KEYS,
    STORED_DTYPE,
    face_query,
    face_record,
    find_person,
    get_collection,
    get_face,
    get_person,
    lock_collection,
    to_page,
    to_vectors,
)
from app.gallery.sql.tables import templates
from app.types import FloatArray, JsonObject


class TemplatePart(Part):
    """Stores, reads and deletes templates."""

    def enroll(
        self,
        name: str,
        person_id: str,
        metadata: JsonObject | None,
        new_templates: Sequence[NewTemplate],
        *,
        once: OnceRequest | None = None,
    ) -> list[StoredTemplate]:
        """Store templates of a person, who is created if need be; all of them or none.

        Metadata replaces what the person had, unless it is None. With `once` the answer is kept
        in the same transaction; EnrolledBefore is raised, and nothing stored, where it was kept
        already, IdempotencyKeyReused where the key belongs to another request.
        """
        now = self._clock()
        with self._database.writing() as connection:
            collection = lock_collection(connection, name)
            if once is not None:
                refuse_done(connection, collection, once, now)
            person = find_person(connection, collection, person_id)
            if person is None:
                key = insert_person(connection, collection, person_id, metadata or {}, now)
            else:
                key = person.key
                if metadata is not None:
                    set_metadata(connection, key, metadata, now)
            stored = _put(connection, collection, (key, person_id), new_templates, now)
            added = [one.face.template_key for one in stored if not one.duplicate]
            log_change(connection, collection, ADD, added, now)
            if once is not None:
                keep_answer(connection, (collection.key, key), once, stored, now)
            return stored

    def face(self, name: str, face_id: str) -> FaceRecord:
        """One stored face by id."""
        with self._database.reading() as connection:
            return get_face(connection, get_collection(connection, name), face_id)

    def faces(
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
            rows = connection.execute(query.order_by(templates.c.face_id).limit(limit + 1))
            return to_page([face_record(row) for row in rows], limit)

    def delete_face(self, name: str, face_id: str) -> Receipt:
        """Delete one template; its person stays."""
        with self._database.writing() as connection:
            collection = lock_collection(connection, name)
            face = get_face(connection, collection, face_id)
            log_change(connection, collection, REMOVE, [face.template_key], self._clock())
            connection.execute(delete(templates).where(templates.c.id == face.template_key))
        self._database.erase_deleted()
        return Receipt(persons=0, templates=1)

    def stored_digests(self, name: str, person_id: str) -> set[str]:
        """Digests of what a person's templates were made from; empty for an unknown person."""
        with self._database.reading() as connection:
            person = find_person(connection, get_collection(connection, name), person_id)
            if person is None:
                return set()
            query = select(templates.c.content_digest).where(templates.c.person == person.key)
            return set(connection.execute(query).scalars())

    def embeddings(self, name: str, person_id: str) -> tuple[list[FaceRecord], FloatArray]:
        """A person's faces and their embeddings (n, d), in the same order."""
        with self._database.reading() as connection:
            collection = get_collection(connection, name)
            person = get_person(connection, collection, person_id)
            query = face_query().add_columns(templates.c.embedding)
            rows = connection.execute(
                query.where(templates.c.person == person.key).order_by(templates.c.id)
            ).all()
            vectors = to_vectors([row.embedding for row in rows], collection.dimension)
            return [face_record(row) for row in rows], vectors

    def faces_by_key(self, keys: Sequence[int]) -> Mapping[int, FaceRecord]:
        """The faces of template keys; those deleted since are missing."""
        found: dict[int, FaceRecord] = {}
        with self._database.reading() as connection:
            for start in range(0, len(keys), MAX_KEYS):
                some = keys[start : start + MAX_KEYS]
                rows = connection.execute(face_query().where(templates.c.id.in_(some)))
                found.update((row.id, face_record(row)) for row in rows)
        return found


def _put(
    connection: Connection,
    collection: CollectionRecord,
    person: tuple[int, str],
    new_templates: Sequence[NewTemplate],
    now: datetime,
) -> list[StoredTemplate]:
    """The outcome for each template; one whose content the person has already is not stored."""
    key, person_id = person
    known = _known_faces(connection, key, {new.content_digest for new in new_templates})
    fresh: dict[str, tuple[str, NewTemplate]] = {}
    for new in new_templates:
        if new.content_digest not in known and new.content_digest not in fresh:
            fresh[new.content_digest] = (str(uuid.uuid4()), new)
    keys: dict[str, int] = {}
    if fresh:
        rows = [
            {
                "face_id": face_id,
                "collection": collection.key,
                "person": key,
                "embedding": new.embedding.astype(STORED_DTYPE).tobytes(),
                "content_digest": digest,
                "quality": dict(new.quality),
                "created_at": now,
            }
            for digest, (face_id, new) in fresh.items()
        ]
        returned = insert(templates).returning(templates.c.face_id, templates.c.id)
        keys = {row.face_id: row.id for row in connection.execute(returned, rows)}
    stored = []
    for new in new_templates:
        digest = new.content_digest
        duplicate = digest in known
        if not duplicate:
            face_id, first = fresh[digest]
            known[digest] = FaceRecord(keys[face_id], face_id, person_id, first.quality, now)
        stored.append(StoredTemplate(known[digest], duplicate))
    return stored


def _known_faces(connection: Connection, person: int, digests: set[str]) -> dict[str, FaceRecord]:
    query = face_query().add_columns(templates.c.content_digest)
    mine = (templates.c.person == person) & templates.c.content_digest.in_(digests)
    return {row.content_digest: face_record(row) for row in connection.execute(query.where(mine))}
