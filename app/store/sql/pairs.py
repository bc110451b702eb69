"""Pairs of persons who were declared to be different."""

from collections.abc import Collection
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Select, delete, func, insert, or_, select

from app.errors import DeclaredDifferent, InvalidRequest, PairNotFound
from app.store.database import Database
from app.store.records import CollectionRecord, DeclaredPair, Erasure, Page, PersonRecord
from app.store.sql.audit_log import note
from app.store.sql.consents import needs_consent
from app.store.sql.lookups import MAX_KEYS, aware, get_collection, get_person, lock_collection
from app.store.sql.statements import Statement
from app.store.sql.tables import declared_pairs, persons

# Declared pairs of one person: each identification of the person compares with all of them. A merge
# by an earlier version may have left more.
MAX_DECLARED = 100

_ANY_PAIR = Statement(select(declared_pairs.c.person_a).limit(1))
_one = persons.alias("one")
_other = persons.alias("other")


class PairStore:
    """Declares pairs, lists and withdraws them. A pair has no order."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def declare(self, name: str, person_id: str, other_id: str) -> DeclaredPair:
        """Declare two persons to be different; a pair that is declared already stays as it is.

        Raises InvalidRequest if both are one person, or if either has MAX_DECLARED pairs.
        """
        with self._database.writing() as connection:
            collection = lock_collection(connection, name)
            one, other = _two(connection, collection, person_id, other_id)
            known = _find(connection, one, other)
            if known is None:
                for person in (one, other):
                    _refuse_more(connection, person)
                known = self._database.clock()
                low, high = sorted((one.key, other.key))
                values = {"person_a": low, "person_b": high, "created_at": known}
                connection.execute(insert(declared_pairs).values(values))
                note(connection, "pair.declared", name, low, other=high)
                note(connection, "pair.declared", name, high, other=low)
            return DeclaredPair((one.key, other.key), one.person_id, other.person_id, known)

    def withdraw(self, name: str, person_id: str, other_id: str) -> Erasure:
        """Withdraw the declaration of two persons. Raises PairNotFound."""
        with self._database.writing() as connection:
            collection = lock_collection(connection, name)
            one, other = _two(connection, collection, person_id, other_id)
            if not connection.execute(delete(declared_pairs).where(_is(one, other))).rowcount:
                raise PairNotFound(
                    f"'{one.person_id}' and '{other.person_id}' are not declared to be different."
                )
            low, high = sorted((one.key, other.key))
            note(connection, "pair.withdrawn", name, low, other=high)
            note(connection, "pair.withdrawn", name, high, other=low)
        return self._database.eraser.erase()

    def of_person(
        self, name: str, person_id: str, after: str | None = None, limit: int | None = None
    ) -> Page[DeclaredPair]:
        """The declared pairs of a person, sorted by the id of the other, those after `after`."""
        with self._database.reading() as connection:
            collection = get_collection(connection, name)
            every = _declared(connection, get_person(connection, collection, person_id).key)
        found = [pair for pair in every if after is None or pair.other_id > after]
        return Page(found[:limit], more=limit is not None and len(found) > limit)

    def by_key(self, person: int) -> list[DeclaredPair]:
        """The declared pairs of a person, given by their key, sorted by the id of the other."""
        with self._database.reading() as connection:
            return _declared(connection, person)

    def counterparts(
        self,
        collection: CollectionRecord,
        person_ids: Collection[str],
        *,
        matchable: bool = False,
    ) -> dict[str, list[str]]:
        """Of persons, by their ids as stored, the ids of those declared to be different from them;
        persons without such a pair are left out.

        `matchable`: only those who may be compared with a face, so without those whose consent has
        ended if the collection needs one."""
        found: dict[str, list[str]] = {}
        ids = list(person_ids)
        with self._database.reading_once() as connection:  # in most databases there is no pair
            if _ANY_PAIR.first(connection, {}) is None:
                return found
        with self._database.reading() as connection:
            for start in range(0, len(ids), MAX_KEYS):
                mine = _one.c.person_id.in_(ids[start : start + MAX_KEYS])
                for query in _both_ways():
                    some = query.where(_one.c.collection == collection.key, mine)
                    if matchable and needs_consent(collection):
                        some = some.where(_other.c.consent_until > self._database.clock())
                    for pair in map(_pair, connection.execute(some)):
                        found.setdefault(pair.person_id, []).append(pair.other_id)
        return found

    def page(self, name: str, after: tuple[int, int] | None, limit: int) -> list[DeclaredPair]:
        """The next declared pairs of a collection in ascending order of keys, those after
        `after`."""
        query, _ = _both_ways()
        first, second = declared_pairs.c.person_a, declared_pairs.c.person_b
        if after is not None:
            beyond = (first == after[0]) & (second > after[1])
            query = query.where(or_(first > after[0], beyond))
        with self._database.reading() as connection:
            key = get_collection(connection, name).key
            query = query.where(_one.c.collection == key).order_by(first, second).limit(limit)
            return [_pair(row) for row in connection.execute(query)]


def refuse_declared(connection: Connection, one: PersonRecord, other: PersonRecord) -> None:
    """Raise DeclaredDifferent if the two are declared to be different."""
    if _find(connection, one, other) is not None:
        raise DeclaredDifferent(
            f"'{one.person_id}' and '{other.person_id}' are declared to be different persons, so "
            "they cannot be merged. If they are one person after all, withdraw the declaration "
            "first (DELETE …/different-from/…)."
        )


def move_pairs(connection: Connection, old: PersonRecord, new: PersonRecord) -> None:
    """Add the pairs of one person to those of another. Raises InvalidRequest if these would be more
    than MAX_DECLARED."""
    theirs = _partners(connection, new.key)
    moved = {
        partner: created_at
        for partner, created_at in _partners(connection, old.key).items()
        if partner not in theirs
    }
    if moved and len(theirs) + len(moved) > MAX_DECLARED:
        raise InvalidRequest(
            f"'{new.person_id}' would be declared different from {len(theirs) + len(moved)} "
            f"persons after the merge; {MAX_DECLARED} are allowed. Withdraw declarations of "
            f"'{old.person_id}' or '{new.person_id}' that are no longer needed."
        )
    for partner, created_at in moved.items():
        low, high = sorted((new.key, partner))
        values = {"person_a": low, "person_b": high, "created_at": created_at}
        connection.execute(insert(declared_pairs).values(values))


def _partners(connection: Connection, person: int) -> dict[int, datetime]:
    first, second = declared_pairs.c.person_a, declared_pairs.c.person_b
    created = declared_pairs.c.created_at
    mine = select(second, created).where(first == person)
    found = {int(key): at for key, at in connection.execute(mine)}
    mine = select(first, created).where(second == person)
    return found | {int(key): at for key, at in connection.execute(mine)}


def _declared(connection: Connection, person: int) -> list[DeclaredPair]:
    queries = (query.where(_one.c.id == person) for query in _both_ways())
    found = [_pair(row) for query in queries for row in connection.execute(query)]
    return sorted(found, key=lambda pair: pair.other_id)


def _two(
    connection: Connection, collection: CollectionRecord, person_id: str, other_id: str
) -> tuple[PersonRecord, PersonRecord]:
    one = get_person(connection, collection, person_id)
    other = get_person(connection, collection, other_id)
    if one.key == other.key:
        raise InvalidRequest(
            f"'{one.person_id}' cannot be declared different from themselves; name two persons."
        )
    return one, other


def _is(one: PersonRecord, other: PersonRecord) -> Any:
    low, high = sorted((one.key, other.key))
    return (declared_pairs.c.person_a == low) & (declared_pairs.c.person_b == high)


def _find(connection: Connection, one: PersonRecord, other: PersonRecord) -> datetime | None:
    query = select(declared_pairs.c.created_at).where(_is(one, other))
    found = connection.execute(query).scalar_one_or_none()
    return None if found is None else aware(found)


def _refuse_more(connection: Connection, person: PersonRecord) -> None:
    columns = declared_pairs.c
    mine = or_(columns.person_a == person.key, columns.person_b == person.key)
    query = select(func.count()).select_from(declared_pairs).where(mine)
    if connection.execute(query).scalar_one() >= MAX_DECLARED:
        raise InvalidRequest(
            f"'{person.person_id}' is declared different from {MAX_DECLARED} persons already, the "
            "most that are allowed. Withdraw a declaration that is no longer needed."
        )


def _both_ways() -> tuple[Select[Any], Select[Any]]:
    """Pairs as (one, other): as they are stored, and with the two exchanged."""
    first, second = declared_pairs.c.person_a, declared_pairs.c.person_b
    columns = (
        _one.c.id.label("one_key"), _one.c.person_id.label("one_id"),
        _other.c.id.label("other_key"), _other.c.person_id.label("other_id"),
        declared_pairs.c.created_at,
    )  # fmt: skip
    stored, exchanged = (
        select(*columns)
        .select_from(declared_pairs)
        .join(_one, _one.c.id == mine)
        .join(_other, _other.c.id == theirs)
        for mine, theirs in ((first, second), (second, first))
    )
    return stored, exchanged


def _pair(row: Any) -> DeclaredPair:
    return DeclaredPair(
        (row.one_key, row.other_key), row.one_id, row.other_id, aware(row.created_at)
    )
