"""Deletes collections: in the first transaction nobody can see one any longer; then its rows are
deleted, a limited number in each transaction, so that other writes have their turns."""

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Column, ColumnElement, Connection, delete, select, tuple_, update

from app.errors import StoreFull, StoreUnavailable
from app.store.database import Database
from app.store.records import DeletionCounts, Erasure
from app.store.sql.audit_log import note
from app.store.sql.lookups import (
    DELETED,
    count_rows,
    is_live,
    lock_collection,
)
from app.store.sql.tables import changes, collections, idempotency, persons, templates

# Seconds after which a deletion, or one round of maintenance, leaves the rest for later.
DELETION_S = 10.0
ROUND_S = 0.5
# What is deleted in this order: the columns that identify a row within its collection, and how many
# rows in one transaction. What refers to these rows goes with them; the rest is little.
PARTS: tuple[tuple[tuple[Column[Any], ...], int], ...] = (
    ((templates.c.id,), 500),
    ((idempotency.c.key,), 500),
    ((persons.c.person_id,), 500),
    ((changes.c.revision, changes.c.template), 10_000),
)


@dataclass(frozen=True, slots=True)
class _Place:
    """How far the rows of a collection are deleted: the part, and its last row that was deleted,
    after which a server need not look through those before it again."""

    part: int = 0
    last: tuple[Any, ...] | None = None


class CollectionRemoval:
    """Deletes collections. A killed process leaves rows that nobody can see; maintenance of
    whichever process runs next deletes them."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.monotonic) -> None:
        self._database = database
        self._clock = clock
        self._round_at: tuple[int, _Place] | None = None

    def delete(
        self, name: str, forget_imports: Callable[[], Erasure] | None = None
    ) -> DeletionCounts:
        """Delete a collection with everything in it. After the first transaction nobody can see it,
        and its name is free; `forget_imports` is called then, and says whether it erased its part.

        The answer is pending where rows are left to maintenance: after DELETION_S, or after a
        failure, such as a full disk.
        """
        until = self._clock() + DELETION_S
        key, deletion = self._hide(name)
        imports = Erasure.DONE if forget_imports is None else forget_imports()
        try:
            done = self._remove_until(until, key, _Place()) is None
        except (StoreFull, StoreUnavailable):  # the collection is deleted all the same
            done = False
        if not done:  # only maintenance knows whether rows of others are left
            self._database.eraser.note_rows_left(left=True)
        rows = Erasure.DONE if done else Erasure.PENDING
        erased = self._database.eraser.erase()
        return replace(deletion, erased=erased).also(imports).also(rows)

    def round(self) -> None:
        """A task of maintenance: delete some rows of collections that were deleted. Raises
        StoreFull or StoreUnavailable."""
        until = self._clock() + ROUND_S
        while (key := self._next()) is not None:
            self._database.eraser.note_rows_left(left=True)
            known = self._round_at
            place = known[1] if known is not None and known[0] == key else _Place()
            reached = self._remove_until(until, key, place)
            self._round_at = None if reached is None else (key, reached)
            self._database.eraser.erase()
            if reached is not None:
                return
        self._database.eraser.note_rows_left(left=False)

    def _remove_until(self, until: float, key: int, place: _Place) -> _Place | None:
        """Delete rows of a collection, in at least one transaction, until a time. Returns the place
        that was reached; None if no row is left."""
        while reached := self._remove_some(key, place):
            place = reached
            if self._clock() > until:
                return reached
        return None

    def _next(self) -> int | None:
        """A deleted collection of which there are still rows."""
        query = select(collections.c.id).where(~is_live()).limit(1)
        with self._database.reading_once() as connection:
            key: int | None = connection.execute(query).scalar()
            return key

    def _hide(self, name: str) -> tuple[int, DeletionCounts]:
        """The collection's key, and what it held."""
        with self._database.writing() as connection:
            key = lock_collection(connection, name).key
            held = DeletionCounts(
                count_rows(connection, persons, persons.c.collection == key),
                count_rows(connection, templates, templates.c.collection == key),
            )
            mine = collections.c.id == key
            # What its operator wrote about it need not wait for the last transaction.
            values = {"name": f"{DELETED}{key}", "metadata": {}, "policy": {}}
            connection.execute(update(collections).where(mine).values(values))
            note(connection, "collection.deleted", name, persons=held.persons,
                 templates=held.templates)  # fmt: skip
        return key, held

    def _remove_some(self, key: int, place: _Place) -> _Place | None:
        """Delete the next rows of a collection that nobody can see. Returns the place after them
        once they are deleted for good; None if there are no more."""
        with self._database.writing() as connection:
            mine = collections.c.id == key
            # Two processes may do this at the same time.
            if not connection.execute(select(collections.c.id).where(mine).with_for_update()).all():
                return None
            while place.part < len(PARTS):
                columns, limit = PARTS[place.part]
                last = _delete_rows(connection, key, columns, limit, place.last)
                if last is not None:
                    return replace(place, last=last)
                place = _Place(place.part + 1)
            connection.execute(delete(collections).where(mine))
            return None


def free_face_ids(connection: Connection, face_ids: Collection[str]) -> None:
    """Delete the faces of deleted collections that have one of the ids: an export of such a
    collection can be imported again with its ids, before all of its rows are deleted."""
    theirs = templates.c.face_id.in_(face_ids) & ~is_live(templates)
    owners = select(templates.c.collection).where(theirs)
    mine = collections.c.id.in_(owners)
    # First, as `_remove_some` does, which deletes the same rows in another order.
    locked = select(collections.c.id).where(mine).order_by(collections.c.id)
    if connection.execute(locked.with_for_update()).all():
        connection.execute(delete(templates).where(theirs))


def _delete_rows(
    connection: Connection,
    key: int,
    columns: tuple[Column[Any], ...],
    limit: int,
    after: tuple[Any, ...] | None,
) -> tuple[Any, ...] | None:
    """Delete the next rows of a part, those after `after`. Returns the last of them; None if there
    were none."""
    table, row = columns[0].table, tuple_(*columns)
    beyond: list[ColumnElement[bool]] = [table.c.collection == key]
    if after is not None:
        beyond.append(row > after)
    query = select(*columns).where(*beyond).order_by(*columns).limit(limit)
    found = connection.execute(query).all()
    if not found:
        return None
    last = tuple(found[-1])
    connection.execute(delete(table).where(*beyond, row <= last))
    return last
