"""Person ids in Unicode's Form C, also those that an earlier version or a backup of one stored."""

from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import BigInteger, Connection, String, column, select, table, update

from app.gallery.identifiers import composed

IDS_AT_ONCE = 10_000
# The part of the table that every version has: a migration sees the tables of its own time.
PERSONS = table(
    "persons",
    column("id", BigInteger),
    column("collection", BigInteger),
    column("person_id", String),
)


@dataclass(frozen=True, slots=True)
class IdClash:
    """A person whose id in Form C is another person's of the same collection; keys of both."""

    collection: int
    person: int
    person_id: str
    other: int


def compose_ids(connection: Connection) -> int:
    """Bring person ids to Form C; how many could not be, because another person has that id.

    Nobody is merged: such a person keeps the id as it was, and is reached by just that. Of several
    whose id has the same Form C the one that has it already keeps it, else the oldest gets it.
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
