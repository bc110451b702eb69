"""Converts person ids that an earlier version stored to Unicode's Form C."""

from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import BigInteger, Connection, String, column, select, table, update

from app.store.identifiers import composed

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
    """The persons whose ids are not in Form C."""
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
