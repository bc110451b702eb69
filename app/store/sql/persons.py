"""Persons, and the search for them by id and metadata."""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    Connection,
    Select,
    bindparam,
    delete,
    exists,
    func,
    insert,
    select,
    update,
)

from app.errors import PersonExists
from app.index.port import Ids
from app.store.database import Database
from app.store.identifiers import composed, new_person_id, spellings
from app.store.metadata import check_filter, check_metadata
from app.store.records import CollectionRecord, DeletionCounts, Page, PersonRecord
from app.store.sql.audit_log import note, note_each
from app.store.sql.changes import REMOVE, log_change
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
from app.store.sql.tables import collections, persons, templates
from app.store.sql.terms import find_persons, index_again, index_new, term_conditions
from app.types import JsonObject

# Of Unicode; ids are compared by their code points.
LAST_CHARACTER = "\U0010ffff"


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
        if prefix and not spellings(prefix):
            return Page([], more=False)
        check_filter(metadata or {})
        with self._database.reading() as connection:
            key = get_collection(connection, name).key
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
    ) -> PersonRecord:
        """Replace a person's metadata, change their id, or both. Raises PersonExists if another
        person has the new id."""
        with self._database.writing() as connection:
            collection = lock_collection(connection, name)
            person = get_person(connection, collection, person_id)
            if metadata is not None:
                set_metadata(connection, collection, person.key, metadata, self._database.clock())
                note(connection, "person.metadata_replaced", name, person.key)
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
        connection.execute(
            update(persons)
            .where(persons.c.id == person.key)
            .values(person_id=to, updated_at=self._database.clock())
        )

    def delete(self, name: str, person_id: str) -> DeletionCounts:
        """Delete a person with all their templates."""
        with self._database.writing() as connection:
            collection = lock_collection(connection, name)
            person = get_person(connection, collection, person_id)
            keys = self._delete(connection, collection, {person.key})
        return DeletionCounts(persons=1, templates=len(keys), erased=self._database.eraser.erase())

    def delete_many(self, name: str, person_ids: Sequence[str]) -> tuple[DeletionCounts, list[str]]:
        """Delete persons and all their templates in one transaction. Returns also the ids that no
        person has."""
        with self._database.writing() as connection:
            collection = lock_collection(connection, name)
            found = {one: find_person(connection, collection, one) for one in person_ids}
            people = {person.key for person in found.values() if person is not None}
            keys = self._delete(connection, collection, people)
        deletion = DeletionCounts(len(people), len(keys), self._database.eraser.erase())
        return deletion, [one for one, person in found.items() if person is None]

    def inactive(self, name: str, before: datetime, limit: int) -> list[str]:
        """The ids of at most `limit` persons who were neither enrolled nor matched since
        `before`."""
        with self._database.reading() as connection:
            key = get_collection(connection, name).key
            query = _inactive(key, before).order_by(persons.c.id).limit(limit)
            return [row.person_id for row in connection.execute(query)]

    def count_inactive(self, name: str, before: datetime) -> int:
        """How many persons were neither enrolled nor matched since `before`."""
        with self._database.reading() as connection:
            query = _inactive(get_collection(connection, name).key, before).subquery()
            return int(connection.execute(select(func.count()).select_from(query)).scalar_one())

    def delete_inactive(
        self,
        name: str,
        person_ids: Sequence[str],
        before: Callable[[CollectionRecord], datetime | None],
    ) -> DeletionCounts:
        """Delete those of the persons who were neither enrolled nor matched since what `before`
        says of the collection as it is now; nobody if that is None."""
        with self._database.writing() as connection:
            collection = lock_collection(connection, name)
            since, people, keys = before(collection), set[int](), list[int]()
            if since is not None:
                query = _inactive(collection.key, since).where(persons.c.person_id.in_(person_ids))
                people = {row.id for row in connection.execute(query)}
                keys = self._delete(connection, collection, people)
        return DeletionCounts(len(people), len(keys), self._database.eraser.erase())

    def note_matches(self, matched: Collection[tuple[int, str]], day: datetime) -> None:
        """Store that persons, given by the key of their collection and their id, were matched on a
        day."""
        mine = (persons.c.collection == bindparam("of")) & (persons.c.person_id == bindparam("who"))
        earlier = persons.c.active_at.is_(None) | (persons.c.active_at < day)
        statement = update(persons).where(mine, earlier).values(active_at=day)
        with self._database.writing() as connection:
            # As every write does: a person who is being deleted by age has to be seen as matched.
            for key in sorted({key for key, _ in matched}):
                one = select(collections.c.id).where(collections.c.id == key)
                connection.execute(one.with_for_update())
            rows = [{"of": key, "who": person_id} for key, person_id in sorted(matched)]
            connection.execute(statement, rows)

    def _delete(
        self, connection: Connection, collection: CollectionRecord, people: set[int]
    ) -> list[int]:
        """Delete persons by their keys, with their templates. Returns the templates' keys."""
        query = select(templates.c.id, templates.c.person).where(templates.c.person.in_(people))
        held = Counter[int]()
        keys = []
        for row in connection.execute(query):
            keys.append(row.id)
            held[row.person] += 1
        log_change(connection, collection, REMOVE, keys, self._database.clock())
        connection.execute(delete(persons).where(persons.c.id.in_(people)))
        gone = {person: {"templates": held[person]} for person in people}
        note_each(connection, "person.deleted", collection.name, gone)
        return keys

    def keys(self, collection: CollectionRecord, metadata: JsonObject) -> Ids:
        """The rising keys of the persons whose metadata has every given member with an equal value;
        1 equals 1.0 but not true. Raises InvalidRequest."""
        check_filter(metadata)
        with self._database.reading() as connection:
            return find_persons(connection, collection.key, metadata)


def note_activity(
    connection: Connection, collection: CollectionRecord, people: Collection[int], now: datetime
) -> None:
    """Store that persons were enrolled today, if the collection's policy erases by age."""
    if collection.policy.get("retention_days") is None or not people:
        return
    day = now.replace(hour=0, minute=0, second=0, microsecond=0)
    earlier = persons.c.active_at.is_(None) | (persons.c.active_at < day)
    mine = update(persons).where(persons.c.id.in_(people), earlier)
    connection.execute(mine.values(active_at=day))


def take_over_activity(connection: Connection, old: int, new: int) -> None:
    """Let a person, by key, have been active when another was, if that is later."""
    query = select(persons.c.created_at, persons.c.active_at).where(persons.c.id == old)
    last = max(aware(one) for one in connection.execute(query).one() if one is not None)
    earlier = persons.c.active_at.is_(None) | (persons.c.active_at < last)
    mine = update(persons).where(persons.c.id == new, earlier)
    connection.execute(mine.values(active_at=last))


def _inactive(collection: int, before: datetime) -> Select[Any]:
    day = before - timedelta(days=1)  # a day is stored by its beginning
    enrolled = exists().where(templates.c.person == persons.c.id, templates.c.created_at >= before)
    return select(persons.c.id, persons.c.person_id).where(
        persons.c.collection == collection,
        persons.c.created_at < before,
        persons.c.active_at.is_(None) | (persons.c.active_at <= day),
        ~enrolled,
    )


def insert_person(
    connection: Connection,
    collection: CollectionRecord,
    person_id: str,
    metadata: JsonObject,
    now: datetime,
) -> int:
    """The new person's key. Raises InvalidRequest if the id or the metadata breaks the rules."""
    result = connection.execute(
        insert(persons)
        .values(
            collection=collection.key,
            person_id=new_person_id(person_id),
            metadata=dict(check_metadata(metadata)),
            created_at=now,
            updated_at=now,
        )
        .returning(persons.c.id)
    )
    key = int(result.scalar_one())
    index_new(connection, collection.key, [(key, metadata)])
    return key


def set_metadata(
    connection: Connection,
    collection: CollectionRecord,
    person: int,
    metadata: JsonObject,
    now: datetime,
) -> None:
    """Replace a person's metadata. Raises InvalidRequest if it breaks the rules."""
    connection.execute(
        update(persons)
        .where(persons.c.id == person)
        .values(metadata=dict(check_metadata(metadata)), updated_at=now)
    )
    index_again(connection, collection.key, person, metadata)
