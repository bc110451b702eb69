"""Templates in SQL: enrollment, and the faces that clients see of them."""

import uuid
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

import numpy as np
from sqlalchemy import Connection, Select, bindparam, delete, insert, select

from app.encryption.ring import DataKey
from app.errors import OtherFaceEnrolled
from app.index.port import Templates
from app.store.database import Database
from app.store.identifiers import new_person_id
from app.store.metadata import check_metadata
from app.store.records import (
    CollectionRecord,
    DeletionCounts,
    EnrolledTogether,
    FaceName,
    FaceRecord,
    NewTemplate,
    Page,
    PersonEnrollment,
    StoredTemplate,
)
from app.store.sql.audit_log import note
from app.store.sql.changes import ADD, REMOVE, log_change
from app.store.sql.consents import needs_consent, require_consent, without_consent
from app.store.sql.embedding_rows import EmbeddingRowCodec
from app.store.sql.idempotency import keep_answer, refuse_done
from app.store.sql.lookups import (
    MAX_KEYS,
    face_query,
    face_record,
    fetch_page,
    find_person,
    get_collection,
    get_face,
    get_person,
    lock_collection,
    require_bound,
    to_page,
)
from app.store.sql.persons import insert_person, set_metadata
from app.store.sql.retention import note_activity
from app.store.sql.statements import Statement
from app.store.sql.tables import crops, persons, templates
from app.types import FloatArray, JsonObject

# One face that is analysed again is more similar to itself, with any engine and precision, and
# even where the stored embedding was made of a crop by another pack; two people's faces are less.
SAME_FACE = 0.6
_INSERT = Statement(insert(templates).returning(templates.c.id))
_BY_KEY = face_query().where(templates.c.id.in_(bindparam("keys", expanding=True)))
_NAME = select(
    templates.c.id, templates.c.person, templates.c.face_id, persons.c.person_id
).join(persons, persons.c.id == templates.c.person)  # fmt: skip


def _by_keys(query: Select[Any]) -> dict[int, Statement]:
    """The query for some numbers of template keys, in ascending order."""
    return {
        count: Statement(
            query.where(templates.c.id.in_([bindparam(f"key{i}") for i in range(count)]))
        )
        for count in (8, 64, 512)
    }


# Made once: they are part of every search.
_NAMES = _by_keys(_NAME)
_NAMES_AND_CONSENTS = _by_keys(
    _NAME.add_columns(without_consent(bindparam("now")).label("consent_ended"))
)


def _parts(
    keys: Sequence[int], statements: Mapping[int, Statement]
) -> Iterator[tuple[dict[str, int], Statement]]:
    """The keys as parameters of statements, which have more of them than there are keys: the rest
    repeat the last key."""
    largest = max(statements)
    for start in range(0, len(keys), largest):
        some = keys[start : start + largest]
        count = next(one for one in statements if one >= len(some))
        padded = [*some, *[some[-1]] * (count - len(some))]
        yield {f"key{i}": key for i, key in enumerate(padded)}, statements[count]


class TemplateStore:
    """Stores, reads and deletes templates."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def enroll_together(
        self, name: str, enrollments: Sequence[PersonEnrollment], space: str | None = None
    ) -> EnrolledTogether:
        """Store templates of persons, who are created if need be, in one transaction; of each
        person all templates or none. Where one fails, it alone is undone, and its outcome is the
        error; if it is the only one, the error is raised.

        The templates are of the embedding space `space`: EmbeddingSpaceMismatch is raised, and
        nothing stored, if the collection is of another one by now.

        Metadata replaces what the person had, unless it is None. With `idempotency` the answer is
        kept in the same transaction; the error is EnrolledBefore where it was kept already,
        IdempotencyKeyReused where the key belongs to another request, and ConsentMissing if the
        collection needs a consent that the person does not have.
        """
        now = self._database.clock()
        with self._database.writing() as connection:
            before = lock_collection(connection, name)
            if space is not None:
                before.require_space(space)
            put = _Put(self._database.codec, connection, before, now)
            works = [partial(one.context.run, partial(put.enroll, one)) for one in enrollments]
            outcomes: list[_Done | Exception] = (
                [works[0]()]
                if len(works) == 1
                else [self._database.attempt(connection, work) for work in works]
            )
            stored = [done for done in outcomes if not isinstance(done, Exception)]
            added = sorted((one for done in stored for one in done.added), key=lambda one: one.key)
            after = log_change(connection, before, ADD, [one.key for one in added], now)
        return EnrolledTogether(
            [done if isinstance(done, Exception) else done.stored for done in outcomes],
            before, after, _as_templates(added, before.dimension),
        )  # fmt: skip

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
            note(connection, "face.deleted", name, face.person_key, face_id=face.face_id)
        return DeletionCounts(persons=0, templates=1, erased=self._database.eraser.erase())

    def by_key(self, keys: Sequence[int]) -> Mapping[int, FaceRecord]:
        """The faces of template keys; those deleted since are missing."""
        found: dict[int, FaceRecord] = {}  # each statement by itself, as no face depends on another
        with self._database.reading_once() as connection:
            for start in range(0, len(keys), MAX_KEYS):
                rows = connection.execute(_BY_KEY, {"keys": keys[start : start + MAX_KEYS]})
                found |= {row.id: face_record(row) for row in rows}
        return found

    def matchable(
        self, collection: CollectionRecord, keys: Sequence[int]
    ) -> tuple[Mapping[int, FaceName], Set[int]]:
        """What names the faces of template keys, without those of persons whose consent has ended
        if the collection needs one; and the keys whose faces have been moved or deleted."""
        consenting = needs_consent(collection)
        values = {"now": self._database.clock()} if consenting else {}
        found, gone = dict[int, FaceName](), set(keys)
        with self._database.reading_once() as connection:
            for some, query in _parts(keys, _NAMES_AND_CONSENTS if consenting else _NAMES):
                for row in query.rows(connection, values | some):
                    gone.discard(row.id)
                    if not (consenting and row.consent_ended):
                        found[row.id] = FaceName(row.id, row.person, row.face_id, row.person_id)
        return found, gone


@dataclass(frozen=True, slots=True)
class _Added:
    """A new row: its key, its person's, and the embedding (d,)."""

    key: int
    person: int
    embedding: FloatArray


@dataclass(frozen=True, slots=True)
class _Done:
    """One enrollment: the outcome for each of its templates, and the new rows."""

    stored: Sequence[StoredTemplate]
    added: Sequence[_Added]


def _as_templates(added: Sequence[_Added], dimension: int) -> Templates:
    vectors = np.empty((len(added), dimension), np.float32)
    for i, one in enumerate(added):
        vectors[i] = one.embedding
    return Templates(
        np.array([one.key for one in added], np.int64),
        np.array([one.person for one in added], np.int64),
        vectors,
    )


@dataclass(frozen=True, slots=True)
class _Owner:
    """Whose templates are stored: the person's key and id, their data key, and whether they were
    created just now."""

    key: int
    person_id: str
    data_key: DataKey | None
    is_new: bool


@dataclass(frozen=True, slots=True)
class _Put:
    """Stores enrollments into a collection within a transaction that has locked it."""

    codec: EmbeddingRowCodec
    connection: Connection
    collection: CollectionRecord
    now: datetime

    def enroll(self, one: PersonEnrollment) -> _Done:
        """Everything but the change log; in the context of the enrollment."""
        require_bound(self.collection)
        if one.idempotency is not None:
            refuse_done(self.connection, self.collection, one.idempotency, self.now)
        owner = self._owner(one.person_id, one.metadata)
        done = self._all(owner, one.templates)
        note_activity(self.connection, self.collection, [owner.key], self.now)
        note(
            self.connection, "person.enrolled", self.collection.name, owner.key,
            templates=len(done.added), duplicates=len(done.stored) - len(done.added),
            metadata=one.metadata is not None,
        )  # fmt: skip
        if one.idempotency is not None:
            keys = self.collection.key, owner.key
            keep_answer(self.connection, keys, one.idempotency, done.stored, self.now)
        return done

    def _owner(self, person_id: str, metadata: JsonObject | None) -> _Owner:
        connection, collection = self.connection, self.collection
        person = find_person(connection, collection, person_id)
        if person is None:
            key = insert_person(connection, collection, person_id, metadata or {}, self.now)
        else:
            key = person.key
            if metadata is not None:
                set_metadata(connection, collection, key, metadata, self.now)
        if needs_consent(collection):
            until = get_person(connection, collection, person_id).consent_until
            require_consent(collection, person_id, until, self.now, metadata)
        data_key = self.codec.data_key(connection, collection, key)
        known_as = new_person_id(person_id) if person is None else person.person_id
        return _Owner(key, known_as, data_key, person is None)

    def _all(self, owner: _Owner, new_templates: Sequence[NewTemplate]) -> _Done:
        """One whose content the person has already is not stored."""
        given = {new.content_digest: new for new in new_templates}
        known = {} if owner.is_new else self._known(owner, given)
        fresh: dict[str, NewTemplate] = {}
        for new in new_templates:
            if new.content_digest not in known:
                fresh.setdefault(new.content_digest, new)
        made = self._insert(owner, fresh)
        added = [
            _Added(face.template_key, owner.key, fresh[digest].embedding)
            for digest, face in made.items()
        ]
        stored = []
        for new in new_templates:
            digest = new.content_digest
            stored.append(StoredTemplate(known.get(digest) or made[digest], digest in known))
            known[digest] = stored[-1].face
        return _Done(stored, added)

    def _known(self, owner: _Owner, given: Mapping[str, NewTemplate]) -> dict[str, FaceRecord]:
        """Stored faces by the digest of their content. Raises OtherFaceEnrolled if the face that is
        given with it is another one."""
        digest_of = {
            mark: digest for digest in given for mark in self.codec.marks(owner.data_key, digest)
        }
        query = self.codec.with_embedding(face_query().add_columns(templates.c.content_digest))
        mine = (templates.c.person == owner.key) & templates.c.content_digest.in_(digest_of)
        rows = self.connection.execute(query.where(mine)).all()
        known = {}
        for row, stored in zip(rows, self.codec.vectors(self.collection, rows), strict=True):
            digest = digest_of[row.content_digest]
            if float(stored @ given[digest].embedding) < SAME_FACE:
                raise OtherFaceEnrolled(
                    f"This photo is enrolled for '{owner.person_id}' with another of its faces, "
                    f"{row.face_id}. To enroll the chosen face instead, delete that one first.",
                    {"face_id": row.face_id},
                )
            known[digest] = face_record(row)
        return known

    def _insert(self, owner: _Owner, fresh: Mapping[str, NewTemplate]) -> dict[str, FaceRecord]:
        if not fresh:
            return {}
        ids = {digest: str(uuid.uuid4()) for digest in fresh}
        sealed = owner.data_key is not None
        rows = [
            {
                "face_id": ids[digest],
                "collection": self.collection.key,
                "person": owner.key,
                "embedding": self.codec.stored(owner.data_key, ids[digest], new.embedding),
                "sealed": sealed,
                "content_digest": self.codec.mark(owner.data_key, digest),
                "quality": dict(check_metadata(dict(new.quality), "quality")),
                "created_at": self.now,
            }
            for digest, new in fresh.items()
        ]
        keys = {row["face_id"]: _INSERT.rows(self.connection, row)[0].id for row in rows}
        kept = [
            {
                "template": keys[ids[digest]],
                "crop": self.codec.stored_crop(owner.data_key, ids[digest], new.crop),
                "sealed": sealed,
            }
            for digest, new in fresh.items()
            # The policy may have changed since the photo was analysed.
            if new.crop is not None and self.collection.keeps_crops
        ]
        if kept:
            self.connection.execute(insert(crops), kept)
        return {
            digest: FaceRecord(
                keys[ids[digest]], owner.key, ids[digest], owner.person_id, new.quality, self.now
            )
            for digest, new in fresh.items()
        }
