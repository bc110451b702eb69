"""Imports: templates of many persons in one transaction, and what is stored of them already."""

import uuid
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, exists, insert, select
from sqlalchemy.exc import IntegrityError

from app.encryption.ring import DataKey
from app.errors import ConsentMissing, DamagedData, EncryptionKeyMissing, LikenessError
from app.store.database import Database
from app.store.identifiers import composed, new_face_id, new_person_id
from app.store.metadata import check_metadata
from app.store.records import CollectionRecord, NewTemplate, PersonTemplate
from app.store.sql.audit_log import note_each
from app.store.sql.changes import ADD, log_change
from app.store.sql.collection_removal import free_face_ids
from app.store.sql.consents import (
    consent_until,
    note_consent,
    require_consent,
    withdrawn_before,
)
from app.store.sql.embedding_rows import EmbeddingRowCodec
from app.store.sql.lookups import aware, get_collection, lock_collection
from app.store.sql.persons import set_metadata
from app.store.sql.retention import note_activity
from app.store.sql.tables import crops, persons, templates
from app.store.sql.terms import index_new
from app.types import JsonObject


class ImportStore:
    """Stores templates of many persons at once, and says what is stored of them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def enroll(
        self, name: str, rows: Sequence[PersonTemplate], space: str, *, until_refused: bool = False
    ) -> list[str | LikenessError | None]:
        """Store one template for each row, and create missing persons, in one transaction. Returns
        for each row the face id, None where the person has that content already, or its error
        (`refused`): nothing of that row is stored. If `until_refused`, nothing beyond the first row
        with an error is stored, and that row is the last that is answered.

        The last metadata given for a person is stored. Raises EmbeddingSpaceMismatch if the
        collection is not in `space`, and InvalidRequest if an id, metadata or a quality breaks the
        rules.
        """
        # With PostgreSQL other imports may store face ids of these rows meanwhile, in collections
        # whose locks are not this one's: each failure takes one more id, which is seen then.
        for _ in rows:
            with suppress(IntegrityError):
                return self._enroll(name, rows, space, until_refused=until_refused)
        return self._enroll(name, rows, space, until_refused=until_refused)

    def _enroll(
        self, name: str, rows: Sequence[PersonTemplate], space: str, *, until_refused: bool
    ) -> list[str | LikenessError | None]:
        with self._database.writing() as connection:
            collection = lock_collection(connection, name).require_space(space)
            people = self._people(connection, collection, (row.person_id for row in rows))
            rows, refused = people.refused(rows, until_refused=until_refused)
            accepted = [row for place, row in enumerate(rows) if place not in refused]
            stored = iter(self._stored(connection, collection, people, accepted))
            places = range(len(rows))
            return [refused[place] if place in refused else next(stored) for place in places]

    def refused(
        self, name: str, rows: Sequence[PersonTemplate], *, until_refused: bool = False
    ) -> list[LikenessError | None]:
        """Why rows cannot be stored now, None for the others: the collection needs a consent, and
        the row's metadata, or without metadata its person with the other rows, has none that is
        valid; or the person's data key cannot be read. Rows as `enroll` answers for them."""
        with self._database.reading() as connection:
            collection = get_collection(connection, name)
            people = self._people(connection, collection, (row.person_id for row in rows))
            rows, refused = people.refused(rows, until_refused=until_refused)
            return [refused.get(place) for place in range(len(rows))]

    def _people(
        self, connection: Connection, collection: CollectionRecord, ids: Iterable[str]
    ) -> "_People":
        codec, now = self._database.codec, self._database.clock()
        return _People(connection, collection, codec, now, set(map(composed, ids)))

    def _stored(
        self,
        connection: Connection,
        collection: CollectionRecord,
        people: "_People",
        rows: Sequence[PersonTemplate],
    ) -> list[str | None]:
        keys = people.ensure(rows)
        known = people.known_marks(set(keys.values()) - people.made)
        taken = _taken(connection, [row.face_id for row in rows if row.face_id])
        fresh: dict[tuple[int, str], tuple[str, NewTemplate]] = {}
        answers: list[str | None] = []
        for row in rows:
            person, new = keys[composed(row.person_id)], row.template
            place = (person, new.content_digest)
            if place in fresh or any((person, mark) in known for mark in people.marks(*place)):
                answers.append(None)
                continue
            face_id = row.face_id
            if face_id is None or face_id in taken:
                face_id = str(uuid.uuid4())
            taken.add(new_face_id(face_id))
            fresh[place] = (face_id, new)
            answers.append(face_id)
        self._insert(connection, collection, fresh, people.data_keys)
        added = Counter(person for person, _ in fresh)
        # A row that stores nothing new keeps nobody from being deleted by age.
        note_activity(connection, collection, added.keys(), people.now)
        given = {keys[composed(row.person_id)] for row in rows if row.metadata is not None}
        enrolled = {
            person: {"templates": added[person], "metadata": person in given}
            for person in given | added.keys()
        }
        note_each(connection, "person.enrolled", collection.name, enrolled)
        return answers

    def known_contents(
        self, name: str, contents: Collection[tuple[str, str]]
    ) -> set[tuple[str, str]]:
        """Of pairs of a person id, in Form C, and a content's digest those of which the person has
        a template; none of a person whose data key cannot be read."""
        contents = {(composed(person_id), digest) for person_id, digest in contents}
        with self._database.reading() as connection:
            collection = get_collection(connection, name)
            people = self._people(connection, collection, (person_id for person_id, _ in contents))
            marks = {
                (people.keys[one[0]], mark): one
                for one in contents
                if one[0] in people.keys and one[0] not in people.unreadable
                for mark in people.marks(people.keys[one[0]], one[1])
            }
            found = select(templates.c.person, templates.c.content_digest).where(
                templates.c.person.in_({person for person, _ in marks}),
                templates.c.content_digest.in_({mark for _, mark in marks}),
            )
            stored = {(row.person, row.content_digest) for row in connection.execute(found)}
            return {marks[one] for one in stored & marks.keys()}

    def with_faces(self, name: str, person_ids: Collection[str]) -> set[str]:
        """Those of the ids, in Form C, whose persons have a template."""
        asked = {composed(person_id) for person_id in person_ids}
        with self._database.reading() as connection:
            has_one = exists().where(templates.c.person == persons.c.id)
            query = select(persons.c.person_id).where(
                persons.c.collection == get_collection(connection, name).key,
                persons.c.person_id.in_(asked),
                has_one,
            )
            return set(connection.execute(query).scalars())

    def _insert(
        self,
        connection: Connection,
        collection: CollectionRecord,
        fresh: Mapping[tuple[int, str], tuple[str, NewTemplate]],
        data_keys: Mapping[int, DataKey],
    ) -> None:
        if not fresh:
            return
        now, codec = self._database.clock(), self._database.codec
        rows = [
            {
                "face_id": face_id,
                "collection": collection.key,
                "person": person,
                "embedding": codec.stored(data_keys.get(person), face_id, new.embedding),
                "sealed": person in data_keys,
                "content_digest": codec.mark(data_keys.get(person), digest),
                "quality": dict(check_metadata(dict(new.quality), "quality")),
                "created_at": now,
            }
            for (person, digest), (face_id, new) in fresh.items()
        ]
        returned = insert(templates).returning(templates.c.face_id, templates.c.id)
        keys = {row.face_id: row.id for row in connection.execute(returned, rows)}
        kept = [
            {
                "template": keys[face_id],
                "crop": codec.stored_crop(data_keys.get(person), face_id, new.crop),
                "sealed": person in data_keys,
            }
            for (person, _), (face_id, new) in fresh.items()
            # The policy may have changed since the import began.
            if new.crop is not None and collection.keeps_crops
        ]
        if kept:
            connection.execute(insert(crops), kept)
        log_change(connection, collection, ADD, sorted(keys.values()), now)


def _taken(connection: Connection, face_ids: Sequence[str]) -> set[str]:
    """Those of the ids that some template has, in whatever collection."""
    if not face_ids:
        return set()
    free_face_ids(connection, face_ids)
    query = select(templates.c.face_id).where(templates.c.face_id.in_(face_ids))
    return set(connection.execute(query).scalars())


@dataclass
class _People:
    """The persons of one call, by their ids in Form C. `made` are the keys of those it created,
    `data_keys` are by the persons' keys, `unreadable` are the errors of those that cannot be read.
    """

    connection: Connection
    collection: CollectionRecord
    codec: EmbeddingRowCodec
    now: datetime
    ids: Collection[str]

    def __post_init__(self) -> None:
        self.keys: dict[str, int] = {}
        self.made: set[int] = set()
        self.data_keys: dict[int, DataKey] = {}
        self.unreadable: dict[str, LikenessError] = {}
        self._consents: dict[str, datetime] = {}
        columns = persons.c.id, persons.c.consent_until, persons.c.data_key, persons.c.key_id
        query = select(persons.c.person_id, *columns).where(
            persons.c.collection == self.collection.key, persons.c.person_id.in_(self.ids)
        )
        for row in self.connection.execute(query):
            self.keys[row.person_id] = row.id
            if row.consent_until is not None:
                self._consents[row.person_id] = aware(row.consent_until)
            try:
                if (data_key := self.codec.opened_key(self.collection, row)) is not None:
                    self.data_keys[row.id] = data_key
            except (DamagedData, EncryptionKeyMissing) as error:
                text = f"The data key of '{row.person_id}' cannot be read. {error.detail}"
                self.unreadable[row.person_id] = type(error)(text)

    def refused(
        self, rows: Sequence[PersonTemplate], *, until_refused: bool
    ) -> tuple[Sequence[PersonTemplate], dict[int, LikenessError]]:
        """The rows that are answered, as `ImportStore.enroll` says, and the errors by the place of
        their row."""
        refused = self._refused(rows)
        while until_refused and refused and len(rows) > min(refused) + 1:
            rows = rows[: min(refused) + 1]
            refused = self._refused(rows)  # a consent may have come from a row beyond
        return rows, refused

    def _refused(self, rows: Sequence[PersonTemplate]) -> dict[int, LikenessError]:
        own = [None if row.metadata is None else consent_until(row.metadata) for row in rows]
        given = [(row.person_id, row.metadata) for row in rows]
        refused: dict[int, LikenessError] = {
            **withdrawn_before(self.connection, self.collection, given)
        }
        valid = {
            composed(row.person_id): until
            for place, (row, until) in enumerate(zip(rows, own, strict=True))
            if until is not None and until > self.now and place not in refused
        }
        consents = self._consents | valid
        for place, row in enumerate(rows):
            if place in refused:
                continue
            person_id = composed(row.person_id)
            if person_id in self.unreadable:
                refused[place] = self.unreadable[person_id]
                continue
            until = consents.get(person_id) if row.metadata is None else own[place]
            try:
                require_consent(self.collection, row.person_id, until, self.now, row.metadata)
            except ConsentMissing as error:
                refused[place] = error.with_traceback(None)
        return refused

    def marks(self, person: int, digest: str) -> tuple[str, ...]:
        """All that rows may hold of a content's digest."""
        return self.codec.marks(self.data_keys.get(person), digest)

    def ensure(self, rows: Sequence[PersonTemplate]) -> dict[str, int]:
        """Create those that are missing, and what is missing of their data keys. Returns the keys
        of the rows' persons."""
        metadata: dict[str, JsonObject | None] = {}
        for row in rows:
            person_id, given = composed(row.person_id), row.metadata
            metadata[person_id] = metadata.get(person_id) if given is None else given
        keys = {one: self.keys[one] for one in metadata if one in self.keys}
        for person_id, key in keys.items():
            changed = metadata[person_id]
            if changed is not None:
                set_metadata(self.connection, self.collection, key, changed, self.now)
        absent = [
            {
                "collection": self.collection.key,
                "person_id": new_person_id(person_id),
                "metadata": dict(check_metadata(given or {})),
                "created_at": self.now,
                "updated_at": self.now,
                "consent_until": consent_until(given or {}),
            }
            for person_id, given in metadata.items()
            if person_id not in keys
        ]
        if absent:
            returned = insert(persons).returning(persons.c.person_id, persons.c.id)
            made = {row.person_id: row.id for row in self.connection.execute(returned, absent)}
            self.made = set(made.values())
            indexed = [(key, metadata[person_id] or {}) for person_id, key in made.items()]
            index_new(self.connection, self.collection.key, indexed)
            for person_id, key in made.items():
                if (until := consent_until(metadata[person_id] or {})) is not None:
                    note_consent(self.connection, self.collection.name, key, until)
            keys |= made
        for key in keys.values() - self.data_keys.keys():
            made_key = self.codec.data_key(self.connection, self.collection, key)
            if made_key is not None:
                self.data_keys[key] = made_key
        return keys

    def known_marks(self, people: set[int]) -> set[tuple[int, str]]:
        """What people have already, as pairs of their key and a content's mark."""
        if not people:
            return set()
        query = select(templates.c.person, templates.c.content_digest).where(
            templates.c.person.in_(people)
        )
        return {(row.person, row.content_digest) for row in self.connection.execute(query)}
