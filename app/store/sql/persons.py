"""Persons, and the search for them by id and metadata."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime

from sqlalchemy import Connection, delete, insert, select, update

from app.errors import ConsentMissing, PersonExists
from app.index.port import Ids
from app.store.database import Database
from app.store.identifiers import composed, new_person_id, spellings
from app.store.metadata import check_filter, check_metadata
from app.store.records import CollectionRecord, DeletionCounts, Page, PersonRecord
from app.store.sql.audit_log import note, note_each
from app.store.sql.changes import REMOVE, log_change
from app.store.sql.consents import (
    consent_until,
    keep_consent,
    needs_consent,
    note_consent,
    remember_withdrawn,
    require_consent,
    require_new_reference,
    withdrawn_before,
)
from app.store.sql.lookups import (
    aware,
    fetch_page,
    find_person,
    get_collection,
    get_person,
    lock_collection,
    person_query,
    person_record,
    to_page,
)
from app.store.sql.statements import Statement
from app.store.sql.tables import persons, templates
from app.store.sql.terms import find_persons, index_again, index_new, term_conditions
from app.types import JsonObject

# Of Unicode; ids are compared by their code points.
LAST_CHARACTER = "\U0010ffff"
_INSERT = Statement(insert(persons).returning(persons.c.id))


class PersonStore:
    """Creates, reads, changes and deletes persons."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, name: str, person_id: str, metadata: JsonObject) -> PersonRecord:
        """Create a person without templates."""
        with self._database.writing() as connection:
            collection = lock_collection(connection, name)
            if find_person(connection, collection, person_id):
                raise PersonExists(f"The person '{person_id}' exists in '{name}' already.")
            key = insert_person(connection, collection, person_id, metadata, self._database.clock())
            note(connection, "person.created", name, key)
            return get_person(connection, collection, person_id)

    def get(self, name: str, person_id: str) -> PersonRecord:
        """One person by id."""
        with self._database.reading() as connection:
            return get_person(connection, get_collection(connection, name), person_id)

    def existing(self, name: str, person_ids: Iterable[str]) -> list[str]:
        """Those of the ids that a person has, each once."""
        with self._database.reading() as connection:
            collection = get_collection(connection, name)
            ids = dict.fromkeys(person_ids)
            return [one for one in ids if find_person(connection, collection, one) is not None]

    def refused_consents(
        self, name: str, given: Sequence[tuple[str, JsonObject | None]]
    ) -> dict[int, ConsentMissing]:
        """Of ids of persons, stored or new, with their new metadata, those that the collection
        would refuse now: no consent in the metadata (if it is None, of the stored person) is valid,
        or it is one that was withdrawn. Each error by its place."""
        with self._database.reading() as connection:
            collection = get_collection(connection, name)
            if not needs_consent(collection):
                return {}
            refused = withdrawn_before(connection, collection, given)
            stored = {composed(person_id) for person_id, metadata in given if metadata is None}
            query = select(persons.c.person_id, persons.c.consent_until).where(
                persons.c.collection == collection.key, persons.c.person_id.in_(stored)
            )
            ends = {row.person_id: row.consent_until for row in connection.execute(query)}
        now = self._database.clock()
        for place, (person_id, metadata) in enumerate(given):
            until = ends.get(composed(person_id))
            until = consent_until(metadata) if metadata is not None else until and aware(until)
            try:
                require_consent(collection, person_id, until, now, metadata)
            except ConsentMissing as error:
                refused.setdefault(place, error.with_traceback(None))
        return refused

    def with_collection(self, name: str, person_id: str) -> tuple[CollectionRecord, PersonRecord]:
        """One person by id, with the collection, as both are at the same moment."""
        with self._database.reading() as connection:
            collection = get_collection(connection, name)
            return collection, get_person(connection, collection, person_id)

    def page(
        self,
        name: str,
        after: str | None,
        limit: int,
        *,
        prefix: str = "",
        metadata: JsonObject | None = None,
    ) -> Page[PersonRecord]:
        """Persons sorted by id: those after `after` whose id begins with `prefix` (case-sensitive)
        and whose metadata has every given member. Raises InvalidRequest."""
        check_filter(metadata or {})
        with self._database.reading() as connection:
            key = get_collection(connection, name).key
            if prefix and not spellings(prefix):
                return Page([], more=False)
            query = person_query().where(
                persons.c.collection == key, *term_conditions(key, metadata or {})
            )
            if after is not None:
                query = query.where(persons.c.person_id > after)
            if prefix:
                first = composed(prefix)
                query = query.where(persons.c.person_id.between(first, first + LAST_CHARACTER))
            query = query.order_by(persons.c.person_id)
            return to_page(fetch_page(connection, query, limit, "metadata"), person_record)

    def update(
        self,
        name: str,
        person_id: str,
        metadata: JsonObject | None = None,
        *,
        new_id: str | None = None,
        check: Callable[[PersonRecord], None] | None = None,
    ) -> PersonRecord:
        """Replace a person's metadata, change their id, or both. `check` is given the person as
        they are, whom nobody else can change meanwhile; if it raises, nothing is changed. Raises
        PersonExists if another person has the new id."""
        with self._database.writing() as connection:
            collection = lock_collection(connection, name)
            person = get_person(connection, collection, person_id)
            if check is not None:
                check(person)
            if metadata is not None:
                set_metadata(connection, collection, person.key, metadata, self._database.clock())
                note(connection, "person.metadata_replaced", name, person.key)
                person = get_person(connection, collection, person_id)
            if new_id is not None:
                self._rename(connection, collection, person, new_person_id(new_id))
                note(connection, "person.renamed", name, person.key)
            return get_person(connection, collection, person_id if new_id is None else new_id)

    def _rename(
        self, connection: Connection, collection: CollectionRecord, person: PersonRecord, to: str
    ) -> None:
        other = find_person(connection, collection, to)
        if other is not None and other.key != person.key:
            raise PersonExists(
                f"A person with the id '{to}' exists in '{collection.name}' already; choose "
                "another id, or merge the two persons."
            )
        require_new_reference(connection, collection, to, person.metadata)
        remember_withdrawn(connection, collection, {person.key: None})
        connection.execute(
            update(persons)
            .where(persons.c.id == person.key)
            .values(person_id=to, updated_at=self._database.clock())
        )

    def delete(
        self,
        name: str,
        person_id: str,
        reason: str | None = None,
        *,
        check: Callable[[PersonRecord], None] | None = None,
    ) -> DeletionCounts:
        """Delete a person with all their templates. The audit log has the `reason`. `check` as for
        `update`."""
        with self._database.writing() as connection:
            collection = lock_collection(connection, name)
            person = get_person(connection, collection, person_id)
            if check is not None:
                check(person)
            keys = delete_persons(
                connection, collection, {person.key: reason}, self._database.clock()
            )
        return DeletionCounts(persons=1, templates=len(keys), erased=self._database.eraser.erase())

    def delete_many(
        self, name: str, person_ids: Sequence[str], reason: str | None = None
    ) -> tuple[DeletionCounts, list[str]]:
        """Delete persons and all their templates in one transaction. Returns also the ids that no
        person has. The audit log has the `reason`."""
        with self._database.writing() as connection:
            collection = lock_collection(connection, name)
            found = {one: find_person(connection, collection, one) for one in person_ids}
            people = {person.key: reason for person in found.values() if person is not None}
            keys = delete_persons(connection, collection, people, self._database.clock())
        deletion = DeletionCounts(len(people), len(keys), self._database.eraser.erase())
        return deletion, [one for one, person in found.items() if person is None]

    def keys(self, collection: CollectionRecord, metadata: JsonObject) -> Ids:
        """The rising keys of the persons whose metadata has every given member with an equal value;
        1 equals 1.0 but not true. Raises InvalidRequest."""
        check_filter(metadata)
        with self._database.reading() as connection:
            return find_persons(connection, collection.key, metadata)


def delete_persons(
    connection: Connection,
    collection: CollectionRecord,
    people: Mapping[int, str | None],
    now: datetime,
) -> list[int]:
    """Delete persons by their keys, with their templates, each for a reason. Returns the templates'
    keys."""
    query = select(templates.c.id, templates.c.person).where(templates.c.person.in_(people))
    held = Counter[int]()
    keys = []
    for row in connection.execute(query):
        keys.append(row.id)
        held[row.person] += 1
    log_change(connection, collection, REMOVE, keys, now)
    remember_withdrawn(connection, collection, people)
    connection.execute(delete(persons).where(persons.c.id.in_(people)))
    gone = {
        person: {"templates": held[person]} | ({} if reason is None else {"reason": reason})
        for person, reason in people.items()
    }
    note_each(connection, "person.deleted", collection.name, gone)
    return keys


def insert_person(
    connection: Connection,
    collection: CollectionRecord,
    person_id: str,
    metadata: JsonObject,
    now: datetime,
) -> int:
    """The new person's key. Raises InvalidRequest if the id or the metadata breaks the rules, and
    ConsentMissing if the collection needs a consent."""
    checked, until = dict(check_metadata(metadata)), consent_until(metadata)
    require_consent(collection, person_id, until, now, metadata)
    new_id = new_person_id(person_id)
    require_new_reference(connection, collection, new_id, metadata)
    new = {
        "collection": collection.key,
        "person_id": new_id,
        "metadata": checked,
        "created_at": now,
        "updated_at": now,
        "consent_until": until,
    }
    (row,) = _INSERT.rows(connection, new)
    key = int(row.id)
    index_new(connection, collection.key, [(key, metadata)])
    if until is not None:
        note_consent(connection, collection.name, key, until)
    return key


def set_metadata(
    connection: Connection,
    collection: CollectionRecord,
    person: int,
    metadata: JsonObject,
    now: datetime,
) -> None:
    """Replace a person's metadata. Raises InvalidRequest if it breaks the rules, and ConsentMissing
    if the collection needs a consent and the metadata has none."""
    check_metadata(metadata)
    keep_consent(connection, collection, person, metadata)
    connection.execute(
        update(persons)
        .where(persons.c.id == person)
        .values(metadata=dict(metadata), updated_at=now)
    )
    index_again(connection, collection.key, person, metadata)
