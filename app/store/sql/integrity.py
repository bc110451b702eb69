"""Finds rows that break today's rules, and corrects their ids and metadata."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import BigInteger, Connection, Select, String, column, select, table, update

from app.errors import CollectionNotFound
from app.store.database import Database
from app.store.identifiers import composed
from app.store.metadata import CorrectedMetadata, problem_of
from app.store.records import ClashingIds, InvalidRow
from app.store.sql.audit_log import note
from app.store.sql.lookups import fetch_page, is_live, lock_collection
from app.store.sql.tables import collections, persons, templates
from app.store.sql.terms import index_again, rebuild_terms, wrong_terms

ROWS_AT_ONCE = 2_000
# Each query gives key, collection's name, id and content.
_QUERIES: dict[str, Select[Any]] = {
    "collection": select(
        collections.c.id, collections.c.name.label("collection"), collections.c.name,
        collections.c.metadata.label("content"),
    ).where(is_live()),
    "person": select(
        persons.c.id, collections.c.name.label("collection"), persons.c.person_id.label("name"),
        persons.c.metadata.label("content"),
    ).join(collections, collections.c.id == persons.c.collection).where(is_live()),
    "face": select(
        templates.c.id, collections.c.name.label("collection"), templates.c.face_id.label("name"),
        templates.c.quality.label("content"),
    ).join(collections, collections.c.id == templates.c.collection).where(is_live()),
}  # fmt: skip
_COLUMNS: dict[str, Any] = {
    "collection": collections.c.metadata,
    "person": persons.c.metadata,
    "face": templates.c.quality,
}


class IntegrityStore:
    """The part of the store that finds what earlier versions stored against today's rules."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def invalid_rows(self) -> Iterator[InvalidRow]:
        """Collections, persons and faces whose metadata or quality breaks the rules. They are read
        page by page, so later changes may or may not be included."""
        for kind, query in _QUERIES.items():
            column = _COLUMNS[kind]
            for row in self._pages(query, column.table.c.id):
                if isinstance(row.content, CorrectedMetadata):
                    problem = problem_of(row.content, column.name) or ""
                    yield InvalidRow(
                        kind, row.collection, row.name, row.id, problem, row.content.original
                    )

    def _pages(self, query: Select[Any], key: Any) -> Iterator[Any]:
        last = 0
        while True:
            page = query.where(key > last).order_by(key)
            with self._database.reading() as connection:
                rows = fetch_page(connection, page, ROWS_AT_ONCE, "content").items
            if not rows:
                return
            yield from rows
            last = rows[-1].id

    def store_corrected(self, row: InvalidRow, keep: Callable[[InvalidRow], None]) -> bool:
        """Store the corrected copy of a row that is shown already; `keep` is called with the row
        before it is replaced. False if the row was changed or deleted meanwhile."""
        column = _COLUMNS[row.kind]
        mine = column.table.c.id == row.key
        with self._database.writing() as connection:
            try:
                collection = lock_collection(connection, row.collection)
            except CollectionNotFound:
                return False
            content = connection.execute(select(column).where(mine)).scalar_one_or_none()
            if not isinstance(content, CorrectedMetadata) or content.original != row.original:
                return False
            keep(row)
            shown = update(column.table).where(mine).values({column.name: dict(content)})
            connection.execute(shown)
            person = row.key if row.kind == "person" else None
            note(connection, "metadata.corrected", row.collection, person, kind=row.kind)
            if row.kind == "person":
                index_again(connection, collection.key, row.key, content)
        self._database.eraser.erase()
        return True

    def wrong_terms(self, *, repair: bool = False) -> int:
        """The number of persons whose terms in the index of metadata are wrong, plus those of
        deleted persons. With `repair` a wrong index is built again."""
        with self._database.reading() as connection:
            wrong = wrong_terms(connection)
        if wrong and repair:
            with self._database.writing() as connection:
                rebuild_terms(connection)
        return wrong

    def clashing_ids(self) -> list[ClashingIds]:
        """Persons whose id in Form C belongs to another person."""
        with self._database.reading() as connection:
            found = []
            for clash in id_clashes(connection):
                query = select(collections.c.name).where(
                    collections.c.id == clash.collection, is_live()
                )
                name = connection.execute(query).scalar_one_or_none()
                if name is None:
                    continue
                other = select(persons.c.person_id).where(persons.c.id == clash.other)
                found.append(
                    ClashingIds(
                        str(name),
                        clash.person_id,
                        str(connection.execute(other).scalar_one()),
                    )
                )
            return found


IDS_AT_ONCE = 10_000
# The columns that every version has: a migration sees the table as it was then.
PERSONS = table(
    "persons",
    column("id", BigInteger),
    column("collection", BigInteger),
    column("person_id", String),
)


@dataclass(frozen=True, slots=True)
class IdClash:
    """A person whose id in Form C belongs to another person of the collection; the keys of both."""

    collection: int
    person: int
    person_id: str
    other: int


def compose_ids(connection: Connection) -> int:
    """Convert person ids to Form C; returns how many were not, because another person has that id.

    Persons are never merged: such a person keeps the old id and is found only by exactly that. If
    several ids have the same Form C, the person who has it already keeps it, else the oldest gets
    it.
    """
    clashes = 0
    for key, collection, person_id in list(_not_composed(connection)):
        if _holder(connection, collection, composed(person_id)) is not None:
            clashes += 1
            continue
        connection.execute(
            update(PERSONS).where(PERSONS.c.id == key).values(person_id=composed(person_id))
        )
    return clashes


def id_clashes(connection: Connection) -> list[IdClash]:
    """The persons whose id is not in Form C, while another person has its Form C."""
    found = []
    for key, collection, person_id in _not_composed(connection):
        other = _holder(connection, collection, composed(person_id))
        if other is not None:
            found.append(IdClash(collection, key, person_id, other))
    return found


def _not_composed(connection: Connection) -> Iterator[tuple[int, int, str]]:
    """Key, collection and id of the persons whose ids are not in Form C, the oldest first."""
    last = 0
    query = select(PERSONS).order_by(PERSONS.c.id).limit(IDS_AT_ONCE)
    while rows := connection.execute(query.where(PERSONS.c.id > last)).all():
        last = rows[-1].id
        for row in rows:
            if composed(row.person_id) != row.person_id:
                yield row.id, row.collection, row.person_id


def _holder(connection: Connection, collection: int, person_id: str) -> int | None:
    query = select(PERSONS.c.id).where(
        PERSONS.c.collection == collection, PERSONS.c.person_id == person_id
    )
    key: int | None = connection.execute(query).scalar_one_or_none()
    return key
