"""Imports: templates of many persons in one transaction, and what is stored of them already."""

import uuid
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, exists, insert, select

from app.encryption.ring import DataKey
from app.store.database import Database
from app.store.identifiers import composed, new_face_id, new_person_id
from app.store.metadata import check_metadata
from app.store.records import CollectionRecord, NewTemplate, PersonTemplate
from app.store.sql.audit_log import note_each
from app.store.sql.changes import ADD, log_change
from app.store.sql.collection_removal import free_face_ids
from app.store.sql.consents import consent_until, needs_consent, note_consent, require_consent
from app.store.sql.lookups import aware, get_collection, lock_collection
from app.store.sql.persons import set_metadata
from app.store.sql.retention import note_activity
from app.store.sql.tables import crops, database, persons, templates
from app.store.sql.terms import index_new
from app.types import JsonObject


class ImportStore:
    """Stores templates of many persons at once, and says what is stored of them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def enroll(self, name: str, rows: Sequence[PersonTemplate], space: str) -> list[str | None]:
        """Store one template for each row, and create missing persons; all rows or none. Returns
        the face ids in the order of the rows, None where the person has that content already.

        The last metadata given for a person is stored. Raises EmbeddingSpaceMismatch if the
        collection is not in `space`, ConsentMissing if it needs a consent that a person does not
        have, and InvalidRequest if an id, metadata or a quality breaks the rules.
        """
        now = self._database.clock()
        with self._database.writing() as connection:
            collection = lock_collection(connection, name).require_space(space)
            people = _People(connection, collection, now)
            keys = people.ensure(rows)
            data_keys = self._data_keys(connection, collection, set(keys.values()))
            known = people.known_marks(set(keys.values()) - people.made)
            taken = _taken(connection, [row.face_id for row in rows if row.face_id])
            fresh: dict[tuple[int, str], tuple[str, NewTemplate]] = {}
            answers: list[str | None] = []
            for row in rows:
                person, new = keys[composed(row.person_id)], row.template
                marks = self._database.codec.marks(data_keys.get(person), new.content_digest)
                place = (person, new.content_digest)
                if place in fresh or any((person, mark) in known for mark in marks):
                    answers.append(None)
                    continue
                face_id = row.face_id
                if face_id is None or face_id in taken:
                    face_id = str(uuid.uuid4())
                taken.add(new_face_id(face_id))
                fresh[place] = (face_id, new)
                answers.append(face_id)
            self._insert(connection, collection, fresh, data_keys)
            added = Counter(person for person, _ in fresh)
            # A row that stores nothing new keeps nobody from being deleted by age.
            note_activity(connection, collection, added.keys(), now)
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
        a template."""
        contents = {(composed(person_id), digest) for person_id, digest in contents}
        with self._database.reading() as connection:
            collection = get_collection(connection, name)
            query = select(persons.c.person_id, persons.c.id).where(
                persons.c.collection == collection.key,
                persons.c.person_id.in_({person_id for person_id, _ in contents}),
            )
            people = {row.person_id: row.id for row in connection.execute(query)}
            keys = {
                person: self._database.codec.known_key(connection, collection, person)
                for person in people.values()
            }
            marks = {
                (people[one[0]], mark): one
                for one in contents
                if one[0] in people
                for mark in self._database.codec.marks(keys[people[one[0]]], one[1])
            }
            found = select(templates.c.person, templates.c.content_digest).where(
                templates.c.person.in_(keys),
                templates.c.content_digest.in_({mark for _, mark in marks}),
            )
            stored = {(row.person, row.content_digest) for row in connection.execute(found)}
            return {marks[one] for one in stored & marks.keys()}

    def consents(self, name: str, person_ids: Collection[str]) -> dict[str, datetime | None]:
        """Until when the consents of persons are valid, by id in Form C; None without one. Ids
        that no person has are missing."""
        query = select(persons.c.person_id, persons.c.consent_until)
        with self._database.reading() as connection:
            key = get_collection(connection, name).key
            asked = {composed(person_id) for person_id in person_ids}
            mine = (persons.c.collection == key) & persons.c.person_id.in_(asked)
            rows = connection.execute(query.where(mine))
            return {row[0]: None if row[1] is None else aware(row[1]) for row in rows}

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

    def _data_keys(
        self, connection: Connection, collection: CollectionRecord, people: set[int]
    ) -> dict[int, DataKey]:
        """The key of each person, made where there is none; nothing without encryption."""
        codec = self._database.codec
        if codec.cipher is None:
            return {}
        found = {key: codec.person_key(connection, collection, key) for key in people}
        return {key: data_key for key, data_key in found.items() if data_key is not None}

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
    # One import after the other: another one may store the same ids in another collection, whose
    # lock is not this one's.
    connection.execute(select(database.c.id).with_for_update())
    free_face_ids(connection, face_ids)
    query = select(templates.c.face_id).where(templates.c.face_id.in_(face_ids))
    return set(connection.execute(query).scalars())


@dataclass
class _People:
    """The persons of one call; `made` are the keys of those it created."""

    connection: Connection
    collection: CollectionRecord
    now: datetime

    def __post_init__(self) -> None:
        self.made: set[int] = set()

    def ensure(self, rows: Sequence[PersonTemplate]) -> dict[str, int]:
        """Keys by person id in Form C."""
        metadata: dict[str, JsonObject | None] = {}
        for row in rows:
            person_id, given = composed(row.person_id), row.metadata
            metadata[person_id] = metadata.get(person_id) if given is None else given
        mine = persons.c.collection == self.collection.key
        query = select(persons.c.person_id, persons.c.id).where(
            mine, persons.c.person_id.in_(list(metadata))
        )
        keys = {str(row.person_id): int(row.id) for row in self.connection.execute(query)}
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
        self._require_consents(keys)
        return keys

    def _require_consents(self, keys: Mapping[str, int]) -> None:
        if not needs_consent(self.collection):
            return
        query = select(persons.c.id, persons.c.consent_until).where(persons.c.id.in_(keys.values()))
        until = {row.id: row.consent_until for row in self.connection.execute(query)}
        for person_id, key in keys.items():
            end = None if until[key] is None else aware(until[key])
            require_consent(self.collection, person_id, end, self.now)

    def known_marks(self, people: set[int]) -> set[tuple[int, str]]:
        """What people have already, as pairs of their key and a content's mark."""
        if not people:
            return set()
        query = select(templates.c.person, templates.c.content_digest).where(
            templates.c.person.in_(people)
        )
        return {(row.person, row.content_digest) for row in self.connection.execute(query)}
